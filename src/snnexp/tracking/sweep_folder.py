"""What a sweep leaves in its own folder for whoever comes later: its ids, its jobs, and whether its launcher lives.

mlflow_parent.json   the parent run and its store
jobs.json            how many jobs were launched, and which Slurm arrays they are in
search.json          what a search found, in lines (hydra/sweeper=optuna)
skipped/             one empty file per MLflow run that the sweep found finished
launcher.lock        held for as long as the launching process lives
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from filelock import Timeout

from snnexp.atomic import write_atomically
from snnexp.launchers import queue
from snnexp.locks import Lock, file_lock

SWEEP_FILE = "mlflow_parent.json"
JOBS_FILE = "jobs.json"
SEARCH_NOTE = "search.json"
SKIPPED_FOLDER = "skipped"

_held: dict[str, Lock] = {}  # until the process ends


def read(folder: Path, name: str = SWEEP_FILE) -> dict[str, Any]:
    """One of the files, or an empty table if it is not there or not readable."""
    try:
        values: dict[str, Any] = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values


def note_jobs(folder: Path, count: int, arrays: list[str]) -> None:
    """Write down `count` more jobs, in these Slurm arrays."""
    before = read(folder, JOBS_FILE)
    jobs = {"count": before.get("count", 0) + count, "slurm": [*before.get("slurm", []), *arrays]}
    write_atomically(folder / JOBS_FILE, json.dumps(jobs) + "\n")


def launched(folder: Path) -> int | None:
    """How many jobs the sweep has, or None if its launcher ran them one by one in its own process."""
    count = read(folder, JOBS_FILE).get("count")
    return count if isinstance(count, int) else None


def arrays(folder: Path) -> list[str]:
    """The Slurm arrays of the sweep's jobs."""
    return list(read(folder, JOBS_FILE).get("slurm", []))


def earlier_arrays(folder: Path) -> list[str]:
    """The arrays of all earlier attempts at the sweep: one that was cut off while it waited has none of its own.

    With one folder for all attempts (hydra.sweep.dir) they are in that folder.
    """
    found: list[str] = []
    seen: set[Path] = set()
    while (before := read(folder).get("before")) and (folder := Path(before)) not in seen:
        seen.add(folder)
        found = [*arrays(folder), *found]
    return found


def queued(folder: Path) -> list[str]:
    """Jobs of the sweep that wait in Slurm; none where Slurm does not answer.

    Those that run have runs, or are about to end, as the one that asks may be.
    """
    known = arrays(folder)
    found = queue.states(known) if known and queue.is_installed() else None
    return [job for job, state in (found or {}).items() if state in queue.WAITING]


def hold_launcher_lock(folder: Path) -> None:
    """Say that this process launches the sweep, for as long as it lives."""
    lock = file_lock(folder / "launcher.lock", timeout=0, thread_local=False)
    with contextlib.suppress(Timeout, OSError):
        lock.acquire()
        _held[str(folder)] = lock


def launcher_lives(folder: Path) -> bool:
    """Whether somebody will close the sweep's parent run. Where one cannot tell: yes."""
    if str(folder) in _held:
        return True
    if not folder.is_dir():
        return True
    lock = file_lock(folder / "launcher.lock", timeout=0, thread_local=False)
    try:
        lock.acquire()
    except (Timeout, OSError):
        return True
    lock.release()
    return False
