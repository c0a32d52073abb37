"""Getting a file of an earlier run back from the MLflow store."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from snnexp.tracking.address import resolve_experiment, resolve_uri
from snnexp.tracking.mlflow_store import connect
from snnexp.tracking.reasons import telling_line

if TYPE_CHECKING:
    from snnexp.config import TrackingConf

log = logging.getLogger(__name__)


def fetch_artifact(conf: TrackingConf, start_dir: str | Path, run_id: str, name: str) -> Path | None:
    """A local copy of the file `name` of MLflow run `run_id`, or None if the store, the run or the file is not there.

    A local SQLite store is never made by this; with tracking=off there is no store to ask.

    Raises: TrackingError if the store cannot be reached.
    """
    if conf.name == "off":
        return None
    store = connect(resolve_uri(conf.uri, start_dir), resolve_experiment(conf.experiment), create=False)
    if store is None:
        return None
    from mlflow.exceptions import MlflowException

    try:
        store.client.get_run(run_id)  # a run id is unique in its store, whatever its experiment is called
        target = tempfile.mkdtemp(prefix="snnexp-")
        return Path(store.client.download_artifacts(run_id, name, target))
    except (MlflowException, OSError) as error:
        log.info("run %s: %s cannot be fetched: %s", run_id, name, telling_line(error))
        return None
