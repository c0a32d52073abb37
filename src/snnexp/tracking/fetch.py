"""Getting a file of an earlier run back from the MLflow store."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snnexp.errors import DataError
from snnexp.tracking.address import resolve_experiment, resolve_uri
from snnexp.tracking.mlflow_store import Store, connect
from snnexp.tracking.queries import PARENT_TAG, ROLE_TAG, search_all
from snnexp.tracking.reasons import telling_line

if TYPE_CHECKING:
    from snnexp.config import TrackingConf

log = logging.getLogger(__name__)


@contextmanager
def fetched_artifact(
    conf: TrackingConf, start_dir: str | Path, run_id: str, name: str
) -> Iterator[tuple[Path, dict[str, str]] | None]:
    """A local copy of the file `name` of MLflow run `run_id`, there for as long as the block lasts, and the run's tags.

    The beginning of an id will do, 8 digits or more.

    None if the store, the run or the file is not there. A local SQLite store is never made by this; with tracking=off
    there is no store to ask.

    Raises: TrackingError if the store cannot be reached; DataError if several runs begin like this, or it is the parent
    of a sweep.
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
        run = _found(store, run_id)
        if run is None:
            return None
        run_id = run.info.run_id
        return Path(store.client.download_artifacts(run_id, name, target)), dict(run.data.tags)
    except (MlflowException, OSError) as error:
        log.info("run %s: %s cannot be fetched: %s", run_id, name, telling_line(error))
        return None


def _found(store: Store, run_id: str) -> Any:
    """The run with this id, or with an id that begins like this; None if there is none.

    Raises: DataError for several, and for the parent of a sweep, which has no weights.
    """
    from mlflow.exceptions import MlflowException

    try:
        run = store.client.get_run(run_id)  # a run id is unique in its store, whatever its experiment is called
    except MlflowException:
        beginning = [run for run in search_all(store) if len(run_id) >= 8 and run.info.run_id.startswith(run_id)]
        if len(beginning) > 1:
            listed = "\n".join(run.info.run_id for run in beginning)
            raise DataError(
                f"run_id={run_id}: {len(beginning)} runs begin like this. Give more of it.\n{listed}"
            ) from None
        run = beginning[0] if beginning else None
    if run is None or ROLE_TAG not in run.data.tags:
        return run
    children = search_all(store, f"tags.`{PARENT_TAG}` = '{run.info.run_id}'")
    listed = "".join(f"\n{child.info.run_id}  {child.info.run_name}" for child in children)
    way = f"Give one of its {len(children)} runs:{listed}" if children else "It has no runs either."
    raise DataError(f"run_id={run_id}: this is the parent of a sweep, which has no weights of its own. {way}")
