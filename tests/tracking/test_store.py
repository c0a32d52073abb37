"""Where the record goes, and that it gets there: once, complete, and into the same run after an interruption."""

from __future__ import annotations

import json
import logging
import math
import os
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from snnexp.config import TrackingConf
from snnexp.data.base import DataInfo
from snnexp.errors import ConfigError, TrackingError
from snnexp.tracking.fetch import fetched_artifact
from snnexp.tracking.mlflow_store import Store, connect
from snnexp.tracking.mlflow_tracker import MlflowTracker
from snnexp.tracking.provenance import code_tags
from snnexp.tracking.runs import RunFolder, claim
from snnexp.tracking.store import OffTracker, Tracker, open_tracker, resolve_uri

OpenRun = Callable[..., tuple[Tracker, RunFolder]]

INFO = DataInfo(
    name="digits",
    kind="image",
    shape=(1, 8, 8),
    num_steps=8,
    class_names=tuple("0123456789"),
    counts={"train": 1292, "val": 145, "test": 360},
    class_counts={},
    complete=True,
    split_hash="e7d2b14deec94b75",
    source="https://archive.ics.uci.edu/dataset/80",
)


def points(store: Store, run_id: str, key: str) -> list[tuple[int, float]]:
    return sorted((m.step, m.value) for m in store.client.get_metric_history(run_id, key))


# --- addresses ---


def test_uri_given_then_environment_then_a_database_where_the_command_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert resolve_uri(None, tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert resolve_uri(None, tmp_path) == "http://server:5000"
    assert resolve_uri("sqlite:///sub/../my.db", tmp_path) == f"sqlite:///{tmp_path}/my.db"
    assert resolve_uri("sqlite:////abs/my.db", tmp_path) == "sqlite:////abs/my.db"


def test_a_server_that_is_not_there_is_an_error_within_seconds(start_dir: Path, config: dict[str, Any]) -> None:
    with socket.socket() as free:  # bound but not listening: connections are refused
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
        config["tracking"]["uri"] = address
        folder = claim(config, start_dir / "runs")
        with pytest.raises(TrackingError) as error:
            open_tracker(TrackingConf(**config["tracking"]), folder, config, start_dir=start_dir)
        assert address in str(error.value)
        assert "tracking=off" in str(error.value)
        folder.finish("FAILED")


def test_a_server_that_accepts_and_never_answers_is_an_error_within_seconds(start_dir: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(TrackingError, match=r"127\.0\.0\.1"):
            connect(f"http://127.0.0.1:{silent.getsockname()[1]}", "snnexp")
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "1"  # the limits of the probe are lifted again


@pytest.mark.parametrize("uri", ["file:///somewhere/mlruns", "./mlruns", "mlruns"])
def test_a_folder_is_no_store(uri: str) -> None:
    with pytest.raises(TrackingError, match="no longer takes a folder"):
        connect(uri, "snnexp")


def test_a_password_is_not_shown(tmp_path: Path) -> None:
    with pytest.raises(TrackingError) as error:
        connect("postgresql://user:secret@127.0.0.1:1/db", "snnexp")
    assert "secret" not in str(error.value)
    assert "127.0.0.1:1" in str(error.value)


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    path.write_bytes(b"this is not a database, whatever its name says" * 50)
    with pytest.raises(TrackingError, match=r"mlflow\.db.*not a database"):
        connect(f"sqlite:///{path}", "snnexp")


def test_a_deleted_experiment_is_named(start_dir: Path) -> None:
    uri = f"sqlite:///{start_dir}/mlflow.db"
    store = connect(uri, "gone")
    assert store is not None
    store.client.delete_experiment(store.experiment_id)
    with pytest.raises(TrackingError, match=r"tracking\.experiment=gone was deleted"):
        connect(uri, "gone")


def test_looking_makes_no_database(tmp_path: Path) -> None:
    assert connect(f"sqlite:///{tmp_path}/new/mlflow.db", "snnexp", create=False) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_several_processes_may_make_one_database_at_once(tmp_path: Path, count: int) -> None:
    script = (
        "import sys\nfrom snnexp.tracking.mlflow_store import connect\n"
        "store = connect(sys.argv[1], 'snnexp')\n"
        "print(store.client.create_run(store.experiment_id).info.run_id)"
    )
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([sys.executable, "-c", script, uri], **pipes) for _ in range(count)]  # type: ignore[call-overload]
    ends = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0] * count, [stderr for _, stderr in ends]
    store = connect(uri, "snnexp")
    assert store is not None
    there = {run.info.run_id for run in store.client.search_runs([store.experiment_id])}
    assert there == {stdout.strip() for stdout, _ in ends}
    assert store.client.get_experiment(store.experiment_id).artifact_location == f"file://{tmp_path}/mlartifacts/snnexp"


# --- the record ---


def test_the_whole_record_reaches_the_store(start_dir: Path, config: dict[str, Any], open_run: OpenRun) -> None:
    tracker, folder = open_run(config, source_overrides=["seed=0", "trainer=smoke"], sweep_id="abc123")
    assert isinstance(tracker, MlflowTracker)
    tracker.log_dataset(INFO)
    tracker.log_tags({"device": "cpu"})
    tracker.log_epoch(0, {"val/accuracy": 0.1})
    tracker.log_epoch(1, {"val/accuracy": 0.5, "val/dead_fraction/sn1": 0.25})
    tracker.log_dict({"ClassificationAccuracy": 0.5}, "results.json")
    (start_dir / "curve.png").write_bytes(b"png")
    tracker.log_artifact(start_dir / "curve.png", "plots")
    tracker.finish("FINISHED")
    folder.finish("FINISHED")

    store = connect(f"sqlite:///{start_dir}/mlflow.db", "snnexp", create=False)
    assert store is not None
    run = store.client.get_run(tracker.run_id)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "digits-fixed-s0 trainer=smoke")
    assert run.data.params["neuron.name"] == "fixed"
    assert run.data.params["dataset.num_steps"] == "8"
    expected = {
        "device": "cpu",
        "split_hash": INFO.split_hash,
        "samples.train": "1292",
        "complete": "true",
        "sweep_id": "abc123",
        "status": "FINISHED",
        "identity": folder.record.identity,
        "overrides": "seed=0 trainer=smoke",
    }
    assert expected.items() <= run.data.tags.items()
    assert "val/accuracy 0.5000" in run.data.tags["mlflow.note.content"]
    assert "1292 train, 145 val, 360 test" in run.data.tags["mlflow.note.content"]
    assert points(store, run.info.run_id, "val/accuracy") == [(0, 0.1), (1, 0.5)]
    assert run.data.metrics["val/dead_fraction/sn1"] == 0.25
    dataset = run.inputs.dataset_inputs[0].dataset
    assert (dataset.name, dataset.digest) == ("digits", INFO.split_hash)
    assert json.loads(dataset.profile)["counts"] == INFO.counts
    tracking = TrackingConf(**config["tracking"])
    with fetched_artifact(tracking, start_dir, run.info.run_id, "plots/curve.png") as fetched:
        assert fetched is not None
        assert fetched[0].read_bytes() == b"png" and fetched[1]["status"] == "FINISHED"
    assert not fetched[0].parent.exists()  # nothing stays in the temporary folder
    for run_id, name in ((run.info.run_id, "plots/none.png"), ("0" * 32, "config.yaml")):
        with fetched_artifact(tracking, start_dir, run_id, name) as fetched:
            assert fetched is None


def test_the_commit_of_the_source_tree_is_in_the_record(config: dict[str, Any], open_run: OpenRun) -> None:
    import snnexp

    source = Path(snnexp.__file__).parent
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=source, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip("needs a git checkout")
    code_tags.cache_clear()  # of an earlier test; a process keeps the commit that it started from
    tracker, _ = open_run(config)
    assert isinstance(tracker, MlflowTracker)
    tags = tracker.store.client.get_run(tracker.run_id).data.tags
    assert tags["git.commit"] == tags["mlflow.source.git.commit"] == done.stdout.strip()
    assert tags["git.dirty"] in ("true", "false")


def test_an_interrupted_run_goes_on_in_the_same_mlflow_run(config: dict[str, Any], open_run: OpenRun) -> None:
    first, folder = open_run(config)
    first.log_epoch(0, {"loss": 3.0})
    first.log_epoch(1, {"loss": 2.0})
    first.finish("KILLED")
    folder.finish("KILLED")

    second, folder = open_run(config)
    assert isinstance(second, MlflowTracker)
    client = second.store.client
    assert second.run_id == first.run_id
    assert client.get_run(second.run_id).info.status == "RUNNING"
    assert second.history() == {"loss": [(0, 3.0), (1, 2.0)]}
    second.log_epoch(1, {"loss": 2.5})  # the repeated epoch
    second.log_epoch(2, {"loss": 1.0})
    second.finish("FINISHED")
    assert points(second.store, second.run_id, "loss") == [(0, 3.0), (1, 2.0), (2, 1.0)]
    assert client.get_run(second.run_id).info.status == "FINISHED"
    assert len(client.search_runs([second.store.experiment_id])) == 1


def test_a_run_killed_before_its_id_was_written_is_found(config: dict[str, Any], open_run: OpenRun) -> None:
    first, folder = open_run(config)
    folder.update(mlflow_run_id=None, tracking_uri=None)
    folder.finish("KILLED")
    second, _ = open_run(config)
    assert second.run_id == first.run_id


def test_metrics_that_the_store_missed_are_sent_when_the_run_goes_on(config: dict[str, Any], open_run: OpenRun) -> None:
    first, folder = open_run(config)
    assert isinstance(first, MlflowTracker)
    first.log_epoch(1, {"loss": 2.0})
    first.local.add_metrics(2, {"loss": 1.0, "accuracy": 0.5})  # written to the disk, then kill -9
    folder.finish("KILLED")
    second, _ = open_run(config)
    assert isinstance(second, MlflowTracker)
    assert points(second.store, second.run_id, "loss") == [(1, 2.0), (2, 1.0)]
    assert points(second.store, second.run_id, "accuracy") == [(2, 0.5)]


def test_a_lost_metrics_file_is_restored_from_the_store(config: dict[str, Any], open_run: OpenRun) -> None:
    first, folder = open_run(config)
    first.log_epoch(1, {"loss": 2.0})
    first.log_epoch(2, {"loss": 1.0})
    folder.finish("KILLED")
    folder.metrics_path.unlink()
    second, folder = open_run(config)
    assert isinstance(second, MlflowTracker)
    assert second.history() == {"loss": [(1, 2.0), (2, 1.0)]}
    second.log_epoch(2, {"loss": 1.5})
    assert points(second.store, second.run_id, "loss") == [(1, 2.0), (2, 1.0)]


def test_a_run_whose_record_was_deleted_is_recorded_anew(
    config: dict[str, Any], open_run: OpenRun, caplog: pytest.LogCaptureFixture
) -> None:
    first, folder = open_run(config)
    assert isinstance(first, MlflowTracker)
    first.log_epoch(1, {"loss": 2.0})
    first.log_dict({"a": 1}, "results.json")
    first.store.client.delete_run(first.run_id)
    folder.finish("KILLED")
    with caplog.at_level(logging.WARNING):
        second, _ = open_run(config)
    assert isinstance(second, MlflowTracker)
    assert second.run_id != first.run_id
    assert first.run_id in caplog.text
    assert points(second.store, second.run_id, "loss") == [(1, 2.0)]
    assert {f.path for f in second.store.client.list_artifacts(second.run_id)} == {"config.yaml", "results.json"}


def test_a_run_begun_with_tracking_off_is_filled_in(config: dict[str, Any], open_run: OpenRun) -> None:
    config["tracking"]["name"] = "off"
    first, folder = open_run(config)
    assert isinstance(first, OffTracker)
    assert (first.run_id, first.link()) == (None, None)
    first.log_epoch(1, {"loss": 2.0})
    first.log_text("x", "notes.txt")
    first.finish("KILLED")
    folder.finish("KILLED")
    config["tracking"]["name"] = "mlflow"
    second, _ = open_run(config)
    assert isinstance(second, MlflowTracker)
    assert points(second.store, second.run_id, "loss") == [(1, 2.0)]
    assert {f.path for f in second.store.client.list_artifacts(second.run_id)} == {"config.yaml", "notes.txt"}


def test_tracking_off_imports_no_mlflow(tmp_path: Path, config: dict[str, Any]) -> None:
    config["tracking"]["name"] = "off"
    script = (
        "import json, sys\nfrom snnexp.config import TrackingConf\nfrom snnexp.tracking.runs import claim\n"
        "from snnexp.tracking.store import open_tracker\nimport snnexp.tracking.sweep\n"
        "config = json.loads(sys.argv[1])\nfolder = claim(config, 'runs')\n"
        "tracker = open_tracker(TrackingConf(name='off'), folder, config, start_dir='.')\n"
        "tracker.log_epoch(1, {'loss': 1.0}); tracker.finish('FINISHED'); folder.finish('FINISHED')\n"
        "assert not {'mlflow', 'torch', 'numpy', 'matplotlib'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script, json.dumps(config)], cwd=tmp_path, check=True)
    assert not (tmp_path / "mlflow.db").exists()


def test_parameters_are_compared_not_logged_again(
    config: dict[str, Any], open_run: OpenRun, caplog: pytest.LogCaptureFixture
) -> None:
    tracker, _ = open_run(config)
    assert isinstance(tracker, MlflowTracker)
    with caplog.at_level(logging.WARNING):
        tracker.log_params({"neuron.threshold": 2.0, "dataset.root": "/elsewhere", "new": 1})
    params = tracker.store.client.get_run(tracker.run_id).data.params
    assert (params["neuron.threshold"], params["dataset.root"], params["new"]) == ("1.0", "./data", "1")
    assert "neuron.threshold is 2.0" in caplog.text
    assert "dataset.root" not in caplog.text  # a folder may differ from machine to machine


def test_an_infinite_metric_is_sent_as_nan_and_named(
    config: dict[str, Any], open_run: OpenRun, caplog: pytest.LogCaptureFixture
) -> None:
    tracker, _ = open_run(config)
    assert isinstance(tracker, MlflowTracker)
    with caplog.at_level(logging.WARNING):
        tracker.log_epoch(1, {"loss": math.inf})
    assert math.isnan(tracker.store.client.get_run(tracker.run_id).data.metrics["loss"])
    assert tracker.history() == {"loss": [(1, math.inf)]}
    assert "loss is infinite at step 1" in caplog.text


def test_a_thousand_metrics_in_one_epoch(config: dict[str, Any], open_run: OpenRun) -> None:
    tracker, _ = open_run(config)
    assert isinstance(tracker, MlflowTracker)
    tracker.log_epoch(1, {f"m/{i}": float(i) for i in range(1001)})
    assert tracker.store.client.get_run(tracker.run_id).data.metrics["m/1000"] == 1000.0


def test_links_open_the_charts_and_not_the_genai_view(config: dict[str, Any], open_run: OpenRun) -> None:
    tracker, _ = open_run(config)
    assert isinstance(tracker, MlflowTracker)
    page = f"http://127.0.0.1:5000/#/experiments/{tracker.store.experiment_id}/runs/{tracker.run_id}"
    assert tracker.link() == f"{page}?workflowType=machine_learning"


def test_the_password_of_a_database_stays_out_of_the_record(config: dict[str, Any], tmp_path: Path) -> None:
    config["tracking"].update(name="off", uri="postgresql://user:secret@host/db")
    folder = claim(config, tmp_path)
    open_tracker(TrackingConf(**config["tracking"]), folder, config, start_dir=tmp_path)
    assert config["tracking"]["uri"] == "postgresql://user:secret@host/db"  # the caller's config is left alone
    for path in folder.path.rglob("*"):
        assert path.is_dir() or b"secret" not in path.read_bytes(), path
    folder.finish("FINISHED")


def test_system_metrics_without_psutil_say_what_to_install(
    start_dir: Path, config: dict[str, Any], open_run: OpenRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    config["tracking"]["system_metrics"] = True
    with pytest.raises(ConfigError, match=r"snnexp\[system\]"):
        open_run(config)
    store = connect(f"sqlite:///{start_dir}/mlflow.db", "snnexp")
    assert store is not None
    assert store.client.search_runs([store.experiment_id]) == []  # found out before any record is made


def test_the_database_is_left_as_mlflow_made_it(start_dir: Path, config: dict[str, Any], open_run: OpenRun) -> None:
    tracker, folder = open_run(config)
    tracker.finish("FINISHED")
    folder.finish("FINISHED")
    connection = sqlite3.connect(start_dir / "mlflow.db")
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    connection.close()


class Counting:
    """A client that counts the requests that would go over the network."""

    def __init__(self, client: Any) -> None:
        self.client, self.asked = client, []

    def __getattr__(self, name: str) -> Any:
        self.asked.append(name)
        return getattr(self.client, name)


def test_a_run_begins_in_few_requests(
    config: dict[str, Any], open_run: OpenRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    counting: list[Counting] = []

    def connected(*arguments: Any, **more: Any) -> Any:
        store = connect(*arguments, **more)
        assert store is not None
        counting.append(Counting(store.client))
        return replace(store, client=counting[-1])

    monkeypatch.setattr("snnexp.tracking.mlflow_opening.connect", connected)
    config["neuron"] |= {f"key{number}": number for number in range(120)}
    tracker, _ = open_run(config, data=INFO, more_tags={"device": "cpu"})
    # parameters go by the hundred; the file is the configuration
    assert counting[0].asked == ["create_run", "log_batch", "log_batch", "log_inputs", "log_artifact"]
    run = counting[0].client.get_run(tracker.run_id)
    assert run.data.params["neuron.key119"] == "119"
    assert run.data.tags["device"] == "cpu" and run.data.tags["split_hash"] == INFO.split_hash
    assert run.data.tags["identity"] and run.data.tags["mlflow.note.content"]
    assert run.inputs.dataset_inputs[0].dataset.name == INFO.name
