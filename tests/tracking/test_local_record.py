"""The record on the local disk: keys, values, and what survives a kill in mid-write."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest

from snnexp.tracking.local import LocalRecord, flatten, legal_key, with_group_names
from snnexp.tracking.metrics_log import MetricsLog, read_history
from snnexp.tracking.runs import claim


def test_flatten() -> None:
    nested = {"a": {"b": 1, "c": [0.9, {"d": None}]}, "e": True, "f": [], "g": {}, "h": "text"}
    assert flatten(nested) == {
        "a.b": "1",
        "a.c.0": "0.9",
        "a.c.1.d": "null",
        "e": "true",
        "f": "[]",
        "g": "{}",
        "h": "text",
    }


def test_each_group_can_be_asked_for_by_its_own_word(config: dict[str, Any]) -> None:
    params = with_group_names(flatten(config) | {"neuron.surrogate.name": "atan"})
    assert (params["neuron"], params["neuron.name"], params["neuron.threshold"]) == ("fixed", "fixed", "1.0")
    assert (params["dataset"], params["seed"]) == ("digits", "0")
    assert "neuron.surrogate" not in params
    assert with_group_names({"neuron": "plif", "neuron.name": "plif"}) == {"neuron": "plif", "neuron.name": "plif"}


@pytest.mark.parametrize(
    ("key", "legal"),
    [
        ("val/dead_fraction/sn1", "val/dead_fraction/sn1"),
        ("layers[0].x", "layers.0.x"),
        ("epochs_to/90%", "epochs_to/90"),
        ("a@b+c", "a_b_c"),
        ("größe", "gr__e"),
        ("k" * 300, "k" * 250),
    ],
)
def test_keys_are_made_legal(key: str, legal: str) -> None:
    assert legal_key(key) == legal


def test_metrics_are_written_once_per_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    assert log.append(1, {"loss": 2.0}).metrics == {"loss": 2.0}
    assert log.append(1, {"loss": 9.0, "accuracy": 0.5}).metrics == {"accuracy": 0.5}
    assert log.append(1, {"loss": 9.0}).metrics == {}
    log.append(0, {"loss": 3.0})
    again = MetricsLog(path)
    assert again.append(1, {"loss": 7.0}).metrics == {}
    assert again.history() == read_history(path) == {"loss": [(0, 3.0), (1, 2.0)], "accuracy": [(1, 0.5)]}
    assert len(path.read_text().splitlines()) == 3


def test_values_that_are_not_numbers_survive(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append(1, {"a": math.nan, "b": math.inf})
    history = MetricsLog(log.path).history()
    assert math.isnan(history["a"][0][1])
    assert history["b"] == [(1, math.inf)]


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_line_torn_by_a_kill_is_written_again(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    log.append(1, {"loss": 1.5})
    whole = path.read_bytes()
    log.append(2, {"loss": 1.25})
    path.write_bytes(path.read_bytes()[:-cut])
    again = MetricsLog(path)
    if len(path.read_bytes()) >= len(whole):  # the cut was inside the second line
        assert again.history() == {"loss": [(1, 1.5)]}
        assert again.append(2, {"loss": 1.25}).metrics == {"loss": 1.25}
        assert read_history(path) == {"loss": [(1, 1.5), (2, 1.25)]}


@pytest.mark.parametrize("damage", ["nonsense", "{}", '{"step": 1, "time": 0, "metrics": 5}', "[1]", "null"])
def test_a_damaged_line_is_named_and_the_others_count(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"
    MetricsLog(path).append(1, {"loss": 1.0})
    path.write_text(path.read_text() + damage + "\n")
    MetricsLog(path).append(2, {"loss": 0.5})
    with caplog.at_level(logging.WARNING):
        assert read_history(path) == {"loss": [(1, 1.0), (2, 0.5)]}
    assert f"{path}, line 2" in caplog.text


def test_the_record_is_read_back(config: dict[str, Any], tmp_path: Path) -> None:
    folder = claim(config, tmp_path / "runs")
    record = LocalRecord(folder)
    record.add_params({"a[0]": 1, "long": "x" * 7000})
    record.add_tags({"device": "cpu", "dirty": True})
    outside = tmp_path / "plot.png"
    outside.write_bytes(b"png")
    assert record.add_file(outside, "plots") == "plots/plot.png"
    folder.best.write_bytes(b"weights")
    assert record.add_file(folder.best, "checkpoints") == "checkpoints/best.safetensors"
    assert record.add_text("hello", "notes/a.txt") == "notes/a.txt"
    outside.unlink()  # the record has its own copy

    again = LocalRecord(folder)
    assert again.params["a.0"] == "1"
    assert len(again.params["long"]) == 6000
    assert again.params["long"].endswith("[cut; the whole is in config.yaml]")
    assert again.tags == {"device": "cpu", "dirty": "true"}
    assert again.file("plots/plot.png").read_bytes() == b"png"
    assert again.file("checkpoints/best.safetensors") == folder.best  # not copied: it may be large
    assert again.file("notes/a.txt").read_text() == "hello"
    folder.finish("FINISHED")


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"params": 1}'])
def test_a_damaged_record_keeps_the_metrics(
    config: dict[str, Any], tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = claim(config, tmp_path)
    record = LocalRecord(folder)
    record.add_metrics(1, {"loss": 1.0})
    record.add_tags({"a": "b"})
    (folder.path / "record.json").write_text(text)
    with caplog.at_level(logging.WARNING):
        again = LocalRecord(folder)
    assert again.tags == {}
    assert "record.json" in caplog.text
    assert again.history() == {"loss": [(1, 1.0)]}
    again.add_tags({"c": "d"})
    assert json.loads((folder.path / "record.json").read_text())["tags"] == {"c": "d"}
    folder.finish("FINISHED")
