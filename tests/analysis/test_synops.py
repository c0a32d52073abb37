"""Operations counted by hand, and against a loop over every input, weight and output."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from snnexp.analysis.synops import SynopsMeter, neurobench_results
from snnexp.config import DecoderConf, ModelConf, NeuronConf
from snnexp.data.base import DataInfo, EventFrames
from snnexp.encoders import ConstantInput
from snnexp.models.network import Network, build_network
from snnexp.models.observer import Firing


def make(spec: str, shape: tuple[int, int, int], steps: int, classes: int = 2, **model: object) -> Network:
    info = DataInfo("made", "events", shape, steps, tuple("abcdefghij"[:classes]), {}, {}, complete=True, split_hash="")
    torch.manual_seed(0)
    neuron = NeuronConf(name="fixed", engine="reference", beta=0.5, threshold=0.2)
    return build_network(ModelConf(name="m", spec=spec, **model), neuron, DecoderConf(name="rate"), info).eval()


def test_spikes_times_fan_out() -> None:
    # 3 input spikes in sample 0, 1 in sample 1, each into 5 neurons with weights that are too small to fire
    network = make("FC5-SN-FC-SN", (1, 1, 4), steps=2, gain=1e-6)
    network.fc1.bias.data.zero_()
    frames = torch.zeros(2, 2, 1, 1, 4)
    frames[0, 0, 0, 0, [0, 2]] = frames[1, 0, 0, 0, 1] = frames[1, 1, 0, 0, 3] = 1
    meter = SynopsMeter(network)
    network(frames, meter)
    result = meter.result()
    assert result.effective_acs == (3 + 1) * 5 / 2
    assert result.effective_macs == 0
    assert result.dense == 2 * (4 * 5 + 5 * 2)  # two steps of the whole network
    assert result.activation_sparsity == 1
    assert meter.metrics("test") == {"test/synops": 10, "test/macs": 0, "test/activation_sparsity": 1}


def test_a_zero_weight_costs_nothing() -> None:
    network = make("FC5-SN-FC-SN", (1, 1, 4), steps=1, gain=1e-6)
    network.fc1.bias.data.zero_()
    with torch.no_grad():
        network.fc1.weight[:3, 1] = 0
    meter = SynopsMeter(network)
    network(torch.tensor([1.0, 1, 0, 0]).view(1, 1, 1, 1, 4), meter)
    assert meter.result().effective_acs == 5 + 2


def test_counts_and_analog_values_are_macs() -> None:
    network = make("FC5-SN-FC-SN", (1, 1, 4), steps=3, gain=1e-6)
    network.fc1.bias.data.zero_()
    meter = SynopsMeter(network)
    network(torch.tensor([2.0, 0, 1, 0]).expand(3, 1, 1, 1, 4), meter)  # a pixel with two events
    assert (meter.result().effective_macs, meter.result().effective_acs) == (3 * 2 * 5, 0)
    meter.reset()
    network(ConstantInput(torch.tensor([0.5, 0.1, 1, 0]).view(1, 1, 1, 4), 3), meter)  # read once, paid three times
    assert (meter.result().effective_macs, meter.result().dense) == (3 * 3 * 5, 3 * 30)
    meter.reset()
    network(torch.tensor([1.0, -1, 0, 0]).expand(3, 1, 1, 1, 4), meter)  # off events are negative, but accumulate
    assert (meter.result().effective_macs, meter.result().effective_acs) == (0, 3 * 2 * 5)


def test_fan_out_shrinks_at_the_border() -> None:
    # one spike in the corner of a 4x4 map reaches 2x2 windows of a 3x3 convolution with padding, one inside 3x3
    network = make("c2k3-SN-FC-SN", (1, 4, 4), steps=1, gain=1e-6)
    network.conv1.bias.data.zero_()
    meter = SynopsMeter(network)
    for place, reached in (((0, 0), 4), ((0, 1), 6), ((1, 1), 9)):
        frames = torch.zeros(1, 1, 1, 4, 4)
        frames[0, 0, 0, place[0], place[1]] = 1
        meter.reset()
        network(frames, meter)
        assert meter.result().effective_acs == reached * 2  # two maps


def by_loop(x: Tensor, weight: Tensor, stride: int, pad: int) -> int:
    """Non-zero input times non-zero weight of a convolution, one at a time."""
    channels, height, width = x.shape
    out, _, k, _ = weight.shape
    total = 0
    rows, columns = (height + 2 * pad - k) // stride + 1, (width + 2 * pad - k) // stride + 1
    for o, r, c, i, a, b in product(range(out), range(rows), range(columns), range(channels), range(k), range(k)):
        y, z = r * stride + a - pad, c * stride + b - pad
        if 0 <= y < height and 0 <= z < width:
            total += bool(x[i, y, z] != 0) and bool(weight[o, i, a, b] != 0)
    return total


@pytest.mark.parametrize("token", ["c3k3", "c3k3s2", "c3k5s2p1", "c3k2", "c3k4s3p0"])
def test_convolutions_equal_a_loop(token: str) -> None:
    network = make(f"{token}-SN-FC-SN", (2, 7, 6), steps=1, gain=1e-6)
    network.conv1.bias.data.zero_()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        network.conv1.weight.mul_(torch.rand(network.conv1.weight.shape, generator=generator) < 0.7)
    frames = (torch.rand(1, 3, 2, 7, 6, generator=generator) < 0.4).float()
    meter = SynopsMeter(network)
    network(frames, meter)
    conv = network.conv1
    expected = sum(by_loop(x, conv.weight, conv.stride[0], conv.padding[0]) for x in frames[0])
    assert meter.result().effective_acs == pytest.approx(expected / 3)
    ones = torch.ones_like(frames[0, 0]), torch.ones_like(conv.weight)
    full = by_loop(*ones, conv.stride[0], conv.padding[0]) + network.fc1.weight.numel()
    assert meter.result().dense == full


def test_hidden_spikes_recurrence_and_event_lists() -> None:
    network = make("RFC6-SN-FC-SN", (1, 2, 4), steps=5, gain=3)
    frames = (torch.rand(5, 2, 1, 2, 4, generator=torch.Generator().manual_seed(0)) < 0.5).float()

    class Spikes:
        total: dict[str, Tensor] = {}

        reads_spikes = True

        def spiking(self, name: str, layer: object, firing: Firing) -> None:
            assert firing.spk is not None
            self.total[name] = firing.spk

        def connection(self, name: str, module: object, x: object, repeat: int) -> None: ...

    seen, meter = Spikes(), SynopsMeter(network)
    with torch.no_grad():
        network(frames, seen)
    hidden = seen.total["sn1"]
    assert 0 < hidden.mean() < 1
    network(frames, meter)
    expected = frames.sum() * 6 + hidden[:-1].sum() * 6 + hidden.sum() * 2  # the last spikes feed back to nobody
    assert meter.result().effective_acs == float(expected) / 2
    everything = torch.cat([seen.total["sn1"].flatten(), seen.total["sn2"].flatten()])
    assert meter.result().activation_sparsity == pytest.approx(1 - float(everything.mean()))

    flat = frames.flatten(2).flatten(0, 1)
    where = flat.nonzero()
    offsets = torch.zeros(11, dtype=torch.int64)
    offsets[1:] = torch.bincount(where[:, 0], minlength=10).cumsum(0)
    for values in (None, torch.ones(len(where))):
        lists = SynopsMeter(network)
        network(EventFrames(where[:, 1].int(), offsets, values, 5, 2, (1, 2, 4)), lists)
        assert lists.result() == meter.result()


def test_sums_do_not_depend_on_the_batches() -> None:
    network = make("c3k3-SN-AP2-FC-SN", (1, 4, 4), steps=3)
    frames = (torch.rand(3, 6, 1, 4, 4, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    whole, parts = SynopsMeter(network), SynopsMeter(network)
    network(frames, whole)
    for part in (frames[:, :1], frames[:, 1:]):
        network(part, parts)
    assert whole.result() == parts.result()
    assert whole.result().effective_macs > 0  # averaged spikes are no spikes


def test_neurobench_names() -> None:
    network = make("FC5-SN-FC-SN", (1, 1, 4), steps=1)
    with torch.no_grad():
        network.fc1.weight[0] = 0
    meter = SynopsMeter(network)
    network(torch.ones(1, 1, 1, 1, 4), meter)
    results = neurobench_results(network, meter.result(), 0.75)
    assert results["ConnectionSparsity"] == 4 / 30
    assert results["ParameterCount"] == 4 * 5 + 5 + 5 * 2 + 2
    assert results["Footprint"] >= 4 * results["ParameterCount"]
    assert results["ClassificationAccuracy"] == 0.75
    assert set(results["SynapticOperations"]) == {"Effective_MACs", "Effective_ACs", "Dense"}


def test_nothing_to_count_is_an_error() -> None:
    with pytest.raises(ValueError, match="no batch has run yet"):
        SynopsMeter(make("FC-SN", (1, 1, 4), steps=1)).result()
