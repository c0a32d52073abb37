"""Sending from the run folders what a store lacks: it was away to the end, or what it had was deleted since."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import Timeout

from snnexp.errors import TrackingError
from snnexp.locks import file_lock
from snnexp.tracking.address import resolve_experiment, resolve_uri, sqlite_path
from snnexp.tracking.local import LocalRecord
from snnexp.tracking.mlflow_runs import PARENT_TAG, create_run, find_run
from snnexp.tracking.mlflow_store import Store, connect, short_waits
from snnexp.tracking.mlflow_tracker import MlflowTracker
from snnexp.tracking.reasons import telling_line
from snnexp.tracking.runs import RunFolder, RunRecord, lock_folder, read_record

if TYPE_CHECKING:
    from snnexp.config import TrackingConf

log = logging.getLogger(__name__)


def send_unsent(state_dir: Path, store: Store, besides: Path | None = None) -> int:
    """Send what earlier runs in `state_dir` could not, if nobody is working on them; returns how many were sent.

    If the database was made just now, every run that was in its predecessor is sent again; the caller's own folder,
    `besides`, is the caller's business.
    """
    sent = 0
    blocked = False
    folders = [path.parent for path in sorted(state_dir.glob("*/*/run.json"))]
    folders = [folder for folder in folders if folder != besides and _is_lacking(read_record(folder), store)]
    if folders and store.made:
        log.warning("The database of %s was removed. What runs in %s had in it is sent again.", store.uri, state_dir)
    for folder in folders:
        with claimed(folder) as free:
            record = read_record(folder) if free else None  # again: its owner may have finished it in between
            if record is None or not _is_lacking(record, store):
                continue
            try:
                run = RunFolder(folder, record, "resume")
                run_id = None if store.made else find_run(store, run)
                done = send_folder(run, store, run_id, blocked=blocked)
                blocked, sent = blocked or not done, sent + done
            except Exception as error:  # an old run's trouble must not stop the new one
                log.warning("%s could not be sent: %s", folder, telling_line(error))
    return sent


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Hold a run's folder, if nobody is working on it."""
    lock = None
    # claim.lock: a command that wants this run waits until it is sent, instead of finding it held
    claim = file_lock(folder.parent / "claim.lock", timeout=0)
    try:
        with contextlib.suppress(Timeout, OSError):  # OSError: another user's folder
            claim.acquire()
            lock = lock_folder(folder)
        yield lock is not None
    finally:
        if lock is not None:
            lock.release()
        claim.release()


def _is_lacking(record: RunRecord | None, store: Store) -> bool:
    """Whether this store lacks something of the run."""
    if record is None or record.mlflow_run_id is None or record.tracking_uri is None:
        return False
    if record.tracking_uri == store.uri:
        return record.unsent or store.made
    old = sqlite_path(record.tracking_uri)  # the same database under another name, after its folder was renamed?
    return record.unsent and old is not None and sqlite_path(store.uri) is not None and not old.exists()


def send_folder(
    folder: RunFolder, store: Store, run_id: str | None, parent: str | None = None, blocked: bool = False
) -> bool:
    """Bring the store up to date with a run that has ended; returns whether nothing is missing now.

    Args:
        run_id: its MLflow run; None makes one, as a child of the sweep `parent`.
        blocked: whether files are known not to get through.
    """
    local = LocalRecord(folder)
    if run_id is None:
        local.tags.pop(PARENT_TAG, None)  # the sweep that it was part of is in the old place
        if parent is not None:
            local.add_tags({PARENT_TAG: parent})
        run_id = create_run(store, folder, local, folder.record.created or None)
    tracker = MlflowTracker(folder, store, run_id)
    tracker._files_blocked = tracker._files_named = blocked
    tracker.catch_up()
    # its lock is free, so nobody runs it
    status = "KILLED" if folder.record.status == "RUNNING" else folder.record.status
    tracker._send_tags(tracker.local.add_tags({"status": status}))
    ended = folder.record.updated
    store.client.set_terminated(
        run_id, status, int(datetime.fromisoformat(ended).timestamp() * 1000) if ended else None
    )
    complete = not tracker.local.unsent_files
    folder.update(unsent=not complete, status=status)
    if complete:
        log.info("Sent what %s had kept for the store.", folder.path)
    return complete


def restore_skipped(conf: TrackingConf, folder: RunFolder, start_dir: Path, parent: str | None) -> None:
    """See to it that the store has the record of a finished run that a sweep does not repeat.

    It may have been deleted there, with its database or in the pages, or be wanted in another experiment or store.
    `folder.record` then names the new MLflow run.
    """
    if conf.name == "off":
        return
    try:
        store = connect(resolve_uri(conf.uri, start_dir), resolve_experiment(conf.experiment))
        assert store is not None  # create=True
        with claimed(folder.path) as free:
            if not free:
                return
            folder.record = read_record(folder.path) or folder.record
            found = find_run(store, folder, same_experiment=True)
            if found is None:
                send_folder(folder, store, None, parent)
            elif (found, store.uri) != (folder.record.mlflow_run_id, folder.record.tracking_uri):
                folder.update(mlflow_run_id=found, tracking_uri=store.uri, experiment=store.experiment)
    except Exception as error:
        reason = str(error) if isinstance(error, TrackingError) else telling_line(error)
        log.warning("%s is finished, but its record could not be brought to the store: %s", folder.path, reason)


def tell_store(conf: TrackingConf, folder: RunFolder, start_dir: Path) -> None:
    """Write the status of an interrupted run to the store, before anything of it was opened there."""
    if conf.name == "off" or folder.record.mlflow_run_id is None:
        return
    try:
        store = connect(resolve_uri(conf.uri, start_dir), resolve_experiment(conf.experiment), create=False)
        run_id = find_run(store, folder) if store is not None else None
        if store is not None and run_id is not None:
            with short_waits():
                send_folder(folder, store, run_id)
    except Exception as error:  # imports that the interrupt has torn, too
        log.info("%s: the store was not told: %s", folder.path, telling_line(error))
