"""Every job's outcome is collected, whatever becomes of some of them; and what Slurm says is understood."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hydra.core.utils import JobReturn, JobStatus

from snnexp.errors import ConfigError
from snnexp.launchers import queue, slurm, watching
from snnexp.launchers.outcomes import names, summary
from snnexp.launchers.watching import Watch
from snnexp.launchers.worker import JobError
from snnexp.tracking import sweep_folder


def returned(value: Any, status: JobStatus = JobStatus.COMPLETED) -> tuple[str, Any]:
    done = JobReturn(status=status)
    done.return_value = value
    return "success", done


class Jobs:
    """Jobs whose states and results follow a script: one list of states per look."""

    def __init__(self, looks: list[list[str] | None], results: dict[int, tuple[int, tuple[str, Any]]]) -> None:
        self.looks, self.results, self.look = looks, results, 0

    def states(self) -> list[str] | None:
        self.look += 1
        return self.looks[min(self.look, len(self.looks)) - 1]

    def result(self, number: int) -> tuple[str, Any] | None:
        since, result = self.results.get(number, (10**9, ("", None)))
        return result if self.look >= since else None

    def name(self, number: int) -> str:
        return f"job 7_{number}"

    def why(self, number: int, state: str) -> str:
        return "OUT_OF_MEMORY" if state == queue.GONE else state

    def log(self, number: int) -> Path:
        return Path(f"7_{number}.err")


@pytest.fixture
def watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(watching, "RESULTS_EVERY_S", 0.0)
    monkeypatch.setattr(watching, "STATES_EVERY_S", 0.0)

    def begin(jobs: Jobs, count: int) -> Watch:
        made = Watch(tmp_path, jobs, [[f"seed={n}"] for n in range(count)], 0)  # type: ignore[arg-type]
        monkeypatch.setattr(made, "_heal", lambda: healed.append(jobs.look))
        return made

    healed: list[int] = []
    begin.healed = healed  # type: ignore[attr-defined]
    return begin


def test_one_lost_job_does_not_end_the_others(watch: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run = "RUNNING"
    looks = [
        ["RUNNING"] * 5,
        None,
        [run, "CANCELLED", queue.GONE, run, "PENDING"],
        [run, "CANCELLED", queue.GONE, run, run],
    ]
    results = {0: (5, returned(0.9)), 3: (6, returned(ValueError("no"), JobStatus.FAILED)), 4: (7, returned(None))}
    outcomes = watch(Jobs(looks, results), 5).until_all_ended()
    assert [outcome.how for outcome in outcomes] == ["finished", "killed", "lost", "failed", "finished"]
    assert outcomes[0].done.return_value == 0.9
    for outcome in outcomes[1:4]:
        with pytest.raises((JobError, ValueError)):
            _ = outcome.done.return_value
    out = capsys.readouterr().out
    assert "#0 finished: seed=0 (best on validation 0.9000)" in out
    assert "#1 killed: seed=1 (job 7_1 was cancelled; 7_1.err)" in out
    assert "#2 lost: seed=2 (job 7_2 needed more memory than hydra.launcher.mem_gb gives it; 7_2.err)" in out
    assert "[5/5]" in out
    assert watch.healed and watch.healed[0] == 3  # at the first look that misses them
    assert summary(outcomes, "logs")[0] == "5 jobs: 2 finished, 1 failed, 1 killed, 1 lost. Output: logs"


def test_a_job_that_is_queued_again_is_waited_for(watch: Any) -> None:
    looks: list[list[str] | None] = [["RUNNING"], ["FAILED"], ["PENDING"], ["PENDING"], ["FAILED"], ["RUNNING"]]
    outcomes = watch(Jobs(looks, {0: (8, returned(0.5))}), 1).until_all_ended()
    assert [outcome.how for outcome in outcomes] == ["finished"]


def test_a_result_that_comes_late_counts(watch: Any) -> None:
    """A network disk shows it some seconds after the job has left the queue."""
    outcomes = watch(Jobs([["RUNNING"], [queue.GONE]], {0: (3, returned(0.5))}), 1).until_all_ended()
    assert [outcome.how for outcome in outcomes] == ["finished"]


def test_the_last_time_limit_is_no_failure(watch: Any) -> None:
    error = "Traceback\nsubmitit.core.utils.UncompletedJobError: Job not requeued because: timed-out too many times."
    [outcome] = watch(Jobs([["RUNNING"]], {0: (1, ("error", error))}), 1).until_all_ended()
    assert outcome.how == "killed"
    assert "max_num_timeout" in outcome.text


def test_jobs_are_named_by_what_tells_them_apart() -> None:
    usual = ["dataset=nmnist", "hydra.launcher.partition=gpu"]
    assert names([[*usual, "seed=0"], [*usual, "seed=1"]]) == ["seed=0", "seed=1"]
    assert names([[*usual, "seed=0"]]) == ["dataset=nmnist seed=0"]


# --- what Slurm says ---


@pytest.fixture
def slurm_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put a program of this name first in the PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def make(name: str, text: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)

    return make


def test_the_queue_is_read(slurm_commands: Any) -> None:
    slurm_commands("squeue", "printf '12_0|RUNNING\\n12_1|COMPLETED\\n12_2|PENDING\\n'")
    assert queue.states(["12"]) == {"12_0": "RUNNING", "12_1": "COMPLETED", "12_2": "PENDING"}
    assert queue.active(["12"]) == ["12_0", "12_2"]
    slurm_commands("squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert queue.states(["12"]) == {}  # long over
    slurm_commands("squeue", "echo 'Unable to contact slurm controller' >&2; exit 1")
    assert queue.states(["12"]) is None  # not over
    slurm_commands("sacct", "printf 'CANCELLED by 0\\n'")
    assert queue.end_of("12_1") == "CANCELLED"
    slurm_commands("sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    assert queue.end_of("12_1") == queue.GONE


def test_silence_is_no_word_about_jobs(
    slurm_commands: Any, watch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A controller that does not answer: whoever waits goes on waiting, and nothing is declared over."""
    (tmp_path / sweep_folder.SWEEP_FILE).write_text(json.dumps({"before": str(tmp_path)}))
    sweep_folder.note_jobs(tmp_path, 2, ["12"])
    down, waits = "echo 'Unable to contact slurm controller' >&2; exit 1", "printf '12_1|PENDING\\n'"
    slurm_commands("sbatch", "exit 1")
    slurm_commands("squeue", down)
    assert sweep_folder.queued(tmp_path) is None
    looks = iter([down, waits, "true"])

    def sleep(seconds: float) -> None:
        if seconds == watching.STATES_EVERY_S:  # subprocess sleeps, too, while a command is slow
            slurm_commands("squeue", next(looks))

    monkeypatch.setattr(time, "sleep", sleep)
    slurm._wait_for_earlier(tmp_path)
    assert next(looks, None) is None
    said = capsys.readouterr().out
    assert said.count("Slurm does not answer (squeue)") == said.count("are still in Slurm (12; scancel ends them)") == 1
    jobs = Jobs([None, ["RUNNING"], None, ["CANCELLED"], ["RUNNING"]], {})
    monkeypatch.setattr(time, "sleep", lambda _: None)
    watch(jobs, 1).until_gone(60.0)
    assert jobs.look == 4


@pytest.mark.parametrize(
    ("params", "at_once"),
    [
        ({"executor": "slurm"}, 32),
        ({"executor": "local"}, 6),
        ({"executor": "local", "cpus_per_task": 4}, 1),
        ({"executor": "local", "cpus_per_task": 16}, 1),
        ({"executor": "local", "array_parallelism": 9}, 9),
    ],
)
def test_as_many_jobs_at_once_as_there_is_room_for(
    params: dict[str, Any], at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "cores", lambda: 6)
    assert slurm.parallelism({"array_parallelism": None, "cpus_per_task": None, **params}) == at_once


def parameters(**changed: Any) -> dict[str, Any]:
    usual = {"executor": "local", "timeout_min": 240, "max_num_timeout": 1, "array_parallelism": 4}
    return {**usual, "signal_delay_s": 120, "nodes": 1, **changed}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"executor": "pbs"}, "hydra.launcher.executor=pbs: no such option"),
        ({"timeout_min": "long"}, "hydra.launcher.timeout_min=long: must be a whole number, 1 or more"),
        ({"timeout_min": 2}, "hydra.launcher.signal_delay_s=120: a job of 2 min would be told at once"),
        ({"executor": "slurm"}, "there is no sbatch here"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(
    changed: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "is_installed", lambda: False)
    with pytest.raises(ConfigError, match=said):
        slurm._check(parameters(**changed))


def test_inside_a_container_jobs_start_in_it() -> None:
    assert slurm.container_python({}) is None
    found = slurm.container_python({"APPTAINER_CONTAINER": "/my images/snnexp.sif", "APPTAINER_NV": "1"})
    assert found is not None and found.startswith("apptainer exec --nv '/my images/snnexp.sif' ")
