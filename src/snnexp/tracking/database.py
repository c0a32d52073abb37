"""The local SQLite file: made whole or not at all, checked before MLflow touches it, and moved with its folder.

MLflow fills a new database in some fifty steps, none of which can be taken back: a kill between two of them leaves a
file that MLflow refuses for ever. So a new one is made under a temporary name and renamed when it is complete. All of
this happens below the lock `<database>.lock` (see `mlflow_store.connect`).
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import shlex
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from snnexp.atomic import sync_folder
from snnexp.commands import program
from snnexp.errors import TrackingError
from snnexp.tracking.address import sqlite_path
from snnexp.tracking.new_database import fill, first, holds_rows, is_full, newest, opened, tables_in, utils

log = logging.getLogger(__name__)

QUIET_S = 5.0  # a half-made file that nobody has written to for so long is not being made by a plain mlflow
SIDE_FILES = ("-journal", "-wal", "-shm")
OTHER_FILE = (
    "Nothing was changed. Set tracking.uri to another file, such as sqlite:///other.db, or train with tracking=off."
)


@dataclass(frozen=True)
class Contents:
    """What is in a database file, as far as it matters here."""

    tables: frozenset[str]
    version: str | None  # of MLflow's tables
    rows: bool  # whether anything but what MLflow itself puts into a new database is in it


def prepare(database: Path, *, create: bool = True) -> bool:
    """See to it that a complete database is there; returns whether it was made just now. Hold the lock.

    Raises: TrackingError with the way out: no database, somebody else's, damaged, of another MLflow, not writable, no
    space left. Whatever holds anything is left as it is.
    """
    database = Path(os.path.realpath(database))  # a link stays a link
    if database.is_dir():
        raise TrackingError(
            f"tracking.uri=sqlite:///{database}: this is a folder. Name the file in it, mlflow.db, say."
        )
    if create:
        _sweep(database)
    if not database.exists():
        if create:
            _make(database)
        return create
    contents = _look(database, create)
    if contents is None:
        return False
    if contents.tables and not contents.tables & _own_tables():
        names = ", ".join(sorted(contents.tables)[:4])
        raise TrackingError(
            f"tracking.uri=sqlite:///{database}: this database belongs to another program (its tables: {names}). "
            f"{OTHER_FILE}"
        )
    if contents.rows:
        raise TrackingError(_other_version(database, contents))
    return _replace_unfinished(database) if create else False


def _look(database: Path, write: bool) -> Contents | None:
    """The contents of a file that is not a database of this MLflow; None if it is, or if somebody is busy with it.

    With `write` also whether it can be written to.
    """
    if write and not os.access(database.parent, os.W_OK):
        raise TrackingError(_not_writable(database, "its folder is read-only, and SQLite keeps a journal there"))
    try:
        with opened(database) as connection:
            tables = tables_in(connection)
            version = first(connection, "SELECT version_num FROM alembic_version", "alembic_version" in tables)
            if write:
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("ROLLBACK")
            if version == newest():
                return None
            rows = any(holds_rows(connection, name) for name in sorted(tables))
    except sqlite3.DatabaseError as error:
        text = str(error)
        if "locked" in text or "busy" in text:
            return None  # MLflow waits for it
        if "readonly" in text or "unable to open" in text:
            raise TrackingError(_not_writable(database, text)) from error
        if is_full(text, database):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(database)) from error
        what = "is not a database" if "not a database" in text else f"is damaged ({text})"
        raise TrackingError(f"tracking.uri=sqlite:///{database}: this file {what}. {OTHER_FILE}") from error
    return Contents(frozenset(tables - {"alembic_version"}), version, rows)


def _not_writable(database: Path, reason: str) -> str:
    return (
        f"tracking.uri=sqlite:///{database}: cannot write there ({reason}). Ask its owner for `chmod g+w` on the file, "
        "its .lock and their folder, or set tracking.uri to a database of your own, such as sqlite:///mlflow.db."
    )


def file_identity(uri: str) -> tuple[int, int] | None:
    """Which file a SQLite store is: another one, or none, once it was removed. None for other stores."""
    path = sqlite_path(uri)
    if path is None:
        return None
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


# --- making one ---


def _own_tables() -> set[str]:
    return {*utils().Base.metadata.tables, *utils().InitialBase.metadata.tables}


def _make(database: Path, replace: bool = False) -> None:
    temporary = database.with_name(f"{database.name}.{os.getpid()}.tmp")
    try:
        fill(temporary)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # SQLite's own 0644 shuts out the users of a group
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        _set_aside_journals(database)
        if replace:
            os.replace(temporary, database)
        else:
            _rename_if_free(temporary, database)
        sync_folder(database.parent)
    finally:
        for name in (temporary.name, *(temporary.name + end for end in SIDE_FILES)):
            database.with_name(name).unlink(missing_ok=True)


def _rename_if_free(temporary: Path, database: Path) -> None:
    """Rename, unless a plain mlflow has made the database in between."""
    try:
        os.link(temporary, database)
    except FileExistsError:
        return
    except OSError:  # a file system without hard links
        if not database.exists():
            os.rename(temporary, database)


def _set_aside_journals(database: Path) -> None:
    """A journal that outlived its database must not be played back into the new one; it may still be of use to it."""
    for end in SIDE_FILES:
        side = database.with_name(database.name + end)
        if side.exists():
            side.rename(_free_name(side.with_name(f"{side.name}.old")))


def _free_name(path: Path) -> Path:
    number, free = 2, path
    while free.exists():
        free, number = path.with_name(f"{path.name}-{number}"), number + 1
    return free


def _sweep(database: Path) -> None:
    """Remove what a killed maker left: whoever holds the lock is the only one to make it."""
    left = re.compile(re.escape(database.name) + r"\.\d+\.tmp(-journal|-wal|-shm)?")
    with contextlib.suppress(OSError):  # a folder that is not ours
        for path in list(database.parent.iterdir()):
            if left.fullmatch(path.name):
                path.unlink(missing_ok=True)


def _replace_unfinished(database: Path) -> bool:
    """Put a complete database in the place of one that was left half made and holds nothing. The old file is kept."""
    changed = -1.0
    while changed != (changed := _last_change(database)) or time.time() - changed < QUIET_S:
        time.sleep(min(QUIET_S / 10, 0.5))  # a plain mlflow may be making it this very moment
        contents = _look(database, True)
        if contents is None or contents.rows:
            return False
    if database.stat().st_size:
        kept = _free_name(database.with_name(f"{database.name}.unfinished"))
        database.rename(kept)  # a kill from here on leaves no database, and the next start makes one
        log.warning(
            "%s was left unfinished by a start that was cut off, and holds no run. It is made anew; the old one is %s.",
            database,
            kept.name,
        )
    _make(database, replace=True)
    return True


def _last_change(database: Path) -> float:
    times = []
    for name in (database.name, *(database.name + end for end in SIDE_FILES)):
        with contextlib.suppress(OSError):
            times.append(database.with_name(name).stat().st_mtime)
    return min(max(times, default=0.0), time.time())


def _other_version(database: Path, contents: Contents) -> str:
    from alembic.script import ScriptDirectory
    from alembic.util.exc import CommandError

    address = f"tracking.uri=sqlite:///{database}"
    other = "or set tracking.uri to a new file, such as sqlite:///new.db."
    scripts = ScriptDirectory.from_config(utils()._get_alembic_config(db_url=""))
    try:
        known = contents.version is None or scripts.get_revision(contents.version) is not None
    except CommandError:
        known = False
    if not known:
        return (
            f"{address}: made by a newer MLflow than this one (its tables are of version {contents.version}). Use that "
            f"MLflow (pip install -U mlflow), {other}"
        )
    if contents.version is None or any(name.startswith("_alembic_tmp_") for name in contents.tables):
        return (
            f"{address}: an upgrade of this database was cut off half-way, and it holds runs. Put your backup of it "
            f"back, {other}"
        )
    folder, name = shlex.quote(str(database.parent)), shlex.quote(database.name)
    mlflow = program("mlflow", anywhere=True)
    return (
        f"{address}: made by an older MLflow. Nothing was changed. Upgrade it, with a copy kept:\n"
        f"  cd {folder} && cp {name} {name}.backup && {mlflow} db upgrade {shlex.quote(f'sqlite:///{database.name}')}\n"
        f"{other.capitalize()}"
    )


# --- a folder that was renamed or copied ---


def follow_move(database: Path) -> None:
    """Let the artifacts' addresses in the database follow its folder. Hold the lock.

    MLflow keeps them absolute: after `mv old new` it would make `old` again for new runs and not find the files of
    earlier ones. Only places of the form that we choose ourselves, mlartifacts/<name> beside the database, are changed.
    """
    home = database.parent / "mlartifacts"
    try:
        with opened(database) as connection:
            moves = []
            for key, address in connection.execute(
                "SELECT experiment_id, artifact_location FROM experiments"
            ).fetchall():
                old = _local_path(address)
                # MLflow's own servers name folders by the experiment's number, in places that somebody chose
                if old is None or old.parent.name != "mlartifacts" or old.name == str(key) or _same(old.parent, home):
                    continue
                if not old.parent.exists() or (home / old.name).exists():
                    moves.append((key, address, old))
            if moves:
                connection.execute("BEGIN IMMEDIATE")
                for key, address, old in moves:
                    _move(connection, key, address, old, home / old.name)
                connection.execute("COMMIT")
    except sqlite3.DatabaseError as error:
        log.info("%s: the places of files were not looked at: %s", database, error)


def _move(connection: sqlite3.Connection, key: int, address: str, old: Path, new: Path) -> None:
    log.info("The files of runs in %s are in %s now: the folder was renamed or copied.", old, new)
    command = "UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?"
    connection.execute(command, (new.as_uri(), key))
    start = address.rstrip("/")
    for run, uri in connection.execute(
        "SELECT run_uuid, artifact_uri FROM runs WHERE experiment_id = ?", (key,)
    ).fetchall():
        if uri and uri.startswith(start + "/") and ((new / run).exists() or not (old / run).exists()):
            moved = (new.as_uri() + uri[len(start) :], run)
            connection.execute("UPDATE runs SET artifact_uri = ? WHERE run_uuid = ?", moved)


def _local_path(address: str | None) -> Path | None:
    if not address:
        return None
    parts = urlsplit(address)
    if parts.scheme not in ("", "file") or parts.netloc:
        return None
    path = Path(url2pathname(parts.path) if parts.scheme else address)
    return path if path.is_absolute() else None


def _same(one: Path, other: Path) -> bool:
    """Whether both name one folder, by way of a link or another mount, also one that is not there yet."""
    if one == other:
        return True
    try:
        return one == other or os.path.samefile(one, other) or os.path.samefile(one.parent, other.parent)
    except OSError:
        return False
