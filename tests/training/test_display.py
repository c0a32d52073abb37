"""What a run prints: within the width of the terminal, whole in the log, and every word explained."""

from __future__ import annotations

import io
import logging
import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from snnexp.terminal import wrapped
from snnexp.training.display import Display, operations_line, spec_lines
from snnexp.training.table import EpochTable, layer_table
from snnexp.training.words import short_duration

METRICS = {
    "train/loss": 12.3456,
    "train/accuracy": 0.5,
    "val/loss": 2.25,
    "val/accuracy": 0.75,
    "val/dead_neurons": 65536.0,
    "time/epoch_s": 3599.0,
    "time/samples_per_s": 123456.0,
}


def display(width: int, name: str = "") -> tuple[Display, io.StringIO]:
    stream = io.StringIO()
    return Display(100, Console(file=stream, width=width, highlight=False), name=name), stream


def network(learns: bool) -> Any:
    values = {"threshold": torch.rand(3) if learns else torch.tensor(1.0), "beta": torch.tensor(0.9)}
    layer = SimpleNamespace(
        shape=(4096, 8, 8),
        effective=values.get,
        learned=lambda: {"threshold": None} if learns else {},
    )
    return SimpleNamespace(spiking_layers={"sn1": layer, "sn10": layer})


def numbers(layers: Any) -> dict[str, float]:
    names = ("dead_fraction", "dead_fraction_sample", "saturated_fraction", "firing_rate")
    return {f"test/{name}/{layer}": 1.0 for name in names for layer in layers.spiking_layers}


@pytest.mark.parametrize("columns", [60, 72, 80])
@pytest.mark.parametrize("epochs", [1, 100, 1000])
def test_the_line_of_an_epoch_fits(columns: int, epochs: int) -> None:
    table = EpochTable(epochs, validates=True)
    row = table.row(epochs, METRICS, True, columns)
    lines = [*table.header(columns), row, table.row(0, {"val/loss": 1.0, "val/accuracy": 0.1}, False, columns)]
    assert max(map(len, lines)) <= columns
    for value in ("12.3456", "0.500", "2.2500", "0.750*", "65,536", "1.0 h"):
        assert value in row
    assert row.startswith(f"epoch {epochs}/{epochs} ")
    assert ("samples/s" in lines[1]) == (columns == 80)
    assert ("left" in lines[1]) == (columns >= 72)


def test_columns_stand_below_their_headers() -> None:
    table = EpochTable(20, validates=True)
    header, row = table.header(80)[1], table.row(3, METRICS, False, 80)
    ends = {match.end() for match in re.finditer(r"\S+( s| min| h)?", row)}
    assert {match.end() for match in re.finditer(r"loss|dead|time|left|samples/s", header)} <= ends


def test_without_validation_the_training_pass_is_shown() -> None:
    table = EpochTable(5, validates=False)
    row = table.row(1, {"train/loss": 1.0, "train/accuracy": 0.25, "train/dead_neurons": 7.0}, True, 60)
    assert row.split() == ["epoch", "1/5", "1.0000", "0.250", "7"]
    assert "training pass" in table.legend() and "val" not in table.header(80)[0]


@pytest.mark.parametrize("columns", [60, 72, 80])
@pytest.mark.parametrize("learns", [True, False])
def test_the_closing_table_fits_and_keeps_what_is_learned(columns: int, learns: bool) -> None:
    layers = network(learns)
    lines = layer_table(layers, numbers(layers), columns)
    assert max(map(len, lines)) <= columns
    header = lines[0].split()
    assert header[:4] == ["layer", "neurons", "dead", "dead/sample"]
    assert "threshold" in header and ("beta" in header) == (columns >= 72)
    assert ("~" in lines[2]) == learns


def test_words_are_never_broken_and_commands_stay_in_one_piece(caplog: pytest.LogCaptureFixture) -> None:
    shown, stream = display(40)
    with caplog.at_level(logging.INFO, "snnexp.training.display"):
        shown.say("recipe: paper; decoder temporal_weight, loss cross_entropy", hang=8)
        shown.command("pages:", "mlflow ui --backend-store-uri sqlite:////a/long/folder/mlflow.db")
    text = stream.getvalue()
    assert text.splitlines()[:2] == ["recipe: paper; decoder temporal_weight,", "        loss cross_entropy"]
    assert "  mlflow ui --backend-store-uri sqlite:////a/long/folder/mlflow.db\n" in text
    assert "decoder temporal_weight, loss cross_entropy" in caplog.text  # in one line
    link = "  http://127.0.0.1:5000/" + "x" * 100
    assert wrapped(f"Here:\n{link}", 60) == f"Here:\n{link}"


def test_the_log_has_the_whole_epoch_table_whatever_the_terminal(caplog: pytest.LogCaptureFixture) -> None:
    shown, stream = display(60)
    with caplog.at_level(logging.INFO, "snnexp.training.display"):
        shown.finish_epoch(1, METRICS, improved=True)
    assert "123,456" not in stream.getvalue()
    assert "samples/s" in caplog.text and "123,456" in caplog.text
    assert "*: the best epoch so far" in " ".join(stream.getvalue().split())


def test_lines_of_runs_side_by_side_carry_the_name_and_fit() -> None:
    shown, stream = display(80, name="3 digits-rouser-s1")
    shown.finish_epoch(1, METRICS, improved=True)
    lines = stream.getvalue().splitlines()
    assert all(line.startswith("3 digits-rouser-s1 | ") and len(line) <= 80 for line in lines)


def test_a_long_network_is_broken_after_a_dash_of_the_notation() -> None:
    spec = "c128k3-BN-SN-MP2-c128k3-BN-SN-MP2-DP0.5-FC2048-SN-DP0.5-FC100-SN-VOTE10"
    lines = spec_lines(f"model: plif, {spec}", 60)
    assert max(map(len, lines)) <= 60
    assert "".join(line.strip() for line in lines).endswith(spec)
    assert all(line.endswith("-") for line in lines[:-1])


def test_no_synaptic_operations_beside_many_macs_are_explained() -> None:
    text = operations_line({"test/synops": 0.0, "test/macs": 100501.0}, ("conv1", "fc1"))
    assert text.startswith("per test sample: 0 synops, 100,501 macs")
    assert "conv1, fc1" in text and "here all of them" in text
    assert "multiply" not in operations_line({"test/synops": 5.0, "test/macs": 0.0}, ())


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(9.64, "9.6 s"), (59.97, "1.0 min"), (66, "1.1 min"), (3599, "1.0 h"), (86400, "24 h"), (1e6, "12 days")],
)
def test_short_durations(seconds: float, text: str) -> None:
    assert short_duration(seconds) == text
    assert len(text) <= 7
