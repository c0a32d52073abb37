"""What the engine counts as it runs: the numbers of the pass over membranes, and bits that nobody's counting moves."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import snnexp.neurons.engines
from snnexp.analysis.activity import ActivityMeter
from snnexp.analysis.counters import Counter
from snnexp.analysis.in_memory import KernelSums
from snnexp.analysis.reach import NearCounter
from snnexp.analysis.synops import SynopsMeter
from snnexp.config import DecoderConf, ModelConf, NeuronConf, OptimizerConf, SurrogateConf
from snnexp.data.base import DataInfo, EventFrames
from snnexp.models.network import Network, build_network
from snnexp.models.observer import Firing, Observers
from snnexp.neurons.engines.numba_engine import NumbaBackend
from snnexp.neurons.engines.numba_near import find_place, pick, take_apart
from snnexp.training.optimisation import build_optimizer

EPS = 0.05


def network_of(spec: str, shape: tuple[int, int, int], steps: int = 5, **neuron: Any) -> Network:
    info = DataInfo("made", "events", shape, steps, ("a", "b", "c"), {}, {}, complete=True, split_hash="")
    torch.manual_seed(0)
    model = ModelConf(name="m", spec=spec, gain=2.0, sparse=neuron.pop("sparse", "auto"))
    conf = NeuronConf(name="n", **{"engine": "numba", "beta": 0.6, "threshold": 0.4} | neuron)
    return build_network(model, conf, DecoderConf(name="rate"), info, channels_last=True)


def batches(shape: tuple[int, int, int], steps: int = 5, sizes: tuple[int, ...] = (3, 2, 3)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.rand(steps, size, *shape, generator=generator).round(decimals=2) for size in sizes]


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels of neurons as plain Python: nothing to compile."""
    monkeypatch.setattr(snnexp.neurons.engines, "_backend", lambda engine: NumbaBackend(compiled=False))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each layer and batch, whether the engine was asked to count."""
    found, prepared = list[bool](), NearCounter.prepared

    def spy(self: NearCounter, x: Tensor) -> Any:
        near = prepared(self, x)
        found.append(near is not None)
        return near

    monkeypatch.setattr(NearCounter, "prepared", spy)
    return found


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From there on membranes and spikes are counted after the engine has run."""

    def begin() -> None:
        monkeypatch.setattr(NearCounter, "prepared", lambda self, x: None)
        monkeypatch.setattr(Counter, "_add_by_kernel", Counter._add_by_torch)

    return begin


def passed(network: Network, given: list[Any], meter: ActivityMeter | None, trains: bool = True) -> list[Tensor]:
    """A pass of training, or of evaluation: losses and the weights afterwards."""
    optimizer = build_optimizer(OptimizerConf(name="adam"), network.parameter_groups())
    network.train(trains)
    found = []
    for x in given:
        with torch.set_grad_enabled(trains):
            out = network(x, None if meter is None else Observers([meter, SynopsMeter(network)]))
            loss = (out.mem.square().mean() + out.spk.mean()).float()
        if trains:
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        found.append(loss.detach())
    return [*found, *(t.detach().clone() for t in network.state_dict().values())]


def numbers(meter: ActivityMeter) -> dict[str, Any]:
    """All that a pass gives."""
    metrics: dict[str, Any] = meter.metrics("train")
    for name, layer in meter.last.items():
        more = (layer.rates, layer.peaks, layer.thresholds, layer.quiet_fraction, layer.reach, layer.distances)
        metrics |= {f"{name}/{number}": np.asarray(part) for number, part in enumerate(more)}
    return metrics


def same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value, err_msg=key)


SPECS = ("c6k3-BN-SN-MP2-c5k3-BN-SN-AP2-FC7-SN-FC-SN", "c6k3-SN-MP2-c5k3-BN-SN-FC-SN", "FC9-SN-RFC7-SN-FC-SN")
NEURONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "relative, per neuron": {"relative_surrogate": True, "threshold_per": "neuron", "learn_threshold": True},
    "current": {"alpha": 0.5, "learn_alpha": True, "threshold": [0.3, 0.5]},
    "per channel": {"threshold_per": "channel", "learn_threshold": True, "reset": "subtract", "noise": 0.1},
    "high spikes": {"spike_height": "threshold", "surrogate": SurrogateConf(name="triangular")},
    "once": {"fire_once": True, "force_last_spike": True},
    "float64": {"strict": True, "detach_reset": False},
    "own": {"equation": "snnexp.neurons.zoo:adlif", "alpha": None},
}


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("case", NEURONS)
@pytest.mark.parametrize("trains", [True, False])
def test_numbers_are_those_of_a_pass_over_membranes(
    case: str, trains: bool, asked: list[bool], apart: Callable[[], None]
) -> None:
    spec = random.Random(case).choice(SPECS)
    shape = (2, 7, 6)
    results = []
    for number in range(2):
        network = network_of(spec, shape, **NEURONS[case])
        given = batches(shape)
        if case == "float64":
            network, given = network.double(), [x.double() for x in given]
        meter = ActivityMeter(network, EPS)
        torch.manual_seed(1)
        bits = passed(network, given, meter, trains)
        results.append((numbers(meter), bits))
        if number == 0:
            apart()
            assert all(asked) and bool(asked) == (case != "once")
    same(results[0][0], results[1][0])
    assert any(results[0][0][f"train/gradient_reach/sn{n}"] > 0 for n in (1, 2))
    assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=True))


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize(
    ("spec", "sparse"), [*((spec, "auto") for spec in SPECS), (SPECS[0], "always"), (SPECS[1], "always")]
)
def test_nobodys_counting_moves_a_bit(spec: str, sparse: str) -> None:
    """Losses and weights after some steps: watched by nobody, counted, and with all membranes looked at."""
    shape, results = (2, 7, 6), []
    for watch in (lambda _: None, lambda made: ActivityMeter(made, EPS), lambda made: ActivityMeter(made), Looking):
        network = network_of(spec, shape, threshold_per="channel", learn_threshold=True, sparse=sparse)
        results.append(passed(network, batches(shape), watch(network)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


class Looking(ActivityMeter):
    """An observer that reads membranes in each batch, as one does that knows of no other way."""

    reads_membranes = True  # type: ignore[assignment]


class Seen:
    """Remembers which layers' membranes there were; it does not say whether it reads them."""

    reads_spikes = False

    def __init__(self) -> None:
        self.found: dict[str, bool] = {}

    def spiking(self, name: str, layer: nn.Module, firing: Firing) -> None:
        self.found[name] = firing.mem is not None
        assert firing.steps == 5 and (firing.mem is None or len(firing.mem) == 5)

    def connection(self, name: str, module: nn.Module, x: Tensor | EventFrames, repeat: int) -> None:
        pass


class Unseeing(Seen):
    reads_membranes = False


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("trains", [True, False])
def test_membranes_are_there_for_who_reads_them(trains: bool) -> None:
    shape, spec = (2, 7, 6), "c6k3-BN-SN-MP2-c5k3-SN-FC-SN"
    network = network_of(spec, shape, learn_threshold=True).train(trains)
    meter, (x, *_) = ActivityMeter(network, EPS), batches(shape)
    with torch.set_grad_enabled(trains):
        for observer, norm in ((Seen(), True), (Unseeing(), False)):
            network(x, observer)
            assert observer.found == {"sn1": norm, "sn2": True, "sn3": True}
        for norm in (True, False, False):  # peaks of the first batch
            watched = Unseeing()
            network(x, Observers([meter, watched]))
            assert watched.found["sn1"] == norm
        watched = Unseeing()  # two that count, and the engine can count for one
        network(x, Observers([meter, ActivityMeter(network, 0.1), watched]))
        assert watched.found["sn1"]


@pytest.mark.usefixtures("plain")
def test_a_meter_may_be_used_again_after_a_batch_that_stopped_between_two_layers() -> None:
    network, (x, *_) = network_of("c6k3-BN-SN-MP2-c5k3-BN-SN-FC-SN", (2, 7, 6)), batches((2, 7, 6))
    meter, other = ActivityMeter(network, EPS), ActivityMeter(network, EPS)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    stopped = network.get_submodule("conv2").register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        network(x, meter)
    stopped.remove()
    for one in (meter, other):
        network(x, one)
        one.metrics("train")
    assert all(torch.equal(meter.last[name].peaks, other.last[name].peaks) for name in ("sn2", "sn3"))


@pytest.mark.usefixtures("plain")
def test_a_pass_goes_on_where_it_was_left() -> None:
    shape, spec = (2, 7, 6), SPECS[1]
    whole, first = (ActivityMeter(network_of(spec, shape), EPS) for _ in range(2))
    given = batches(shape)
    passed(whole.network, given, whole, trains=False)  # type: ignore[arg-type]
    passed(first.network, given[:2], first, trains=False)  # type: ignore[arg-type]
    second = ActivityMeter(network_of(spec, shape), EPS)
    second.load_pass_state(first.pass_state(), torch.device("cpu"))
    passed(second.network, given[2:], second, trains=False)  # type: ignore[arg-type]
    same(numbers(second), numbers(whole))


@pytest.mark.usefixtures("threads")
def test_compiled_and_with_two_threads(apart: Callable[[], None]) -> None:
    shape, spec, results = (2, 35, 33), "c6k3-BN-SN-MP2-c6k3-BN-SN-FC-SN", []
    for threads in (1, 2, 2):
        torch.set_num_threads(threads)
        if len(results) == 2:
            apart()
        meter = ActivityMeter(network_of(spec, shape, 4, learn_threshold=True), EPS)  # more than 2**16 values in a map
        bits = passed(meter.network, batches(shape, 4), meter)  # type: ignore[arg-type]
        results.append((numbers(meter), bits))
    for found, _ in results[1:]:
        same(results[0][0], found)
    assert all(torch.equal(a, b) for a, b in zip(results[1][1], results[2][1], strict=True))


@pytest.mark.parametrize("neurons", [1, 7, 40])
def test_both_counts_come_out_of_one_number(neurons: int) -> None:
    rng = np.random.default_rng(neurons)
    spikes, near = (rng.integers(0, 4096, 60) for _ in range(2))
    total, out = np.ones(neurons, np.int32), np.zeros(60, np.float32)
    take_apart((spikes + 4096 * near).astype(np.float32), out, total, 3)
    assert (out == spikes).all()
    assert (total == 1 + np.bincount((3 + np.arange(60)) % neurons, near, neurons)).all()


def test_places_are_found_and_picked_row_by_row() -> None:
    rng, memory = np.random.default_rng(0), np.arange(1000, dtype=np.float32)
    at = np.flatnonzero(rng.random(1000) < 0.05)
    places, picked = np.append(at, 1000), np.zeros(len(at), np.float32)
    for start in range(0, 1000, 100):
        place = find_place(places, start)
        for part in range(start, start + 100, 32):
            place = pick(memory[part : min(part + 32, start + 100)], part, places, picked, place)
    assert (picked == at).all() and find_place(places, 999) >= len(at) - 1


def test_sums_of_kernels_do_not_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("snnexp.analysis.in_memory.FULL", 10)
    sums = KernelSums()
    for turned in (False, True, False):  # neurons in the order of the shape, and channels last
        order = (3, 4, 2) if turned else (2, 3, 4)
        value = np.arange(6).reshape(2, 1, 3)
        sums.parts(order, (2, 1, 3), 2, 6)[1] += (
            (value.transpose(1, 2, 0) if turned else value).ravel().astype(np.int32)
        )
    total = sums.total()
    assert total is not None and total.tolist() == [0, 3, 6, 9, 12, 15]
