"""Delays by hand: kernels, their schedule, what shifts and what is lost; gradients; event lists; a planted shift."""

from __future__ import annotations

import logging
from math import exp
from typing import Any

import pytest
import torch
from networks import as_events, make_info, make_network, make_spikes
from torch import Tensor

from snnexp.analysis.synops import SynopsMeter
from snnexp.config import DelayConf, NeuronConf, OptimizerConf
from snnexp.data.base import EventFrames
from snnexp.errors import ConfigError
from snnexp.models.delayed_recurrence import layers_with_delays
from snnexp.models.delays import Delay, shift_events
from snnexp.models.segments import joined, last_steps, split_time
from snnexp.models.weights import Linear, RecurrentLinear
from snnexp.training.optimisation import build_optimizer, learning_rates


def make_delay(positions: list[float], most: int, sigma: float | None = None, **keys: Any) -> Delay:
    """Delays of [N] in float64, training; `sigma` as the width in force."""
    delay = Delay((len(positions),), most, DelayConf(**keys)).double()
    with torch.no_grad():
        delay.position.copy_(torch.tensor(positions))
    if sigma is not None:
        delay.sigma = sigma
    return delay


def impulses(*times: int, steps: int = 6) -> Tensor:
    """One spike per channel [steps, 1, N]."""
    x = torch.zeros(steps, 1, len(times), dtype=torch.float64)
    for channel, time in enumerate(times):
        x[time, 0, channel] = 1
    return x


# --- by hand ------------------------------------------------------------------------------------------------------


def test_a_gaussian_kernel() -> None:
    kernel = make_delay([0.5], 2, sigma=0.5).kernel(torch.float64)[:, 0]
    weights = [exp(-0.5), exp(-0.5), exp(-4.5)]  # distances of 1, 1 and 3 sigma
    assert kernel.tolist() == pytest.approx([w / sum(weights) for w in weights], rel=1e-12)


def test_a_triangular_kernel() -> None:
    kernel = make_delay([1.0], 3, sigma=2.0, kernel="triangle").kernel(torch.float64)[:, 0]
    assert kernel.tolist() == pytest.approx([0.25, 0.5, 0.25, 0])  # 1/2, 1, 1/2, 0 over their sum


def test_whole_delays_shift_and_fractions_interpolate() -> None:
    delay = make_delay([0, 2, 1.25], 3, kernel="triangle", sigma=1.0)
    y = delay(impulses(1, 1, 1))[:, 0]
    assert y[:, 0].tolist() == [0, 1, 0, 0, 0, 0]
    assert y[:, 1].tolist() == [0, 0, 0, 1, 0, 0]
    assert y[:, 2].tolist() == pytest.approx([0, 0, 0.75, 0.25, 0, 0])


@pytest.mark.parametrize("kernel", ["gaussian", "triangle"])
def test_evaluation_rounds(kernel: str) -> None:
    y = make_delay([0.4, 1.6, 7.0, -3.0], 3, kernel=kernel).eval()(impulses(1, 1, 1, 1))[:, 0]
    assert y.argmax(0).tolist() == [1, 3, 4, 1]  # 0, 2, and what is out of bounds at the bound
    assert y.sum(0).tolist() == [1, 1, 1, 1] and set(y.unique().tolist()) == {0, 1}


def test_what_is_delayed_past_the_end_is_lost_also_with_more_delay_than_time() -> None:
    delay = make_delay([0, 3, 5, 40], 50).eval()
    y = delay(impulses(2, 2, 2, 2))[:, 0]
    assert y.sum(0).tolist() == [1, 1, 0, 0] and y[5, 1] == 1
    assert delay.train()(impulses(2, 2, 2, 2)).sum() < 4
    assert [len(piece) for piece in (delay(impulses(0, 0, 0, 0, steps=1)),)] == [1]


def test_the_kernel_sums_to_one_so_that_no_spike_gains_weight_at_the_bounds() -> None:
    for sigma in (8.0, 0.5):
        kernel = make_delay([0, 0.3, 8, 16], 16, sigma=sigma).kernel(torch.float64)
        assert kernel.sum(0).tolist() == pytest.approx([1] * 4)


def test_sigma_falls_over_the_first_quarter_and_depends_on_the_epoch_alone() -> None:
    delay = make_delay([1], 16)
    for epochs in ((1, 2, 3, 4, 5, 6, 16), (5, 3)):
        found = []
        for epoch in epochs:
            delay.set_epoch(epoch, 16)
            found.append(delay.sigma)
        expected = {1: 8, 2: 4, 3: 2, 4: 1, 5: 0.5, 6: 0.5, 16: 0.5}  # 8 (0.5 / 8)^(n / 4)
        assert found == pytest.approx([expected[epoch] for epoch in epochs])
    fast = make_delay([1], 16, kernel="triangle", sigma_share=0.0)
    assert fast.sigma == 1  # at once
    said = make_delay([1, 3], 16).describe(16)
    assert said == "2 delays of 0 to 16 steps, now 1 to 3; gaussian, sigma 8 to 0.5 over 4 epochs"
    assert make_delay([1], 16, learn=False).describe(0).endswith("fixed")
    narrow = make_delay([1], 1)  # max / 2 is the final width already
    assert narrow.sigma == 0.5
    own = DelayConf(sigma=3.0, sigma_final=2.0, sigma_share=1.0)
    assert [Delay((1,), 16, own).width(p) for p in (0, 0.5, 1)] == pytest.approx([3, 6**0.5, 2])


def test_start_values_bounds_and_fixed_delays() -> None:
    torch.manual_seed(0)
    spread = Delay((500,), 10, DelayConf()).position
    assert 0 <= spread.min() < 0.5 and 9.5 < spread.max() <= 10
    assert Delay((4,), 10, DelayConf(init="zero")).position.tolist() == [0] * 4
    fixed = Delay((500,), 10, DelayConf(learn=False))
    assert not list(fixed.parameters()) and torch.equal(fixed.position, fixed.position.round())
    assert torch.equal(fixed.train().kernel(), fixed.eval().kernel())
    wild = make_delay([-2, 3, 12], 10)
    wild.bound()
    assert wild.position.tolist() == [0, 3, 10]


# --- gradients ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", ["gaussian", "triangle"])
@pytest.mark.parametrize("shape", [(3,), (3, 2, 2)])
def test_gradients_against_finite_differences(kernel: str, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(1)
    delay = Delay(shape, 4, DelayConf(kernel=kernel)).double()
    delay.sigma = 1.3
    x = torch.rand(3, 2, *shape, generator=generator, dtype=torch.float64).requires_grad_()
    tail = torch.rand(4, 2, *shape, generator=generator, dtype=torch.float64).requires_grad_()
    start = torch.tensor([0.3, 1.6, 3.2], dtype=torch.float64).view(3, *[1] * (len(shape) - 1)).requires_grad_()

    def run(position: Tensor, x: Tensor, tail: Tensor) -> tuple[Tensor, Tensor]:
        call = torch.func.functional_call
        return call(delay, {"position": position}, (x,)), call(delay, {"position": position}, (x, tail))

    assert torch.autograd.gradcheck(run, (start, x, tail))


def test_a_spread_kernel_pulls_a_delay_from_far_away() -> None:
    """The loss wants the spike 7 steps later: a narrow kernel does not see it, a wide one does."""
    pulls = []
    for sigma in (0.5, 4.0):
        delay = make_delay([2.0], 8, sigma=sigma)
        (-delay(impulses(0, steps=12))[9].sum() - delay(impulses(0, steps=12))[7].sum()).backward()  # type: ignore[no-untyped-call]
        assert delay.position.grad is not None
        pulls.append(-float(delay.position.grad[0]))
    assert pulls[1] > 1e-2 and pulls[0] < 1e-6


def test_a_planted_shift_is_found() -> None:
    """Two inputs, the target sees one of them 3 and the other 9 steps later. Nothing but the delays learns."""
    x = (torch.rand(60, 8, 2, generator=torch.Generator().manual_seed(1)) < 0.05).float()
    planted = make_delay([3, 9], 12, learn=False).float().eval()
    target = planted(x)
    delay = make_delay([6, 6], 12).float()
    groups = {"delays": list(delay.parameters())}
    optimizer = build_optimizer(OptimizerConf(name="adam", lr=1e-3), groups)
    for epoch in range(1, 41):
        delay.set_epoch(epoch, 40)
        for _ in range(5):
            optimizer.zero_grad()
            ((delay(x) - target) ** 2).mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            delay.bound()
    assert delay.steps().tolist() == [3, 9]
    assert torch.equal(delay.eval()(x), target)


# --- event lists --------------------------------------------------------------------------------------------------


def dense(x: EventFrames | Tensor) -> Tensor:
    return x if isinstance(x, Tensor) else x.to_dense(torch.float64).flatten(2)


@pytest.mark.parametrize("values", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_event_lists_equal_the_dense_input(values: bool, training: bool) -> None:
    info = make_info((1, 2, 4), steps=9)
    counts = torch.randint(1, 4, (9, 3, *info.shape), generator=torch.Generator().manual_seed(5))
    frames = make_spikes(info).double() * (counts if values else 1)
    positions = [0.2, 1, 2.4, 3.1, 6, 7.8, 11, 12]
    listed, plain = (make_delay(positions, 12, sigma=1.5).train(training) for _ in range(2))
    events = as_events(frames, values=values)
    y, want = listed(events), plain(frames.flatten(2))
    assert isinstance(y, EventFrames) is not training
    torch.testing.assert_close(dense(y), want, rtol=1e-12, atol=1e-12)
    if training:
        target = torch.rand(want.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        a, b = (torch.autograd.grad((out * target).sum(), d.position)[0] for out, d in ((y, listed), (want, plain)))
        assert b.abs().min() > 0 or b[-1] == 0
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    else:
        assert all((row.diff() > 0).all() for row in y.indices.split(y.offsets.diff().tolist()))  # rising, once each
    pieces, tail = [], None  # in segments of time
    for piece in split_time(events, 2):
        assert isinstance(piece, EventFrames)
        pieces.append(dense(listed(piece, tail)))
        tail = listed.tail_of(piece, tail)
        assert isinstance(tail, EventFrames) and tail.num_steps <= 12
    torch.testing.assert_close(torch.cat(pieces), want, rtol=1e-12, atol=1e-12)


def test_lists_are_cut_and_joined_in_time() -> None:
    info = make_info((1, 1, 5), steps=6)
    events = as_events(make_spikes(info))
    first, second = split_time(events, 3)
    assert isinstance(first, EventFrames) and isinstance(second, EventFrames)
    assert torch.equal(dense(joined(first, second)), dense(events))
    assert torch.equal(dense(last_steps(events, 2)), dense(events)[4:])
    assert last_steps(events, 99).num_steps == 6
    empty = shift_events(events, torch.full((5,), 6))
    assert empty.indices.numel() == 0 and empty.num_steps == 6


def test_a_delay_in_front_of_the_first_fc_keeps_it_event_driven_in_evaluation(caplog: Any) -> None:
    info = make_info()
    with caplog.at_level(logging.INFO):
        network = make_network("DL3-FC20-SN-FC-SN", info)
    assert "dl1: in training each event becomes up to 4 weighted entries" in caplog.text
    assert network.wants_events and [layer.name for layer in network.layers[:3]] == ["flat1", "dl1", "fc1"]
    network.double()
    for training in (True, False):
        network.train(training)
        frames = make_spikes(info).double()
        seen: list[Any] = []
        observer = _Inputs(seen)
        torch.testing.assert_close(network(as_events(frames), observer).mem, network(frames).mem)
        assert isinstance(seen[0], EventFrames) is not training


class _Inputs:
    """Observer that keeps the connections' inputs."""

    reads_spikes = False

    def __init__(self, seen: list[Any]) -> None:
        self.seen = seen

    def spiking(self, name: str, layer: Any, firing: Any) -> None:
        pass

    def connection(self, name: str, module: Any, x: Any, repeat: int) -> None:
        self.seen.append(x)


# --- in networks --------------------------------------------------------------------------------------------------


def test_a_recurrence_without_delay_is_that_of_an_rfc() -> None:
    info = make_info(steps=7)
    still = DelayConf(learn=False, init="zero")
    plain, delayed = (make_network(spec, info, delay=still, gain=3) for spec in ("RFC12-SN-FC-SN", "RFC12DL3-SN-FC-SN"))
    delayed.load_state_dict({**plain.state_dict(), "rfc1.delay.position": torch.zeros(12)})
    grads = []
    for network in (plain.double(), delayed.double()):
        out = network(make_spikes(info).double())
        grads.append([out.mem, *torch.autograd.grad(out.mem.square().sum(), list(network.parameters()))])
    assert grads[0][0].abs().max() > 0
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-10, atol=1e-12)


def test_a_recurrent_delay_by_hand() -> None:
    """One neuron that excites itself d + 1 steps later: a spike at step 0 comes back every d + 1 steps."""
    info = make_info((1, 1, 1), classes=1, steps=8)
    neuron = NeuronConf(name="made", beta=0.0, threshold=1.0, engine="auto")
    network = make_network("RFC1DL4-SN", info, neuron=neuron, bias=False).eval()
    rfc = network.get_submodule("rfc1")
    assert isinstance(rfc, RecurrentLinear) and rfc.delay is not None
    with torch.no_grad():
        rfc.weight.fill_(1)
        rfc.recurrent.weight.fill_(1)
        rfc.delay.position.fill_(2.2)
    x = torch.zeros(8, 1, 1, 1, 1)
    x[0] = 1
    assert network(x).spk.flatten().tolist() == [1, 0, 0, 1, 0, 0, 1, 0]
    assert layers_with_delays(network.layers) == ["sn1"] and network.neurons["sn1"].engine == "reference"
    assert "delays" in str(network.neurons["sn1"].engine_reason)


def test_an_engine_without_a_kernel_for_it_is_refused_by_name() -> None:
    neuron = NeuronConf(name="made", engine="numba")
    with pytest.raises(ConfigError, match=r"neuron\.engine=numba.*RFC12DL3.*neuron\.engine=auto"):
        make_network("RFC12DL3-SN-FC-SN", make_info(), neuron=neuron)
    for engine in ("auto", "reference"):
        make_network("RFC12DL3-SN-FC-SN", make_info(), neuron=NeuronConf(name="made", engine=engine))
    make_network("DL3-RFC12-SN-FC-SN", make_info(), neuron=neuron)


def test_delays_have_a_rate_of_their_own_and_no_weight_decay() -> None:
    network = make_network("DL3-FC20-SN-RFC9DL2-SN-FC-SN", make_info())
    assert list(network.delays) == ["dl1", "rfc1"]
    groups = network.parameter_groups()
    assert [tuple(p.shape) for p in groups["delays"]] == [(128,), (9,)]
    assert sum(len(group) for group in groups.values()) == len(list(network.parameters()))
    conf = OptimizerConf(name="adam", lr=2e-3, weight_decay=0.1)
    (group,) = [g for g in build_optimizer(conf, groups).param_groups if g["name"] == "delays"]
    assert (group["lr"], group["weight_decay"]) == (pytest.approx(0.2), 0)
    assert learning_rates(OptimizerConf(name="adam", lr_delay=0.0))["delays"] == 0
    fixed = make_network("DL3-FC20-SN-FC-SN", make_info(), delay=DelayConf(learn=False))
    assert "delays" not in fixed.parameter_groups() and "dl1.position" in fixed.state_dict()


def test_what_is_kept_in_the_end_is_rounded_and_computes_the_same() -> None:
    network = make_network("DL3-FC20-SN-RFC9DL2-SN-FC-SN", make_info(), gain=3).eval()
    x = make_spikes(make_info())
    before, raw, final = network(x), network.state_dict(), network.final_state()
    for key in raw:
        assert torch.equal(final[key], raw[key].round() if key.endswith("position") else raw[key])
        assert final[key].dtype == raw[key].dtype
    network.load_state_dict(final)
    assert before.spk.mean() > 0 and torch.equal(network(x).mem, before.mem)


def test_a_delay_costs_no_synaptic_operation() -> None:
    info = make_info(steps=12)
    results = []
    for spec in ("FC12-SN-FC-SN", "DL3-FC12-SN-DL2-FC-SN"):
        network = make_network(spec, info, delay=DelayConf(learn=False, init="zero"), gain=2)
        with torch.no_grad():
            for name in ("fc1", "fc2"):
                network.get_submodule(name).weight.fill_(0.05)
        x = make_spikes(info, share=0.1)
        x[9:] = 0  # so that no delay loses an event
        if "DL" in spec:
            network.get_submodule("dl1").position.fill_(3)
        meter = SynopsMeter(network)
        network.eval()(x, meter)
        results.append((meter.metrics("test")["test/synops"], meter.metrics("test")["test/macs"]))
    assert results[0] == results[1] and results[0][0] > 0 and results[0][1] == 0


def test_hidden_layers_behind_a_delay_follow_spikes_where_they_are_spikes() -> None:
    spec, info = "FC300-SN-DL2-FC300-SN-FC-SN", make_info()
    rules = {}
    for sparse, learn in (("auto", True), ("auto", False), ("always", True), ("never", False)):
        network = make_network(spec, info, sparse=sparse, delay=DelayConf(learn=learn), gain=3)
        layer = network.get_submodule("fc2")
        assert isinstance(layer, Linear)
        rules[sparse, learn] = layer.sparse_below > 0
        dense_one = make_network(spec, info, sparse="never", delay=DelayConf(learn=learn), gain=3)
        for training in (True, False):
            a, b = (n.train(training)(make_spikes(info)).mem for n in (network, dense_one))
            torch.testing.assert_close(a, b)
    expected = {("auto", True): False, ("auto", False): True, ("always", True): True, ("never", False): False}
    assert rules == expected


def test_threads_change_nothing_but_the_last_bits() -> None:
    info = make_info((2, 8, 8), steps=20)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            network = make_network("DL9-FC64-SN-DL9-RFC32DL4-SN-FC-SN", info, gain=2).double()
            out = network(as_events(make_spikes(info, batch=16)).to(torch.device("cpu")))
            results.append([out.mem, *torch.autograd.grad(out.mem.square().sum(), list(network.parameters()))])
    finally:
        torch.set_num_threads(threads)
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_bfloat16_and_warnings(caplog: Any) -> None:
    info = make_info()
    quiet = NeuronConf(name="quiet", beta=0.5, threshold=50.0, engine="reference")
    network = make_network("DL3-RFC9DL2-SN-DL6-FC-SN", info, neuron=quiet)
    assert "dl2: delays of up to 6 steps in samples of 4" in caplog.text and "dl1" not in caplog.text
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = network(make_spikes(info)).mem
    torch.testing.assert_close(half.float(), network(make_spikes(info)).mem, atol=0.02, rtol=0.02)
