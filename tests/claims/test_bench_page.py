"""The blocks of docs/dead-neurons.md: numbers worked out from runs, and the page as it stands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from snnexp.claims.bench import bench_table, filled, main, over_seeds
from snnexp.claims.bench_runs import curve, read_bench, share
from snnexp.cli import conf_dir

ROOT = Path(conf_dir()).parent


def a_run(arm: str, seed: int, accuracy: float, dead: float) -> dict[str, Any]:
    curves = {
        "val/dead_fraction/sn1": [[0, dead], [5, dead / 2], [20, 0.0]],
        "val/dead_fraction/sn2": [[0, 0.0], [5, 0.0], [20, 0.5]],
        "val/dead_fraction/sn10": [[0, 1.0], [5, 1.0], [20, 1.0]],  # the output layer: left out
        "time/epoch_s": [[1, 9.0], [2, 0.5], [3, 0.7]],
    }
    metrics = {"test/accuracy": accuracy, "test/synops": 1000.0}
    fixed = {"command": "", "commit": "", "dirty": False, "samples": {"train": 300}, "complete": False, "facts": {}}
    return {**fixed, "arm": arm, "seed": seed, "epochs": 20, "seconds": 1.0, "metrics": metrics, "curves": curves}


def write(folder: Path, name: str, runs: list[dict[str, Any]]) -> None:
    arms: dict[str, Any] = {"none": {}, "bounds": {}, "resample": {}}
    claim = {"paper": "p", "where": "w", "says": "s", "arms": arms}
    (folder / f"{name}.json").write_text(json.dumps({"claim": claim, "runs": runs}))


def test_the_table_by_hand(tmp_path: Path) -> None:
    write(tmp_path, "deep_silence_digits_5", [a_run("none", 0, 0.2, 0.8), a_run("bounds", 0, 0.5, 0.4),
                                              a_run("bounds", 1, 0.7, 0.4)])  # fmt: skip
    write(tmp_path, "deep_silence_digits_1", [a_run("none", 0, 0.9, 0.0)])
    cells, arms = read_bench(tmp_path)
    assert list(cells) == [("digits", 1), ("digits", 5)] and arms == ["none", "bounds", "resample"]
    run = cells["digits", 5][0]
    assert share(run, "dead_fraction", 0) == pytest.approx(0.4) and curve(run, "time/epoch_s")[2] == 0.5
    table = bench_table(tmp_path)
    assert "**digits, 5 hidden layers; one hidden layer: 90.0 %**" in table
    assert "| none | 1 | 20.0 | 40 / 20 / 25 | - / - / - | 1,000 | 0.70 |" in table
    assert "| bounds | 2 | 60.0 ± 14.1 | 20 / 10 / 25 |" in table
    assert "| resample | 0 | not run |" in table
    page = filled("before\n<!-- made: deep_silence -->\nold\n<!-- end -->\nafter\n", tmp_path)
    assert "old" not in page and table in page and page.endswith("<!-- end -->\nafter\n")
    assert filled(page, tmp_path) == page


def test_a_folder_without_results_does_not_empty_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- made: deep_silence -->\na table\n<!-- end -->\n")
    monkeypatch.setattr("sys.argv", ["bench", str(tmp_path), str(page)])
    with pytest.raises(SystemExit, match="no deep_silence_"):
        main()
    assert "a table" in page.read_text()


def test_means_and_spreads() -> None:
    assert over_seeds([0.5], 100) == "50.0" and over_seeds([None]) == "-"
    assert over_seeds([1.0, 3.0], 1, 0) == "2 ± 1"


def test_the_page_is_what_its_results_say() -> None:
    text = (ROOT / "docs" / "dead-neurons.md").read_text(encoding="utf-8")
    assert filled(text, ROOT / "results") == text  # else: python -m snnexp.claims.bench
