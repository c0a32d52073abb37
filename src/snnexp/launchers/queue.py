"""What Slurm says about jobs, and how they are cancelled. Works with and without its accounting (slurmdbd)."""

from __future__ import annotations

import logging
import shutil
import subprocess
from collections.abc import Iterable

log = logging.getLogger(__name__)

# States that a job leaves by itself; any other is an end.
ACTIVE = {"PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED"}
ACTIVE |= {"RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED", "RESV_DEL_HOLD", "SPECIAL_EXIT", "UNKNOWN"}
WAITING = ACTIVE - {"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"}
GONE = "GONE"  # Slurm forgets an ended job after some minutes (MinJobAge)
WAIT_S = 60


def is_installed() -> bool:
    """Whether this machine can submit jobs."""
    return shutil.which("sbatch") is not None and shutil.which("squeue") is not None


def states(arrays: Iterable[str]) -> dict[str, str] | None:
    """State of every job of these ids, `123_4` for the members of an array; None while Slurm does not answer.

    What is not in the answer is over, and Slurm has forgotten it.
    """
    found: dict[str, str] = {}
    for array in arrays:
        asked = _call("squeue", "-h", "-r", "-t", "all", "-o", "%i|%T", "-j", array)
        if asked is None:
            return None
        found |= {job: state for job, _, state in (line.partition("|") for line in asked.splitlines()) if state}
    return found


def active(arrays: Iterable[str]) -> list[str] | None:
    """The jobs of these ids that wait or run; None while Slurm does not answer."""
    now = states(arrays)
    return None if now is None else [job for job, state in now.items() if state in ACTIVE]


def may_run(job: str) -> bool:
    """Whether a process of the job may live, stopped ones included. Where Slurm does not answer: yes."""
    now = states([job])
    return now is None or any(state in ACTIVE - WAITING for state in now.values())


def end_of(job: str) -> str:
    """How a job ended, from Slurm's accounting, where there is any: OUT_OF_MEMORY, NODE_FAIL, ...; else GONE."""
    said = _call("sacct", "-n", "-P", "-X", "-o", "State", "-j", job) or ""
    return said.split()[0] if said.split() else GONE


def cancel(arrays: Iterable[str]) -> None:
    """End all jobs of these ids; those that run have time to close their records."""
    _call("scancel", *arrays)


def _call(*command: str) -> str | None:
    """The output of a Slurm command; empty where it knows nothing of the job; None where it does not answer."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        log.info("%s: %s", command[0], error)
        return None
    if done.returncode and "Invalid job id" not in done.stderr:
        log.info("%s: %s", command[0], done.stderr.strip())
        return None
    return done.stdout
