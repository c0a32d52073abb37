"""What a sweep leaves in its own folder for whoever comes later: its ids, its jobs, and whether its launcher lives.

mlflow_parent.json   the parent run and its store
jobs.json            how many jobs were launched, and which Slurm arrays they are in; of attempts before in the same
                     folder (hydra.sweep.dir) also how many, at most
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
    """Write down `count` more jobs of this attempt, in these Slurm arrays."""
    before = read(folder, JOBS_FILE)
    jobs = {"count": before.get("count", 0) + count, "slurm": [*before.get("slurm", []), *arrays]}
    write_atomically(folder / JOBS_FILE, json.dumps({**before, **jobs}) + "\n")


def begin(folder: Path) -> None:
    """An attempt at the sweep begins: what an earlier one launched from the same folder, and found, is not its own."""
    (folder / SEARCH_NOTE).unlink(missing_ok=True)
    before = read(folder, JOBS_FILE)
    if before:
        earlier = max(before.pop("count", 0), before.get("earlier", 0))
        write_atomically(folder / JOBS_FILE, json.dumps({**before, "earlier": earlier}) + "\n")


def size(folder: Path) -> int | None:
    """How many jobs the sweep has, in processes of their own; every attempt that comes so far launches all of them.

    None: not known, or the launcher ran them one by one in its own process.
    """
    counts = [max(jobs.get("count", 0), jobs.get("earlier", 0)) for jobs in map(_jobs, [folder, *_earlier(folder)])]
    return max(counts) or None


def _jobs(folder: Path) -> dict[str, Any]:
    return read(folder, JOBS_FILE)


def _earlier(folder: Path) -> list[Path]:
    """The folders of all earlier attempts, the newest first; one folder for all of them is its own."""
    found: list[Path] = []
    while (before := read(folder).get("before")) and (folder := Path(before)) not in found:
        found.append(folder)
    return found


def arrays(folder: Path) -> list[str]:
    """The Slurm arrays of the sweep's jobs."""
    return list(read(folder, JOBS_FILE).get("slurm", []))


def earlier_arrays(folder: Path) -> list[str]:
    """The arrays of all earlier attempts at the sweep: one that was cut off while it waited has none of its own.

    With one folder for all attempts (hydra.sweep.dir) they are in that folder.
    """
    return [array for before in reversed(_earlier(folder)) for array in arrays(before)]


def queued(folder: Path) -> list[str] | None:
    """Jobs of the sweep that wait in Slurm; None while Slurm does not answer, which is no word about them.

    Those that run have runs, or are about to end, as the one that asks may be. A machine without Slurm knows of none.
    """
    known = list(dict.fromkeys([*earlier_arrays(folder), *arrays(folder)]))
    if not known or not queue.is_installed():
        return []
    found = queue.states(known)
    return None if found is None else [job for job, state in found.items() if state in queue.WAITING]


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
