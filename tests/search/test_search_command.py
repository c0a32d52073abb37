"""The real command, killed and continued; slow."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

optuna = pytest.importorskip("optuna")

SEARCH = (
    "-m",
    "hydra/sweeper=optuna",
    "hydra.sweeper.n_trials=6",
    "hydra.sweeper.pruner=median",
    "hydra.sweeper.pruner_kwargs={n_startup_trials: 2}",
    "optimizer.lr=tag(log, interval(1e-4, 1e-1))",
    "neuron=fixed,plif",
    "trainer.max_epochs=2",
    "trainer.plots=false",
    "model.spec=FC16-SN-FC-SN",
)


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_TRACKING")} | {
        "OMP_NUM_THREADS": "1"
    }
    command = [sys.executable, "-m", "snnexp", *words]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )


@pytest.mark.slow
def test_killed_twice_there_are_as_many_trials_as_wanted_and_the_best_can_be_repeated(tmp_path: Path) -> None:
    for trial in (1, 3):
        process = start(tmp_path, *SEARCH)
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(f"Trial {trial - 1}"):
                break
        for line in process.stdout:  # in the middle of the next one
            if line.startswith("epoch 1/"):
                break
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    process = start(tmp_path, *SEARCH)
    out, _ = process.communicate()
    assert process.returncode == 0
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{tmp_path}/optuna.db")
    trials = study.get_trials()
    assert len(trials) == 6
    assert {trial.state.name for trial in trials} <= {"COMPLETE", "PRUNED"}
    assert len({trial.params["optimizer.lr"] for trial in trials}) == 6
    assert re.search(r"Sweep: 6 finished.*, 0 failed, 0 killed\.", out)
    [command] = [line for line in out.splitlines() if line.startswith("  ") and "optimizer.lr=" in line]
    again = start(tmp_path, *shlex.split(command)[1:])
    said, _ = again.communicate()
    assert again.returncode == 0
    [accuracy] = re.findall(r"chosen on validation \(accuracy ([\d.]+)\)", said)
    assert float(accuracy) == pytest.approx(study.best_value, abs=5e-5)
    folder = Path(study.best_trial.user_attrs["folder"])
    assert (folder / "best.safetensors").read_bytes() == (folder.parent / "002" / "best.safetensors").read_bytes()
