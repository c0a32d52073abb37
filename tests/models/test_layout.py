"""Maps lie in channels_last all the way through a network, forward and backward, whatever it is made of."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from networks import as_events, make_info, make_network, make_spikes
from torch import Tensor

from snnexp import layout
from snnexp.config import NeuronConf
from snnexp.data.base import EventFrames
from snnexp.encoders import ConstantInput
from snnexp.models.flow import Flow
from snnexp.models.network import Network
from snnexp.models.spec import LayerPlan
from snnexp.neurons.equation import State
from snnexp.rescue.pseudospike import Pseudospike

INFO = make_info(shape=(3, 12, 12), steps=3)
# Layers that bring maps together, hold them back, scale, pool or shift them, before and behind the first spikes.
SPECS = {
    "spikes added": "c4k3-BN-SN-+(c4k3-BN-SN-c4k3-BN-SN)-+(c6k3s2-BN-SN|c6k1s2-BN-SN)-AP6-FC-SN",
    "currents added": "c4k3-BN-+(SN-c4k3-BN-SN-c4k3-BN)-+(SN-c6k3s2-BN|c6k1s2-BN)-SN-AP6-FC-SN",
    "before spikes": "+(c3k3-BN)-DP0.3-c4k3-LN-SN-MP2-c4k3-DPT0.3-SN-AP6-FC-SN",
    "input spikes": "SN-c4k3-SN-NN-MP2s1-+(c4k3-SN-AP2-c4k3-SN|MP2)-c4k3-SN-AP5-FC-SN",
    "dropped": "c4k3-SN-NN-c4k3-SN-DP0.5-MP2-c4k3-SN-DPT0.5-c4k3-SN-DPM0.5-AP6-FC-SN",
    "delayed": "DL2-c4k3-SN-DL2-c4k3-SN-MP3-c4k3-SN-AP4-FC-SN",
}
NEURONS: dict[str, dict[str, Any]] = {
    "numba": {"engine": "numba"},
    "reference": {"engine": "reference"},
    "module": {"module": "snntorch.Leaky", "kwargs": {"beta": 0.5, "threshold": 0.3}},
}


def lies_last(x: Tensor) -> bool:
    """Whether the maps [..., C, H, W] are in channels_last, and the frames one after the other, or all the same."""
    *leading, channels, height, width = x.shape
    expected, sizes, step = [1, width * channels, channels], [channels, height, width], channels * height * width
    strides = x.stride()
    for size, stride in zip(reversed(leading), reversed(strides[:-3]), strict=True):
        expected.insert(0, 0 if stride == 0 else step)
        sizes.insert(0, size)
        step *= size
    return all(size == 1 or a == b for size, a, b in zip(sizes, strides, expected, strict=True))


def astray(network: Network, x: Tensor | ConstantInput | EventFrames) -> tuple[list[str], int]:
    """Run a step; returns behind which layers maps or gradients lie otherwise, and how many were looked at."""
    found, seen = list[str](), list[str]()

    def look(layer: LayerPlan, what: str, x: Any) -> None:
        if isinstance(x, Tensor) and x.dim() >= 4:
            seen.append(layer.name)
            found.extend([] if lies_last(x) else [f"{layer.name}, {what}: {list(x.shape)} {x.stride()}"])

    def watched(run: Any) -> Any:
        def wrapped(layer: LayerPlan, *args: Any) -> Any:
            out = run(layer, *args)
            flow = next(a for a in args if isinstance(a, Flow))
            x = flow._folded if flow._steps_x is None else flow._steps_x  # `x` would fold it
            look(layer, "forward", x)
            if isinstance(x, Tensor) and x.requires_grad:
                x.register_hook(lambda grad: look(layer, "backward", grad))
            if layer.kind == "spiking":
                look(layer, "membranes", out[0])
            return out

        return wrapped

    network._stateless, network._spiking = watched(network._stateless), watched(network._spiking)  # type: ignore[method-assign]
    out = network(x)
    if network.training:
        (out.spk.sum() + out.mem.sum()).backward()
    return found, len(seen)


def input_of(kind: str) -> Tensor | ConstantInput | EventFrames:
    frames = make_spikes(INFO, batch=2)
    return frames if kind == "dense" else as_events(frames) if kind == "events" else ConstantInput(frames[0] + 0.3, 3)


@pytest.mark.parametrize("kind", ["dense", "constant", "events"])
@pytest.mark.parametrize("engine", list(NEURONS))
@pytest.mark.parametrize("name", list(SPECS))
def test_all_maps_of_a_network_are_channels_last(name: str, engine: str, kind: str) -> None:
    neuron = NeuronConf("made", beta=0.5, threshold=0.2, **NEURONS[engine])
    for training in (True, False):
        network = make_network(SPECS[name], INFO, neuron=neuron, build={"channels_last": True}).train(training)
        found, seen = astray(network, input_of(kind))
        assert not found
        assert seen >= 9 * (1 + training)


@pytest.mark.parametrize("engine", list(NEURONS))
@pytest.mark.parametrize("name", ["spikes added", "delayed"])
def test_also_in_segments_of_time_with_norms_per_step(name: str, engine: str) -> None:
    neuron = NeuronConf("made", beta=0.5, threshold=0.2, **NEURONS[engine])
    build = {"channels_last": True, "checkpoint_steps": 2}
    for kind in ("dense", "constant"):
        network = make_network(SPECS[name], INFO, neuron=neuron, build=build, bn_per_step=True)
        assert not astray(network, input_of(kind))[0]


def test_also_with_pseudospikes() -> None:
    neuron = NeuronConf("made", beta=0.5, threshold=0.2, engine="numba")
    network = make_network(SPECS["spikes added"], INFO, neuron=neuron, build={"channels_last": True})
    cure = SimpleNamespace(conf=SimpleNamespace(drive=2.0, height=0.5))
    for layer in list(network.spiking_layers)[:-1]:
        network.added_spikes[layer] = partial(Pseudospike.add, cure)  # type: ignore[arg-type]
    assert not astray(network, input_of("dense"))[0]


@pytest.mark.parametrize("last", [False, True])
def test_what_is_put_together_keeps_its_layout_and_values(last: bool) -> None:
    maps = torch.arange(2 * 3 * 4 * 5.0).view(2, 3, 4, 5).double()
    if last:
        maps = maps.contiguous(memory_format=torch.channels_last)
    steps = [maps.clone().requires_grad_(), (2 * maps).requires_grad_()]
    weights = torch.linspace(-1, 1, 2 * maps.numel(), dtype=torch.float64).view(2, *maps.shape)
    for ours, theirs in (
        (layout.stacked(steps), torch.stack(steps)),
        (layout.joined([steps[0].unsqueeze(0), steps[1].unsqueeze(0)]), torch.stack(steps)),
        (layout.repeated(steps[0], 2), steps[0].expand(2, *maps.shape)),
        (layout.last_steps(torch.stack(steps), 1), torch.stack(steps)[-1:]),
    ):
        assert torch.equal(ours, theirs)
        assert lies_last(ours) or not last
        weighted = ((y * weights[: len(y)]).sum() for y in (ours, theirs))
        grads = (torch.autograd.grad(y, steps, allow_unused=True) for y in weighted)
        for a, b in zip(*grads, strict=True):
            assert a is b is None or torch.equal(a, b)
    state = State(maps.contiguous(), maps)
    assert all(part.stride() == maps.stride() for part in layout.laid_as(state, maps)[:2])
    assert layout.memory_order(maps.expand(7, *maps.shape))[2] == (3 if last else 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_flattening_keeps_values_and_hands_a_gradient_back_in_channels_last(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(layout, "TURNED", 0)
    maps = torch.randn(6, 5, 3, 4, dtype=dtype)
    x = maps.contiguous(memory_format=torch.channels_last).requires_grad_()
    y, grad = layout.flattened(x), torch.randn(6, 60, dtype=dtype)
    (found,) = torch.autograd.grad(y, x, grad.expand(1, 6, 60)[0])
    assert torch.equal(y, maps.flatten(1)) and torch.equal(found, grad.view(6, 5, 3, 4))
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert layout.flattened(maps).data_ptr() == maps.data_ptr()  # lies there flat already


@pytest.mark.parametrize("shape", [(5,), (2, 4), (3, 4, 5), (1, 4, 5), (3, 1, 1), (2, 3, 4, 5)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_the_largest_of_all_steps_and_samples(shape: tuple[int, ...], channels_last: bool) -> None:
    x = torch.randn(4, 2, *shape)
    if channels_last and len(shape) == 3:
        x = x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (4, 2))
    found = layout.largest(x)
    assert found.shape == shape
    assert torch.equal(found, x.amax((0, 1)))
