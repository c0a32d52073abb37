"""Reaching the MLflow store: fast and clear when it is away, safe when several processes come first at once."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import sqlite3
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from snnexp.collector import importing
from snnexp.errors import TrackingError
from snnexp.tracking.links import without_password

log = logging.getLogger(__name__)

PROBE_TIMEOUT_S = 5  # how long the start of a run waits for a server that does not answer
FIRST_TOUCH_TIMEOUT_S = 120.0  # a new database takes about 2 s per process in the queue
DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
WAY_OUT = "Start the server, correct tracking.uri (or $MLFLOW_TRACKING_URI), or train without a store: tracking=off."


@dataclass(frozen=True)
class Store:
    """A store that answered, and the experiment in it. `client` is an `mlflow.MlflowClient`."""

    client: Any
    uri: str
    experiment_id: str


def import_mlflow() -> Any:
    """Import mlflow the way we want it: no telemetry unless the user turned it on, no chatter, short waits.

    A request to a server that went away must not stop training for the ten minutes that MLflow's own defaults allow
    (7 retries of up to 120 s); what could not be sent is kept and sent later.
    """
    for name, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    }.items():
        os.environ.setdefault(name, value)
    # MLflow 3.17 with SQLAlchemy 2.1, when it first opens a database; nothing a user of either could change
    warnings.filterwarnings("ignore", message="The ``noload`` loader strategy is deprecated")
    with importing(freeze=True):  # in a sweep its parent comes here first, before any job
        import mlflow

    for name in ("alembic", "mlflow.tracking.client", "mlflow.utils.environment"):
        logging.getLogger(name).setLevel(logging.WARNING)  # "Running upgrade 451aebb31d03 -> ..." forty times
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # a traceback for each error; we say it once
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # each retry; we say it once
    return mlflow


def sqlite_path(uri: str) -> Path | None:
    """The file of a SQLite store, or None for any other."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def connect(uri: str, experiment: str, *, create: bool = True) -> Store | None:
    """Open the store at `uri` and its experiment, which is made if it is missing (create=False: return None then).

    SQLite: under a file lock, since four processes that migrate one new database at once destroy it for good; files go
    to mlartifacts/<experiment> beside the database. A server decides by itself where files go.

    Raises: TrackingError within seconds, naming the address and the way out.
    """
    if (uri.startswith("file:") or "://" not in uri) and not uri.startswith("databricks"):
        raise TrackingError(
            f"tracking.uri={uri}: MLflow no longer takes a folder. Use a database such as "
            "sqlite:///mlflow.db (old runs: `mlflow migrate-filestore`) or a server, http://host:5000."
        )
    database = sqlite_path(uri)
    if database is None:
        _probe(uri)
        with short_waits():
            return _open(uri, experiment, None, create)
    if not create and not database.exists():
        return None
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        _check_sqlite(database)
        with FileLock(f"{database}.lock", timeout=FIRST_TOUCH_TIMEOUT_S):
            folder = database.parent / "mlartifacts" / re.sub(r"[^\w.-]", "_", experiment)
            return _open(uri, experiment, folder.as_uri(), create)
    except Timeout:
        raise TrackingError(
            f"{database}.lock has been held for {FIRST_TOUCH_TIMEOUT_S:.0f} s by a process that hangs. Stop it, or set "
            "tracking.uri to another database."
        ) from None
    except OSError as error:
        raise TrackingError(
            f"tracking.uri={uri}: cannot write there ({error.strerror or error}). Set tracking.uri to a database in a "
            "folder that you may write to, or tracking=off."
        ) from error


def _open(uri: str, experiment: str, artifacts: str | None, create: bool) -> Store | None:
    mlflow = import_mlflow()
    try:
        with importing(freeze=True):  # the store's own packages, sqlalchemy and alembic for a database
            client = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
        found = client.get_experiment_by_name(experiment)
        if found is None and not create:
            return None
        if found is None:
            # experimentKind: else the pages open in the GenAI view
            tags = {"mlflow.experimentKind": "custom_model_development"}
            try:
                return Store(client, uri, client.create_experiment(experiment, artifact_location=artifacts, tags=tags))
            except mlflow.exceptions.MlflowException:
                found = client.get_experiment_by_name(experiment)  # another process made it in between
                if found is None:
                    raise
    except Exception as error:  # MlflowException, requests', sqlalchemy's, ImportError of a database driver
        raise TrackingError(f"tracking.uri={without_password(uri)}: {_first_line(error)} {WAY_OUT}") from error
    if found.lifecycle_stage == "deleted":
        raise TrackingError(
            f"tracking.experiment={experiment} was deleted in this store. Restore it with `mlflow experiments restore "
            f"-x {found.experiment_id}`, or choose another name."
        )
    return Store(client, uri, str(found.experiment_id))


def _probe(uri: str) -> None:
    """A plain connection to the server's port, because the libraries' own attempts may take minutes to fail."""
    try:
        parts = urlsplit(uri)
        default = {"http": 80, "https": 443}.get(parts.scheme) or DATABASE_PORTS.get(parts.scheme.partition("+")[0])
        host, port = parts.hostname, parts.port or default
    except ValueError as error:
        raise TrackingError(f"tracking.uri={without_password(uri)}: {error}. {WAY_OUT}") from error
    if host is None or port is None:
        return  # databricks and plugins know their own way
    try:
        socket.create_connection((host, port), timeout=PROBE_TIMEOUT_S).close()
    except OSError as error:
        reason = "no answer" if isinstance(error, TimeoutError) else (error.strerror or str(error))
        raise TrackingError(
            f"tracking.uri={without_password(uri)}: no tracking server at {host}:{port} ({reason}). {WAY_OUT}"
        ) from error


def _check_sqlite(database: Path) -> None:
    """A file that is no database fails here with its name, not forty frames deep in a migration."""
    if not database.exists():
        return
    try:
        with contextlib.closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
            connection.execute("SELECT name FROM sqlite_master LIMIT 1").fetchall()
    except sqlite3.DatabaseError as error:
        if "locked" in str(error):
            return  # busy: MLflow waits for it
        raise TrackingError(
            f"tracking.uri=sqlite:///{database}: {error}. Move the file away, or set tracking.uri to another one."
        ) from error


@contextlib.contextmanager
def short_waits() -> Iterator[None]:
    """Limit one exchange with a server to a few seconds, whatever the user or MLflow set for the rest."""
    limits = {"MLFLOW_HTTP_REQUEST_TIMEOUT": str(PROBE_TIMEOUT_S), "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    import_mlflow()
    before = {name: os.environ.get(name) for name in limits}
    os.environ.update(limits)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return (text[0][:300].rstrip(".") if text else type(error).__name__) + "."
