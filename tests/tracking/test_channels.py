"""One failing channel blocks nothing else: files, proxies, records that were deleted, databases that were removed."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from snnexp.config import TrackingConf
from snnexp.errors import TrackingError
from snnexp.tracking.address import resolve_experiment
from snnexp.tracking.mlflow_store import Store, connect, store_error
from snnexp.tracking.mlflow_tracker import MlflowTracker
from snnexp.tracking.reasons import telling_line
from snnexp.tracking.runs import RunFolder, read_record
from snnexp.tracking.store import Tracker
from snnexp.tracking.unsent import restore_skipped

OpenRun = Callable[..., tuple[Tracker, RunFolder]]


def finished(open_run: OpenRun, config: dict[str, Any]) -> tuple[MlflowTracker, RunFolder]:
    tracker, folder = open_run(config)
    assert isinstance(tracker, MlflowTracker)
    tracker.log_epoch(1, {"loss": 2.0})
    tracker.log_text("x", "notes.txt")
    tracker.finish("FINISHED")
    folder.finish("FINISHED")
    return tracker, folder


def whole_runs(store: Store) -> list[str]:
    """Ids of the runs that have everything that `finished` logged."""
    runs = store.client.search_runs([store.experiment_id])
    for run in runs:
        assert (run.info.status, run.data.tags["status"], run.data.metrics) == ("FINISHED", "FINISHED", {"loss": 2.0})
        assert {f.path for f in store.client.list_artifacts(run.info.run_id)} == {"config.yaml", "notes.txt"}
        assert run.info.start_time <= run.info.end_time
    return [run.info.run_id for run in runs]


# --- files ---


def test_files_that_cannot_be_written_keep_nothing_else(
    config: dict[str, Any], open_run: OpenRun, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from mlflow import MlflowClient

    with monkeypatch.context() as blocked, caplog.at_level(logging.WARNING):
        refused = PermissionError(13, "Permission denied", "/srv/artifacts")
        blocked.setattr(MlflowClient, "log_artifact", lambda *_: (_ for _ in ()).throw(refused))
        tracker, folder = finished(open_run, config)
    run = tracker.store.client.get_run(tracker.run_id)
    assert (run.info.status, run.data.metrics["loss"], run.data.params["neuron.name"]) == ("FINISHED", 2.0, "fixed")
    assert caplog.text.count("cannot be written to") == 1
    assert run.info.artifact_uri in caplog.text and "Permission denied" in caplog.text
    assert "away" not in caplog.text
    assert read_record(folder.path).unsent  # type: ignore[union-attr]
    open_run({**config, "seed": 1})  # the next run that uses the store sends them
    assert {f.path for f in tracker.store.client.list_artifacts(tracker.run_id)} == {"config.yaml", "notes.txt"}
    assert not read_record(folder.path).unsent  # type: ignore[union-attr]


# --- records that are gone ---


@pytest.mark.parametrize("gone", ["deleted", "database removed", "other experiment", "experiment renamed"])
def test_what_a_sweep_skips_is_in_the_store_afterwards(
    start_dir: Path, config: dict[str, Any], open_run: OpenRun, gone: str, caplog: pytest.LogCaptureFixture
) -> None:
    tracker, folder = finished(open_run, config)
    client, uri = tracker.store.client, tracker.store.uri
    words = "was deleted in MLflow's pages"
    if gone == "deleted":
        client.delete_run(tracker.run_id)
    elif gone == "database removed":
        (start_dir / "mlflow.db").unlink()
        words = "the database was removed"
    elif gone == "other experiment":
        config["tracking"]["experiment"] = "paper"
        words = "it is in the experiment snnexp"
    else:
        client.rename_experiment(tracker.store.experiment_id, "renamed")
        words = "its experiment was renamed to renamed"
    conf = TrackingConf(**config["tracking"])
    again = RunFolder(folder.path, read_record(folder.path), "skip")  # type: ignore[arg-type]
    with caplog.at_level(logging.WARNING):
        restore_skipped(conf, again, start_dir, None)
    assert words in caplog.text and "sent again" in caplog.text
    store = connect(uri, conf.experiment or "")
    assert store is not None
    assert whole_runs(store) == [again.record.mlflow_run_id]
    restore_skipped(conf, again, start_dir, None)  # and only once
    assert whole_runs(store) == [again.record.mlflow_run_id]


def test_a_run_that_was_made_without_a_store_is_brought_to_the_one_of_the_sweep(
    start_dir: Path, config: dict[str, Any], open_run: OpenRun
) -> None:
    off, folder = open_run({**config, "tracking": {**config["tracking"], "name": "off"}})
    off.log_epoch(1, {"loss": 2.0})
    off.log_text("x", "notes.txt")
    off.finish("FINISHED")
    folder.finish("FINISHED")
    again = RunFolder(folder.path, read_record(folder.path), "skip")  # type: ignore[arg-type]
    restore_skipped(TrackingConf(**config["tracking"]), again, start_dir, None)
    store = connect(f"sqlite:///{start_dir}/mlflow.db", "snnexp")
    assert store is not None and whole_runs(store) == [again.record.mlflow_run_id]


@pytest.mark.parametrize("gone", ["deleted", "database removed"])
def test_a_run_that_is_deleted_while_it_goes_on_is_recorded_anew(
    start_dir: Path, config: dict[str, Any], open_run: OpenRun, gone: str, caplog: pytest.LogCaptureFixture
) -> None:
    tracker, folder = open_run(config)
    assert isinstance(tracker, MlflowTracker)
    if gone == "deleted":
        tracker.store.client.delete_run(tracker.run_id)
    else:
        (start_dir / "mlflow.db").unlink()
    with caplog.at_level(logging.WARNING):
        tracker.log_epoch(1, {"loss": 2.0})
        tracker.log_text("x", "notes.txt")
        tracker.finish("FINISHED")
    folder.finish("FINISHED")
    assert ("deleted in MLflow's pages" if gone == "deleted" else "database was removed") in caplog.text
    assert whole_runs(tracker.store) == [tracker.run_id] == [read_record(folder.path).mlflow_run_id]  # type: ignore[union-attr]


def test_a_removed_database_is_filled_again_from_the_run_folders(
    start_dir: Path, config: dict[str, Any], open_run: OpenRun, caplog: pytest.LogCaptureFixture
) -> None:
    finished(open_run, config)
    (start_dir / "mlflow.db").unlink()
    with caplog.at_level(logging.WARNING):
        tracker, _ = finished(open_run, {**config, "seed": 1})
    assert caplog.text.count("was removed") == 1
    assert len(whole_runs(tracker.store)) == 2


# --- the way there ---


class Server(HTTPServer):
    """Answers every request with one status and keeps what was asked."""

    def __init__(self, status: int, body: bytes = b"<html>no</html>") -> None:
        asked: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET

            def log_message(self, *_: Any) -> None:
                """Quiet."""

        super().__init__(("127.0.0.1", 0), Handler)
        self.asked = asked
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@pytest.mark.parametrize(
    ("status", "words"),
    [(401, "MLFLOW_TRACKING_USERNAME"), (403, "allowed-hosts"), (404, "no MLflow server"), (500, "its log")],
)
def test_a_servers_refusal_is_told_in_words(status: int, words: str) -> None:
    server = Server(status)
    with pytest.raises(TrackingError) as error:
        connect(server.address, "snnexp")
    server.shutdown()
    server.server_close()
    assert words in str(error.value) and server.address in str(error.value)
    assert "<html>" not in str(error.value)


def test_the_proxy_that_mlflow_uses_is_used_by_the_first_look(monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = Server(502)
    monkeypatch.setenv("http_proxy", f"http://user:pr0xypass@127.0.0.1:{proxy.server_port}")
    monkeypatch.setenv("no_proxy", "localhost")
    with pytest.raises(TrackingError, match="gateway cannot reach it"):
        connect("http://tracking.invalid:5000", "snnexp")  # a name that only the proxy can resolve
    assert proxy.asked and proxy.asked[0].startswith("http://tracking.invalid:5000/")
    proxy.shutdown()
    proxy.server_close()
    with pytest.raises(TrackingError, match=r"no proxy .* at 127\.0\.0\.1") as error:
        connect("http://tracking.invalid:5000", "snnexp")
    assert "pr0xypass" not in str(error.value)


def test_no_proxy_goes_straight(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free.getsockname()[1]}")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        server = Server(404)
        with pytest.raises(TrackingError, match="no MLflow server"):
            connect(server.address, "snnexp")
        server.shutdown()
        server.server_close()


# --- words ---


def test_a_full_disk_is_no_mistake_of_the_command() -> None:
    error = store_error(
        "sqlite:////x/mlflow.db", Exception("(sqlite3.OperationalError) database or disk is full\n[SQL")
    )
    assert (error.exit_code, str(error).partition(". ")[0]) == (1, "/x/mlflow.db: database or disk is full")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "(raised as a result of Query-invoked autoflush; consider using a session.no_autoflush block)\n"
            "(sqlite3.OperationalError) database is locked\n[SQL: UPDATE x]\n(Background on this error at: https://x)",
            "database is locked",
        ),
        ('(psycopg2.OperationalError) FATAL:  no such role "u"\n\n(Background', 'FATAL:  no such role "u"'),
        (
            "API request to endpoint /api failed with error code 503 != 200. Response body: '<html>'",
            "it is not ready (503)",
        ),
        ("", "Exception"),
        (
            "HTTPConnectionPool(host='h', port=1): Max retries exceeded with url: /x (Caused by NewConnectionError("
            "\"HTTPConnection(host='h', port=1): Failed to establish a connection: [Errno 111] Connection refused\"))",
            "Failed to establish a connection: [Errno 111] Connection refused",
        ),
        (
            "HTTPSConnectionPool(host='h', port=1): Max retries exceeded with url: /x (Caused by NameResolutionError("
            "\"HTTPSConnection(host='h', port=1): Failed to resolve 'h' ([Errno -2] Name or service not known)\"))",
            "Failed to resolve 'h' ([Errno -2] Name or service not known)",
        ),
    ],
)
def test_the_telling_line(text: str, line: str) -> None:
    assert telling_line(Exception(text)) == line


def test_the_experiments_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    assert resolve_experiment(None) == "snnexp"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "from_env")
    assert resolve_experiment(None) == "from_env"
    assert resolve_experiment("typed") == "typed"


def test_a_masked_address_without_its_password_says_what_is_missing() -> None:
    with pytest.raises(TrackingError, match="the password was left out"):
        connect("http://nobody-known:***@127.0.0.1:1", "snnexp")


def test_an_interrupt_while_the_run_is_being_opened_leaves_killed_on_both_sides(
    start_dir: Path, config: dict[str, Any], open_run: OpenRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    from snnexp import interrupts

    monkeypatch.setattr(interrupts, "_ending", False)
    monkeypatch.setattr(MlflowTracker, "_is_up_to_date", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        open_run(config)
    store = connect(f"sqlite:///{start_dir}/mlflow.db", "snnexp")
    assert store is not None
    assert [run.info.status for run in store.client.search_runs([store.experiment_id])] == ["KILLED"]
    interrupts.reset()


def test_a_full_disk_does_not_keep_the_store_from_knowing(
    config: dict[str, Any], open_run: OpenRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker, _ = open_run(config)
    assert isinstance(tracker, MlflowTracker)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tracker.local, "save", full)
    with pytest.raises(OSError, match="No space"):
        tracker.finish("FINISHED")  # it has not, if its record cannot be kept
    tracker.finish("FAILED")
    assert tracker.store.client.get_run(tracker.run_id).info.status == "FAILED"
