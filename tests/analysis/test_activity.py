"""Activity metrics: hand-counted spikes, the laws between the windows, and what is kept from pass to pass."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from snnexp.analysis.activity import ActivityMeter
from snnexp.claims.conf import ClaimConf, ValueConf
from snnexp.config import DecoderConf, ModelConf, NeuronConf
from snnexp.data.base import DataInfo, EventFrames
from snnexp.encoders import ConstantInput
from snnexp.models.network import build_network
from snnexp.models.observer import Firing
from snnexp.neurons.engines import spikes_over_time
from snnexp.neurons.layer import SpikingLayer
from snnexp.training.loop import Fit
from snnexp.training.outcome import epochs_to, milestones


def feed(meter: ActivityMeter, *batches: Tensor, layer: str = "sn1") -> None:
    """Show the meter spikes [T, B, ...]; membranes are the spikes times 0.5."""
    for spk in batches:
        meter.spiking(layer, nn.Identity(), Firing(spikes_over_time(spk), spk * 0.5, None))


@pytest.fixture
def meter() -> ActivityMeter:
    return ActivityMeter(nn.Identity())


def test_counts_on_paper(meter: ActivityMeter) -> None:
    # T = 3, two batches of two samples, 4 neurons: never, once, always, in the second batch only
    first = torch.zeros(3, 2, 4)
    first[0, 0, 1] = 1
    first[:, :, 2] = 1
    second = torch.zeros(3, 2, 4)
    second[:, :, 2] = 1
    second[1, :, 3] = 1
    feed(meter, first, second)
    assert meter.metrics("val") == {
        "val/dead_fraction/sn1": 1 / 4,
        "val/dead_fraction_batch/sn1": (2 / 4 + 2 / 4) / 2,
        "val/dead_fraction_sample/sn1": (4 + 3 + 0 + 2) / 16,
        "val/dead_neurons/sn1": 1,
        "val/dead_neurons": 1,
        "val/firing_rate/sn1": pytest.approx((0 + 1 + 12 + 2) / (4 * 12)),
        "val/saturated_fraction/sn1": 1 / 4,
    }
    assert meter.rates()["sn1"].tolist() == pytest.approx([0, 1 / 12, 1, 2 / 12])
    assert meter.last["sn1"].peaks.tolist() == [0, 0.5, 0.5, 0]  # of the first batch


def test_two_layers_add_up(meter: ActivityMeter) -> None:
    feed(meter, torch.zeros(2, 1, 3), layer="sn1")
    feed(meter, torch.zeros(2, 1, 2, 2, 2), layer="sn2")
    metrics = meter.metrics("test")
    assert (metrics["test/dead_neurons/sn1"], metrics["test/dead_neurons/sn2"], metrics["test/dead_neurons"]) == (
        3,
        8,
        11,
    )


def test_saturation_starts_at_95_percent(meter: ActivityMeter) -> None:
    spk = torch.ones(100, 1, 3)
    spk[:5, :, 1] = 0  # 95 of 100
    spk[:6, :, 2] = 0  # 94 of 100
    feed(meter, spk)
    assert meter.metrics("val")["val/saturated_fraction/sn1"] == pytest.approx(2 / 3)


def test_a_longer_window_leaves_fewer_dead(meter: ActivityMeter) -> None:
    generator = torch.Generator().manual_seed(0)
    feed(meter, *((torch.rand(4, 8, 50, generator=generator) < 0.02).float() for _ in range(5)))
    metrics = meter.metrics("val")
    shares = [metrics[f"val/{name}/sn1"] for name in ("dead_fraction", "dead_fraction_batch", "dead_fraction_sample")]
    assert 0 < shares[0] < shares[1] < shares[2] < 1


def test_a_pass_starts_from_nothing(meter: ActivityMeter) -> None:
    feed(meter, torch.ones(2, 1, 3))
    meter.metrics("val")
    feed(meter, torch.zeros(2, 1, 3))
    assert meter.metrics("val")["val/firing_rate/sn1"] == 0
    assert meter.metrics("val") == {}  # nothing ran
    feed(meter, torch.ones(2, 1, 3))
    meter.reset()
    assert meter.metrics("val") == {}


def test_revived_and_newly_dead(meter: ActivityMeter) -> None:
    before, after = torch.zeros(2, 1, 5), torch.zeros(2, 1, 5)
    before[0, 0, [0, 1]] = 1  # 2, 3, 4 dead
    after[0, 0, [1, 2, 3]] = 1  # 0, 4 dead: 2 revived, 1 died
    feed(meter, before)
    assert not any("revived" in key or "newly" in key for key in meter.metrics("train"))  # no pass before
    resumed = ActivityMeter(nn.Identity())
    resumed.load_state_dict(meter.state_dict())
    for each in (meter, resumed):
        feed(each, after)
        metrics = each.metrics("train")
        assert (metrics["train/revived/sn1"], metrics["train/newly_dead/sn1"]) == (2, 1)
    feed(meter, after)
    assert not any("revived" in key for key in meter.metrics("val"))  # of training passes only


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_counts_are_exact_in_every_precision(meter: ActivityMeter, dtype: torch.dtype) -> None:
    spk = torch.ones(1001, 3, 2, dtype=dtype)  # bfloat16 itself cannot count past 256
    spk[0, 0, 0] = 0
    feed(meter, spk)
    meter.metrics("val")
    assert meter.rates()["sn1"].tolist() == pytest.approx([3002 / 3003, 1], abs=0, rel=1e-15)


def test_layout_in_memory_does_not_matter(meter: ActivityMeter) -> None:
    spk = (torch.rand(4, 3, 2, 5, 5, generator=torch.Generator().manual_seed(0)) < 0.2).float()
    feed(meter, spk)
    plain = (meter.metrics("val"), meter.rates()["sn1"])
    feed(meter, spk.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3))
    assert meter.metrics("val") == plain[0]
    assert torch.equal(meter.rates()["sn1"], plain[1])


def test_weights_and_bias_zero_kill_every_neuron() -> None:
    info = DataInfo("made", "events", (1, 4, 4), 3, ("a", "b"), {}, {}, complete=True, split_hash="")
    neuron = NeuronConf(name="fixed", engine="reference")
    network = build_network(ModelConf(name="m", spec="FC6-SN-FC-SN"), neuron, DecoderConf(name="rate"), info)
    for parameter in network.parameters():
        parameter.data.zero_()
    meter = ActivityMeter(network)
    network(torch.ones(3, 2, 1, 4, 4), meter)
    metrics = meter.metrics("train")
    for window in ("dead_fraction", "dead_fraction_batch", "dead_fraction_sample"):
        assert metrics[f"train/{window}/sn1"] == metrics[f"train/{window}/sn2"] == 1
    assert metrics["train/dead_neurons"] == 8


def test_samples_without_input_are_counted_at_the_entrance_in_every_form() -> None:
    info = DataInfo("made", "events", (1, 4, 4), 6, ("a", "b"), {}, {}, complete=True, split_hash="")
    neuron = NeuronConf(name="fixed", engine="reference")
    frames = torch.zeros(6, 4, 1, 4, 4)
    frames[5, 1, 0, 3, 3] = 1  # late: its first segment of time steps is silent
    frames[:, 3, 0, 0] = -0.5  # as where polarities are subtracted
    flat = frames.flatten(2).flatten(0, 1)
    where = flat.nonzero()
    offsets = torch.zeros(25, dtype=torch.int64)
    offsets[1:] = torch.bincount(where[:, 0], minlength=24).cumsum(0)
    lists = EventFrames(where[:, 1].int(), offsets, flat[where[:, 0], where[:, 1]], 6, 4, (1, 4, 4))
    for spec, forms in (("FC6-SN-FC-SN", (frames, lists)), ("c2k3-SN-FC-SN", (frames,))):
        for steps in (None, 4):
            network = build_network(
                ModelConf(name="m", spec=spec), neuron, DecoderConf(name="rate"), info, checkpoint_steps=steps
            )
            for form in forms:
                meter = ActivityMeter(network)
                for x in (form, form):
                    network(x, meter)
                meter.metrics("val")
                assert meter.silent_input == 2 / 4
                assert meter.last["sn1"].samples == 8
    constant = ActivityMeter(network)
    network(ConstantInput(frames[5], 6), constant)
    constant.metrics("val")
    assert constant.silent_input == 2 / 4
    unseen = ActivityMeter(build_network(ModelConf(name="m", spec="SN-FC-SN"), neuron, DecoderConf(name="rate"), info))
    unseen.network(frames, unseen)
    unseen.metrics("val")
    assert unseen.silent_input is None  # what a spiking layer is given is not looked at


def test_samples_in_which_a_layer_is_quiet(meter: ActivityMeter) -> None:
    spk = torch.zeros(3, 4, 5)
    spk[1, 2, 0] = 1
    feed(meter, spk, spk[:, :2])
    meter.metrics("val")
    assert meter.last["sn1"].quiet_fraction == 5 / 6


def test_a_gradient_still_flows_through_observed_spikes() -> None:
    spk = torch.ones(2, 1, 3, requires_grad=True)
    meter = ActivityMeter(nn.Identity())
    feed(meter, spk * 1)
    assert all(not counter.spikes.requires_grad for counter in meter._counters.values())
    spk.sum().backward()
    assert spk.grad is not None


@pytest.mark.parametrize("segment", [None, 2])
def test_forced_spikes_count_for_nobody(meter: ActivityMeter, segment: int | None) -> None:
    # integrate and fire, threshold 1, T = 4: fires at 1, at the last step by itself, never (forced), never (forced)
    conf = NeuronConf(name="ttfs", beta=1.0, reset="none", fire_once=True, force_last_spike=True, engine="reference")
    layer = SpikingLayer(conf, (4,), "sn1").train()
    x = torch.tensor([[1.0, 0.25, 0.125, 0.0]]).expand(4, 1, 4).contiguous()
    steps, state = segment or 4, None
    for start in range(0, 4, steps):
        last = start + steps == 4
        spk, mem, state = layer(x[start : start + steps], state, last=last)
        meter.spiking("sn1", layer, Firing(spikes_over_time(spk), mem, None, last))
    metrics = meter.metrics("train")
    assert metrics["train/forced_fraction/sn1"] == 2 / 4
    assert (metrics["train/dead_fraction/sn1"], metrics["train/firing_rate/sn1"]) == (2 / 4, 2 / 16)
    layer.eval()
    spk, mem, _ = layer(x)
    meter.spiking("sn1", layer, Firing(spikes_over_time(spk), mem, None))
    assert "val/forced_fraction/sn1" not in meter.metrics("val")


def test_the_percentages_that_a_claim_asks_for() -> None:
    state = Fit(history={"val/accuracy": [(0, 0.1), (1, 0.94), (2, 0.955)]})
    claim = ClaimConf(level=0.955, values=[ValueConf(arm="a", level=0.97)])
    reached = epochs_to(state, milestones(claim))
    assert (reached[90.0], reached[95.5], reached[96.0], reached[97.0]) == (1, 2, None, None)
    assert 97.0 not in milestones(None)
