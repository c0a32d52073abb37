"""Which store and which experiment: the address as it is shown and kept, and as SQLAlchemy wants it.

Inside snnexp an address is always masked (`snnexp.secrets`), and a SQLite one is `sqlite:///` with the absolute path as
the file system spells it. SQLAlchemy takes a `%` or `?` in it for an escape or a query; only `engine_uri` knows.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import quote, unquote

from snnexp.secrets import mask, reveal

SQLITE = re.compile(r"sqlite(\+pysqlite)?:///")
DEFAULT_EXPERIMENT = "snnexp"


def resolve_uri(uri: str | None, start_dir: str | Path) -> str:
    """The store's address: `uri`, else $MLFLOW_TRACKING_URI, else sqlite:///mlflow.db; SQLite paths made absolute.

    MLflow's own default follows the current folder and switches to files where it finds ./mlruns, so it is never used.
    """
    chosen = uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    found = SQLITE.match(chosen)
    if found is None:
        return mask(chosen)
    # a query, ?timeout=5, is an option of the driver; a ? in a folder's name has a / after it
    typed = re.sub(r"\?[\w.]+=[^/]*$", "", chosen[found.end() :]).removeprefix("file:")
    paths = [_absolute(start_dir, typed), _absolute(start_dir, unquote(typed))]  # as typed, as SQLAlchemy would read it
    there = [path for path in paths if path.exists()] or [path for path in paths if path.parent.is_dir()] or paths
    return f"sqlite:///{there[0].as_posix()}"


def _absolute(start_dir: str | Path, path: str) -> Path:
    return Path(os.path.normpath(Path(start_dir).absolute() / Path(path).expanduser()))


def resolve_experiment(experiment: str | None) -> str:
    """The experiment's name: `experiment`, else $MLFLOW_EXPERIMENT_NAME, else snnexp."""
    return experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or DEFAULT_EXPERIMENT


def sqlite_path(uri: str) -> Path | None:
    """The file of a SQLite store, or None for any other."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def engine_uri(uri: str) -> str:
    """A resolved address as MLflow and SQLAlchemy must be given it: with its secrets, and `%`, `?`, `#` escaped."""
    path = sqlite_path(uri)
    if path is None:
        # psycopg 3, whatever SQLAlchemy's version takes for PostgreSQL's own driver
        return re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", reveal(uri))
    return "sqlite:///" + re.sub(r"[%?#]", lambda sign: quote(sign[0]), path.as_posix())
