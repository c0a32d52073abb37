"""What a process needs before it does a run, and a job as it is carried to another process."""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Sequence
from typing import Any

from snnexp import interrupts
from snnexp.allocator import prepare_allocator
from snnexp.errors import SnnexpError
from snnexp.secrets import guard_logging


def prepare_process() -> None:
    """Signals, memory, threads and log of whatever process does a run: the command's own or a launcher's worker.

    Called where a job starts, so that no launcher can leave it out. It changes nothing when called again.
    """
    interrupts.install()
    prepare_allocator()
    _threads_of_the_job()
    logging.raiseExceptions = False  # a full disk must not bring a traceback for each line of the log
    guard_logging()


def _threads_of_the_job() -> None:
    """As many threads as Slurm gave the job CPUs: a cluster that binds nobody to them would share all with all."""
    cpus = os.environ.get("SLURM_CPUS_PER_TASK") or os.environ.get("SLURM_CPUS_ON_NODE")
    if os.environ.get("SUBMITIT_EXECUTOR") == "slurm" and cpus and cpus.isdigit():
        os.environ.setdefault("OMP_NUM_THREADS", cpus)  # the user's own comes first


def job_tags(once_more: bool = False) -> dict[str, str]:
    """`slurm_job`, and `requeued`: how often Slurm has put this job into the queue again, if it has.

    once_more: it is about to do so, since the job's time is up.
    """
    text = os.environ.get("SLURM_RESTART_COUNT", "")
    count = (int(text) if text.isdigit() else 0) + once_more
    tags = {"requeued": str(count)} if count else {}
    job = os.environ.get("SLURM_JOB_ID")
    return {**tags, "slurm_job": job} if job else tags


class JobError(SnnexpError):
    """A job's error, in a form that every process can read back."""

    def __init__(self, text: str, exit_code: int = 1) -> None:
        super().__init__(text, exit_code)
        self.text, self.exit_code = text, exit_code

    def __str__(self) -> str:
        return self.text


class JobLost(JobError):
    """A job that did not come back: it says nothing about what was asked of it."""


class Work:
    """One sweep's jobs: carried to a worker with pickle and called there with one job's overrides.

    Args:
        hydra_context, config, task_function: what Hydra gave the launcher.
    """

    def __init__(self, hydra_context: Any, config: Any, task_function: Any) -> None:
        self.hydra_context, self.config, self.task_function = hydra_context, config, task_function

    def __call__(self, overrides: Sequence[str], number: int, job_id: str | None, singletons: dict[Any, Any]) -> Any:
        """Do the job; returns Hydra's JobReturn. A job that is put into the queue again does not return."""
        from hydra.core.hydra_config import HydraConfig
        from hydra.core.singleton import Singleton
        from hydra.core.utils import run_job, setup_globals
        from omegaconf import open_dict

        Singleton.set_state(singletons)
        setup_globals()
        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.id = job_id or _submitit_id()
            config.hydra.job.num = number
        HydraConfig.instance().set_config(config)
        try:
            done = run_job(
                hydra_context=self.hydra_context,
                task_function=self.task_function,
                config=config,
                job_dir_key="hydra.sweep.dir",
                job_subdir_key="hydra.sweep.subdir",
            )
        except KeyboardInterrupt:
            raise SystemExit(130) from None  # its record is closed; a traceback in the log would say nothing more
        return readable(done)

    def checkpoint(self, *arguments: Any) -> Any:
        """What submitit starts when the job comes out of the queue again: the same, which goes on by itself."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, *arguments)


def _submitit_id() -> str:
    from submitit import JobEnvironment

    return str(JobEnvironment().job_id)


def readable(done: Any) -> Any:
    """A JobReturn that survives pickling: errors of libraries often do not."""
    error = done._return_value
    if isinstance(error, BaseException):
        said = str(error) if isinstance(error, SnnexpError) else f"{type(error).__name__}: {error}"
        done.return_value = JobError(said, getattr(error, "exit_code", 1))
    else:
        try:
            pickle.dumps(error)
        except Exception:
            done.return_value = None
    return done
