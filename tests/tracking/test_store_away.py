"""A store that goes away in mid-run: training does not notice, and nothing is lost."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock, Timeout

from snnexp.tracking import mlflow_tracker, unsent
from snnexp.tracking.mlflow_tracker import MlflowTracker
from snnexp.tracking.runs import RunFolder, read_record
from snnexp.tracking.store import Tracker

OpenRun = Callable[..., tuple[Tracker, RunFolder]]


class Flaky:
    """An MLflow client whose server can be switched off; counts the calls that reached nobody."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.away = False
        self.refused = 0
        self.sent = 0

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **more: Any) -> Any:
            if self.away:
                self.refused += 1
                raise ConnectionError("connection refused")
            self.sent += 1
            return getattr(self.client, name)(*arguments, **more)

        return call


class Clock:
    """time.monotonic in the test's hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    hand = Clock()
    monkeypatch.setattr(mlflow_tracker.time, "monotonic", hand)
    return hand


def flaky(open_run: OpenRun, config: dict[str, Any]) -> tuple[MlflowTracker, RunFolder, Flaky]:
    tracker, folder = open_run(config)
    assert isinstance(tracker, MlflowTracker)
    client = Flaky(tracker.store.client)
    tracker.store = replace(tracker.store, client=client)
    return tracker, folder, client


def losses(tracker: MlflowTracker, client: Any) -> list[tuple[int, float]]:
    return sorted((m.step, m.value) for m in client.get_metric_history(tracker.run_id, "loss"))


def test_one_request_per_epoch(config: dict[str, Any], open_run: OpenRun) -> None:
    tracker, _, client = flaky(open_run, config)
    tracker.log_epoch(1, {f"m/{i}": 0.5 for i in range(70)})
    assert client.sent == 1


def test_metrics_are_kept_and_sent_when_the_store_is_back(
    config: dict[str, Any], open_run: OpenRun, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    tracker, folder, client = flaky(open_run, config)
    tracker.log_epoch(1, {"loss": 3.0})
    client.away = True
    with caplog.at_level(logging.WARNING):
        tracker.log_epoch(2, {"loss": 2.0})
        tracker.log_epoch(3, {"loss": 1.0})
        tracker.log_tags({"device": "cpu"})
    assert caplog.text.count("does not answer") == 1
    assert str(folder.metrics_path) in caplog.text
    assert read_record(folder.path).unsent  # type: ignore[union-attr]
    client.away = False
    clock.now += 31
    tracker.log_epoch(4, {"loss": 0.5})
    assert losses(tracker, client.client) == [(1, 3.0), (2, 2.0), (3, 1.0), (4, 0.5)]
    assert client.client.get_run(tracker.run_id).data.tags["device"] == "cpu"
    assert not read_record(folder.path).unsent  # type: ignore[union-attr]


def test_the_tracker_asks_less_and_less_often(config: dict[str, Any], open_run: OpenRun, clock: Clock) -> None:
    tracker, _, client = flaky(open_run, config)
    client.away = True
    tries = []
    for epoch in range(280):
        before = client.refused
        tracker.log_epoch(epoch, {"loss": 1.0})
        if client.refused > before:
            tries.append(10 * epoch)
        clock.now += 10.0  # epochs of ten seconds
    assert tries == [0, 30, 90, 210, 450, 930, 1530, 2130, 2730]  # 30 s, doubling, at most 600 s
    assert client.refused == len(tries)  # one refused request each time, not one per metric


def test_everything_is_sent_at_finish(config: dict[str, Any], open_run: OpenRun, clock: Clock, tmp_path: Path) -> None:
    tracker, folder, client = flaky(open_run, config)
    client.away = True
    tracker.log_epoch(1, {"loss": 3.0})
    tracker.log_dict({"a": 1}, "results.json")
    (tmp_path / "plot.png").write_bytes(b"png")
    tracker.log_artifact(tmp_path / "plot.png", "plots")
    (tmp_path / "plot.png").unlink()
    client.away = False  # no time passes: finish asks whatever the back-off says
    tracker.finish("FINISHED")
    folder.finish("FINISHED")
    run = client.client.get_run(tracker.run_id)
    assert (run.info.status, run.data.tags["status"], run.data.metrics["loss"]) == ("FINISHED", "FINISHED", 3.0)
    names = {f.path for f in client.client.list_artifacts(tracker.run_id)}
    assert names == {"config.yaml", "results.json", "plots"}
    assert not read_record(folder.path).unsent  # type: ignore[union-attr]


def test_what_a_finished_run_could_not_send_goes_with_the_next_run(
    config: dict[str, Any], open_run: OpenRun, caplog: pytest.LogCaptureFixture
) -> None:
    first, folder, client = flaky(open_run, config)
    client.away = True
    first.log_epoch(1, {"loss": 3.0})
    first.log_text("late", "notes.txt")
    with caplog.at_level(logging.WARNING):
        first.finish("FINISHED")
    folder.finish("FINISHED")
    assert "still away" in caplog.text
    assert str(folder.path) in caplog.text
    assert client.client.get_run(first.run_id).info.status == "RUNNING"

    open_run({**config, "seed": 1})  # another run against the same store
    run = client.client.get_run(first.run_id)
    assert (run.info.status, run.data.tags["status"], run.data.metrics["loss"]) == ("FINISHED", "FINISHED", 3.0)
    assert "notes.txt" in {f.path for f in client.client.list_artifacts(first.run_id)}
    assert not read_record(folder.path).unsent  # type: ignore[union-attr]


def test_a_run_that_is_still_going_is_not_sent_by_another(config: dict[str, Any], open_run: OpenRun) -> None:
    first, folder, client = flaky(open_run, config)
    client.away = True
    first.log_epoch(1, {"loss": 3.0})
    open_run({**config, "seed": 1})
    run = client.client.get_run(first.run_id)
    assert (run.info.status, "loss" in run.data.metrics) == ("RUNNING", False)
    assert read_record(folder.path).unsent  # type: ignore[union-attr]


def test_a_command_waits_while_its_run_is_being_sent(
    config: dict[str, Any], open_run: OpenRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, folder, client = flaky(open_run, config)
    client.away = True
    first.log_epoch(1, {"loss": 3.0})
    folder.finish("KILLED")
    held = []
    send = unsent.send_folder

    def look(run: RunFolder, *rest: Any, **more: Any) -> bool:
        with pytest.raises(Timeout), FileLock(run.path.parent / "claim.lock", timeout=0):
            pass
        held.append(run.path)
        return send(run, *rest, **more)

    monkeypatch.setattr(unsent, "send_folder", look)
    open_run({**config, "seed": 1})
    assert held == [folder.path]
    assert client.client.get_run(first.run_id).info.status == "KILLED"


def test_a_kill_while_the_store_is_away_loses_nothing(config: dict[str, Any], open_run: OpenRun) -> None:
    first, folder, client = flaky(open_run, config)
    client.away = True
    first.log_epoch(1, {"loss": 3.0})
    folder.finish("KILLED")
    second, _ = open_run(config)
    assert isinstance(second, MlflowTracker)
    assert second.run_id == first.run_id
    assert losses(second, client.client) == [(1, 3.0)]


def test_a_request_that_arrived_without_its_answer_is_not_sent_twice(
    config: dict[str, Any], open_run: OpenRun, clock: Clock
) -> None:
    tracker, _, client = flaky(open_run, config)
    real = client.client.log_batch

    def arrives_and_fails(*arguments: Any, **more: Any) -> None:
        real(*arguments, **more)
        raise TimeoutError("no answer")

    client.client.log_batch = arrives_and_fails
    tracker.log_epoch(1, {"loss": 3.0})
    sent: list[tuple[str, int]] = []

    def recording(*arguments: Any, metrics: Any = (), **more: Any) -> None:
        sent.extend((metric.key, metric.step) for metric in metrics)
        real(*arguments, metrics=metrics, **more)

    client.client.log_batch = recording
    clock.now += 31
    tracker.log_epoch(2, {"loss": 2.0})
    assert set(sent) == {("loss", 2)}
    assert losses(tracker, client.client) == [(1, 3.0), (2, 2.0)]
