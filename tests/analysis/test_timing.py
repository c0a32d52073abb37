"""task=probe: what is taken away from time, gradients cut in time, and the verdict."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from snnexp.analysis.timing import redrawn, shuffled, verdict
from snnexp.config import DecoderConf, ModelConf, NeuronConf
from snnexp.data.base import DataInfo
from snnexp.models.network import Network, build_network


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_shuffling_keeps_what_comes_together() -> None:
    x = torch.arange(5.0).view(5, 1, 1).expand(5, 3, 4).contiguous()  # bin number at every input
    y = shuffled(x, generator())
    assert torch.equal(y, y[:, :, :1].expand_as(y))  # all inputs of a sample are permuted alike
    assert torch.equal(y[..., 0].sort(0).values, x[..., 0])
    assert not torch.equal(y[:, 0], y[:, 1])  # each sample in an order of its own


def test_redrawing_keeps_the_counts_of_each_input_only() -> None:
    x = (torch.rand(20, 3, 4, generator=generator()) < 0.3).float()
    y = redrawn(x, generator())
    assert torch.equal(x.sum(0), y.sum(0))
    assert not torch.equal(x, y)


def test_verdict_by_hand() -> None:
    # p = 0.85: 2 sqrt(2 * 0.85 * 0.15 / 200) = 0.0714
    assert verdict(0.9, 0.8, 0.95, 200)[0]
    assert not verdict(0.9, 0.84, 0.85, 200)[0]
    assert (
        verdict(0.9, 0.8, 0.95, 200)[1]
        == "yes: taking time away costs 10.0 %, and chance explains 7.1 % on 200 samples"
    )


def network(spec: str = "FC5-SN-FC-SN") -> Network:
    torch.manual_seed(0)
    info = DataInfo("x", "events", (1, 2, 2), 6, ("a", "b", "c"), {}, {}, True, "h")
    return build_network(
        ModelConf(name="m", spec=spec), NeuronConf(name="fixed", engine="reference"), DecoderConf(name="rate"), info
    )


def test_no_gradient_goes_back_beyond_the_cutoff() -> None:
    x = torch.rand(6, 2, 1, 2, 2, generator=generator()) * 3
    x.requires_grad_()
    net = network().train()
    whole = net(x)
    net.truncate_steps = 2
    cut = net(x)
    assert torch.equal(whole.spk, cut.spk) and torch.allclose(whole.mem, cut.mem)  # only backward differs
    [far] = torch.autograd.grad(whole.mem[5].sum(), x)
    [near] = torch.autograd.grad(cut.mem[5].sum(), x)
    assert far[:4].abs().sum() > 0
    assert near[:4].abs().sum() == 0 and near[4:].abs().sum() > 0
    net.eval()
    assert torch.equal(net(x).spk, whole.spk)


@pytest.mark.slow
@pytest.mark.parametrize(("dataset", "answer"), [("digits", "no"), ("randman", "yes")])
def test_the_answer_on_data_that_one_knows(snnexp: Any, dataset: str, answer: str) -> None:
    words = ("tracking=off", "trainer.plots=false")
    done = snnexp(f"dataset={dataset}", "trainer.max_epochs=4", *words)
    assert done.returncode == 0, done.stderr
    run = re.search(rf"runs/({dataset}-fixed-\w+/001)", done.stdout)
    assert run is not None
    probed = snnexp("task=probe", f"run_id={run[1]}", "trainer.max_epochs=1", *words)
    assert probed.returncode == 0, probed.stderr
    assert f"uses time: {answer}" in probed.stdout
