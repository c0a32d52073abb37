"""Sending what finished or killed runs could not: their store was away to the end."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

from filelock import FileLock, Timeout

from snnexp.tracking.links import without_password
from snnexp.tracking.mlflow_store import Store
from snnexp.tracking.mlflow_tracker import MlflowTracker, first_line
from snnexp.tracking.runs import RunFolder, RunRecord, lock_folder, read_record

log = logging.getLogger(__name__)


def send_unsent(state_dir: Path, store: Store) -> int:
    """Send what earlier runs in `state_dir` could not, if nobody is working on them; returns how many were sent."""
    sent = 0
    for path in sorted(state_dir.glob("*/*/run.json")):
        folder = path.parent
        if not _has_unsent(read_record(folder), store):
            continue
        # claim.lock: a command that wants this run waits until it is sent, instead of finding it held
        with contextlib.suppress(Timeout), FileLock(folder.parent / "claim.lock", timeout=0):
            lock = lock_folder(folder)
            if lock is None:
                continue
            try:
                record = read_record(folder)  # again: its owner may have finished it in between
                if record is not None and _has_unsent(record, store):
                    _send_folder(RunFolder(folder, record, "resume"), store)
                    sent += 1
            except Exception as error:  # an old run's trouble must not stop the new one
                log.warning("%s could not be sent: %s", folder, first_line(error))
            finally:
                lock.release()
    return sent


def _has_unsent(record: RunRecord | None, store: Store) -> bool:
    """Whether a run kept something for this store."""
    return (
        record is not None
        and record.unsent
        and record.mlflow_run_id is not None
        and record.tracking_uri == without_password(store.uri)
    )


def _send_folder(folder: RunFolder, store: Store) -> None:
    run_id, status = folder.record.mlflow_run_id, folder.record.status
    assert run_id is not None
    MlflowTracker(folder, store, run_id).catch_up()
    store.client.set_terminated(run_id, "KILLED" if status == "RUNNING" else status)  # its lock is free: nobody runs it
    folder.update(unsent=False)
    log.info("Sent what %s had kept for the store.", folder.path)
