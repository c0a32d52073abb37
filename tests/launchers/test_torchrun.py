"""The real torchrun with two processes on this machine: how it ends when one of them does, and what is left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

WORDS = ("tracking=off", "device=cpu", "trainer.max_epochs=3", "trainer.plots=false", "dataset.limit_train=100",
         "dataset.limit_val=40", "dataset.limit_test=40", "dataset.num_steps=4", "model.spec=c4k3-BN-SN-FC-SN",
         "trainer.callbacks=[dying:Dies]")  # fmt: skip
DYING = """
import os, signal
from pathlib import Path

class Dies:
    def on_epoch(self, context):
        mark = Path("mark")
        if context.epoch != 2 or os.environ["RANK"] != "1" or mark.exists():
            return
        mark.touch()
        match os.environ["WAY"]:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "error":
                raise ValueError("no good")
            case "interrupt":
                os.kill(os.getppid(), signal.SIGINT)  # torchrun's
"""


def torchrun(folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "snnexp"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_TRACKING", "SNNEXP_START"))}
    folder.mkdir(exist_ok=True)
    (folder / "dying.py").write_text(DYING, encoding="utf-8")
    return subprocess.run(
        [*command, *words], cwd=folder, capture_output=True, text=True, env={**environment, **variables}
    )


def record(folder: Path) -> tuple[dict[str, Any], list[Any]]:
    """run.json, and the metrics without times."""
    (home,) = (folder / "runs").glob("*/001")
    lines = [json.loads(line) for line in (home / "metrics.jsonl").read_text().splitlines()]
    return json.loads((home / "run.json").read_text()), lines


def told(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What snnexp itself says at the end."""
    return [line for line in done.stderr.splitlines() if line.startswith("snnexp: ")]


def without_times(lines: list[Any]) -> list[Any]:
    def kept(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: kept(value) for key, value in node.items() if not str(key).startswith("time")}
        return node

    return [kept(line) for line in lines]


WAYS = {
    "kill": (1, "snnexp: error: another process of this run ended without a word", ("FAILED",)),
    "error": (2, "snnexp: error: trainer.callbacks=dying:Dies", ("FAILED",)),
    "interrupt": (130, "snnexp: interrupted.", ("KILLED",)),
}


@pytest.mark.parametrize("way", WAYS)
def test_one_process_ends_and_all_end_and_the_same_command_goes_on(way: str, tmp_path: Path) -> None:
    code, words, status = WAYS[way]
    done = torchrun(tmp_path / "cut", *WORDS, WAY=way)
    assert done.returncode == 1, done.stderr  # torchrun's own
    (line,) = told(done)
    assert line.startswith(words), done.stderr
    if way == "error":
        assert f"exitcode  : {code}" in done.stderr
    assert record(tmp_path / "cut")[0]["status"] in status
    again = torchrun(tmp_path / "cut", *WORDS, WAY=way)
    assert again.returncode == 0, again.stderr
    assert "Continuing after epoch 1 of 3" in again.stdout
    whole = tmp_path / "whole"
    whole.mkdir()
    (whole / "mark").touch()
    assert torchrun(whole, *WORDS, WAY=way).returncode == 0
    kept, lines = record(tmp_path / "cut")
    assert kept["status"] == "FINISHED"
    assert without_times(lines) == without_times(record(whole)[1])


def test_what_several_processes_cannot_do_is_said_once_with_a_way_out(tmp_path: Path) -> None:
    sweep = torchrun(tmp_path, "-m", "seed=0,1")
    (line,) = told(sweep)
    assert "torchrun once for each run" in line and "exitcode  : 2" in sweep.stderr
    (line,) = told(torchrun(tmp_path, "task=evaluate", "run_id=x"))
    assert "Give the command without torchrun" in line
    (line,) = told(torchrun(tmp_path, "neuron.thresold=3"))
    assert "Did you mean neuron.threshold?" in line
