"""What died without a word: runs and sweeps that the store believes to be RUNNING, put right by whoever comes by.

A `kill -9`, a node that fails or a launcher that is gone leave nobody to tell the store. The lock of a run's folder
says whether its process lives, that of a sweep's folder whether its launcher does. So the end of any job of a sweep,
its launcher, the batch script of a Slurm job, and `task=report` look for runs and parents that have nobody.
"""

from __future__ import annotations

import logging
import socket
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snnexp.launchers import queue
from snnexp.locks import file_lock
from snnexp.tracking import sweep_folder
from snnexp.tracking.queries import PARENT_TAG, ROLE_TAG, search_all
from snnexp.tracking.reasons import telling_line
from snnexp.tracking.runs import RunFolder, read_record
from snnexp.tracking.sweep import FOLDER_TAG, SEARCH_TAG, Sweep, close_parent
from snnexp.tracking.unsent import claimed, send_folder

if TYPE_CHECKING:
    from snnexp.config import TrackingConf
    from snnexp.tracking.mlflow_store import Store

log = logging.getLogger(__name__)

RUNNING = "attributes.status = 'RUNNING'"
REFRESH_TIMEOUT_S = 120.0


def heal_runs(store: Store, parent: str | None = None) -> int:
    """Say KILLED of every run that the store has as RUNNING while its process is gone; returns how many there were.

    Runs whose folder is not on this machine, or locked by their process, are left as they are.
    """
    of_parent = f" and tags.`{PARENT_TAG}` = '{parent}'" if parent else ""
    healed = 0
    for run in search_all(store, RUNNING + of_parent):
        folder = Path(run.data.tags.get("run_folder", ""))
        if ROLE_TAG in run.data.tags or not (folder / "run.json").is_file():
            continue
        try:
            healed += _heal(store, folder, run)
        except Exception as error:  # one run's trouble must not keep the others from being healed
            log.info("%s could not be put right: %s", folder, telling_line(error))
    return healed


def _heal(store: Store, folder: Path, run: Any) -> bool:
    run_id = str(run.info.run_id)
    with claimed(folder) as free:
        record = read_record(folder, quiet=True) if free else None
        if record is None or record.mlflow_run_id != run_id:
            return False
        # some clusters' disks show a lock to its own machine only (Lustre with localflock)
        job = run.data.tags.get("slurm_job")
        if job and record.host != socket.gethostname() and queue.may_run(job):
            return False
        send_folder(RunFolder(folder, record, "resume"), store, run_id)
        log.info("%s: its process is gone; the store says %s now", folder, record.status)
    return True


def refresh_parent(store: Store, parent: Any) -> bool:
    """Write the summary and status of a sweep whose launcher is gone, from its children; returns whether it is gone.

    While a job of it runs the sweep does so, too: the last one's end closes it. parent: its MLflow run.
    """
    folder = Path(parent.data.tags.get(FOLDER_TAG, "/no/such/folder"))
    if sweep_folder.launcher_lives(folder):
        return False
    run_id = str(parent.info.run_id)
    with file_lock(folder / "refresh.lock", timeout=REFRESH_TIMEOUT_S):
        heal_runs(store, run_id)
        children = search_all(store, f"tags.`{PARENT_TAG}` = '{run_id}'")
        counts = Counter(str(run.info.status) for run in children)
        total = sweep_folder.size(folder)
        if counts["RUNNING"] and total is not None and parent.info.status == "RUNNING":
            return True
        opened = {"run_id": run_id, "sweep_id": parent.data.tags.get("sweep_id", ""), "folder": str(folder)}
        opened |= {"uri": store.uri, "experiment": store.experiment}
        done = counts["FINISHED"] + _skipped(folder, {run.info.run_id for run in children})
        # nobody asks for the trials of a search that are left, and nobody else knows how many there are
        total = None if SEARCH_TAG in parent.data.tags else total
        close_parent(opened, complete=total is not None and done >= total, jobs=Counter(started=len(children)))
    return True


def _skipped(folder: Path, children: set[str]) -> int:
    """Runs that the sweep found finished and that are no children of it."""
    skipped = folder / sweep_folder.SKIPPED_FOLDER
    return sum(path.name not in children for path in skipped.iterdir()) if skipped.is_dir() else 0


def before_job(conf: TrackingConf, sweep: Sweep | None, start_dir: Path) -> None:
    """At the start of a sweep's job: a sweep whose launcher is gone may have been closed too early. Never raises."""
    from snnexp.tracking.address import resolve_experiment, resolve_uri
    from snnexp.tracking.mlflow_store import connect

    if sweep is None or sweep.parent_run_id is None or sweep_folder.launcher_lives(sweep.folder):
        return
    try:
        store = connect(resolve_uri(conf.uri, start_dir), resolve_experiment(conf.experiment), create=False)
        if store is not None:
            store.client.update_run(sweep.parent_run_id, status="RUNNING")
    except Exception as error:
        log.info("The sweep in %s was not opened again: %s", sweep.folder, telling_line(error))


def after_job(conf: TrackingConf, sweep: Sweep | None, start_dir: Path) -> None:
    """At the end of a sweep's job: if the launcher is gone, nobody else closes the parent. Never raises."""
    if sweep is None or sweep.parent_run_id is None or sweep_folder.launcher_lives(sweep.folder):
        return
    from snnexp.tracking.address import resolve_experiment, resolve_uri

    look_after(sweep.folder, resolve_uri(conf.uri, start_dir), resolve_experiment(conf.experiment))


def look_after(folder: Path, uri: str | None = None, experiment: str | None = None) -> None:
    """Put right what died in the sweep of this folder, and its parent if the launcher is gone. Never raises."""
    from snnexp.tracking.mlflow_store import connect

    known = sweep_folder.read(folder)
    if not known.get("run_id"):
        return  # tracking=off
    try:
        store = connect(uri or known["uri"], experiment or known["experiment"], create=False)
        if store is not None and not refresh_parent(store, store.client.get_run(known["run_id"])):
            heal_runs(store, known["run_id"])
    except Exception as error:
        log.info("The sweep in %s was not looked after: %s", folder, telling_line(error))


def heal_all(store: Store) -> None:
    """All runs and parents of the experiment: what `task=report` does first. Never raises."""
    try:
        heal_runs(store)
        ends: dict[str, int] = {}
        parents = []
        for run in search_all(store):
            if ROLE_TAG in run.data.tags:
                parents.append(run)
            parent = run.data.tags.get(PARENT_TAG, "")
            ends[parent] = max(ends.get(parent, 0), int(run.info.end_time or 0))
        for parent in parents:
            closed = int(parent.info.end_time or 0)
            if parent.info.status == "RUNNING" or closed < ends.get(parent.info.run_id, 0):
                refresh_parent(store, parent)
    except Exception as error:
        log.info("The experiment was not looked after: %s", telling_line(error))
