"""Starting, or continuing, the MLflow run of a claimed folder; earlier runs' unsent records go with it."""

from __future__ import annotations

import importlib.util
import logging
from typing import TYPE_CHECKING, Any

from snnexp import interrupts
from snnexp.errors import ConfigError, SnnexpError
from snnexp.tracking.address import resolve_experiment
from snnexp.tracking.identity import run_name
from snnexp.tracking.local import LocalRecord
from snnexp.tracking.mlflow_runs import PARENT_TAG, create_run, find_run
from snnexp.tracking.mlflow_store import Store, connect, short_waits, store_error
from snnexp.tracking.mlflow_tracker import MlflowTracker
from snnexp.tracking.reasons import telling_line
from snnexp.tracking.runs import RunFolder, Status
from snnexp.tracking.tracker import closed_if_cut_off
from snnexp.tracking.unsent import send_unsent

if TYPE_CHECKING:
    from snnexp.config import TrackingConf

log = logging.getLogger(__name__)


def open_mlflow(
    conf: TrackingConf, folder: RunFolder, cfg: dict[str, Any], uri: str, tags: dict[str, str], parent: str | None
) -> MlflowTracker:
    """Start, or continue, the MLflow run of a claimed folder. Raises: TrackingError if the store cannot be used."""
    if conf.system_metrics and importlib.util.find_spec("psutil") is None:
        raise ConfigError("tracking.system_metrics=true needs psutil: pip install 'snnexp[system]', or leave it false.")
    store = connect(uri, resolve_experiment(conf.experiment))
    assert store is not None  # create=True
    try:
        tracker = _start(store, folder, cfg, tags, parent)
    except SnnexpError:
        raise
    except Exception as error:
        raise store_error(uri, error) from error
    with closed_if_cut_off(tracker):
        if conf.system_metrics:
            tracker.start_system_metrics()
        send_unsent(folder.path.parents[1], store, besides=folder.path)
    return tracker


def _start(
    store: Store, folder: RunFolder, cfg: dict[str, Any], tags: dict[str, str], parent: str | None
) -> MlflowTracker:
    local = LocalRecord(folder)
    run_id = find_run(store, folder) if folder.action == "resume" else None
    resumed = run_id is not None
    tags = {**tags, PARENT_TAG: parent} if parent is not None else tags
    local.add_tags({**tags, "mlflow.runName": run_name(cfg, tags.get("overrides", "").split())})
    try:
        fresh = run_id is None and not (local.params or local.files or local.metrics.entries)
        if run_id is None:
            run_id = create_run(store, folder, local)
        else:
            folder.update(mlflow_run_id=run_id, tracking_uri=store.uri, experiment=store.experiment)
        tracker = MlflowTracker(folder, store, run_id)
        tracker.fresh = fresh
        if resumed:
            store.client.update_run(run_id, status="RUNNING")
        if not fresh:
            tracker.catch_up()  # also fills a new run with what an earlier part of it did with tracking=off
        tracker._is_up_to_date()
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            interrupts.ending()
        _close_unopened(store, folder, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    return tracker


def _close_unopened(store: Store, folder: RunFolder, status: Status) -> None:
    """It ended before the tracker was ready: a run that may have been made in the store must not stay RUNNING there."""
    try:
        with short_waits():
            run_id = folder.record.mlflow_run_id or find_run(store, folder)
            if run_id is not None:
                store.client.set_terminated(run_id, status)
                store.client.set_tag(run_id, "status", status)
                folder.update(mlflow_run_id=run_id, tracking_uri=store.uri, experiment=store.experiment)
        LocalRecord(folder).add_tags({"status": status})
        folder.update(unsent=True)  # the parameters, perhaps
    except Exception as error:
        log.warning("The store %s may not know how this run ended: %s", store.uri, telling_line(error))
