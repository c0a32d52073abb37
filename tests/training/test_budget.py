"""The budget of synaptic operations: what it counts is what the test pass counts."""

from __future__ import annotations

import pytest
import torch
from composing import compose_words

from snnexp.analysis.synops import SynopsMeter
from snnexp.experiment import assemble
from snnexp.models.sums import Sums
from snnexp.training.budget import Budget
from snnexp.validation import validate

SMALL = ("tracking=off", "device=cpu", "trainer=smoke", "dataset.limit_train=64", "dataset.num_steps=4",
         "neuron.engine=reference", "decoder.synops=100", "neuron.threshold=0.3")  # fmt: skip


@pytest.mark.parametrize(
    "spec",
    [
        "c4k3-SN-MP2-c4k3-SN-FC-SN",
        "c4k3-BN-SN-+(c4k3-BN-SN-c4k3-BN)-SN-FC-SN",  # the body reads spikes behind the fork
        "c4k3-BN-SN-+(c4k3-BN-SN-c4k3-BN|c4k1-BN)-SN-FC-SN",
        "FC8-SN-DL2-FC8-SN-FC-SN",
        "RFC8-SN-FC-SN",
    ],
)
def test_the_budget_counts_what_the_test_pass_counts(spec: str) -> None:
    experiment = assemble(validate(compose_words(*SMALL, f"model.spec='{spec}'")))
    budget, meter = Budget(experiment), SynopsMeter(experiment.network)
    batch = next(experiment.source.batches("train", 1, 0))
    experiment.network.eval()
    sums = Sums(prices=budget.prices)
    with torch.no_grad():
        experiment.forward(batch, meter, sums)
    spent = sum(float(value) for value in sums.found.values()) / len(batch.labels)
    assert spent == pytest.approx(meter.result().effective_acs, rel=1e-5) and spent > 0
    assert float(budget.term(sums, len(batch.labels))) == pytest.approx((spent / 100 - 1) ** 2, rel=1e-4)
