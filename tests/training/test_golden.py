"""Stored loss curves: the same numbers for every engine, and from one commit to the next unless a commit says so."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hydra import compose, initialize_config_dir

from snnexp.analysis.activity import ActivityMeter
from snnexp.cli import conf_dir
from snnexp.config import Config, register_schemas
from snnexp.experiment import assemble
from snnexp.training.optimisation import build_optimizer
from snnexp.training.passes import train_pass
from snnexp.validation import validate

# Mean training loss of epochs 1 to 3 on digits, model FC64-SN-FC-SN, reference engine, float32.
GOLDEN = {
    "fixed": [2.017276, 1.286362, 0.7788309],
    "rouser": [0.1199715, 0.08110729, 0.05165562],
    "plif": [0.1, 0.09600668, 0.06705447],
    "ttfs": [2.087886, 0.7716059, 0.4664933],
    "ltmd": [2.007283, 1.148788, 0.9089252],
    "dietsnn": [1.780642, 0.7307778, 0.3661019],
}


def configuration(*overrides: str) -> Config:
    register_schemas()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return validate(compose("config", overrides=list(overrides)))


def losses(conf: Config, epochs: int = 3) -> list[float]:
    experiment = assemble(conf)
    optimizer = build_optimizer(conf.optimizer, experiment.network.parameter_groups())
    meter = ActivityMeter(experiment.network)
    return [train_pass(experiment, optimizer, epoch, meter).loss for epoch in range(1, epochs + 1)]


@pytest.mark.parametrize("engine", ["reference", "numba"])
@pytest.mark.parametrize("neuron", sorted(GOLDEN))
def test_loss_curve(neuron: str, engine: str) -> None:
    conf = configuration("device=cpu", f"neuron={neuron}", "model.spec=FC64-SN-FC-SN")
    conf = replace(conf, neuron=replace(conf.neuron, engine=engine))
    assert losses(conf) == pytest.approx(GOLDEN[neuron], rel=1e-3)


def test_same_seed_same_bits_and_another_seed_another_curve() -> None:
    conf = configuration("device=cpu", "encoder=rate", "model.spec=FC32-SN-DP0.3-FC-SN")
    assert losses(conf, 1) == losses(conf, 1)
    assert losses(conf, 1) != losses(replace(conf, seed=1), 1)


def test_threads_do_not_change_the_neurons() -> None:
    """Matrix products may be split differently among threads; a network without large ones gives the same bits."""
    conf = configuration("device=cpu", "neuron=rouser", "model.spec=SN-FC-SN", "dataset.num_steps=20")
    threads = torch.get_num_threads()
    try:
        curves = []
        for count in (1, 2):
            torch.set_num_threads(count)
            curves.append(losses(conf, 1))
    finally:
        torch.set_num_threads(threads)
    assert curves[0] == pytest.approx(curves[1], rel=1e-6)


def test_a_second_network_does_not_touch_the_first() -> None:
    conf = configuration("device=cpu", "model.spec=FC16-SN-FC-SN")
    first = assemble(conf)
    batch = next(iter(first.source.batches("val")))
    before = first.forward(batch).spk.clone()
    second = assemble(replace(conf, seed=1))
    build_optimizer(conf.optimizer, second.network.parameter_groups())
    second.forward(batch).spk.sum().backward()
    assert first.forward(batch).spk.equal(before)
    assert all(p.grad is None for p in first.network.parameters())
