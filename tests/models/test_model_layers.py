"""NeuNorm, votes, dropout, and weights: initialisation, standardisation, affine."""

from __future__ import annotations

from math import sqrt

import pytest
import torch
from networks import make_info, make_network, make_spikes

from snnexp.config import ModelConf, NeuNormConf
from snnexp.models.layers import ModerateDropout, NeuNorm, TimeDropout, Vote
from snnexp.models.spec import plan, why_not_in_segments
from snnexp.models.weights import Conv2d, Linear, build_weights, standardise


def test_neunorm_by_hand() -> None:
    # two maps of one pixel, k = 0.5; spikes of both maps at step 0, of one at step 1, of none at step 2
    spk = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]]).view(3, 1, 2, 1, 1)
    layer = NeuNorm((2, 1, 1), NeuNormConf(k=0.5, form="mean"))
    layer.weight.data = torch.tensor([1.0, 2.0]).view(2, 1, 1)
    # v = 0.5, v/F = 0.25:  x = 0.5, 0.25 + 0.25, 0.25
    out, state = layer(spk)
    assert out.flatten(1).tolist() == [[0.5, 0.0], [0.5, -1.0], [-0.25, -0.5]]
    assert state.item() == 0.25
    literal = NeuNorm((2, 1, 1), NeuNormConf(k=0.5, form="literal"))
    literal.weight.data = layer.weight.data
    # v = 0.25, v/F = 0.125: half of it all
    assert (spk - literal(spk)[0]).flatten(1).tolist() == [[0.25, 0.5], [0.25, 0.5], [0.125, 0.25]]


def test_neunorm_settles_at_the_mean_rate_or_at_a_share_of_it() -> None:
    spk = torch.ones(200, 1, 4, 3, 3)
    spk[:, :, 2:] = 0  # rate over the maps: 1/2
    for form, level in (("mean", 0.5), ("literal", 0.5 / 4)):
        _, x = NeuNorm((4, 3, 3), NeuNormConf(k=0.9, form=form))(spk)
        torch.testing.assert_close(x, torch.full((1, 1, 3, 3), level))


def test_neunorm_continues_from_its_state() -> None:
    layer = NeuNorm((2, 3, 3), NeuNormConf())
    spk = (torch.rand(6, 2, 2, 3, 3) < 0.5).float()
    whole, last = layer(spk)
    first, state = layer(spk[:2])
    second, end = layer(spk[2:], state)
    assert torch.equal(torch.cat([first, second]), whole)
    assert torch.equal(end, last)


def test_neunorm_weights_are_per_map_or_shared() -> None:
    assert NeuNorm((4, 3, 2), NeuNormConf()).weight.shape == (4, 3, 2)
    assert NeuNorm((4, 3, 2), NeuNormConf(shared=True)).weight.shape == (1, 3, 2)


def test_neighbouring_neurons_vote_for_one_class() -> None:
    assert Vote(2)(torch.tensor([[1.0, 0.0, 1.0, 1.0, 0.0, 0.0]])).tolist() == [[0.5, 1.0, 0.0]]


@pytest.mark.parametrize("per_step", [False, True])
def test_dropout_keeps_or_redraws_its_mask(per_step: bool) -> None:
    torch.manual_seed(0)
    layer = TimeDropout(0.25, per_step)
    out = layer(torch.ones(50, 4, 100))
    assert out.unique().tolist() == pytest.approx([0, 4 / 3])
    same = bool((out == out[:1]).all())
    assert same is not per_step
    assert not torch.equal(out[:, 0], out[:, 1])  # each sample has a mask of its own
    share = (out == 0).double().mean().item()
    assert abs(share - 0.25) < 5 * sqrt(0.25 * 0.75 / (400 if not per_step else 20_000))
    assert torch.equal(layer.eval()(torch.ones(2, 2, 2)), torch.ones(2, 2, 2))


def weights_of(spec: str, spikes: float = 1.0, **model: object) -> Conv2d | Linear:
    torch.manual_seed(0)
    layer = plan(spec, (4, 16, 16), 10)[0 if spec.startswith("c") else 1]
    return build_weights(layer, ModelConf(name="made", spec=spec, **model), spikes)


@pytest.mark.parametrize("spec", ["c64k3-SN-FC-SN", "FC300-SN-FC-SN"])
def test_initial_bounds(spec: str) -> None:
    fan_in = 4 * 9 if spec.startswith("c") else 4 * 256
    bounds = {
        ("default", 1.0): 1 / sqrt(fan_in),
        ("kaiming_uniform", 1.0): sqrt(6 / fan_in),
        ("ettfs", 8.0): sqrt(3 * 8 / fan_in),
        ("ettfs", 1.0): sqrt(3 / fan_in),
    }
    for (init, spikes), bound in bounds.items():
        largest = weights_of(spec, spikes, init=init).weight.abs().max().item()
        assert 0.99 * bound < largest <= bound * (1 + 1e-6), init
    normal = weights_of(spec, init="kaiming_normal").weight
    assert normal.std().item() == pytest.approx(sqrt(2 / fan_in), rel=0.05)


def test_gain_multiplies_the_weights_and_leaves_the_bias() -> None:
    one, three = weights_of("FC30-SN-FC-SN"), weights_of("FC30-SN-FC-SN", gain=3)
    torch.testing.assert_close(three.weight, 3 * one.weight)
    assert one.bias is not None and three.bias is not None
    assert torch.equal(three.bias, one.bias)


def test_ettfs_starts_without_bias() -> None:
    bias = weights_of("FC30-SN-FC-SN", 8.0, init="ettfs").bias
    assert bias is not None
    assert bias.abs().max() == 0


def test_ettfs_currents_have_unit_variance_where_each_input_fires_once() -> None:
    """methods/ttfs.md section 7: Var(I[t]) = 1 for ETTFS, 1/(3T) for PyTorch's default, 2/T for He-normal."""
    steps, inputs = 8, 1024
    generator = torch.Generator().manual_seed(0)
    times = torch.randint(0, steps, (64, inputs), generator=generator)
    x = torch.nn.functional.one_hot(times, steps).permute(2, 0, 1).float().reshape(-1, inputs)
    expected = {"ettfs": 1.0, "default": 1 / (3 * steps), "kaiming_normal": 2 / steps}
    for init, variance in expected.items():
        layer = weights_of("FC300-SN-FC-SN", steps, init=init)
        current = torch.nn.functional.linear(x, layer.weight)
        assert current.var().item() == pytest.approx(variance, rel=0.05), init


def test_only_the_first_layer_is_scaled_for_analog_input() -> None:
    info = make_info(steps=8, kind="image")
    analog = make_network("FC400-SN-FC400-SN-FC-SN", info, init="ettfs")
    latency = make_network("FC400-SN-FC400-SN-FC-SN", info, init="ettfs", build={"single_spike_input": True})
    for network, first in ((analog, 1), (latency, 8)):
        bounds = [network.get_submodule(name).weight.abs().max().item() for name in ("fc1", "fc2")]
        assert bounds == pytest.approx([sqrt(3 * first / 128), sqrt(3 * 8 / 400)], rel=1e-3)


def test_standardised_weights_have_mean_0_and_deviation_sigma() -> None:
    weight = standardise(torch.randn(50, 40) * 3 + 1, 0.25)
    assert weight.mean().abs().item() < 1e-6
    assert weight.std(correction=0).item() == pytest.approx(0.25, rel=1e-4)


def test_standardisation_acts_at_every_forward_pass() -> None:
    info = make_info(steps=4)
    network = make_network("FC30-SN-FC-SN", info, weight_norm=True, bias=False)
    before = network(make_spikes(info)).mem
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(7).add_(0.5)  # mean and scale are taken out again
    torch.testing.assert_close(network(make_spikes(info)).mem, before, rtol=1e-3, atol=1e-4)
    assert network.get_submodule("fc2").sigma == sqrt(4 / 30)
    assert network.get_submodule("fc1").sigma == sqrt(1 / 128)


@pytest.mark.parametrize(("affine", "shapes"), [("layer", [(), ()]), ("channel", [(6, 1, 1), (10,)])])
def test_affine_replaces_the_bias(affine: str, shapes: list[tuple[int, ...]]) -> None:
    info = make_info()
    network = make_network("c6k3-SN-FC-SN", info, affine=affine)
    layers = [network.get_submodule(name) for name in ("conv1", "fc1")]
    assert [layer.affine.gain.shape for layer in layers] == shapes
    assert [layer.bias for layer in layers] == [None, None]
    x = torch.rand(2, 2, 8, 8)
    plain = layers[0](x)
    with torch.no_grad():
        layers[0].affine.gain.fill_(2)
        layers[0].affine.offset.fill_(0.5)
    torch.testing.assert_close(layers[0](x), 2 * plain + 0.5)


def test_moderate_dropout_spares_what_fires_often() -> None:
    # rates 0, 1/2, 1: scaled alike, their mean 1/2; p = 0.4: keep = 1 - 0.4 (1, 1/2, 0)/(1/2) = 0.2, 0.6, 1
    x = torch.tensor([[[0.0, 1.0, 1.0]], [[0.0, 0.0, 1.0]]])
    layer = ModerateDropout(0.4)
    torch.testing.assert_close(layer.keep(x), torch.tensor([[0.2, 0.6, 1.0]]))
    many = x.repeat(1, 40_000, 1)
    out = layer(many)
    assert out.mean((0, 1)).tolist() == pytest.approx([0, 0.5, 1], abs=0.01)  # the mean stays
    assert out[0, :, 1].unique().tolist() == pytest.approx([0.0, 1 / 0.6])
    assert torch.equal(out[1, :, 1], torch.zeros(40_000))  # one mask for all steps
    assert torch.equal(layer.eval()(x), x)


def test_moderate_dropout_of_equal_rates_is_dropout() -> None:
    torch.testing.assert_close(ModerateDropout(0.25).keep(torch.ones(3, 2, 4)), torch.full((2, 4), 0.75))


def test_moderate_dropout_in_a_network() -> None:
    info = make_info()
    network = make_network("FC12-SN-DPM0.3-FC-SN", info, gain=3)
    network(make_spikes(info)).spk.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    layers = plan("FC12-SN-DPM0.3-FC-SN", (2, 8, 8), 10)
    reason = why_not_in_segments(layers, False, False)
    assert reason is not None and "DPM0.3" in reason and "trainer.checkpoint_steps=null" in reason
