"""Pull the plug: after kill -9, Ctrl-C or SIGTERM the same command continues the same run and ends bit for bit."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

# A random encoder, dropout, augmentation, learned thresholds and a schedule: everything that a resume must bring back.
JOB = (
    "dataset=digits",
    "neuron=rouser",
    "encoder=rate",
    "scheduler=cosine",
    "model.spec=FC64-SN-DP0.2-DL3-FC-SN",
    "dataset.augment.shift=1",
    "dataset.num_steps=8",
    "trainer.max_epochs=4",
    "trainer.plots=false",
)


def start(folder: Path, *more: str) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "snnexp", *JOB, *more],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def interrupt_after_epoch(folder: Path, epoch: int, how: int, *more: str) -> tuple[int, str]:
    """Start the job and send it a signal in the middle of the epoch after `epoch`."""
    process = start(folder, *more)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(f"epoch {epoch}/"):
            break
    time.sleep(0.05)  # into the next epoch
    process.send_signal(how)
    _, errors = process.communicate()
    return process.returncode, errors


def finish(folder: Path, *more: str) -> str:
    process = start(folder, *more)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    return output


def only_run(folder: Path) -> Path:
    (run,) = folder.glob("runs/*/*/run.json")
    return run.parent


def metric_history(folder: Path) -> dict[tuple[str, int], float]:
    """All metrics but times in the store; fails if a (key, step) is there twice."""
    with sqlite3.connect(folder / "mlflow.db") as db:
        rows = db.execute("select key, step, value from metrics where key not like 'time/%'").fetchall()
    assert len({(key, step) for key, step, _ in rows}) == len(rows)
    return {(key, step): value for key, step, value in rows}


def statuses(folder: Path) -> list[str]:
    with sqlite3.connect(folder / "mlflow.db") as db:
        return [status for (status,) in db.execute("select status from runs")]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    finish(folder)
    return folder


def assert_same_run(folder: Path, reference: Path) -> None:
    for name in ("last.safetensors", "best.safetensors"):
        ours, theirs = (load_file(only_run(f) / name) for f in (folder, reference))
        assert ours.keys() == theirs.keys()
        assert all(ours[key].equal(theirs[key]) for key in ours), name
    assert statuses(folder) == ["FINISHED"]
    assert metric_history(folder) == metric_history(reference)


def test_killed_run_continues_in_the_same_run_bit_for_bit(tmp_path: Path, uninterrupted: Path) -> None:
    folder = tmp_path / "killed"
    code, _ = interrupt_after_epoch(folder, 2, signal.SIGKILL, "trainer.plots=true")
    assert code == -signal.SIGKILL
    assert statuses(folder) == ["RUNNING"]
    output = finish(folder, "trainer.plots=true")
    assert re.search(r"Continuing after epoch [23] of 4\.", output)
    assert_same_run(folder, uninterrupted)


@pytest.mark.parametrize("how", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_interrupt_marks_the_run_killed_and_is_resumable(tmp_path: Path, uninterrupted: Path, how: int) -> None:
    folder = tmp_path / "interrupted"
    code, errors = interrupt_after_epoch(folder, 1, how)
    assert code == 130
    assert "interrupted. The same command continues" in errors
    assert "Traceback" not in errors
    assert statuses(folder) == ["KILLED"]
    assert json.loads((only_run(folder) / "run.json").read_text())["status"] == "KILLED"
    finish(folder)
    assert_same_run(folder, uninterrupted)


def test_finished_run_starts_anew(tmp_path: Path) -> None:
    folder = tmp_path / "twice"
    for _ in range(2):
        finish(folder, "trainer.max_epochs=1", "trainer.smoke_steps=2")
    assert statuses(folder) == ["FINISHED", "FINISHED"]


def test_damaged_state_is_named_with_the_way_out(tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    interrupt_after_epoch(folder, 1, signal.SIGKILL)
    state = only_run(folder) / "state.pt"
    state.write_bytes(state.read_bytes()[:1000])
    process = start(folder)
    _, errors = process.communicate()
    assert process.returncode == 2
    assert "state.pt is damaged" in errors and "trainer.resume=never" in errors and "Traceback" not in errors
    finish(folder, "trainer.resume=never", "trainer.max_epochs=1")
