"""A worker's signals are those of the first process, whatever submitit had set up before."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from snnexp import interrupts
from snnexp.errors import ConfigError
from snnexp.launchers import worker
from snnexp.launchers.slurm import _array

submitit = pytest.importorskip("submitit")

from submitit.core.job_environment import JobEnvironment, SignalHandler  # noqa: E402
from submitit.core.utils import DelayedSubmission, FailedJobError, JobPaths, UncompletedJobError  # noqa: E402

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCONT, signal.SIGUSR1, signal.SIGUSR2)


class Cluster(JobEnvironment):
    """A cluster that only writes down what it is asked for."""

    _env = {"job_id": "NO_SUCH_JOB", "global_rank": "NO_SUCH_RANK"}
    queued: list[int]

    def _requeue(self, countdown: int) -> None:
        self.queued.append(countdown)


@pytest.fixture
def submitits(tmp_path: Path) -> Iterator[Any]:
    """Submitit's handlers as a worker has them; call it with how many more time limits the job may run into."""
    before = {number: signal.getsignal(number) for number in NUMBERS}
    interrupts.reset()

    def start(starts_left: int) -> Cluster:
        cluster = Cluster()
        cluster.queued = []
        delayed = DelayedSubmission(worker.Work(None, None, None), ["seed=1"], 0, None, {})
        delayed.set_timeout(0, starts_left)  # any time is too long
        (tmp_path / "j").mkdir()
        cluster._handle_signals(JobPaths(tmp_path / "j", "1"), delayed)
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        worker.prepare_process()
        return cluster

    yield start
    interrupts.reset()
    for number, handler in before.items():
        signal.signal(number, handler)


def test_scancel_interrupts_a_worker(submitits: Any) -> None:
    cluster = submitits(1)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)
    interrupts.ending()
    assert not interrupts.will_be_requeued()
    interrupts.hand_back()  # does nothing: the job was cancelled
    assert cluster.queued == []


def test_a_job_whose_time_is_up_is_interrupted_first_and_then_queued_again(submitits: Any, tmp_path: Path) -> None:
    cluster = submitits(1)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGUSR2)
    assert cluster.queued == []  # the record is closed before
    interrupts.ending()
    os.kill(os.getpid(), signal.SIGTERM)  # Slurm's next one does not tear that
    assert interrupts.will_be_requeued()
    with pytest.raises(SystemExit):
        interrupts.hand_back()
    assert cluster.queued == [0]
    again = DelayedSubmission.load(tmp_path / "j" / "1_submitted.pkl")
    assert again.args == (["seed=1"], 0, None, {})


def test_a_job_without_starts_left_is_not_queued_again(submitits: Any) -> None:
    cluster = submitits(0)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGUSR2)
    interrupts.ending()
    assert not interrupts.will_be_requeued()
    with pytest.raises(UncompletedJobError, match="timed-out too many times"):
        interrupts.hand_back()
    assert cluster.queued == []


def test_handlers_of_anybody_else_stay(submitits: Any) -> None:
    def theirs(*_: Any) -> None: ...

    signal.signal(signal.SIGUSR1, theirs)
    submitits(1)
    assert signal.getsignal(signal.SIGUSR1) is theirs
    assert not isinstance(getattr(signal.getsignal(signal.SIGUSR2), "__self__", None), SignalHandler)


def test_threads_are_the_cpus_that_slurm_gave(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "SLURM_CPUS_ON_NODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "3")
    worker._threads_of_the_job()
    assert "OMP_NUM_THREADS" not in os.environ  # not a job of a sweep: Slurm's users have their own ways
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    worker._threads_of_the_job()
    assert os.environ["OMP_NUM_THREADS"] == "3"
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    worker._threads_of_the_job()
    assert os.environ["OMP_NUM_THREADS"] == "2"


def test_what_a_job_returns_can_be_read_by_every_process() -> None:
    import pickle

    from hydra.core.utils import JobReturn, JobStatus

    class Odd(Exception):
        def __init__(self, one: object, two: object) -> None:
            super().__init__(f"{one} and {two}")

    done = JobReturn(status=JobStatus.FAILED)
    done.return_value = Odd(1, lambda: None)
    again = pickle.loads(pickle.dumps(worker.readable(done)))
    with pytest.raises(worker.JobError, match=r"^Odd: 1 and"):
        _ = again.return_value
    done.return_value = worker.JobError("seed=x: no number", 2)
    assert pickle.loads(pickle.dumps(worker.readable(done)))._return_value.exit_code == 2


def test_jobs_that_slurm_does_not_take_are_said_in_its_own_words() -> None:
    class Refusing:
        def map_array(self, *_: Any) -> None:
            raise FailedJobError("sbatch: error: invalid partition specified: gpux\n")

    with pytest.raises(ConfigError, match="Slurm did not take the jobs: sbatch: error: invalid partition"):
        _array(Refusing(), None, [("a", 0)])  # type: ignore[arg-type]
