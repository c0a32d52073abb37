"""Getting a file of an earlier run back from the MLflow store."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from snnexp.tracking.address import resolve_experiment, resolve_uri
from snnexp.tracking.mlflow_store import connect
from snnexp.tracking.reasons import telling_line

if TYPE_CHECKING:
    from snnexp.config import TrackingConf

log = logging.getLogger(__name__)


@contextmanager
def fetched_artifact(
    conf: TrackingConf, start_dir: str | Path, run_id: str, name: str
) -> Iterator[tuple[Path, dict[str, str]] | None]:
    """A local copy of the file `name` of MLflow run `run_id`, there for as long as the block lasts, and the run's tags.

    None if the store, the run or the file is not there. A local SQLite store is never made by this; with tracking=off
    there is no store to ask.

    Raises: TrackingError if the store cannot be reached.
    """
    with tempfile.TemporaryDirectory(prefix="snnexp-", ignore_cleanup_errors=True) as target:
        yield _fetch(conf, start_dir, run_id, name, target)


def _fetch(
    conf: TrackingConf, start_dir: str | Path, run_id: str, name: str, target: str
) -> tuple[Path, dict[str, str]] | None:
    if conf.name == "off":
        return None
    store = connect(resolve_uri(conf.uri, start_dir), resolve_experiment(conf.experiment), create=False)
    if store is None:
        return None
    from mlflow.exceptions import MlflowException

    try:
        run = store.client.get_run(run_id)  # a run id is unique in its store, whatever its experiment is called
        return Path(store.client.download_artifacts(run_id, name, target)), dict(run.data.tags)
    except (MlflowException, OSError) as error:
        log.info("run %s: %s cannot be fetched: %s", run_id, name, telling_line(error))
        return None
