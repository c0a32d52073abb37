"""Spikes as high as the threshold (TrSG), membranes that start at a running mean (MP-Init), noise on the membrane."""

import numpy as np
import pytest
import torch

from snnexp.config import NeuronConf, SurrogateConf
from snnexp.neurons.layer import SpikingLayer, Within

ENGINES = ("reference", "numba")


def trsg(engine: str, shape: tuple[int, ...] = (5,), **more: object) -> SpikingLayer:
    options: dict[str, object] = {
        "beta": 0.5, "learn_beta": True, "tau_form": True, "threshold": 0.7, "learn_threshold": True, "strict": True,
        "threshold_param": "softplus", "spike_height": "threshold", "relative_surrogate": True,
        "reset": "subtract_first", "surrogate": SurrogateConf(name="rectangular"),
    }  # fmt: skip
    return SpikingLayer(NeuronConf(name="trsg", engine=engine, **{**options, **more}), shape, "sn1").double()


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Rounded(torch.autograd.Function):
    """The authors' firing function as its formula says: round(clip(v/theta - 1/2, 0, 1)), rounding passes gradients."""

    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return torch.round(torch.clip(z, 0, 1))

    @staticmethod
    def backward(ctx, grad):
        (z,) = ctx.saved_tensors
        return grad * ((z > 0) & (z < 1))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("detach", [True, False])
def test_trsg_is_the_authors_neuron_forward_and_backward(engine, detach):
    """kookhh0827/SNN-MP-Init-TRSG, trlif.py (commit 3d2aa23): charge, fire, soft reset, in their order."""
    x, weight = 2 * rand(9, 3, 5), rand(9, 3, 5, seed=1)
    layer = trsg(engine, detach_reset=detach)
    leaf = x.clone().requires_grad_()
    out = layer(leaf)
    (out.spk * weight).sum().backward()
    found = [out.spk, leaf.grad, layer.raw_threshold.grad, layer.raw_beta.grad]

    theirs, k = x.clone().requires_grad_(), layer.raw_threshold.detach().clone().requires_grad_()
    w = layer.raw_beta.detach().clone().requires_grad_()
    v, spikes = torch.zeros(3, 5, dtype=torch.float64), []
    for now in theirs:
        theta = torch.nn.functional.softplus(k)
        v = v + (now - v) * torch.sigmoid(w)
        spike = Rounded.apply(v / theta - 0.5) * theta
        v = v - (spike.detach() if detach else spike)
        spikes.append(spike)
    spk = torch.stack(spikes)
    (spk * weight).sum().backward()
    assert 0.2 < (spk > 0).double().mean() < 0.8
    for ours, expected in zip(found, [spk, theirs.grad, k.grad, w.grad], strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("engine", ENGINES)
def test_high_spikes_are_counted_as_spikes(engine):
    layer = trsg(engine)
    spk = layer(2 * rand(9, 3, 5)).spk
    run = layer(2 * rand(9, 3, 5), within=Within(counts=True))
    assert set(np.round(spk.unique().tolist(), 6)) == {0, round(layer.threshold.item(), 6)}
    assert torch.equal(run.counts, (spk > 0).double().sum(0))


@pytest.mark.parametrize("engine", ENGINES)
def test_the_start_follows_the_ends_of_batches(engine):
    """A pencil's case: beta 0.5, theta 1, input 1.5, 0.25, 0.5. The first neuron fires at step 0 and is left with 0.5,
    which goes on to 0.5 and 0.75; the second fires at the last step only and is left with 0; the third never does."""
    conf = NeuronConf(
        name="mp", engine=engine, beta=0.5, reset="subtract_first", initial_mem="running_mean", learn_threshold=True
    )
    layer = SpikingLayer(conf, (3,), "sn1")
    x = torch.tensor([[1.5, 0, 0.25], [0.25, 0, 0], [0.5, 1.0, 0]]).unsqueeze(1)
    layer.eval()(x)
    assert layer.initial_mem.item() == 0
    layer.train()(x)
    assert layer.initial_mem.item() == pytest.approx(0.1 * (0.75 + 0) / 2)
    layer.initial_mem.fill_(0.5)
    for run in (layer.eval()(x), layer(x, within=Within()), layer.train()(x, within=Within(counts=True))):
        assert run.mem[0].flatten().tolist() == [1.75, 0.25, 0.5]  # 0.5 * 0.5 and the input
    # once more from 0.5: 1.75 - 1, 0.375 + 0.25, 0.3125 + 0.5 = 0.8125; the second 0.0625 + 1 - 1
    assert layer.initial_mem.item() == pytest.approx(0.9 * 0.5 + 0.1 * (0.8125 + 0.0625) / 2)
    assert layer.init_state(2).mem.unique().item() == layer.initial_mem.item()
    layer(torch.zeros(3, 1, 3))  # nobody fires: the mean of nobody is 0, as in the authors' code
    assert "initial_mem" in layer.state_dict() and layer.initial_mem.item() < 0.45


@pytest.mark.parametrize("pool", [True, False])
def test_a_start_works_in_a_layers_run(pool):
    """With recurrence and counting, against the reference engine."""
    results = []
    for engine in ENGINES:
        layer = trsg(engine, (4, 6, 6) if pool else (4,), initial_mem="running_mean", spike_height="one")
        layer.initial_mem.fill_(0.4)
        x = (4 * rand(5, 2, *layer.shape)).requires_grad_()
        recurrent = None if pool else (rand(4, 4, seed=3) - 0.5).requires_grad_()
        run = layer(x, recurrent=recurrent, within=Within(counts=True))
        run.spk.square().sum().backward()
        results.append([run.spk, run.mem, run.counts, x.grad, layer.raw_threshold.grad, layer.initial_mem])
    assert results[0][0].mean() > 0.05
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_noise_is_gaussian_on_the_membrane_in_training_only():
    conf = NeuronConf(name="noisy", beta=0.5, threshold=50.0, noise=0.3, alpha=0.9)
    layer, x = SpikingLayer(conf, (40,), "sn1"), torch.zeros(60, 50, 40)
    torch.manual_seed(3)
    mem = layer.train()(x).mem
    noise = mem[1:] - 0.5 * mem[:-1]  # the current is not touched
    assert noise.mean().abs() < 0.004 and noise.std().item() == pytest.approx(0.3, rel=0.01)
    assert (noise[1:] * noise[:-1]).mean().abs() < 0.002
    assert not layer.eval()(x).mem.any()
    always = SpikingLayer(NeuronConf(name="noisy", noise=0.3, noise_in="always"), (40,), "sn1").eval()
    assert always(x).mem.any()


def test_noise_is_the_same_on_every_engine_and_for_each_seed():
    def run(engine, seed, layout=torch.contiguous_format):
        conf = NeuronConf(name="noisy", engine=engine, noise=0.5, beta=0.9)
        torch.manual_seed(seed)
        x = torch.rand(6 * 2, 4, 3, 3, generator=torch.Generator().manual_seed(0)).to(memory_format=layout)
        return SpikingLayer(conf, (4, 3, 3), "sn1")(x.unflatten(0, (6, 2)))

    one = run("reference", 0)
    for layout in (torch.contiguous_format, torch.channels_last):
        other = run("numba", 0, layout)
        assert torch.equal(one.mem, other.mem) and torch.equal(one.spk, other.spk)
    assert not torch.equal(one.mem, run("numba", 1).mem)


def test_step_by_step_noise_and_start():
    """Loops over steps, as of delayed recurrence, see both."""
    conf = NeuronConf(name="n", noise=0.5, initial_mem="running_mean", threshold=50.0, beta=1.0)
    layer = SpikingLayer(conf, (1000,), "sn1")
    layer.initial_mem.fill_(2.0)
    _, mem, _ = layer.single_step(torch.zeros(1, 1000), layer.init_state(1))
    assert mem.mean().item() == pytest.approx(2, abs=0.1) and mem.std().item() == pytest.approx(0.5, rel=0.1)
