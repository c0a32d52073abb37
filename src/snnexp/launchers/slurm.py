"""`hydra/launcher=slurm`: the jobs of a sweep as one Slurm array, by way of submitit.

What submitit's own Hydra launcher leaves open: it ends at the first job that is lost, says nothing about the jobs that
go on, and knows nothing of a record that has to be closed. Here every job's outcome is collected, Ctrl-C cancels the
jobs (a closed terminal leaves them), and runs that died are told to the store.

`executor: local` starts the same jobs with submitit's local executor: to try a sweep out, and to test this file.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from snnexp import interrupts
from snnexp.errors import ConfigError
from snnexp.launchers import queue
from snnexp.launchers.base import SweepLauncher
from snnexp.launchers.outcomes import counted, names, say
from snnexp.launchers.watching import LocalJobs, SlurmJobs, Watch
from snnexp.launchers.worker import Work
from snnexp.machine import cores

OWN_KEYS = ("executor", "submitit_folder", "max_num_timeout", "array_parallelism", "python", "setup", "additional")
COMMON = ("timeout_min", "cpus_per_task", "gpus_per_node", "tasks_per_node", "mem_gb", "nodes", "name")
IN_CLUSTER = 32  # jobs at once
END_WAIT_S = 60.0  # for cancelled jobs to close their records: Slurm kills them after KillWait, 30 s by default


class SlurmLauncher(SweepLauncher):
    """See the module; `params` are the keys of conf/hydra/launcher/slurm.yaml."""

    def __init__(self, **params: Any) -> None:
        super().__init__()
        self.params = {key: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for key, v in params.items()}

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[Any]:
        """Submit all jobs, wait for all of them, and return how each ended. Raises: ConfigError before any is there."""
        _check(self.params)
        folder = self.folder
        folder.mkdir(parents=True, exist_ok=True)
        if self.params["executor"] == "slurm":
            _refuse_shared_sqlite(self.config)
            _wait_for_earlier(folder)
        jobs = self._submit(folder, job_overrides, initial_job_idx)
        watch = Watch(folder, jobs, [list(words) for words in job_overrides], initial_job_idx)
        try:
            outcomes = watch.until_all_ended()
        except KeyboardInterrupt:
            self._interrupted(watch)
            raise
        return self.ended(outcomes, self._logs())

    def _logs(self) -> Path:
        return Path(self.config.hydra.runtime.cwd) / str(self.params["submitit_folder"]).partition("/%")[0]

    def _submit(self, folder: Path, job_overrides: Sequence[Sequence[str]], first: int) -> SlurmJobs | LocalJobs:
        from hydra.core.singleton import Singleton

        work = Work(self.hydra_context, self.config, self.task_function)
        state = Singleton.get_state()
        calls = [(list(words), first + i, None, state) for i, words in enumerate(job_overrides)]
        executor = _executor(self.params, folder)
        logs = self._logs()
        for number, name in enumerate(names(job_overrides), first):
            say(f"#{number}: {name}")
        if self.params["executor"] == "local":
            at_once = parallelism(self.params)
            say(f"{counted(len(calls))} on this machine, {at_once} at a time. Output: {logs}")
            return LocalJobs(executor, work, calls, at_once, folder)
        with interrupts.held():  # an array whose id nobody wrote down could not be cancelled
            jobs = SlurmJobs(_array(executor, work, calls), folder)
        where = f" in partition {self.params['partition']}" if self.params.get("partition") else ""
        say(f"{counted(len(calls))} in Slurm{where}: {', '.join(jobs.arrays)} (squeue -j {jobs.arrays[0]}).")
        say(f"Output: {logs}. Ctrl-C cancels them; if this terminal is closed, they go on.")
        return jobs

    def _interrupted(self, watch: Watch) -> None:
        """Ctrl-C cancels what is left; a closed terminal (SIGHUP) or a SIGTERM to this process leaves it."""
        interrupts.ending()
        left = watch.left()
        if not left:
            return
        if interrupts.cause() in (None, signal.SIGINT) or self.params["executor"] == "local":
            say(f"Cancelling {len(left)} jobs; their runs are closed and can be continued ...")
            watch.jobs.cancel()
            watch.until_gone(END_WAIT_S)
        else:
            names = " ".join(getattr(watch.jobs, "arrays", ()))
            say(f"{len(left)} jobs go on in Slurm (scancel {names} ends them). The same command waits for them.")


def _array(executor: Any, work: Work, calls: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Hand the jobs to Slurm. Raises: ConfigError with sbatch's own words if it takes none."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    try:
        jobs: list[Any] = executor.map_array(work, *zip(*calls, strict=True))
    except (FailedJobError, FailedSubmissionError) as error:
        said = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
        raise ConfigError(
            f"Slurm did not take the jobs: {said} Nothing was started. Look at hydra.launcher.partition, .additional "
            "and the times and sizes asked for (sinfo shows what there is); hydra.launcher.executor=local runs them "
            "here."
        ) from error
    return jobs


def _check(params: dict[str, Any]) -> None:
    """Refuse what submitit or Slurm would refuse in words of their own, or only on the node."""
    try:
        import submitit  # noqa: F401
    except ImportError as error:
        raise ConfigError("hydra/launcher=slurm needs submitit: pip install 'snnexp[sweep]'.") from error
    if params["executor"] not in ("slurm", "local"):
        raise ConfigError(f"hydra.launcher.executor={params['executor']}: no such option. Valid: slurm, local.")
    if params["executor"] == "slurm" and not queue.is_installed():
        raise ConfigError(
            "hydra/launcher=slurm: there is no sbatch here. Give the command on a login node of the cluster, or try "
            "the sweep out on this machine: hydra.launcher.executor=local."
        )
    smallest = {"timeout_min": 1, "max_num_timeout": 0, "array_parallelism": 1, "signal_delay_s": 1, "nodes": 1}
    for key, least in smallest.items():
        if key == "array_parallelism" and params.get(key) is None:
            continue
        if not isinstance(params.get(key), int) or params[key] < least:
            raise ConfigError(f"hydra.launcher.{key}={params.get(key)}: must be a whole number, {least} or more.")
    delay, minutes = params["signal_delay_s"], params["timeout_min"]
    if delay >= 60 * minutes:
        raise ConfigError(
            f"hydra.launcher.signal_delay_s={delay}: a job of {minutes} min would be told at once that its time is up. "
            "Lower it, or give the job more time with hydra.launcher.timeout_min."
        )


def parallelism(params: Mapping[str, Any]) -> int:
    """How many jobs run at once: as the user says, else 32 on a cluster, and as many as this machine has cores for."""
    said = params.get("array_parallelism")
    if said is not None:
        return int(said)
    return max(1, cores() // (params.get("cpus_per_task") or 1)) if params["executor"] == "local" else IN_CLUSTER


def _executor(params: dict[str, Any], folder: Path) -> Any:
    """submitit's executor with our keys as its parameters."""
    import submitit

    kind = params["executor"]
    python = params.get("python") or container_python(os.environ)
    init: dict[str, Any] = {f"{kind}_max_num_timeout": params["max_num_timeout"]}
    if python:
        init[f"{kind}_python"] = python
    executor = submitit.AutoExecutor(folder=params["submitit_folder"], cluster=kind, **init)
    given = {key: value for key, value in params.items() if value is not None and key not in OWN_KEYS}
    if kind == "local":
        executor.update_parameters(**{key: given[key] for key in COMMON if key in given})
        executor.update_parameters(local_setup=params["setup"] or [])
        executor._executor.parameters["signal_delay_s"] = params["signal_delay_s"]
        return executor
    after = f"{python or shlex.quote(sys.executable)} -m snnexp.launchers.aftermath {shlex.quote(str(folder))}"
    executor.update_parameters(
        **{key if key in COMMON else f"slurm_{key}": value for key, value in given.items()},
        slurm_array_parallelism=parallelism(params),
        slurm_setup=params["setup"],
        slurm_additional_parameters=params["additional"],
        # submitit's own command stands just before; the script ends as its job did
        slurm_teardown=["code=$?", f"[ $code = 0 ] || {after}", "exit $code"],
    )
    return executor


def container_python(environment: Any) -> str | None:
    """How a job's script starts Python if this process lives in an Apptainer or Singularity container.

    submitit writes `sys.executable` into the script, which the node runs outside of the container: there the path is
    missing or is another Python.
    """
    for word in ("APPTAINER", "SINGULARITY"):
        image = environment.get(f"{word}_CONTAINER")
        if image:
            gpu = " --nv" if environment.get(f"{word}_NV") or Path("/.singularity.d/libs/libcuda.so.1").exists() else ""
            return f"{word.lower()} exec{gpu} {shlex.quote(image)} {shlex.quote(sys.executable)}"
    return None


def _refuse_shared_sqlite(config: Any) -> None:
    """Several nodes write: a SQLite file on a network file system does not survive that."""
    if config.tracking.name == "off":
        return
    from snnexp.tracking.address import resolve_uri
    from snnexp.tracking.network_disk import refuse_for_many

    refuse_for_many(resolve_uri(config.tracking.uri, Path(config.hydra.runtime.cwd)))


def _wait_for_earlier(folder: Path) -> None:
    """Jobs that an earlier launcher of the same sweep left in the queue come first: two of a kind would collide."""
    import time

    from snnexp.launchers.watching import STATES_EVERY_S
    from snnexp.tracking import sweep_folder

    arrays = sweep_folder.earlier_arrays(folder)
    told: set[str] = set()
    while arrays and (left := queue.active(arrays)) != []:
        names = ", ".join(arrays)
        line = f"Jobs of this sweep are still in Slurm ({names}; scancel ends them): waiting for them ..."
        if left is None:
            line = f"Slurm does not answer (squeue), and may still have jobs of this sweep ({names}); waiting for it."
        if line not in told:
            say(line)
            told.add(line)
        time.sleep(STATES_EVERY_S)
