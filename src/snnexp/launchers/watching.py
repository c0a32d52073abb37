"""Waiting for jobs in other processes, and finding out how each ended: by its result, or by being gone."""

from __future__ import annotations

import contextlib
import logging
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from snnexp import interrupts
from snnexp.launchers import queue
from snnexp.launchers.outcomes import How, Outcome, broken_off, ended, names, say
from snnexp.launchers.queue import ACTIVE

log = logging.getLogger(__name__)

RESULTS_EVERY_S = 1.0
STATES_EVERY_S = 10.0
UNSEEN = 2  # looks at the queue without the job and without its result (a slow network disk) before it counts as lost
KILLED = {"CANCELLED": "was cancelled", "TIMEOUT": "ran into its time limit", "PREEMPTED": "was preempted"}
REASONS = {
    "OUT_OF_MEMORY": "needed more memory than hydra.launcher.mem_gb gives it",
    "NODE_FAIL": "its node failed",
    "FAILED": "its process ended without a word (killed, perhaps for its memory)",
}


class SlurmJobs:
    """The members of an array (or one single job). `arrays` are the ids to ask Slurm about."""

    def __init__(self, jobs: Sequence[Any], folder: Path) -> None:
        self.jobs = list(jobs)
        self.arrays = sorted({job.job_id.partition("_")[0] for job in jobs})
        _note(folder, len(jobs), self.arrays)

    def states(self) -> list[str] | None:
        """Of each job; None while Slurm does not answer."""
        now = queue.states(self.arrays)
        return None if now is None else [now.get(job.job_id) or queue.GONE for job in self.jobs]

    def name(self, number: int) -> str:
        """What the user may type behind scancel."""
        return f"job {self.jobs[number].job_id}"

    def result(self, number: int) -> tuple[str, Any] | None:
        """What the job left, as submitit writes it, or None."""
        return _result(self.jobs[number])

    def why(self, number: int, state: str) -> str:
        """The state in Slurm's own word, from its accounting if the queue has forgotten it."""
        return queue.end_of(self.jobs[number].job_id) if state == queue.GONE else state

    def log(self, number: int) -> Path:
        """Where the job's errors are."""
        return Path(self.jobs[number].paths.stderr)

    def cancel(self) -> None:
        """All that are left."""
        queue.cancel(self.arrays)


class LocalJobs:
    """The same with submitit's local executor, `at_once` jobs at a time."""

    def __init__(self, executor: Any, work: Any, calls: Sequence[Any], at_once: int, folder: Path) -> None:
        self.executor, self.work, self.calls, self.at_once = executor, work, list(calls), at_once
        self.jobs: list[Any] = []
        self._stopped = False
        _note(folder, len(calls), [])

    def states(self) -> list[str]:
        """Of each job; starts those that there is room for."""
        states = [_local_state(job) for job in self.jobs]
        while not self._stopped and len(self.jobs) < len(self.calls) and states.count("RUNNING") < self.at_once:
            # the terminal's Ctrl-C would reach submitit's controller, which leaves a job one second
            before = signal.signal(signal.SIGINT, signal.SIG_IGN)
            try:
                self.jobs.append(self.executor.submit(self.work, *self.calls[len(self.jobs)]))
            finally:
                signal.signal(signal.SIGINT, before)
            states.append("RUNNING")
        waiting = len(self.calls) - len(self.jobs)
        return states + ["CANCELLED" if self._stopped else "PENDING"] * waiting

    def name(self, number: int) -> str:
        """Its process, once it has one."""
        return f"process {self.jobs[number].job_id}" if number < len(self.jobs) else "the job"

    def result(self, number: int) -> tuple[str, Any] | None:
        """See `SlurmJobs`."""
        return _result(self.jobs[number]) if number < len(self.jobs) else None

    def why(self, number: int, state: str) -> str:
        """See `SlurmJobs`."""
        return "CANCELLED" if self._stopped else state

    def log(self, number: int) -> Path:
        """See `SlurmJobs`."""
        return Path(self.jobs[number].paths.stderr)

    def cancel(self) -> None:
        """SIGTERM, which the controller hands on; to its SIGINT it would add a SIGKILL after one second."""
        self._stopped = True
        for job in self.jobs:
            if job._process is not None and job._process.poll() is None:
                job._process.send_signal(signal.SIGTERM)


def _local_state(job: Any) -> str:
    code = None if job._process is None else job._process.poll()
    return "RUNNING" if code is None else "FAILED"


def _note(folder: Path, count: int, arrays: list[str]) -> None:
    from snnexp.tracking.sweep_folder import note_jobs

    note_jobs(folder, count, arrays)


def _result(job: Any) -> tuple[str, Any] | None:
    from submitit.core.utils import pickle_load

    path = Path(job.paths.result_pickle)
    with contextlib.suppress(OSError):
        path.parent.chmod(path.parent.stat().st_mode)  # or a network disk would go on saying that there is none
    if not path.exists():
        return None
    try:
        outcome: tuple[str, Any] = pickle_load(path)
    except EOFError:
        return None
    return outcome


class Watch:
    """Over all jobs of a launch; `outcomes` fills up in the order in which they end."""

    def __init__(self, folder: Path, jobs: SlurmJobs | LocalJobs, overrides: list[list[str]], first: int) -> None:
        self.folder, self.jobs, self.overrides, self.first = folder, jobs, overrides, first
        self.outcomes: dict[int, Outcome] = {}
        self.names = names(overrides)
        self._unseen = [0] * len(overrides)

    def left(self) -> list[int]:
        """Positions of jobs that have not ended."""
        return [number for number in range(len(self.overrides)) if number not in self.outcomes]

    def until_all_ended(self) -> list[Outcome]:
        """Wait, and say how each ended as soon as it is known."""
        next_look = 0.0
        while self.left():
            for number in self.left():
                self._look_for_result(number)
            if time.monotonic() >= next_look:
                self._look_at_states()
                next_look = time.monotonic() + (STATES_EVERY_S if isinstance(self.jobs, SlurmJobs) else 0.0)
            if self.left():
                time.sleep(RESULTS_EVERY_S)
                interrupts.check()
        return [self.outcomes[number] for number in range(len(self.overrides))]

    def until_gone(self, seconds: float) -> None:
        """After `cancel`: wait until no job runs any more, and put right the runs of those that had no time."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            states = self.jobs.states()
            if states is not None and not any(state in ACTIVE - {"PENDING"} for state in states):
                break
            time.sleep(RESULTS_EVERY_S)
        self._heal()

    def _look_for_result(self, number: int) -> None:
        found = self.jobs.result(number)
        if found is None:
            return
        kind, what = found
        if kind == "success":
            self._settle(number, ended(self.first + number, self.names[number], what))
            return
        last = str(what).strip().splitlines()[-1:] or [""]
        if "timed-out" in last[0]:
            why = f"{self.jobs.name(number)}: its time was up once more than hydra.launcher.max_num_timeout allows"
            self._broken_off(number, "killed", why)
            return
        why = f"{self.jobs.name(number)}: {last[0]}; {self.jobs.log(number)}"
        self._broken_off(number, "failed", why)

    def _look_at_states(self) -> None:
        states = self.jobs.states()
        if states is None:
            return  # a controller that restarts; jobs go on without it
        gone = [number for number in self.left() if states[number] not in ACTIVE]
        if any(self._unseen[number] == 0 for number in gone):
            self._heal()  # at once: the store must not say RUNNING while we wait for a slow disk
        for number in gone:
            self._unseen[number] += 1
            self._look_for_result(number)
            if number in self.outcomes or self._unseen[number] < UNSEEN:
                continue
            state = self.jobs.why(number, states[number]).rstrip("+")
            how: How = "killed" if state in KILLED else "lost"
            words = KILLED.get(state) or REASONS.get(state, f"ended: {state}")
            why = f"{self.jobs.name(number)} {words}; {self.jobs.log(number)}"
            self._broken_off(number, how, why)
        for number in set(self.left()) - set(gone):
            self._unseen[number] = 0  # it is in the queue again

    def _broken_off(self, number: int, how: How, why: str) -> None:
        self._settle(number, broken_off(self.first + number, self.names[number], self.overrides[number], how, why))

    def _settle(self, number: int, outcome: Outcome) -> None:
        self.outcomes[number] = outcome
        say(f"{outcome.line()}  [{len(self.outcomes)}/{len(self.overrides)}]")

    def _heal(self) -> None:
        from snnexp.tracking.healing import look_after

        look_after(self.folder)
