"""Reaching the MLflow store: fast and clear when it is away, safe when several processes come first at once."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import shlex
import socket
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from filelock import Timeout

from snnexp.collector import importing
from snnexp.errors import NoSpaceError, SnnexpError, TrackingError
from snnexp.locks import file_lock
from snnexp.secrets import MARK, hide, mask, reveal
from snnexp.tracking.address import engine_uri, sqlite_path
from snnexp.tracking.database import file_identity, follow_move, prepare
from snnexp.tracking.network_disk import warn_of_one
from snnexp.tracking.reasons import telling_line

log = logging.getLogger(__name__)

PROBE_TIMEOUT_S = 5  # how long the start of a run waits for a server that does not answer
FIRST_TOUCH_TIMEOUT_S = 120.0  # a new database takes about 2 s per process in the queue
PORTS = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
WAY_OUT = "Start the server, correct tracking.uri (or $MLFLOW_TRACKING_URI), or train without a store: tracking=off."
WAY_OUT_OF_FILE = (
    "Set tracking.uri to another file, such as sqlite:///other.db, or train without a store: tracking=off."
)

_files: dict[str, tuple[int, int] | None] = {}  # address -> the file that it was when it was last opened here


@dataclass(frozen=True)
class Store:
    """A store that answered, and the experiment in it.

    `client` is an `mlflow.MlflowClient`; `uri` is masked; `made` says that its database was made a moment ago.
    """

    client: Any
    uri: str
    experiment_id: str
    experiment: str
    made: bool = False


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


def connect(uri: str, experiment: str, *, create: bool = True) -> Store | None:
    """Open the store at `uri` (resolved) and its experiment, made if it is missing (create=False: return None then).

    SQLite: under a file lock, since four processes that migrate one new database at once destroy it for good; files go
    to mlartifacts/<experiment> beside the database. A server decides by itself where files go.

    Raises: TrackingError within seconds, naming the address and the way out.
    """
    if (uri.startswith("file:") or "://" not in uri) and not uri.startswith("databricks"):
        raise TrackingError(
            f"tracking.uri={uri}: MLflow no longer takes a folder. Use a database such as "
            "sqlite:///mlflow.db (old runs: `mlflow migrate-filestore`) or a server, http://host:5000."
        )
    uri = mask(uri)
    if MARK in reveal(uri):
        raise TrackingError(
            f"tracking.uri={uri}: the password was left out of this address ({MARK}). Give the whole address, with "
            "tracking.uri or $MLFLOW_TRACKING_URI."
        )
    database = sqlite_path(uri)
    if database is None:
        if re.match(r"sqlite(\+\w+)?:", uri):
            raise TrackingError(f"tracking.uri={uri}: needs a file, sqlite:///mlflow.db or sqlite:////whole/path.db.")
        _probe(uri)
        with short_waits():
            return _open(uri, experiment, None, create)
    if database.name == ":memory:":
        raise TrackingError(f"tracking.uri={uri}: a database in memory is lost at the end. Use sqlite:///mlflow.db.")
    if not create and not database.exists():
        return None
    try:
        return _open_database(uri, database, experiment, create)
    except Timeout:
        raise TrackingError(
            f"{database}.lock has been held for {FIRST_TOUCH_TIMEOUT_S:.0f} s by a process that hangs. Stop it, or set "
            "tracking.uri to another database."
        ) from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpaceError(
                f"{database}: {error.strerror}. Free some disk space (or set tracking.uri to a database on another "
                "disk), then give the command again."
            ) from error
        raise TrackingError(
            f"tracking.uri={uri}: cannot write there ({error.strerror or error}). Set tracking.uri to a database in a "
            "folder that you may write to, or tracking=off."
        ) from error


def _open_database(uri: str, database: Path, experiment: str, create: bool) -> Store | None:
    if create:
        database.parent.mkdir(parents=True, exist_ok=True)
    warn_of_one(uri)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(file_lock(f"{os.path.realpath(database)}.lock", timeout=FIRST_TOUCH_TIMEOUT_S))
        except OSError as error:
            if create or isinstance(error, Timeout):
                raise  # to look at somebody else's database needs no lock
        import_mlflow()
        try:
            made = prepare(database, create=create)
            follow_move(database)
            _leave_old_file(uri)
        except (TrackingError, OSError):
            raise
        except Exception as error:  # sqlalchemy's and alembic's
            raise store_error(uri, error) from error
        folder = database.parent / "mlartifacts" / re.sub(r"[^\w.-]", "_", experiment)
        store = _open(uri, experiment, folder.as_uri(), create)
        return replace(store, made=made) if store else None


def store_error(uri: str, error: Exception) -> SnnexpError:
    """What to raise for an error of MLflow, requests or SQLAlchemy: where, what, and the way out."""
    reason = telling_line(error)
    if isinstance(error, ModuleNotFoundError) and error.name == "psycopg":
        return TrackingError(f"tracking.uri={uri}: PostgreSQL needs its driver: pip install 'snnexp[postgres]'.")
    if "disk is full" in reason or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        where = getattr(error, "filename", None) or sqlite_path(uri) or uri
        return NoSpaceError(
            f"{where}: {reason}. Free some disk space (or set state_dir and tracking.uri to another disk), then give "
            "the command again."
        )
    return TrackingError(f"tracking.uri={uri}: {reason}. {WAY_OUT if sqlite_path(uri) is None else WAY_OUT_OF_FILE}")


def _leave_old_file(uri: str) -> None:
    """MLflow keeps connections for the life of the process, also to a file that was removed and made anew since."""
    now = file_identity(uri)
    if _files.setdefault(uri, now) != now:
        _files[uri] = now
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        engine = SqlAlchemyStore._engine_map.get(engine_uri(uri))
        if engine is not None:
            engine.dispose()


def _open(uri: str, experiment: str, artifacts: str | None, create: bool) -> Store | None:
    mlflow = import_mlflow()
    real = engine_uri(uri)
    try:
        with importing(freeze=True), _few_tries(uri):  # the store's own packages, sqlalchemy and alembic for a database
            client = mlflow.MlflowClient(tracking_uri=real, registry_uri=real)
        found = client.get_experiment_by_name(experiment)
        if found is None and not create:
            return None
        if found is None:
            # experimentKind: else the pages open in the GenAI view
            tags = {"mlflow.experimentKind": "custom_model_development"}
            try:
                made = client.create_experiment(experiment, artifact_location=artifacts, tags=tags)
                return Store(client, uri, made, experiment)
            except mlflow.exceptions.MlflowException:
                found = client.get_experiment_by_name(experiment)  # another process made it in between
                if found is None:
                    raise
    except Exception as error:  # MlflowException, requests', sqlalchemy's, ImportError of a database driver
        raise store_error(uri, error) from error
    if found.lifecycle_stage == "deleted":
        raise TrackingError(
            f"tracking.experiment={experiment} was deleted in this store. Restore it with `MLFLOW_TRACKING_URI="
            f"{shlex.quote(engine_uri(uri) if sqlite_path(uri) else uri)} mlflow experiments restore -x "
            f"{found.experiment_id}`, or choose another name."
        )
    return Store(client, uri, str(found.experiment_id), experiment)


@contextlib.contextmanager
def _few_tries(uri: str) -> Iterator[None]:
    """Let a database say no once or twice, not ten times in 100 s; and let MLflow make no folder for an address."""
    if uri.startswith(("http://", "https://", "databricks")):
        yield
        return
    try:
        from mlflow.store.db import utils
    except ImportError:  # mlflow-skinny: the client says what it lacks
        yield
        return
    tries, make = utils.MAX_RETRY_COUNT, utils._make_parent_dirs_if_sqlite
    # the folder is there; MLflow would make one more, named as the escaped address is
    utils.MAX_RETRY_COUNT, utils._make_parent_dirs_if_sqlite = 2, lambda _: None
    try:
        yield
    finally:
        utils.MAX_RETRY_COUNT, utils._make_parent_dirs_if_sqlite = tries, make


def _probe(uri: str) -> None:
    """A plain connection to the server's port, because the libraries' own attempts may take minutes to fail.

    Where MLflow's requests go through a proxy (http_proxy, no_proxy, ...), to the proxy's.
    """
    real, shown, what = reveal(uri), uri, "tracking server"
    try:
        proxy = _proxy(real)
        if proxy is not None:
            real, shown, what = proxy, uri, "proxy ($http_proxy, $https_proxy or $all_proxy)"
        parts = urlsplit(real)
        default = PORTS.get(parts.scheme.partition("+")[0])
        host, port = parts.hostname, parts.port or default
    except ValueError as error:
        raise TrackingError(f"tracking.uri={uri}: {hide(str(error))}. {WAY_OUT}") from error
    if host is None or port is None:
        return  # databricks and plugins know their own way
    try:
        socket.create_connection((host, port), timeout=PROBE_TIMEOUT_S).close()
    except (OSError, UnicodeError) as error:
        reason = "no answer" if isinstance(error, TimeoutError) else (getattr(error, "strerror", None) or str(error))
        raise TrackingError(f"tracking.uri={shown}: no {what} at {host}:{port} ({reason}). {WAY_OUT}") from error


def _proxy(real: str) -> str | None:
    """The proxy that requests, and so MLflow, would use for this address."""
    if not real.startswith(("http://", "https://")):
        return None
    from requests.utils import get_environ_proxies, select_proxy

    proxy = select_proxy(real, get_environ_proxies(real, no_proxy=None))
    return proxy if proxy is None or "://" in proxy else f"http://{proxy}"


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
