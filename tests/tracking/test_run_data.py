"""A run is its data, too: what was made on other data is neither skipped, nor continued, nor averaged."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any, Literal

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "data"))
from fake_files import write_nmnist

from snnexp.errors import DataError
from snnexp.tasks.report import Result, group_runs
from snnexp.tracking.runs import RunFolder, claim


def attempt(config: dict[str, Any], folder: Path, data: str, status: Any) -> RunFolder:
    """A run that was begun, on data with this fingerprint, and ended with this status."""
    run = claim(config, folder, "never")
    run.update(data_fingerprint=data)
    run.finish(status)
    return run


def action(config: dict[str, Any], folder: Path, data: str | None, in_sweep: bool) -> tuple[Literal["skip"] | str, int]:
    run = claim(config, folder, in_sweep=in_sweep, fingerprint=lambda: data)
    run.finish("KILLED")
    return run.action, run.attempt


def test_a_sweep_skips_what_was_finished_on_these_data_only(config: dict[str, Any], tmp_path: Path) -> None:
    attempt(config, tmp_path, "a", "FINISHED")
    assert action(config, tmp_path, "a", in_sweep=True) == ("skip", 1)
    assert action(config, tmp_path, None, in_sweep=True) == ("skip", 1)  # the data are not there to compare
    assert action(config, tmp_path, "b", in_sweep=True) == ("new", 2)


def test_data_put_back_are_known_again(config: dict[str, Any], tmp_path: Path) -> None:
    attempt(config, tmp_path, "a", "FINISHED")
    attempt(config, tmp_path, "b", "FINISHED")
    assert action(config, tmp_path, "a", in_sweep=True) == ("skip", 1)
    assert action(config, tmp_path, "b", in_sweep=True) == ("skip", 2)


def test_a_run_of_an_older_version_has_no_fingerprint_and_counts(config: dict[str, Any], tmp_path: Path) -> None:
    attempt(config, tmp_path, "", "FINISHED")
    assert action(config, tmp_path, "a", in_sweep=True) == ("skip", 1)


def test_an_unfinished_run_is_not_continued_on_other_data(config: dict[str, Any], tmp_path: Path) -> None:
    run = attempt(config, tmp_path, "a", "KILLED")
    with pytest.raises(DataError, match="the samples are not those") as refusal:
        claim(config, tmp_path, fingerprint=lambda: "b")
    assert str(run.path) in str(refusal.value) and "trainer.resume=never" in str(refusal.value)
    assert action(config, tmp_path, "a", in_sweep=False) == ("resume", 1)  # the first advice
    attempt(config, tmp_path, "b", "KILLED")  # the second advice, interrupted
    assert action(config, tmp_path, "b", in_sweep=False) == ("resume", 2)


def test_a_sweep_begins_anew_on_other_data_and_says_so(
    config: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = attempt(config, tmp_path, "a", "KILLED")
    with caplog.at_level(logging.WARNING):
        assert action(config, tmp_path, "b", in_sweep=True) == ("new", 2)
    assert "the samples are not those" in caplog.text and str(run.path) in caplog.text
    assert json.loads((run.path / "run.json").read_text())["status"] == "KILLED"


def test_data_are_not_opened_where_there_is_nothing_to_compare(config: dict[str, Any], tmp_path: Path) -> None:
    def fail() -> str:
        raise AssertionError("opened")

    claim(config, tmp_path, fingerprint=fail).finish("FINISHED")
    claim(config, tmp_path, "never", fingerprint=fail).finish("FINISHED")


def test_report_keeps_means_on_different_data_apart() -> None:
    def run(name: str, seed: str, data: str, **params: str) -> Result:
        return Result(name, {"seed": seed, **params}, 0.5, 0.5, data)

    same = [run("r1", "1", "a"), run("r0", "0", "a")]
    assert [len(group.runs) for group in group_runs(same)] == [2]
    groups = group_runs([*same, run("r2", "0", "b"), run("old", "2", "")])
    assert {group.values["data"]: sorted(group.runs) for group in groups} == {
        "a": ["0", "1"],
        "b": ["0"],
        "unknown": ["2"],
    }
    # the data set's own name explains the difference
    explained = group_runs([run("x", "0", "a", dataset="mnist"), run("y", "0", "b", dataset="digits")])
    assert [set(group.values) for group in explained] == [{"dataset"}, {"dataset"}]


def test_the_command_notices_other_contents_under_the_same_names(snnexp: Any, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        write_nmnist(tmp_path / name, per_class=4, seed=seed)
    job = ("dataset=nmnist", "trainer=smoke", "trainer.plots=false", "tracking=off", "model.spec=FC-SN")
    job += ("dataset.val_fraction=0.25", "dataset.download=false")
    sweep = ("-m", "seed=0", *job)
    for root, found in (
        ("a", ""),
        ("b", "was finished on other data"),
        ("b", "already finished"),
    ):
        done = snnexp(*sweep, f"dataset.root={root}")
        assert done.returncode == 0, done.stderr
        assert found in done.stdout + done.stderr
    records = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("runs/*/*/run.json"))]
    assert [record["status"] for record in records] == ["FINISHED", "FINISHED"]
    assert records[0]["data_fingerprint"] != records[1]["data_fingerprint"] and records[0]["threads"] > 0
