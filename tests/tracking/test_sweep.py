"""Sweeps from the outside: a small Hydra program with our callback, in its own process, and the store it leaves."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from snnexp import commands
from snnexp.tracking.links import compare_link, experiment_link, run_link, ui_command, without_password
from snnexp.tracking.mlflow_store import connect
from snnexp.tracking.sweep import sweep_id

CONF = """
seed: 0
task: train
state_dir: ./runs
break_seed: null
pause_s: 0
dataset: {name: digits}
neuron: {name: fixed}
trainer: {resume: auto}
tracking: {name: mlflow, uri: null, experiment: snnexp, run_name: null, system_metrics: false}
hydra:
  run: {dir: outputs}
  sweep: {dir: "multirun/${now:%H-%M-%S-%f}", subdir: "${hydra.job.num}"}
  callbacks: {mlflow: {_target_: snnexp.tracking.sweep.SweepParent}}
"""
PROGRAM = """
import time
from pathlib import Path
import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

@hydra.main(version_base="1.3", config_path=str(Path(__file__).parent), config_name="conf")
def job(c):
    from snnexp.config import TrackingConf
    from snnexp.tracking.runs import claim
    from snnexp.tracking.store import open_tracker
    from snnexp.tracking.sweep import current_sweep

    config = OmegaConf.to_container(c, resolve=True)
    sweep = current_sweep()
    folder = claim(config, c.state_dir, c.trainer.resume, in_sweep=sweep is not None)
    if folder.action == "skip":
        print("SKIP", c.seed)
        sweep.record_skip(folder.record.mlflow_run_id)
        return
    print(folder.action.upper(), c.seed, flush=True)
    tracker = open_tracker(
        TrackingConf(**config["tracking"]), folder, config, start_dir=HydraConfig.get().runtime.cwd,
        parent_run_id=sweep and sweep.parent_run_id, sweep_id=sweep and sweep.sweep_id,
        source_overrides=HydraConfig.get().overrides.task,
    )
    status = "FAILED"
    try:
        # the best on validation (seed 1) is not the best on test (seed 0)
        tracker.log_epoch(1, {"val/accuracy": 0.5 + 0.1 * c.seed, "test/accuracy": 0.9 - 0.1 * c.seed})
        time.sleep(c.pause_s)
        if c.seed == c.break_seed and not Path("repaired").exists():
            raise RuntimeError("broken on purpose")
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        tracker.finish(status)
        folder.finish(status)

job()
"""


class Program:
    """The program, the folder it runs in, and what it left in the store there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "conf.yaml").write_text(CONF)
        (folder / "program.py").write_text(PROGRAM)
        self.environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"} | {
            "OMP_NUM_THREADS": "1"
        }

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        command = [sys.executable, "program.py", *arguments]
        return subprocess.Popen(command, cwd=self.folder, env=self.environment, **pipes)  # type: ignore[call-overload, no-any-return]

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        process = self.start(*arguments)
        out, err = process.communicate()
        return process.returncode, out, err

    def runs(self) -> tuple[list[Any], list[Any]]:
        """Parents and children, by name."""
        store = connect(f"sqlite:///{self.folder}/mlflow.db", "snnexp", create=False)
        assert store is not None
        runs = sorted(store.client.search_runs([store.experiment_id]), key=lambda run: run.info.run_name)
        parents = [run for run in runs if run.data.tags.get("snnexp.role") == "sweep"]
        return parents, [run for run in runs if run not in parents]


@pytest.fixture
def program(start_dir: Path) -> Program:
    return Program(start_dir)


def test_a_sweep_is_one_parent_that_a_second_sweep_continues(program: Program) -> None:
    arguments = ["-m", "seed=0,1", "break_seed=1"]
    code, out, err = program(*arguments)
    assert code == 1
    assert "broken on purpose" in err
    assert "Sweep: 1 finished, 1 failed, 0 killed." in out
    [parent], children = program.runs()
    assert parent.info.status == "FAILED"
    assert [child.info.status for child in children] == ["FINISHED", "FAILED"]
    assert {child.data.tags["mlflow.parentRunId"] for child in children} == {parent.info.run_id}
    assert {child.data.tags["sweep_id"] for child in children} == {parent.data.tags["sweep_id"]}
    assert [child.data.tags["overrides"] for child in children] == ["seed=0 break_seed=1", "seed=1 break_seed=1"]

    (program.folder / "repaired").touch()
    code, out, err = program(*arguments)
    assert code == 0, err
    assert "SKIP 0" in out
    assert "RESUME 1" in out
    assert "Sweep: 2 finished, 0 failed, 0 killed." in out
    assert "runs?workflowType=machine_learning" in out
    [again], children = program.runs()
    assert (again.info.run_id, again.info.status) == (parent.info.run_id, "FINISHED")
    assert [child.info.status for child in children] == ["FINISHED", "FINISHED"]
    assert again.data.metrics["children/finished"] == 2
    # the child chosen on validation, with its test accuracy
    assert again.data.tags["best_child"] == children[1].info.run_id
    assert again.data.metrics["best_child/test/accuracy"] == pytest.approx(0.8)
    assert again.data.metrics["best_child/val/accuracy"] == pytest.approx(0.6)
    # a mean over all rows of the experiment counts each run once
    assert not {"test/accuracy", "val/accuracy"} & set(again.data.metrics)


def test_a_run_that_was_finished_in_another_store_does_not_keep_the_sweep_open(program: Program) -> None:
    shutil.copy(program.folder / "mlflow.db", program.folder / "other.db")  # MLflow's tables, or it makes them: seconds
    code, _, err = program("tracking.uri=sqlite:///other.db")
    assert code == 0, err
    code, out, err = program("-m", "seed=0,1")
    assert code == 0, err
    assert "SKIP 0" in out and "Sweep: 1 finished, 0 failed, 0 killed." in out
    [parent], _ = program.runs()
    assert parent.info.status == "FINISHED"


def test_ctrl_c_marks_the_run_and_the_sweep_killed(program: Program) -> None:
    process = program.start("-m", "seed=0,1", "pause_s=60")
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("NEW 0"):
            break
    while not list(program.folder.glob("runs/*/001/metrics.jsonl")) and process.poll() is None:
        time.sleep(0.1)  # until the run is in the store
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate()
    assert process.returncode != 0
    assert "Sweep: 0 finished, 0 failed, 1 killed." in out
    [parent], [child] = program.runs()
    assert (parent.info.status, child.info.status) == ("KILLED", "KILLED")


def test_a_finished_single_run_is_counted_by_the_sweep_that_skips_it(program: Program) -> None:
    assert program("seed=1")[0] == 0
    code, out, err = program("-m", "seed=0,1")
    assert code == 0, err
    assert "NEW 0" in out
    assert "SKIP 1" in out
    assert "Sweep: 2 finished, 0 failed, 0 killed." in out
    [parent], [_, single] = program.runs()
    assert parent.data.tags["best_child"] == single.info.run_id
    assert "mlflow.parentRunId" not in single.data.tags


def test_with_tracking_off_there_is_no_parent(program: Program) -> None:
    (program.folder / "mlflow.db").unlink()
    code, out, err = program("-m", "seed=0,1", "tracking.name=off")
    assert code == 0, err
    assert out.count("NEW") == 2
    assert "Sweep:" not in out
    assert not list(program.folder.glob("multirun/*/mlflow_parent.json"))
    assert not (program.folder / "mlflow.db").exists()


def test_an_unreachable_store_ends_the_sweep_at_once(program: Program) -> None:
    code, out, err = program("-m", "seed=0,1", "tracking.uri=http://127.0.0.1:1")
    assert code == 2
    assert "http://127.0.0.1:1" in err
    assert "tracking=off" in err
    assert "Traceback" not in err
    assert "NEW" not in out


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_other_launchers_find_the_parent(program: Program, launcher: str) -> None:
    pytest.importorskip(f"hydra_plugins.hydra_{launcher.partition('_')[0]}_launcher")
    code, out, err = program("-m", "seed=0,1", f"hydra/launcher={launcher}")
    assert code == 0, err
    assert "Sweep: 2 finished, 0 failed, 0 killed." in out
    [parent], children = program.runs()
    assert {child.data.tags["mlflow.parentRunId"] for child in children} == {parent.info.run_id}
    shutil.rmtree(program.folder / "multirun")


def test_sweep_id_is_what_was_asked_for() -> None:
    base = sweep_id(["neuron=fixed,rouser", "seed=0,1"])
    assert base == sweep_id(["seed=0,1", "neuron=fixed,rouser"])
    assert base == sweep_id(["neuron=fixed,rouser", "seed=0,1", "trainer.resume=never", "tracking.uri=http://x"])
    assert base == sweep_id(["neuron=fixed,rouser"], {"seed": "0,1"})
    assert base != sweep_id(["neuron=fixed,rouser", "seed=0,1,2"])
    assert base != sweep_id(["+experiment=rouser_fig6b", "neuron=fixed,rouser", "seed=0,1"])


def test_links() -> None:
    local, server = "sqlite:////home/me/mlflow.db", "https://me:secret@host/mlflow/"
    assert run_link(server, "3", "abc") == "https://host/mlflow/#/experiments/3/runs/abc?workflowType=machine_learning"
    charts = "#/experiments/3/runs?workflowType=machine_learning&compareRunsMode=CHART"
    assert experiment_link(local, "3") == f"http://127.0.0.1:5000/{charts}"
    compare = compare_link(local, "3", ["a", "b"])
    assert compare is not None
    assert "runs=%5B%22a%22%2C%22b%22%5D&experiments=%5B%223%22%5D" in compare
    assert run_link("databricks", "3", "abc") is None
    assert ui_command(local) == f"{commands.program('mlflow')} ui --backend-store-uri {local} --workers 1"
    assert ui_command(server) is None
    assert without_password("postgresql://me:secret@host/db") == "postgresql://me:***@host/db"
    assert without_password(local) == local
