"""task=reproduce: what it collects from run folders (fake ones), and a real, tiny claim from start to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from snnexp.claims.collect import find_finished, on_the_same_data, read_run
from snnexp.claims.conf import ClaimConf, ValueConf
from snnexp.tasks.reproduce import _for_others
from snnexp.tracking.identity import run_identity

CONFIG: dict[str, Any] = {"seed": 0, "dataset": {"name": "digits"}, "neuron": {"name": "fixed"}}

CLAIM = """# @package _global_
# a claim about digits, for tests
# Run: snnexp +experiment=tiny
defaults: []
model: {spec: FC16-SN-FC-SN}
trainer: {max_epochs: 1, test_curve: true, plots: false}
dataset: {limit_train: 64, limit_test: 40}
hydra: {mode: MULTIRUN, sweeper: {params: {seed: "0,1", arm: "low,high"}}}
claim:
  paper: Paper (arXiv:0)
  where: Table 0
  says: low thresholds are better
  arms:
    low: {neuron.threshold: 0.5}
    high: {neuron: fixed, neuron.threshold: 50.0}
  values:
    - {arm: low, value: 90.0}
    - {arm: high, said: did not converge}
  compare:
    - {better: low, than: high}
"""


def write_run(state: Path, attempt: str, status: str, accuracy: float, fingerprint: str = "f", **params: str) -> Path:
    folder = state / f"digits-fixed-{run_identity(CONFIG)}" / attempt
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"identity": "x", "status": status}), encoding="utf-8")
    tags = {"git.commit": "abc", "git.dirty": "false", "complete": "True", "samples.train": "100", "device": "cpu"}
    tags["data_fingerprint"] = fingerprint
    record = {"params": {"dataset.limit_train": "null", **params}, "tags": tags}
    (folder / "record.json").write_text(json.dumps(record), encoding="utf-8")
    lines = [
        {"step": 0, "time": 0, "metrics": {"val/accuracy": 0.1}},
        {"step": 1, "time": 0, "metrics": {"val/accuracy": 0.5, "time/epoch_s": 2.0, "test/accuracy": accuracy}},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


def test_the_newest_finished_attempt_counts(tmp_path: Path) -> None:
    assert find_finished(CONFIG, tmp_path) is None
    write_run(tmp_path, "001", "FINISHED", 0.5)
    newest = write_run(tmp_path, "002", "FINISHED", 0.6)
    write_run(tmp_path, "003", "KILLED", 0.7)
    assert find_finished(CONFIG, tmp_path) == newest
    assert find_finished({**CONFIG, "seed": 1}, tmp_path) is None


def test_a_run_is_read_with_its_sources(tmp_path: Path) -> None:
    claim = ClaimConf(arms={"a": {}}, values=[ValueConf(arm="a", value=1.0)])
    run = read_run(write_run(tmp_path, "001", "FINISHED", 0.6), "a", 0, "snnexp x", claim)
    assert (run.commit, run.dirty, run.complete, run.epochs, run.seconds) == ("abc", False, True, 1, 2.0)
    assert run.metrics["test/accuracy"] == 0.6
    assert run.curves["val/accuracy"] == [[0, 0.1], [1, 0.5]]
    assert run.samples == {"train": 100}
    part = write_run(tmp_path, "002", "FINISHED", 0.6, **{"dataset.limit_train": "10"})
    assert not read_run(part, "a", 0, "snnexp x", claim).complete


def test_runs_on_other_data_are_left_out(tmp_path: Path) -> None:
    claim = ClaimConf(arms={"a": {}})
    folders = [write_run(tmp_path, f"{i:03d}", "FINISHED", 0.5, "one" if i < 3 else "two") for i in (1, 2, 3)]
    runs = [read_run(folder, "a", seed, "", claim) for seed, folder in enumerate(folders)]
    assert [run.seed for run in on_the_same_data(runs)] == [0, 1]


@pytest.mark.slow
def test_a_claim_from_start_to_end(snnexp: Any, tmp_path: Path) -> None:
    own = tmp_path / "own" / "experiment"
    own.mkdir(parents=True)
    (own / "tiny.yaml").write_text(CLAIM, encoding="utf-8")
    words = ("--config-dir", str(tmp_path / "own"), "+experiment=tiny", "tracking=off")
    first = snnexp("task=reproduce", *words, "seed=0")
    assert first.returncode == 0, first.stderr
    assert "open: 1 seed: too few to tell" in first.stdout
    second = snnexp("task=reproduce", *words)
    assert second.returncode == 0, second.stderr
    assert second.stdout.count("already finished") == 2  # of seed 0
    content = json.loads((tmp_path / "results" / "tiny.json").read_text(encoding="utf-8"))
    assert [(run["seed"], run["arm"]) for run in content["runs"]] == [(0, "low"), (0, "high"), (1, "low"), (1, "high")]
    assert {run["metrics"]["test/accuracy"] < 0.3 for run in content["runs"] if run["arm"] == "high"} == {True}
    for suffix in (".md", ".png", ".pdf"):
        assert (tmp_path / "results" / f"tiny{suffix}").stat().st_size > 200
    third = snnexp("task=reproduce", *words)
    assert "running:" not in third.stdout  # nothing is missing
    assert "Paper (arXiv:0), Table 0: open" in third.stdout


@pytest.mark.slow
def test_what_others_repeat_does_not_say_where_files_lie_here() -> None:
    places = ["state_dir=/home/me/runs", "dataset.root=/home/me/data", "+dataset.store=/s"]
    words = ["+experiment=e", *places, "dataset.num_steps=4"]
    assert _for_others(words) == ["+experiment=e", "dataset.num_steps=4"]


def test_an_experiment_without_a_claim(snnexp: Any) -> None:
    done = snnexp("task=reproduce")
    assert done.returncode == 2
    assert "needs an experiment with a claim" in done.stderr
