"""Whole sweeps through the launchers: killed, cancelled and interrupted jobs, and the same command again."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from snnexp.tracking.healing import heal_all
from snnexp.tracking.mlflow_store import connect

pytestmark = pytest.mark.slow


def slurm_answers() -> bool:
    """Whether there is a cluster: many machines have its commands only."""
    if shutil.which("sbatch") is None:
        return False
    return subprocess.run(["scontrol", "ping"], capture_output=True, check=False).returncode == 0


needs_slurm = [pytest.mark.slurm, pytest.mark.skipif(not slurm_answers(), reason="no Slurm controller answers")]

# Stops in epoch 2, with the first one saved, until somebody makes the file `go`.
CALLBACK = """
import time
from pathlib import Path

class Wait:
    def on_epoch(self, context):
        while context.epoch == 2 and not Path(__file__).with_name("go").exists():
            time.sleep(0.1)
"""


class Sweep:
    """The real command in a folder of its own; three seeds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "wait.py").write_text(CALLBACK)
        self.words = ["trainer=smoke", "trainer.max_epochs=2", "trainer.plots=false", "trainer.smoke_steps=1"]
        self.words += ["seed=0,1,2", f"trainer.callbacks=[{folder}/wait.py:Wait]"]

    def start(self, *words: str) -> subprocess.Popen[str]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_TRACKING", "SNNEXP_START"))}
        command = [sys.executable, "-m", "snnexp", "-m", *self.words, *words]
        with (self.folder / "out.txt").open("w") as out:
            return subprocess.Popen(
                command, cwd=self.folder, env=environment, stdout=out, stderr=out, text=True, process_group=0
            )

    @property
    def out(self) -> str:
        return (self.folder / "out.txt").read_text()

    def wait_for(self, count: int, process: subprocess.Popen[str]) -> dict[int, int]:
        """Processes by seed, once `count` runs have finished their first epoch."""
        while True:
            found = {}
            for path in self.folder.glob("runs/*/001/metrics.jsonl"):
                text = path.read_text()
                if '"step": 1' in text or '"epoch": 1' in text or len(text.splitlines()) > 1:
                    config = (path.parent / "artifacts" / "config.yaml").read_text()
                    seed = int(re.search(r"^seed: (\d)", config, re.M)[1])  # type: ignore[index]
                    found[seed] = json.loads((path.parent / "run.json").read_text())["pid"]
            if len(found) >= count:
                return found
            assert process.poll() is None, self.out
            time.sleep(0.5)

    def store(self) -> Any:
        store = connect(f"sqlite:///{self.folder}/mlflow.db", "snnexp", create=False)
        assert store is not None
        return store

    def statuses(self) -> tuple[Counter[str], list[str]]:
        """Of the children, and of the parents."""
        store = self.store()
        runs = store.client.search_runs([store.experiment_id])
        parents = [run for run in runs if "snnexp.role" in run.data.tags]
        children = [run for run in runs if run not in parents]
        return Counter(run.info.status for run in children), [run.info.status for run in parents]

    def epochs_are_there_once(self) -> None:
        store = self.store()
        for run in store.client.search_runs([store.experiment_id], "tags.run_uid != ''"):
            points = store.client.get_metric_history(run.info.run_id, "train/loss")
            assert [point.step for point in points] == [1, 2]


def slurm(executor: str) -> list[str]:
    """Words; all three jobs run at once, on however few cores."""
    return ["hydra/launcher=slurm", f"hydra.launcher.executor={executor}", "hydra.launcher.array_parallelism=3"]


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return Sweep(tmp_path)


@pytest.mark.parametrize("executor", ["local", pytest.param("slurm", marks=needs_slurm)])
def test_a_killed_and_a_cancelled_job(sweep: Sweep, executor: str) -> None:
    words = slurm(executor)
    process = sweep.start(*words)
    running = sweep.wait_for(3, process)
    os.kill(running[0], signal.SIGKILL)
    if executor == "slurm":
        array = re.search(r"squeue -j (\d+)", sweep.out)
        assert array is not None
        subprocess.run(["scancel", f"{array[1]}_1"], check=True)
    else:
        os.kill(running[1], signal.SIGTERM)
    (sweep.folder / "go").touch()
    assert process.wait() == 1, sweep.out
    children, parents = sweep.statuses()
    assert children == {"FINISHED": 1, "KILLED": 2}
    assert parents == ["KILLED"]
    assert "#2 finished: " in sweep.out
    assert "Output: " in sweep.out
    assert "Please report it" not in sweep.out

    assert sweep.start(*words).wait() == 0, sweep.out
    assert "3 jobs: 3 finished." in sweep.out
    assert sweep.statuses() == ({"FINISHED": 3}, ["FINISHED"])
    sweep.epochs_are_there_once()


@pytest.mark.parametrize("executor", ["local", pytest.param("slurm", marks=needs_slurm)])
def test_ctrl_c_cancels_the_jobs(sweep: Sweep, executor: str) -> None:
    process = sweep.start(*slurm(executor))
    sweep.wait_for(2, process)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait() == 130, sweep.out
    assert "Cancelling" in sweep.out
    children, parents = sweep.statuses()
    assert set(children) == {"KILLED"}
    assert parents == ["KILLED"]


@pytest.mark.parametrize("executor", ["local", pytest.param("slurm", marks=needs_slurm)])
def test_a_dead_launcher(sweep: Sweep, executor: str) -> None:
    """Its jobs go on, and the last of them closes the sweep."""
    process = sweep.start(*slurm(executor))
    sweep.wait_for(3, process)
    process.kill()
    process.wait()
    (sweep.folder / "go").touch()
    while sweep.statuses()[0]["FINISHED"] < 3 or sweep.statuses()[1] == ["RUNNING"]:
        time.sleep(1)
    assert sweep.statuses()[1] == ["FINISHED"]


def test_ctrl_c_under_joblib_leaves_nobody_running(sweep: Sweep) -> None:
    process = sweep.start("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    sweep.wait_for(2, process)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait() == 130, sweep.out
    assert sweep.statuses() == ({"KILLED": 2}, ["KILLED"])
    (sweep.folder / "go").touch()
    assert sweep.start("hydra/launcher=joblib", "hydra.launcher.n_jobs=2").wait() == 0, sweep.out
    assert sweep.statuses() == ({"FINISHED": 3}, ["FINISHED"])
    sweep.epochs_are_there_once()


def test_a_killed_worker_of_joblib_costs_no_run(sweep: Sweep) -> None:
    process = sweep.start("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    running = sweep.wait_for(2, process)
    os.kill(running[0], signal.SIGKILL)
    (sweep.folder / "go").touch()
    assert process.wait() == 0, sweep.out
    assert "A worker process was killed" in sweep.out
    assert sweep.statuses() == ({"FINISHED": 3}, ["FINISHED"])
    sweep.epochs_are_there_once()


def test_a_sweep_that_was_killed_whole_is_put_right_by_a_look(sweep: Sweep) -> None:
    process = sweep.start()
    sweep.wait_for(1, process)
    process.kill()
    process.wait()
    assert sweep.statuses() == ({"RUNNING": 1}, ["RUNNING"])
    heal_all(sweep.store())
    assert sweep.statuses() == ({"KILLED": 1}, ["KILLED"])
