"""`make compare`: what counts as a difference between two commits, and the real thing against HEAD."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from benchmarks import compare
from benchmarks.compare import CannotRun, Run, differences, lay_out, only_on_one_side, read_runs


def run(weights: str = "w", **metrics: dict[int, float]) -> Run:
    return Run({key.replace("__", "/"): values for key, values in metrics.items()}, weights)


def test_the_first_epoch_and_metric_that_differ_are_named() -> None:
    a = {"conv/digits-fixed": run(train__loss={1: 0.5, 2: 0.25}, val__loss={1: 0.5, 2: 0.3})}
    b = {"conv/digits-fixed": run(train__loss={1: 0.5, 2: 0.251}, val__loss={1: 0.5, 2: 0.3})}
    [found] = differences(a, b)
    assert found.text == "first at epoch 2: train/loss 0.25 -> 0.251, 4.0e-03 of it"
    assert differences(a, a) == []


def test_missing_epochs_runs_and_other_bits_are_differences_and_new_metrics_are_not() -> None:
    a = {"x": run(loss={1: 0.5})}
    assert "epoch 2: loss nan -> 0.4" in differences(a, {"x": run(loss={1: 0.5, 2: 0.4})})[0].text
    assert differences(a, {})[0].text == "only A has this run"
    assert differences(a, {"x": run("other", loss={1: 0.5})})[0].text.startswith("same metrics")
    more = {"x": run(loss={1: 0.5}, reach={1: 0.1})}
    assert differences(a, more) == [] and only_on_one_side(a, more) == (set(), {"reach"})
    nan = {"x": run(loss={1: float("nan")})}
    assert differences(nan, nan) == []


def test_runs_are_read_without_times_and_by_names_that_both_commits_share(tmp_path: Path) -> None:
    folder = tmp_path / "digits-fixed-0123456789ab" / "001"
    folder.mkdir(parents=True)
    lines = [{"step": step, "time": 1, "metrics": {"train/loss": 1 / step, "time/epoch_s": 3.0}} for step in (1, 2)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    save_file({"w": np.ones(3, np.float32)}, folder / "last.safetensors", metadata={"made": "today"})
    runs = read_runs(tmp_path, "conv")
    assert runs["conv/digits-fixed"].metrics == {"train/loss": {1: 1.0, 2: 0.5}}
    save_file({"w": np.ones(3, np.float32)}, folder / "last.safetensors", metadata={"made": "tomorrow"})
    assert differences(runs, read_runs(tmp_path, "conv")) == []
    save_file({"w": np.full(3, 1 + 2**-23, np.float32)}, folder / "last.safetensors")
    assert len(differences(runs, read_runs(tmp_path, "conv"))) == 1


def test_an_unknown_commit_is_named(tmp_path: Path) -> None:
    with pytest.raises(CannotRun, match="no-such-commit"):
        lay_out("no-such-commit", tmp_path)
    assert compare.main(["no-such-commit", "--only", "conv"]) == 2


@pytest.mark.slow
def test_head_against_itself() -> None:
    command = [sys.executable, "-m", "benchmarks.compare", "HEAD", "HEAD", "--only", "events"]
    done = subprocess.run(command, cwd=compare.ROOT, capture_output=True, text=True)
    assert done.stdout == "same bits (1 runs)\n", done.stderr
