"""The SQLite file is all or nothing, whatever was there before, and whatever its folder is called."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from snnexp.errors import TrackingError
from snnexp.tracking import database as db
from snnexp.tracking import new_database
from snnexp.tracking.address import engine_uri, resolve_uri
from snnexp.tracking.mlflow_store import connect, import_mlflow


@pytest.fixture(autouse=True)
def ready_mlflow() -> None:
    """`connect` imports it with the right filters for warnings; the tests of `prepare` alone need them, too."""
    import_mlflow()


def sql(path: Path, *commands: str) -> list[Any]:
    with closing(sqlite3.connect(path)) as connection, connection:
        return [connection.execute(command).fetchall() for command in commands]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def half_made(path: Path, migrated: Path) -> None:
    """What a kill in the middle of MLflow's own migration leaves."""
    shutil.copy(migrated, path)
    sql(path, "DELETE FROM experiments WHERE experiment_id <> 0", "DELETE FROM experiment_tags", "DROP TABLE metrics")
    sql(path, "DELETE FROM alembic_version", "CREATE TABLE _alembic_tmp_metrics (key TEXT)")
    old = time.time() - 60
    os.utime(path, (old, old))


# --- made whole or not at all ---


@pytest.mark.parametrize("how", [KeyboardInterrupt, OSError(28, "No space left on device"), RuntimeError("broken")])
def test_what_stops_the_making_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: BaseException
) -> None:
    def fill(path: Path) -> None:
        assert not (tmp_path / "mlflow.db").exists()
        path.write_bytes(b"half")
        raise how

    monkeypatch.setattr(db, "fill", fill)
    with pytest.raises((KeyboardInterrupt, OSError, RuntimeError)):
        db.prepare(tmp_path / "mlflow.db")
    assert names(tmp_path) == set()


def test_a_killed_maker_leaves_no_database_and_the_next_start_sweeps(tmp_path: Path, migrated: Path) -> None:
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom snnexp.tracking import database as db\n"
        "def fill(path):\n    path.write_bytes(b'half'); print('writing', flush=True); time.sleep(600)\n"
        "db.fill = fill\ndb.prepare(Path(sys.argv[1]))"
    )
    path = tmp_path / "mlflow.db"
    maker = subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE)
    assert maker.stdout is not None and maker.stdout.readline() == b"writing\n"
    maker.send_signal(signal.SIGKILL)
    maker.communicate()
    assert names(tmp_path) == {f"mlflow.db.{maker.pid}.tmp"}
    (tmp_path / f"mlflow.db.{maker.pid}.tmp-journal").touch()
    shutil.copy(migrated, path)  # another one has made it since
    assert not db.prepare(path)
    assert names(tmp_path) == {"mlflow.db"}


def test_a_new_database_has_the_mode_that_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        assert connect(f"sqlite:///{tmp_path}/mlflow.db", "snnexp") is not None
    finally:
        os.umask(before)
    for name in ("mlflow.db", "mlflow.db.lock"):  # two users of a group write both
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o664, name


def test_a_journal_without_its_database_is_not_played_back_into_a_new_one(
    tmp_path: Path, migrated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db, "fill", lambda path: shutil.copy(migrated, path))
    (tmp_path / "mlflow.db-journal").write_bytes(b"of a database that was moved away")
    assert db.prepare(tmp_path / "mlflow.db")
    assert names(tmp_path) == {"mlflow.db", "mlflow.db-journal.old"}


def schema(path: Path) -> list[Any]:
    """All tables, indices and columns. The constraints' text is another each time: MLflow lists their words as sets."""
    names = "SELECT type, name, tbl_name FROM sqlite_master ORDER BY 1, 2"
    columns = (
        "SELECT m.name, c.* FROM sqlite_master m, pragma_table_info(m.name) c WHERE m.type = 'table' ORDER BY 1, 2"
    )
    return sql(path, names, columns)


def test_a_second_new_database_is_a_copy_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy that is damaged, holds rows or misses a table is made anew, and no cache is no fault."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    calls: list[Path] = []
    made = new_database._migrate

    def migrate(path: Path) -> None:
        calls.append(path)
        made(path)

    def prepared(name: str) -> Path:
        assert db.prepare(tmp_path / name)
        assert db.prepare(tmp_path / name) is False  # complete
        return tmp_path / name

    monkeypatch.setattr(new_database, "_migrate", migrate)
    expected = schema(prepared("first.db"))
    (kept,) = (tmp_path / "cache" / "snnexp" / "mlflow").iterdir()
    assert schema(prepared("second.db")) == expected
    assert len(calls) == 1
    add = "INSERT INTO experiments (name, artifact_location, lifecycle_stage) VALUES ('e', 'x', 'active')"
    for number, spoil in enumerate(
        [
            lambda: kept.write_bytes(kept.read_bytes()[:200_000]),
            lambda: kept.write_bytes(b"no database"),
            lambda: kept.write_bytes(b""),
            lambda: sql(kept, add),
            lambda: sql(kept, "DROP TABLE metrics"),
            lambda: sql(kept, "DELETE FROM alembic_version"),
        ]
    ):
        spoil()
        assert schema(prepared(f"after{number}.db")) == expected
        assert len(calls) == number + 2
    assert schema(prepared("third.db")) == expected
    assert len(calls) == 7
    monkeypatch.setenv("XDG_CACHE_HOME", str(kept))  # a file, where a folder should be
    assert schema(prepared("fourth.db")) == expected


# --- what was there before ---


def test_a_killed_writers_hot_journal_is_rolled_back(tmp_path: Path, migrated: Path) -> None:
    path = tmp_path / "mlflow.db"
    shutil.copy(migrated, path)
    script = (
        "import os, sqlite3, sys\nc = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "c.execute('PRAGMA cache_size = 1'); c.execute('BEGIN')\n"
        "c.executemany('INSERT INTO experiments (name, artifact_location, lifecycle_stage) VALUES (?, ?, ?)',\n"
        "    [(f'e{i}', 'x' * 2000, 'active') for i in range(500)])\n"
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert (tmp_path / "mlflow.db-journal").stat().st_size > 0
    assert not db.prepare(path)
    assert sql(path, "SELECT count(*) FROM experiments WHERE name LIKE 'e%'", "PRAGMA integrity_check") == [
        [(0,)],
        [("ok",)],
    ]
    assert names(tmp_path) == {"mlflow.db"}


@pytest.mark.parametrize("kind", ["half", "empty file", "version only"])
def test_a_database_that_was_left_half_made_is_made_anew(
    tmp_path: Path, migrated: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db, "QUIET_S", 0.1)
    monkeypatch.setattr(db, "fill", lambda path: shutil.copy(migrated, path))
    path = tmp_path / "mlflow.db"
    if kind == "half":
        half_made(path, migrated)
    elif kind == "empty file":
        path.touch()
    else:
        sql(path, "CREATE TABLE alembic_version (version_num TEXT)")
    store = connect(f"sqlite:///{path}", "snnexp")
    assert store is not None and store.made
    store.client.create_run(store.experiment_id)
    kept = {"mlflow.db.unfinished"} if kind != "empty file" else set()
    assert names(tmp_path) == {"mlflow.db", "mlflow.db.lock"} | kept


def test_a_half_made_one_is_left_alone_while_somebody_writes_to_it(
    tmp_path: Path, migrated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mlflow.db"
    half_made(path, migrated)
    os.utime(path)
    monkeypatch.setattr(db.time, "sleep", lambda _: shutil.copy(migrated, path))  # the other one gets ready
    assert not db.prepare(path)
    assert names(tmp_path) == {"mlflow.db"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("UPDATE alembic_version SET version_num = 'f00dfeed0000'", "made by a newer MLflow"),
        ("UPDATE alembic_version SET version_num = '451aebb31d03'", "mlflow db upgrade sqlite:///mlflow.db"),
        ("DELETE FROM alembic_version", "cut off half-way"),
    ],
)
def test_another_version_that_holds_something_is_named_and_left(
    tmp_path: Path, migrated: Path, change: str, words: str
) -> None:
    path = tmp_path / "mlflow.db"
    shutil.copy(migrated, path)  # it has the experiment "template"
    sql(path, change)
    before = path.read_bytes()
    with pytest.raises(TrackingError, match=words):
        connect(f"sqlite:///{path}", "snnexp")
    assert path.read_bytes() == before


def test_the_advice_for_an_older_database_leads_out(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    db.prepare(path)
    sql(path, "INSERT INTO experiments (name, lifecycle_stage) VALUES ('old', 'active')")
    import sqlalchemy
    from alembic import command
    from mlflow.store.db import utils

    engine = sqlalchemy.create_engine(f"sqlite:///{path}")
    config = utils._get_alembic_config(f"sqlite:///{path}")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        try:
            command.downgrade(config, "-1")
        except Exception as error:  # MLflow writes most of its steps in one direction only
            pytest.skip(f"MLflow cannot make an older database: {error}")
    engine.dispose()
    with pytest.raises(TrackingError, match="mlflow db upgrade"):
        connect(f"sqlite:///{path}", "old")
    utils._upgrade_db(sqlalchemy.create_engine(f"sqlite:///{path}"))  # what the command does
    assert connect(f"sqlite:///{path}", "old") is not None


def test_files_that_are_no_database_of_ours_are_left_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "folder.db").mkdir()
    (tmp_path / "text.db").write_text("no database " * 100)
    sql(tmp_path / "other.db", "CREATE TABLE studies (id INTEGER)")
    for name, words in (("folder", "this is a folder"), ("text", "not a database"), ("other", "tables: studies")):
        with pytest.raises(TrackingError, match=words):
            connect(f"sqlite:///{tmp_path}/{name}.db", "snnexp")
    assert {"folder.db", "text.db", "other.db"} <= names(tmp_path)
    with pytest.raises(TrackingError, match="lost at the end"):
        connect("sqlite:///:memory:", "snnexp")


# --- what its folder is called ---


@pytest.mark.parametrize("name", ["a%20b", "what?x", "no#1", "two words", "100%", "q?a=1"])
def test_any_folder_name(tmp_path: Path, migrated: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    shutil.copy(migrated, folder / "mlflow.db")
    for uri in (resolve_uri("sqlite:///mlflow.db", folder), resolve_uri(f"sqlite:///{name}/mlflow.db", tmp_path)):
        store = connect(uri, "snnexp")
        assert store is not None
    run = store.client.create_run(store.experiment_id)
    store.client.log_text(run.info.run_id, "x", "notes.txt")
    assert (folder / "mlartifacts" / "snnexp" / run.info.run_id / "artifacts" / "notes.txt").read_text() == "x"
    assert len(sql(folder / "mlflow.db", "SELECT * FROM runs")[0]) == 1
    assert names(tmp_path) == {name}  # and no folder of another spelling


def test_an_escaped_address_is_read_as_sqlalchemy_does_where_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "a b").mkdir()
    assert resolve_uri("sqlite:///a%20b/mlflow.db", tmp_path) == f"sqlite:///{tmp_path}/a b/mlflow.db"
    assert resolve_uri("sqlite:///mlflow.db?timeout=5", tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    assert engine_uri("sqlite:////a%b/c?d.db") == "sqlite:////a%25b/c%3Fd.db"


# --- a folder that was renamed or copied ---


@pytest.mark.parametrize("copied", [False, True])
def test_files_follow_a_folder(tmp_path: Path, migrated: Path, copied: bool) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    shutil.copy(migrated, old / "mlflow.db")
    store = connect(f"sqlite:///{old}/mlflow.db", "snnexp")
    assert store is not None
    run_id = store.client.create_run(store.experiment_id).info.run_id
    store.client.log_text(run_id, "x", "notes.txt")
    shutil.copytree(old, new) if copied else old.rename(new)
    before = sorted(old.rglob("*"))

    moved = connect(f"sqlite:///{new}/mlflow.db", "snnexp", create=False)
    assert moved is not None
    assert moved.client.get_run(run_id).info.artifact_uri.startswith(new.as_uri())
    assert Path(moved.client.download_artifacts(run_id, "notes.txt")).read_text() == "x"
    second = moved.client.create_run(moved.experiment_id).info.run_id
    moved.client.log_text(second, "y", "notes.txt")
    assert (new / "mlartifacts" / "snnexp" / second / "artifacts" / "notes.txt").read_text() == "y"
    assert sorted(old.rglob("*")) == before


def test_a_place_for_files_that_somebody_chose_is_kept(tmp_path: Path, migrated: Path) -> None:
    path = tmp_path / "mlflow.db"
    shutil.copy(migrated, path)
    places = (f"file://{tmp_path}/big/mlartifacts/1", "s3://bucket/mlartifacts/x", f"file://{tmp_path}/disk/anything")
    (tmp_path / "big" / "mlartifacts").mkdir(parents=True)
    for number, place in enumerate(places, start=10):
        sql(path, f"INSERT INTO experiments VALUES ({number}, 'e{number}', '{place}', 'active', 0, 0, 'default')")
    db.follow_move(path)
    kept = sql(path, "SELECT artifact_location FROM experiments WHERE experiment_id >= 10")[0]
    assert {place for (place,) in kept} == set(places)


def test_somebody_elses_database_can_be_looked_at(
    tmp_path: Path, migrated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from snnexp.tracking import mlflow_store

    def refused(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(mlflow_store, "file_lock", refused)
    shutil.copy(migrated, tmp_path / "mlflow.db")
    assert connect(f"sqlite:///{tmp_path}/mlflow.db", "template", create=False) is not None
    with pytest.raises(TrackingError, match="cannot write there"):
        connect(f"sqlite:///{tmp_path}/mlflow.db", "template")
