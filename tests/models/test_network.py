"""The network against a plain step-by-step loop over the same modules, and what it says about itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from networks import as_events, make_info, make_network, make_spikes
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from snnexp.config import DecoderConf, DelayConf, NeuNormConf, NeuronConf
from snnexp.data.base import EventFrames
from snnexp.encoders import ConstantInput
from snnexp.models.delays import Delay
from snnexp.models.layers import NeuNorm
from snnexp.models.network import Network
from snnexp.models.observer import Firing
from snnexp.models.weights import RecurrentLinear

SPECS = [
    "FC20-SN-FC-SN",
    "c4k3-SN-MP2-c6k3-SN-AP2-FC12-SN-FC-SN",
    "c4k3-BN-SN-NN-MP2-c6k3s2-LN-SN-FC12-BN-SN-FC-SN-VOTE2",
    "RFC12-SN-RFC9-SN-FC-SN",
    "SN-c4k3-AP2-SN-FC-SN",
    "c4k3-SN-+(c4k3-BN-SN-c4k3-BN-SN)x2-+(c6k3s2-BN-SN|c6k1s2-BN-SN)-MP2-FC12-SN-+(FC12-SN-+(FC12-SN))-FC-SN",
    "+(c2k3)-c4k3-+(c4k3-BN)-SN-FC-SN",
]


def delayed(module: Delay, x: Tensor, past: list[Tensor]) -> Tensor:
    """What leaves a delay line at one step, of x and the inputs of all steps before, which are put down in `past`."""
    past.insert(0, x)
    return sum((k * before for k, before in zip(module.kernel(x.dtype), past, strict=False)), torch.zeros_like(x))


def step_by_step(network: Network, frames: Tensor) -> tuple[Tensor, Tensor]:
    """One time step after the other, each layer in turn: slow, plain, and independent of `Network.forward`."""
    modules = dict(network.named_children())
    states: dict[str, Any] = {}
    previous: dict[str, Tensor] = {}
    past: dict[str, list[Tensor]] = {}
    spikes, membranes = [], []
    for x in frames.unbind(0):
        mem, kept = x, []
        for index, layer in enumerate(network.layers):
            module = modules.get(layer.name)
            if layer.kind == "spiking":
                before = network.layers[index - 1]
                feedback = modules.get(before.name)
                if isinstance(feedback, RecurrentLinear) and layer.name in previous:
                    back = previous[layer.name]
                    if feedback.delay is not None:
                        back = delayed(feedback.delay, back, past.setdefault(before.name, []))
                    x = x + feedback.recurrent(back)
                state = states.get(layer.name) or module.init_state(len(x))
                x, mem, states[layer.name] = module.single_step(x, state)
                previous[layer.name] = x
            elif layer.kind == "neunorm":
                assert isinstance(module, NeuNorm)
                out, states[layer.name] = module(x.unsqueeze(0), states.get(layer.name))
                x = out[0]
            elif layer.kind == "delay":
                assert isinstance(module, Delay)
                x = delayed(module, x, past.setdefault(layer.name, []))
            elif layer.kind == "flatten":
                x = x.flatten(1)
            elif layer.kind == "fork":
                kept.append(x)
            elif layer.kind == "shortcut":
                kept[-1], x = x, kept[-1]
            elif layer.kind == "join":
                x = x + kept.pop()
            elif layer.kind == "vote":
                x, mem = module(x), module(mem)
            else:
                x = module(x)
        spikes.append(x)
        membranes.append(mem)
    return torch.stack(spikes), torch.stack(membranes)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("channels_last", [False, True])
def test_equals_a_loop_over_time(spec: str, channels_last: bool) -> None:
    info = make_info()
    network = make_network(spec, info, build={"channels_last": channels_last}, neunorm=NeuNormConf(form="mean")).eval()
    frames = make_spikes(info)
    spk, mem = network(frames)
    want_spk, want_mem = step_by_step(network, frames)
    assert spk.shape == mem.shape == (4, 3, 10)
    assert 0 < want_spk.mean() < 1  # the comparison is about something
    torch.testing.assert_close(mem, want_mem)
    assert torch.equal(spk, want_spk)


DELAYS = [
    "DL3-FC20-SN-DL2-FC-SN",
    "c4k3-SN-DL2-MP2-DL9-FC12-DL1-SN-FC-SN",
    "RFC12DL1-SN-RFC9DL7-SN-FC-SN",
    "SN-DL2-c4k3-SN-FC-SN",
]


@pytest.mark.parametrize("spec", DELAYS)
@pytest.mark.parametrize("kernel", ["gaussian", "triangle"])
@pytest.mark.parametrize("training", [True, False])
def test_delays_equal_a_loop_over_time(spec: str, kernel: str, training: bool) -> None:
    info = make_info()
    network = make_network(spec, info, delay=DelayConf(kernel=kernel), gain=3).double().train(training)
    frames = make_spikes(info).double()
    ours, (spk, mem) = network(frames), step_by_step(network, frames)
    assert spk.mean() > 0
    torch.testing.assert_close(ours.mem, mem, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(ours.spk, spk)
    if not training:
        assert set(ours.spk.unique().tolist()) == {0, 1}
        return
    parameters = list(network.parameters())
    a, b = (torch.autograd.grad((out**2).sum(), parameters) for out in (ours.mem, mem))
    for (name, _), left, right in zip(network.named_parameters(), a, b, strict=True):
        assert right.abs().max() > 0, name
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("spec", SPECS)
def test_gradients_equal_those_of_the_loop(spec: str) -> None:
    info = make_info()
    network = make_network(spec, info).double().eval()
    frames = make_spikes(info).double()
    target = torch.randn(4, 3, 10, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    parameters = list(network.parameters())
    ours = torch.autograd.grad((network(frames).mem * target).sum(), parameters)
    theirs = torch.autograd.grad((step_by_step(network, frames)[1] * target).sum(), parameters)
    assert any(g.abs().max() > 0 for g in theirs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "spec", ["c4k3-BN-SN-MP2-FC-SN", "c4k3-AP2-DP0.5-BN-SN-FC-SN", "FC20-SN-FC-SN", "DPT0.5-FC-SN"]
)
@pytest.mark.parametrize("training", [False, True])
def test_a_constant_input_equals_its_repetition(spec: str, training: bool) -> None:
    info = make_info(kind="image")
    network = make_network(spec, info).train(training)
    frame = torch.rand(3, *info.shape, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(3)
    once = network(ConstantInput(frame, 4))
    torch.manual_seed(3)
    repeated = network(frame.expand(4, *frame.shape).contiguous())
    torch.testing.assert_close(once.mem, repeated.mem, rtol=1e-4, atol=1e-5)
    assert once.mem.std() > 0


@pytest.mark.parametrize("values", [True, False])
@pytest.mark.parametrize("spec", ["FC20-SN-FC-SN", "FLAT-RFC20-SN-FC-SN", "FC20-BN-SN-FC-SN", "c4k3-SN-MP2-FC-SN"])
def test_event_lists_equal_the_dense_input(spec: str, values: bool) -> None:
    info = make_info()
    network = make_network(spec, info).double()
    counts = torch.randint(1, 4, (4, 3, *info.shape), generator=torch.Generator().manual_seed(5))
    frames = make_spikes(info).double() * (counts if values else 1)
    dense, sparse = network(frames), network(as_events(frames, values=values))
    torch.testing.assert_close(sparse.mem, dense.mem, rtol=1e-10, atol=1e-12)
    assert network.wants_events == spec.startswith(("FC", "FLAT"))
    parameters = list(network.parameters())
    a = torch.autograd.grad((dense.mem**2).sum(), parameters)
    b = torch.autograd.grad((sparse.mem**2).sum(), parameters)
    assert a[0].abs().max() > 0
    for left, right in zip(a, b, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("spec", ["FC-SN", "RFC9-SN-FC-SN", "c4k3-SN-NN-MP2-DP-FC-SN"])
@pytest.mark.parametrize("sparse", [False, True])
def test_bfloat16_autocast_stays_near_float32(spec: str, sparse: bool) -> None:
    info = make_info()
    quiet = NeuronConf(name="quiet", beta=0.5, threshold=50.0, engine="reference")  # a spike more or less would hide it
    network = make_network(spec, info, neuron=quiet, decoder=DecoderConf(name="membrane")).eval()
    frames = make_spikes(info)
    x = as_events(frames) if sparse else frames
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = network(x)
    half.mem.sum().backward()
    exact = network(frames).mem
    assert half.mem.dtype == torch.float32
    assert exact.abs().max() > 0.2
    torch.testing.assert_close(half.mem, exact, atol=0.02, rtol=0.02)
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


def test_batch_norm_per_step_uses_each_steps_statistics() -> None:
    info = make_info(steps=2)
    frames = torch.stack([torch.rand(3, *info.shape), 5 + torch.rand(3, *info.shape)])
    means = {}
    for per_step in (False, True):
        network = make_network("c4k3-BN-SN-FC-SN", info, bn_per_step=per_step)
        seen: list[Tensor] = []
        network.get_submodule("sn1").register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args[0]))
        network(frames)
        means[per_step] = seen[0].mean((1, 3, 4)).abs().max()
    assert means[True] < 1e-5  # each step has mean 0
    assert means[False] > 0.5  # only both together have


def test_the_second_batch_does_not_know_the_first() -> None:
    info = make_info()
    network = make_network(SPECS[2], info).eval()
    first, second = make_spikes(info), make_spikes(info, batch=5, seed=9)
    alone = network(second).mem
    network(first)
    assert torch.equal(network(second).mem, alone)


def test_a_membrane_readout_integrates_and_never_spikes() -> None:
    info = make_info()
    decoder = DecoderConf(name="membrane", integrate=True)
    network = make_network("FC20-SN-FC-SN", info, decoder=decoder, gain=4)
    out = network(make_spikes(info))
    assert out.spk.abs().max() == 0
    assert out.mem.abs().max() > 0.5  # past the threshold without a spike
    assert list(network.spiking_layers) == ["sn1"]
    assert list(network.neurons) == ["sn1", "sn2"]
    spiking = make_network("FC20-SN-FC-SN", info, decoder=replace(decoder, integrate=False))
    assert list(spiking.spiking_layers) == ["sn1", "sn2"]


def test_the_vote_decoder_brings_its_layer() -> None:
    network = make_network("FC-SN", make_info(), decoder=DecoderConf(name="vote", votes=3))
    assert [row.token for row in network.layer_table()] == ["FLAT", "FC", "SN", "VOTE3"]
    assert network(make_spikes(make_info())).spk.shape == (4, 3, 10)
    ignored = make_network("FC-SN", make_info(), decoder=DecoderConf(name="rate", votes=3))
    assert len(ignored.layer_table()) == 3


def test_parameter_groups_are_complete_and_disjoint() -> None:
    neuron = NeuronConf(name="all", learn_threshold=True, learn_beta=True, threshold_per="neuron", engine="reference")
    network = make_network(SPECS[2], make_info(), neuron=neuron)
    groups = network.parameter_groups()
    assert list(groups) == ["weights", "thresholds", "decays"]
    ids = [id(p) for group in groups.values() for p in group]
    assert sorted(ids) == sorted(id(p) for p in network.parameters())
    assert sum(p.numel() for p in groups["thresholds"]) == 4 * 8 * 8 + 6 * 2 * 2 + 12 + 20
    assert len(groups["decays"]) == 4


def test_the_layer_table_by_hand() -> None:
    rows = {row.name: row for row in make_network("c4k3-SN-MP2-FC-SN", make_info()).layer_table()}
    assert list(rows) == ["conv1", "sn1", "mp1", "flat1", "fc1", "sn2"]
    assert (rows["conv1"].parameters, rows["fc1"].parameters) == (4 * 2 * 9 + 4, 64 * 10 + 10)
    assert (rows["sn1"].neurons, rows["mp1"].neurons, rows["sn2"].neurons) == (256, 0, 10)
    assert rows["mp1"].in_shape == (4, 8, 8)


def test_the_memory_estimate_by_hand() -> None:
    network = make_network("FC20-SN-FC-SN", make_info((1, 2, 2)), bias=False)
    kept = 20 + 40 + 10 + 20  # fc1, sn1 with membrane, fc2, sn2 with membrane
    assert network.step_memory_bytes(3) == 4 * (4 * 3 * (kept + 2 * 20) + 4 * (4 * 20 + 20 * 10))


@pytest.mark.parametrize("engine", ["reference", "numba"])
def test_the_memory_estimate_of_spikes_that_are_pooled_as_they_fire(engine: str) -> None:
    neuron = NeuronConf(name="made", beta=0.5, threshold=0.2, engine=engine)
    build = {"channels_last": True}
    network = make_network("c4k3-SN-MP2-FC-SN", make_info((1, 4, 4)), neuron=neuron, build=build, bias=False)
    spikes = 0 if engine == "numba" else 64
    kept = 64 + 64 + spikes + 16 + 10 + 20  # conv1, sn1's membranes and spikes, mp1, fc1, sn2 with membrane
    parameters = 9 * 4 + 16 * 10
    assert network.step_memory_bytes(3) == 4 * (4 * 3 * (kept + 2 * 64 + 16) + 4 * parameters)


def test_the_state_dict_reads_like_the_spec_and_survives_a_file(tmp_path: Any) -> None:
    info = make_info()
    network = make_network("FC20-SN-RFC8-SN-FC-SN", info)
    state = network.state_dict()
    assert {"fc1.weight", "fc1.bias", "rfc1.weight", "rfc1.recurrent.weight", "fc2.weight"} <= set(state)
    assert state["fc1.weight"].shape == (20, 128)
    save_file(state, tmp_path / "weights.safetensors")  # refuses tensors that are not contiguous
    with torch.random.fork_rng():
        other = make_network("FC20-SN-RFC8-SN-FC-SN", info, init="kaiming_normal")
    other.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    frames = make_spikes(info)
    assert torch.equal(other(frames).mem, network(frames).mem)
    assert torch.equal(other(as_events(frames)).mem, network(as_events(frames)).mem)


class Recorder:
    """Keeps everything that an observer is told."""

    reads_spikes = True

    def __init__(self) -> None:
        self.spikes: dict[str, Tensor] = {}
        self.inputs: dict[str, tuple[Tensor | EventFrames, int]] = {}

    def spiking(self, name: str, layer: nn.Module, firing: Firing) -> None:
        assert firing.spk is not None and firing.mem.shape == firing.spk.shape
        assert torch.equal(firing.counts, firing.spk.sum(0))
        self.spikes[name] = firing.spk

    def connection(self, name: str, module: nn.Module, x: Tensor | EventFrames, repeat: int) -> None:
        self.inputs[name] = (x, repeat)


def test_an_observer_is_told_every_layer() -> None:
    info = make_info()
    network = make_network("c4k3-SN-MP2-RFC8-SN-FC-SN", info).eval()
    told = Recorder()
    network(ConstantInput(torch.rand(3, *info.shape), 4), told)
    assert {name: tuple(spk.shape) for name, spk in told.spikes.items()} == {
        "sn1": (4, 3, 4, 8, 8),
        "sn2": (4, 3, 8),
        "sn3": (4, 3, 10),
    }
    shapes = {name: (tuple(x.shape), repeat) for name, (x, repeat) in told.inputs.items() if isinstance(x, Tensor)}
    assert shapes == {
        "conv1": ((3, 2, 8, 8), 4),  # once, for all four steps
        "rfc1": ((12, 64), 1),
        "rfc1.recurrent": ((12, 8), 1),
        "fc1": ((12, 8), 1),
    }
    fed_back = told.inputs["rfc1.recurrent"][0]
    assert isinstance(fed_back, Tensor)
    assert torch.equal(fed_back.view(4, 3, 8)[1:], told.spikes["sn2"][:-1])
    assert fed_back.view(4, 3, 8)[0].abs().max() == 0


def test_a_wrong_input_shape_is_named() -> None:
    network = make_network("FC-SN", make_info())
    with pytest.raises(ValueError, match=r"built for input \(2, 8, 8\) at each step, not \(2, 9, 8\)"):
        network(torch.zeros(4, 3, 2, 9, 8))


@pytest.mark.parametrize("channels", [3, 8])
def test_batch_norm_per_step_of_a_single_sample(channels: int) -> None:
    """torch's batch norm misreads the strides of one step of a batch of one in channels_last."""
    info = make_info(steps=4)
    frames = torch.rand(4, 1, *info.shape)
    results = []
    network = make_network(f"c{channels}k3-BN-SN-FC-SN", info, bn_per_step=True)
    for channels_last in (False, True):
        network.channels_last = channels_last
        loss = network(frames).mem.square().sum()
        results.append(torch.autograd.grad(loss, list(network.parameters())))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-3, atol=1e-5)


def test_a_hook_sees_pooling_run_and_keeps_its_membranes() -> None:
    info = make_info()
    network = make_network("c4k3-SN-MP2-FC-SN", info)
    network.channels_last = True
    seen: dict[str, Tensor] = {}
    network.get_submodule("mp1").register_forward_hook(lambda m, args, out: seen.update(pooled=out))
    network.get_submodule("sn1").register_forward_hook(lambda m, args, out: seen.update(mem=out.mem))
    out = network(make_spikes(info))
    before = seen["mem"].detach().clone()
    out.spk.sum().backward()
    assert seen["pooled"].shape[2:] == (network.layers[2].out_shape[1:])
    assert torch.equal(seen["mem"], before)


def test_the_gain_reaches_past_a_norm() -> None:
    """A norm takes every factor of the weights before it out again: its own scale has the gain."""
    info = make_info()
    plain, strong = (make_network("c4k3-BN-SN-MP2-FC9-LN-SN-FC-SN", info, gain=gain) for gain in (1, 3))
    for (name, one), (_, other) in zip(plain.named_parameters(), strong.named_parameters(), strict=True):
        scaled = name in ("bn1.weight", "ln1.weight", "fc2.weight")
        assert torch.equal(other, 3 * one if scaled else one), name
