"""A new database with MLflow's tables, and how to look into one.

MLflow fills a new database in some fifty steps of half a second together. What they make is the same each time, so the
first one is kept in the user's cache, by MLflow's version, and copied from then on if it is whole and empty.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from snnexp.atomic import replacing
from snnexp.collector import importing
from snnexp.folders import user_cache
from snnexp.tracking.address import engine_uri

BUSY_S = 20.0  # how long a look at the file waits for somebody's transaction, as MLflow does


def utils() -> Any:
    with importing(freeze=True):
        from mlflow.store.db import utils
    return utils


def newest() -> str:
    return str(utils()._get_latest_schema_revision())


@contextlib.contextmanager
def opened(database: Path, mode: str = "rw", timeout: float = BUSY_S) -> Iterator[sqlite3.Connection]:
    # mode=rw even to look: only so can SQLite roll back what a killed writer left in the journal
    address = f"file:{quote(str(database))}?mode={mode}"
    with contextlib.closing(sqlite3.connect(address, uri=True, timeout=timeout, isolation_level=None)) as connection:
        yield connection


def tables_in(connection: sqlite3.Connection) -> set[str]:
    """Names of all tables but SQLite's own."""
    names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    return {name for name in names if not name.startswith("sqlite_")}


def first(connection: sqlite3.Connection, query: str, exists: bool) -> Any:
    row = connection.execute(query).fetchone() if exists else None
    return row[0] if row else None


def holds_rows(connection: sqlite3.Connection, table: str) -> bool:
    if table == "alembic_version":
        return False
    # what MLflow puts into a new database by itself
    rest = {"experiments": "experiment_id <> 0", "workspaces": "name <> 'default'"}.get(table, "1")
    try:
        return first(connection, f'SELECT 1 FROM "{table}" WHERE {rest} LIMIT 1', True) is not None
    except sqlite3.OperationalError:  # a table of that name with other columns
        return first(connection, f'SELECT 1 FROM "{table}" LIMIT 1', True) is not None


def fill(path: Path) -> None:
    """A new database with MLflow's tables: a copy of the last one that this MLflow has filled for this user."""
    kept = _kept()
    if kept is not None and _copied(kept, path):
        return
    _migrate(path)
    if kept is not None:
        with contextlib.suppress(OSError):  # a home that is read-only or full
            kept.parent.mkdir(parents=True, exist_ok=True)
            with replacing(kept) as file:
                file.write(path.read_bytes())


def _kept() -> Path | None:
    """Where the copy is kept; None: the user has no home."""
    version = newest()  # brings both packages, with the collector at rest
    import mlflow
    import sqlalchemy

    try:
        return user_cache() / "mlflow" / f"{mlflow.__version__}-{version}-sqlalchemy-{sqlalchemy.__version__}.db"
    except OSError:
        return None


def _copied(kept: Path, path: Path) -> bool:
    """Copy it if it is whole and empty; returns whether it was."""
    try:
        path.write_bytes(kept.read_bytes())
        with opened(path) as connection:
            tables = tables_in(connection)
            if (
                first(connection, "PRAGMA integrity_check", True) == "ok"
                and first(connection, "SELECT version_num FROM alembic_version", True) == newest()
                and tables >= set(utils().Base.metadata.tables)
                and not any(holds_rows(connection, name) for name in tables)
            ):
                return True
    except sqlite3.DatabaseError:
        pass
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
    path.unlink(missing_ok=True)
    return False


def _migrate(path: Path) -> None:
    """Fill it by MLflow's own fifty steps, which takes half a second."""
    tables = utils()
    import sqlalchemy

    def fast(connection: Any, _: Any) -> None:  # three times as fast; a kill loses a temporary file
        for pragma in ("synchronous = OFF", "journal_mode = MEMORY", "temp_store = MEMORY"):
            connection.execute(f"PRAGMA {pragma}")

    engine = sqlalchemy.create_engine(engine_uri(f"sqlite:///{path}"))
    sqlalchemy.event.listen(engine, "connect", fast)
    try:
        tables._initialize_tables(engine)
    except sqlalchemy.exc.OperationalError as error:
        if is_full(str(error), path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise
    finally:
        engine.dispose()


def is_full(text: str, path: Path) -> bool:
    """SQLite says "full", or only "disk I/O error" where it could not even begin a journal."""
    return "full" in text or ("disk I/O" in text and shutil.disk_usage(path.parent).free < 1 << 20)
