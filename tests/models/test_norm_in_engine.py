"""Batch norm that the spiking layer behind it does: the bits of the two apart, and who keeps them apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from networks import as_events, make_info, make_network
from torch import Tensor, nn

import snnexp.models.network
import snnexp.neurons.engines
from snnexp.config import NeuronConf, SurrogateConf
from snnexp.encoders import ConstantInput
from snnexp.models import winograd
from snnexp.models.event_conv import Packing
from snnexp.models.network import Network
from snnexp.models.norm_in_engine import leave_to_engine
from snnexp.neurons.engines import numba_engine
from snnexp.neurons.engines.calls import InputNorm
from snnexp.neurons.engines.numba_engine import NumbaBackend
from snnexp.neurons.engines.numba_norm import hand_back

SPEC = "c6k3-BN-SN-MP2-+(c6k3-BN-SN)-FC10-SN"
LEFT = {"bn1": True, "bn2": True}


def network(engine: str = "numba", spec: str = SPEC, shape: tuple[int, int, int] = (2, 8, 8), **more: Any) -> Network:
    keys = {"learn_threshold": True, "threshold_per": "channel", "learn_beta": True, "beta": 0.6, "threshold": 0.4}
    neuron = NeuronConf(name="fixed", engine=engine, **(keys | more.pop("neuron", {})))
    build = {"channels_last": True, **more.pop("build", {})}
    made = make_network(spec, make_info(shape, kind="image"), neuron=neuron, build=build, gain=2.0, **more)
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            torch.manual_seed(1)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return made


def frames(batch: int = 3, size: int = 8) -> Tensor:
    return torch.rand(4, batch, 2, size, size, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """Which batch norms the engine did, by name."""
    found: dict[str, bool] = {}

    def spy(network: Network, layer: Any, flow: Any) -> bool:
        found[layer.name] = leave_to_engine(network, layer, flow)
        return found[layer.name]

    monkeypatch.setattr(snnexp.models.network, "leave_to_engine", spy)
    return found


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    return lambda: monkeypatch.setattr(snnexp.models.network, "leave_to_engine", lambda *_: False)


@pytest.fixture
def sums_taken(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each batch norm that the engine did, in backward: whether it took the sums of its gradient, too."""
    found: list[bool] = []
    sums_of = InputNorm.sums_of

    def spy(self: InputNorm, grad: Tensor) -> Any:
        sums = sums_of(self, grad)
        found.append(sums is not None)
        return sums

    monkeypatch.setattr(InputNorm, "sums_of", spy)
    return found


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels as plain Python: nothing to compile."""
    monkeypatch.setattr(snnexp.neurons.engines, "_backend", lambda engine: NumbaBackend(compiled=False))


def trained(made: Network, x: Any) -> list[Tensor]:
    """Spikes, membranes, gradients and running statistics of a step, then the membranes in evaluation."""
    out = made(x)
    (out.mem.square().mean() + out.spk.mean()).backward()
    found = [out.spk, out.mem, *(p.grad for p in made.parameters()), *made.buffers()]
    with torch.no_grad():
        return [t.detach() for t in (*found, made.eval()(x).mem)]


WAYS: dict[str, dict[str, Any]] = {  # of backward to work membranes out again, and to take what it needs of them
    "plain": {},
    "current": {"neuron": {"alpha": 0.5}},
    "learned current": {"neuron": {"alpha": 0.5, "learn_alpha": True}},
    "subtract": {"neuron": {"reset": "subtract"}, "spec": "c6k3-BN-SN-AP2-c6k3-BN-SN-FC10-SN"},
    "subtract first": {
        "neuron": {"reset": "subtract_first", "strict": True},
        "spec": "c6k3-BN-SN-MP3-c6k3-BN-SN-FC10-SN",
    },
    "no reset": {"neuron": {"reset": "none"}},
    "through the reset": {"neuron": {"detach_reset": False, "relative_surrogate": True}},
    "triangle": {"neuron": {"surrogate": SurrogateConf(name="triangular"), "ignore_reset_in_backward": True}},
}


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("case", WAYS.values(), ids=WAYS)
def test_values_and_gradients_are_those_of_the_reference(
    left: dict[str, bool], sums_taken: list[bool], case: dict[str, Any]
) -> None:
    """The reference engine behind torch's own batch norm, in float64."""
    torchs = network("reference", **case, build={"channels_last": False}).double()
    expected = trained(torchs, frames())
    assert not any(left.values())
    found = trained(network(**case).double(), frames())
    assert left == LEFT and found[0].sum() > 0 and sums_taken == [True, True]
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() <= 1e-10 * max(1.0, float(b.abs().max()))


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize(
    "spec", ["c6k3-BN-SN-MP2-FC10-SN", "c33k3s2-BN-SN-FC10-SN", "c12k3-BN-SN-MP2-c6k3-BN-SN-FC10-SN"]
)
def test_a_first_convolution_works_the_norms_gradient_out_itself(
    left: dict[str, bool], monkeypatch: pytest.MonkeyPatch, spec: str
) -> None:
    """Vectors of one, two and four pixels, and maps that do not fill them; event lists and dense maps."""
    told: list[bool] = []
    norm = Packing.norm

    def spy(self: Packing, given: Any, grad: Tensor) -> Any:
        told.append(given is not None)
        return norm(self, given, grad)

    monkeypatch.setattr(Packing, "norm", spy)
    x = (frames(size=9) > 0.8) * frames(size=9)
    torchs = network("reference", spec=spec, build={"channels_last": False}, shape=(2, 9, 9)).double()
    expected = trained(torchs, x)
    for given in (x, as_events(x)):
        told.clear()
        found = trained(network(spec=spec, shape=(2, 9, 9), sparse="always").double(), given)
        assert all(left.values()) and told[-1] and sum(told) == 1  # the last to run back; nobody else may
        for a, b in zip(found, expected, strict=True):
            assert (a - b).abs().max() <= 1e-10 * max(1.0, float(b.abs().max()))


def calls_of(monkeypatch: pytest.MonkeyPatch, name: str) -> list[bool]:
    """For each call of that method of a `Packing`, which makes a weights' gradient of the engine's sums: True."""
    made, method = list[bool](), getattr(Packing, name)

    def spy(*given: Any) -> Any:
        made.append(True)
        return method(*given)

    monkeypatch.setattr(Packing, name, spy)
    return made


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("spec", ["c8k3-BN-SN-MP2-FC10-SN", "c16k5p0-BN-SN-AP2-FC10-SN", "c8k3p2-BN-SN-MP3-FC10-SN"])
@pytest.mark.parametrize("values", [False, True])
def test_of_vectors_of_channels_the_engine_sums_up_its_weights_gradient(
    left: dict[str, bool], monkeypatch: pytest.MonkeyPatch, spec: str, values: bool
) -> None:
    """Rows and columns that no window reaches, frames without spikes, and inputs that are not 1."""
    made = calls_of(monkeypatch, "gradients")
    monkeypatch.setattr(numba_engine, "GROUPS", 2)
    x = (frames(size=9) > 0.8) * (frames(size=9) if values else torch.ones(()).double())
    x[1] = 0
    torchs = network("reference", spec=spec, build={"channels_last": False}, shape=(2, 9, 9)).double()
    expected = trained(torchs, x)
    found = trained(network(spec=spec, shape=(2, 9, 9), sparse="always").double(), x)
    assert all(left.values()) and made == [True]
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() <= 1e-10 * max(1.0, float(b.abs().max()))


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("watched", ["", "conv1", "sn1"])
@pytest.mark.parametrize("spec", ["c6k3-SN-MP2-FC10-SN", "c9k5p0-SN-AP2-c6k3-SN-FC10-SN", "c17k3p2-SN-MP3-FC10-SN"])
def test_without_a_norm_it_does_so_for_any_number_of_channels(
    monkeypatch: pytest.MonkeyPatch, spec: str, watched: str
) -> None:
    made = calls_of(monkeypatch, "gradients_alone")
    monkeypatch.setattr(numba_engine, "GROUPS", 2)
    x = (frames(size=9) > 0.8) * frames(size=9)
    x[1] = 0
    expected = trained(network("reference", spec=spec, build={"channels_last": False}, shape=(2, 9, 9)).double(), x)
    ours = network(spec=spec, shape=(2, 9, 9), sparse="always").double()
    if watched:
        ours.get_submodule(watched).register_forward_pre_hook(lambda *_: None)
    found = trained(ours, as_events(x))
    assert made == [True] * (not watched)
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() <= 1e-10 * max(1.0, float(b.abs().max()))


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("steps", [1, 4])
def test_of_one_frame_for_all_steps_it_does_so_only_if_that_is_one_step(
    monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    """Its lists have one frame per sample, and kernels would go on behind them."""
    made = calls_of(monkeypatch, "gradients_alone")
    x, spec = ConstantInput(frames(size=9)[0], steps), "c6k3-SN-MP2-FC10-SN"
    expected = trained(network("reference", spec=spec, build={"channels_last": False}, shape=(2, 9, 9)).double(), x)
    found = trained(network(spec=spec, shape=(2, 9, 9), sparse="always").double(), x)
    assert made == [True] * (steps == 1)
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() <= 1e-10 * max(1.0, float(b.abs().max()))


@pytest.mark.usefixtures("plain")
def test_lists_of_another_number_of_frames_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    taps = Packing.taps

    def fewer(self: Packing, lists: Any, alone: bool) -> Any:
        found = taps(self, lists, alone)
        return found and replace(found, first=found.first[: len(found.first) // 2])

    monkeypatch.setattr(Packing, "taps", fewer)
    loss = network(spec="c8k3-BN-SN-MP2-FC10-SN", sparse="always").double()(frames()).mem.sum()
    with pytest.raises(ValueError, match="6 frames are listed, but there are 4 x 3"):
        loss.backward()


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("kind", ["MP1", "AP1"])
def test_maps_of_one_pixel_pool_alike(kind: str) -> None:
    spec, results = f"c6k3p0-BN-SN-{kind}-FC10-SN", []
    for engine in ("reference", "numba"):
        made = network(engine, spec=spec, shape=(2, 3, 3), build={"channels_last": engine == "numba"}).double()
        results.append(trained(made, frames(size=3)))
    for a, b in zip(*results, strict=True):
        assert (a - b).abs().max() <= 1e-10 * max(1.0, float(b.abs().max()))


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("watched", [False, True])
def test_winograds_weight_gradient_works_the_norms_gradient_out(
    left: dict[str, bool], monkeypatch: pytest.MonkeyPatch, watched: bool
) -> None:
    """And the convolution takes the sums of the norm; who looks at its output gets a gradient of its own."""
    told, weight_gradient = list[bool](), winograd.weight_gradient

    def spy(*given: Any) -> Any:
        told.append(given[-1] is not None)
        return weight_gradient(*given)

    monkeypatch.setattr(winograd, "weight_gradient", spy)
    monkeypatch.setattr(winograd, "LEAST_WORK", 0)
    spec, results = "c16k3-BN-SN-c16k3-BN-SN-FC10-SN", []
    for engine, last in (("reference", False), ("numba", True)):
        made = network(engine, spec=spec, build={"channels_last": last}).double()
        if watched and last:
            made.get_submodule("conv2").register_forward_hook(lambda *_: None)
        results.append(trained(made, frames()))
    assert all(left.values()) and told == [not watched]
    for a, b in zip(*results, strict=True):
        assert (a - b).abs().max() <= 1e-10 * max(1.0, float(b.abs().max()))


@pytest.mark.usefixtures("plain")
def test_a_first_convolution_that_is_watched_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    results, seen = [], []

    def watch(_: Any, __: Any, out: Tensor) -> None:
        if out.requires_grad:
            out.register_hook(seen.append)

    for watched in (False, True):
        made = network(sparse="always").double()
        if watched:
            made.get_submodule("conv1").register_forward_hook(watch)
        results.append(trained(made, frames()))
    assert len(seen) == 1 and abs(float(seen[0].sum())) < 1e-10  # of a norm's input
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


KEPT: dict[str, dict[str, Any]] = {  # membranes are written, and kept for backward
    "too long": {"room": 1},
    "noise": {"neuron": {"noise": 0.1}},
    "who has fired": {"neuron": {"fire_once": True}},
}


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("case", KEPT.values(), ids=KEPT)
def test_otherwise_membranes_are_kept(
    left: dict[str, bool], sums_taken: list[bool], monkeypatch: pytest.MonkeyPatch, case: dict[str, Any]
) -> None:
    monkeypatch.setattr(numba_engine, "ROOM", case.get("room", numba_engine.ROOM))
    made, reference = (network(engine, neuron=case.get("neuron", {})).double() for engine in ("numba", "reference"))
    results = []
    for one in (made, reference):
        torch.manual_seed(0)
        out = one(frames())
        (out.mem.square().mean() + out.spk.mean()).backward()
        results.append([out.mem.detach(), *(p.grad for p in one.parameters())])
    assert left == dict.fromkeys(LEFT, False) and sums_taken == [False, False]  # the reference ran last
    for a, b in zip(*results, strict=True):
        assert (a - b).abs().max() <= 1e-10 * max(1.0, float(b.abs().max()))


@pytest.mark.parametrize("channels", [6, 16])
@pytest.mark.parametrize("past", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_gradient_is_handed_back_whole_with_its_sums(channels: int, past: bool, dtype: type) -> None:
    rng = np.random.default_rng(0)
    pixels, at = 77, 32 * channels
    grad, shift = rng.standard_normal(pixels * channels).astype(dtype), rng.standard_normal(channels).astype(dtype)
    x = rng.standard_normal(at + 80 * channels).astype(dtype)
    out, sums = np.zeros_like(x), np.ones((2, channels))
    hand_back(grad, x, out, at, shift, sums, past)
    assert (out[at : at + grad.size] == grad).all() and np.count_nonzero(out) == np.count_nonzero(grad)
    g, d = (a.reshape(pixels, channels).astype(np.float64) for a in (grad, x[at : at + grad.size]))
    expected = 1 + np.stack([g.sum(0), (g * (d - shift)).sum(0)])
    np.testing.assert_allclose(sums, expected, rtol=0, atol=1e-5 if dtype == np.float32 else 1e-12)


@pytest.mark.usefixtures("plain")
def test_backward_may_come_twice() -> None:
    made = network().double()
    loss = made(frames()).mem.square().mean()
    first, second = (torch.autograd.grad(loss, [*made.parameters()], retain_graph=again) for again in (True, False))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.usefixtures("threads")
def test_bits_are_those_of_the_two_apart_whatever_the_threads(left: dict[str, bool], apart: Callable[[], None]) -> None:
    spec, found = "c16k3-BN-SN-MP2-c6k3-BN-SN-FC10-SN", []
    info = make_info((2, 35, 33), kind="image")  # more than 2**16 values in a map
    for count in (1, 2, 2):
        torch.set_num_threads(count)
        if len(found) == 2:
            assert left == LEFT
            apart()
        neuron = NeuronConf(name="fixed", engine="numba", beta=0.6, threshold=0.4, learn_threshold=True)
        made = make_network(spec, info, neuron=neuron, build={"channels_last": True}, gain=2.0, sparse="always")
        x = torch.rand(4, 3, *info.shape, generator=torch.Generator().manual_seed(2))
        found.append(trained(made, torch.where(x > 0.9, x, 0)))
    one, two, by_itself = found
    assert all(torch.equal(a, b) for a, b in zip((*two[:2], two[-1]), (*by_itself[:2], by_itself[-1]), strict=True))
    assert all(torch.equal(a, b) for a, b in zip((*one[:3], one[-1]), (*two[:3], two[-1]), strict=True))
    for a, b in zip(two, by_itself, strict=True):  # sums for batch norm's gradient are taken in another order
        torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-6)


@pytest.mark.usefixtures("threads")
def test_without_a_norm_threads_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    made, found = calls_of(monkeypatch, "gradients_alone"), []
    info = make_info((2, 35, 33), kind="image")
    for count in (1, 2):
        torch.set_num_threads(count)
        neuron = NeuronConf(name="fixed", engine="numba", beta=0.6, threshold=0.4, learn_threshold=True)
        spec, build = "c12k5-SN-MP2-FC10-SN", {"channels_last": True}
        net = make_network(spec, info, neuron=neuron, build=build, gain=2.0, sparse="always")
        x = torch.rand(4, 3, *info.shape, generator=torch.Generator().manual_seed(2))
        found.append(trained(net, torch.where(x > 0.9, x, 0)))
    assert made == [True, True] and found[0][0].sum() > 0
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def hooked(name: str) -> Callable[[Network], None]:
    return lambda made: made.get_submodule(name).register_forward_hook(lambda *_: None) and None


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ({"change": hooked("bn1")}, {"bn1": False, "bn2": True}),
        ({"change": hooked("sn2")}, {"bn1": True, "bn2": False}),
        ({"bn_per_step": True}, {}),
        ({"build": {"channels_last": False}}, {"bn1": False, "bn2": False}),
        ({"build": {"checkpoint_steps": 2}, "eval": True}, {"bn1": False, "bn2": False}),
        ({"constant": True}, {"bn1": False, "bn2": True}),
        ({"spec": "c6k3-BN-c6k3-BN-SN-FC10-SN"}, {"bn1": False, "bn2": True}),
        ({"spec": "c3k3-BN-SN-FC10-SN"}, {"bn1": False}),  # too few channels for the kernels
    ],
)
def test_who_keeps_them_apart(
    left: dict[str, bool], apart: Callable[[], None], case: dict[str, Any], expected: dict[str, bool]
) -> None:
    change, evaluates = case.pop("change", None), case.pop("eval", False)
    x = ConstantInput(frames()[0], 4) if case.pop("constant", False) else frames()
    results = []
    for number in range(2):
        made = network(**case).double()
        if change is not None:
            change(made)
        if evaluates:  # segments refuse batch norm in training
            with torch.no_grad():
                results.append([made.eval()(x).mem])
        else:
            results.append(trained(made, x))
        if number == 0:
            assert left == expected
            apart()
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("plain")
def test_evaluation_with_gradients_is_torchs(left: dict[str, bool]) -> None:
    made = network().double().eval()
    with_gradients = made(frames()).mem
    assert left == {"bn1": False, "bn2": False}
    with torch.no_grad():
        without = made(frames()).mem
    assert left == LEFT
    torch.testing.assert_close(without, with_gradients, rtol=1e-10, atol=1e-10)
