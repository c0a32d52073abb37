"""Energy by hand, and the budget of synaptic operations as a loss."""

from __future__ import annotations

import pytest
import torch
from composing import compose_words

from snnexp.analysis.energy import TABLES, Size, Table, energy_metrics, energy_results, estimate, size_of
from snnexp.analysis.synops import Synops, SynopsMeter
from snnexp.config import Config
from snnexp.errors import ConfigError
from snnexp.experiment import Experiment, assemble
from snnexp.models.sums import Sums
from snnexp.training.budget import Budget
from snnexp.validation import validate

TABLE = Table(ac=1, mac=4, update=4, memory=0.5, word=4, source="made up")
COUNTED = Synops(effective_acs=100, effective_macs=50, dense=1000, activation_sparsity=0.9, dense_acs=400)
SIZE = Size(updates=10, states=10, biases=6)


def configured(*overrides: str) -> Config:
    small = ("device=cpu", "trainer=smoke", "neuron.engine=reference", "dataset.num_steps=4")
    return validate(compose_words(*small, *overrides))


def test_energy_by_hand() -> None:
    energy = estimate(COUNTED, SIZE, 4, TABLE)  # reading a number: 4 bytes of 0.5
    assert energy.spikes * 1000 == pytest.approx(100 * (1 + 2))
    assert energy.rest * 1000 == pytest.approx(50 * (4 + 2) + 4 * (10 * 4 + (2 * 10 + 6) * 2))
    assert energy.ann * 1000 == pytest.approx(1000 / 4 * (4 + 2) + 6 * 2)
    assert energy.rate == 0.25


def test_at_the_break_even_rate_both_cost_the_same() -> None:
    energy = estimate(COUNTED, SIZE, 4, TABLE)
    acs = energy.break_even * COUNTED.dense_acs
    there = estimate(Synops(acs, 50, 1000, 0.9, 400), SIZE, 4, TABLE)
    assert there.total == pytest.approx(there.ann)
    dear = estimate(COUNTED, Size(10_000, 10_000, 6), 4, TABLE)
    assert dear.break_even == 0  # its neurons alone cost more than the whole ANN


def test_without_memory_and_updates_it_is_what_papers_print() -> None:
    energy = estimate(COUNTED, SIZE, 4, TABLES["operations_45nm"])
    assert energy.total * 1000 == pytest.approx(0.9 * 100 + 4.6 * 50)
    assert energy.ann * 1000 == pytest.approx(4.6 * 250)
    assert energy.break_even == pytest.approx((4.6 * 250 - 4.6 * 50) / (0.9 * 400))


def test_a_networks_own_numbers() -> None:
    experiment = assemble(configured("model.spec=c2k3-BN-SN-FC5-SN-FC-SN", "neuron.alpha=0.5"))
    size = size_of(experiment.network)
    neurons = 2 * 8 * 8 + 5 + 10
    assert size == Size(2 * neurons, 2 * neurons, 5 + 10)  # membrane and current; no bias before the norm
    once = assemble(configured("model.spec=FC5-SN-FC-SN", "neuron.fire_once=true", "decoder=first_spike"))
    assert size_of(once.network).states == 15
    meter = SynopsMeter(experiment.network)
    with torch.no_grad():
        experiment.forward(next(experiment.source.batches("test")), meter)
    synops = meter.result()
    assert synops.dense_acs == 4 * (2 * 64 * 5 + 5 * 10)  # the first layer multiplies grey levels
    metrics = energy_metrics(experiment.network, synops)
    assert metrics["test/synaptic_rate"] == synops.effective_acs / synops.dense_acs
    results = energy_results(experiment.network, synops)
    assert set(results) == set(TABLES)
    for name, row in results.items():
        assert metrics[f"test/energy/{name}"] == row["nanojoules"] == row["spikes"] + row["rest"] > 0
        assert row["source"]


# --- the budget ---------------------------------------------------------------------------------------------------


def forwarded(*overrides: str) -> tuple[Experiment, Budget, Sums, int]:
    experiment = assemble(configured("decoder.synops=10", "decoder.synops_weight=2", *overrides))
    budget = Budget(experiment)
    sums = Sums(prices=budget.prices)
    batch = next(experiment.source.batches("train", 1, 0))
    experiment.trained_on(batch, None, sums)
    return experiment, budget, sums, len(batch.labels)


@pytest.mark.parametrize(
    "spec", ["FC6-SN-FC5-SN-FC-SN", "c3k3-SN-MP2-c4k3-SN-FC-SN", "RFC6-SN-FC-SN", "c3k3-SN-AP2-FC5-SN-FC-SN"]
)
def test_the_budget_counts_what_the_meter_counts(spec: str) -> None:
    """The network's own spikes: all accumulates of the meter, since the input is no spikes here."""
    experiment, budget, sums, samples = forwarded(f"model.spec={spec}", "model.gain=3")
    meter = SynopsMeter(experiment.network)
    with torch.no_grad():
        experiment.forward(next(experiment.source.batches("train", 1, 0)), meter)
    spent = sum(float(sums.found[name].detach()) for name in budget.prices) / samples
    assert spent == pytest.approx(meter.result().effective_acs, rel=1e-5) and spent > 10
    term = budget.term(sums, samples)
    assert float(term.detach()) == pytest.approx(2 * (spent / 10 - 1) ** 2, rel=1e-5)
    (gradient,) = torch.autograd.grad(term, next(experiment.network.parameters()))
    assert float(gradient.abs().sum()) > 0


def test_within_the_budget_it_is_nothing() -> None:
    _, budget, sums, samples = forwarded("model.spec=FC6-SN-FC-SN", "decoder.synops=1e9")
    assert float(budget.term(sums, samples).detach()) == 0


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="no layer with weights is driven by the network's own spikes"):
        configured("model.spec=FC-SN", "decoder.synops=10")
