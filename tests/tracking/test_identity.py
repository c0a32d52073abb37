"""What is one run and what is another."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import asdict
from typing import Any

import pytest

from snnexp.config import Config
from snnexp.tracking.identity import identity_config, is_bookkeeping, run_identity, run_name


def leaves(node: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys of all values that are not dicts."""
    found = []
    for key, value in node.items():
        found += leaves(value, f"{prefix}{key}.") if isinstance(value, dict) and value else [f"{prefix}{key}"]
    return found


FULL = asdict(Config())


def with_value(key: str, value: object) -> dict[str, Any]:
    config = copy.deepcopy(FULL)
    *path, last = key.split(".")
    node = config
    for part in path:
        node = node[part]
    node[last] = value
    return config


def test_identity_is_the_hash_of_the_canonical_json() -> None:
    config = {"seed": 1, "neuron": {"threshold": 0.5, "name": "fixed"}, "tracking": {"uri": "http://elsewhere"}}
    text = '{"neuron":{"name":"fixed","threshold":0.5},"seed":1}'
    assert run_identity(config) == hashlib.sha256(text.encode()).hexdigest()[:12]


def test_every_key_of_the_schema_counts_unless_it_is_bookkeeping() -> None:
    base = run_identity(FULL)
    changed = {key for key in leaves(FULL) if run_identity(with_value(key, "something else")) != base}
    same = set(leaves(FULL)) - changed
    assert same == {
        "dataset.root",
        "dataset.download",
        "state_dir",
        "results_dir",
        "results_name",
        "show",
        "claim",
        "arm",
        "recipe",
        "task",
        "run_id",
        "checkpoint",
        "format",
        "trust_code",
        "trainer.resume",
        "trainer.checkpoint_minutes",
        "trainer.plots",
        "trainer.diagnose",
        "tracking.name",
        "tracking.uri",
        "tracking.experiment",
        "tracking.run_name",
        "tracking.system_metrics",
    }
    assert {"seed", "neuron.engine", "device", "trainer.max_epochs", "dataset.augment.shift"} <= changed


@pytest.mark.parametrize("key", ["dataset.store", "dataset.keep_archives"])
def test_keys_of_event_data_sets_that_do_not_count(key: str) -> None:
    assert is_bookkeeping(key)


def test_a_longer_name_is_not_bookkeeping() -> None:
    assert not is_bookkeeping("tasks")
    assert not is_bookkeeping("dataset.roots")


def test_order_and_spelling_of_numbers_do_not_count() -> None:
    assert run_identity({"a": {"x": 1, "y": 2.5}, "b": [1, 2]}) == run_identity(
        {"b": [1.0, 2], "a": {"y": 2.5, "x": 1.0}}
    )


def test_true_is_not_one_and_null_is_not_absent() -> None:
    texts = [run_identity({"a": value}) for value in (True, 1, "1", None)]
    assert len({*texts, run_identity({})}) == 5


def test_the_config_is_left_as_it_was() -> None:
    config = copy.deepcopy(FULL)
    identity_config(config)["dataset"]["name"] = "other"
    assert config == FULL


def test_run_name() -> None:
    config = with_value("seed", 3)
    config["dataset"]["name"], config["neuron"]["name"] = "dvs128", "rouser"
    assert run_name(config) == "dvs128-rouser-s3"
    config["tracking"]["run_name"] = "mine"
    assert run_name(config) == "mine"


def test_run_name_tells_what_else_was_chosen() -> None:
    config = {"dataset": {"name": "digits"}, "neuron": {"name": "fixed"}, "seed": 0}
    overrides = [
        "neuron=fixed",
        "seed=0",
        "neuron.threshold=50",
        "tracking.uri=x",
        "+experiment=fig",
        "trainer.plots=false",
    ]
    assert run_name(config, ["arm=learned", "seed=0"]) == "digits-fixed-s0 arm=learned"  # arms must not look the same
    assert run_name(config, overrides) == "digits-fixed-s0 threshold=50 experiment=fig"
    assert len(run_name(config, ["model.spec=" + "FC10-SN-" * 40])) == 80
