"""Every data set with every neuron, by the defaults alone: two training steps and a full record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

NEURONS = ("fixed", "rouser", "plif", "ttfs", "ltmd", "dietsnn", "trsg", "mp_init", "noisy")
NEURONS += ("adlif", "se_adlif", "silif", "alif")
SMOKE = ("trainer=smoke", "tracking=off", "trainer.plots=false")


def assert_complete_record(folder: Path) -> None:
    (results,) = folder.glob("runs/*/*/artifacts/results.json")
    content = json.loads(results.read_text())
    assert 0 <= content["ClassificationAccuracy"] <= 1
    assert content["samples"]["test"] > 0
    lines = next(folder.glob("runs/*/*/metrics.jsonl")).read_text().splitlines()
    names = {name for line in lines for name in json.loads(line)["metrics"]}
    for name in ("train/dead_fraction/sn1", "val/firing_rate/sn1", "test/dead_neurons", "test/synops", "time/epoch_s"):
        assert name in names


# Golden curves train each neuron on each engine, test_configs composes each pair: two say that the record is complete.
@pytest.mark.parametrize(
    "neuron", [n if n in ("rouser", "ttfs") else pytest.param(n, marks=pytest.mark.slow) for n in NEURONS]
)
def test_digits(snnexp, tmp_path: Path, neuron: str) -> None:
    done = snnexp(f"neuron={neuron}", *SMOKE)
    assert done.returncode == 0, done.stderr
    assert_complete_record(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("neuron", NEURONS)
@pytest.mark.parametrize("dataset", ["randman", "motion"])
def test_generated_events(snnexp, tmp_path: Path, dataset: str, neuron: str) -> None:
    small = ("dataset.train_per_class=3", "dataset.test_per_class=1") if dataset == "motion" else ()
    more = ("dataset.event_rate=5", "dataset.val_fraction=0.34") if dataset == "motion" else ()
    done = snnexp(f"dataset={dataset}", f"neuron={neuron}", f"dataset.root={tmp_path}/data", *small, *more, *SMOKE)
    assert done.returncode == 0, done.stderr
    assert_complete_record(tmp_path)


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("neuron", NEURONS)
@pytest.mark.parametrize("dataset", ["mnist", "fashion_mnist", "cifar10", "nmnist", "dvs128"])
def test_real_data(snnexp, tmp_path: Path, real_data: Path, dataset: str, neuron: str) -> None:
    done = snnexp(f"dataset={dataset}", f"neuron={neuron}", f"dataset.root={real_data}", *SMOKE)
    assert done.returncode == 0, done.stderr
    assert_complete_record(tmp_path)
