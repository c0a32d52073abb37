"""A run's counterpart in the MLflow store: making it, finding it again, and saying what became of it."""

from __future__ import annotations

import contextlib
import getpass
import logging
import os
import sys
from datetime import datetime
from typing import Any

from snnexp.tracking.identity import run_name
from snnexp.tracking.local import LocalRecord
from snnexp.tracking.mlflow_store import Store
from snnexp.tracking.runs import RunFolder

log = logging.getLogger(__name__)

UID_TAG = "run_uid"
PARENT_TAG = "mlflow.parentRunId"


def create_run(store: Store, folder: RunFolder, local: LocalRecord, started: str | None = None) -> str:
    """Make the MLflow run of a folder, and mark every file of its record as unsent: the new run has none of them.

    started: when the run really began (ISO), for a record that is sent again.
    """
    # all that is known goes along: one request, and the pages nest a run by its parent from the start
    first = {**local.tags, UID_TAG: folder.record.uid, "mlflow.source.type": "LOCAL", **_optional_tags(local.tags)}
    name = local.tags.get("mlflow.runName") or _name_from(local.params)
    time_ms = int(datetime.fromisoformat(started).timestamp() * 1000) if started else None
    run = store.client.create_run(store.experiment_id, start_time=time_ms, tags=first, run_name=name)
    run_id = str(run.info.run_id)
    folder.update(mlflow_run_id=run_id, tracking_uri=store.uri, experiment=store.experiment)
    local.unsent_files.update(local.files)
    if local.files:
        local.save()
    return run_id


def _name_from(params: dict[str, str]) -> str:
    """For records of versions that did not keep it."""
    groups = {group: {"name": params.get(f"{group}.name", "?")} for group in ("dataset", "neuron")}
    return run_name({**groups, "seed": params.get("seed", "?")})


def _optional_tags(tags: dict[str, str]) -> dict[str, str]:
    """What MLflow's own columns show: user, version, command line."""
    extra = {"mlflow.source.name": os.path.basename(sys.argv[0]) or "snnexp"}
    if "git.commit" in tags:
        extra["mlflow.source.git.commit"] = tags["git.commit"]
    with contextlib.suppress(OSError, KeyError):  # a container's user may have no name
        extra["mlflow.user"] = getpass.getuser()
    return extra


def is_refusal(error: Exception) -> bool:
    """Whether the store answered, and did not want the request: a run that is gone, and not a server that is."""
    known = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "INVALID_STATE", "BAD_REQUEST")
    return getattr(error, "error_code", None) in known


def is_missing(store: Store, run_id: str) -> str | None:
    """Why the store no longer has this run, in words; None if it has. Raises what the store raises if it is away."""
    run = _get(store, run_id)
    if run is None:
        return f"it is no longer in {store.uri}: the database was removed or emptied"
    return "it was deleted in MLflow's pages" if run.info.lifecycle_stage != "active" else None


def _get(store: Store, run_id: str) -> Any:
    from mlflow.exceptions import MlflowException

    try:
        return store.client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def find_run(store: Store, folder: RunFolder, same_experiment: bool = False) -> str | None:
    """The MLflow run that an earlier attempt began in this store, or None; says so if there was one and it is gone.

    same_experiment: whether a run in another experiment counts as none. (An unfinished run goes on where it is.)
    """
    record = folder.record
    run_id = record.mlflow_run_id
    if run_id is not None:
        run = _get(store, run_id)  # ids are unique: after `mv`, the same database has another address
        if run is not None and run.info.lifecycle_stage == "active":
            home = str(run.info.experiment_id)
            if home == store.experiment_id:
                return run_id
            name = _name_of(store, home)
            if not same_experiment:
                log.warning("MLflow run %s is in the experiment %s now, and goes on there", run_id, name)
                return run_id
            renamed = record.experiment == store.experiment
            what = f"its experiment was renamed to {name}" if renamed else f"it is in the experiment {name}"
        elif run is not None:
            what = "it was deleted in MLflow's pages"
        else:
            what = f"it is not in {store.uri}"
            if record.tracking_uri == store.uri:
                what = f"it is no longer in {store.uri}: the database was removed or emptied"
    found = store.client.search_runs([store.experiment_id], f"tags.{UID_TAG} = '{record.uid}'", max_results=1)
    if record.uid and found:
        return str(found[0].info.run_id)
    if run_id is not None:
        log.warning(
            "MLflow run %s: %s. Its record is sent again, to the experiment %s, from %s.",
            run_id,
            what,
            store.experiment,
            folder.path,
        )
    return None


def _name_of(store: Store, experiment_id: str) -> str:
    return str(store.client.get_experiment(experiment_id).name)
