"""The convolution that follows spikes: exact, deterministic for any number of threads, and right at the edges."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import as_events, make_info, make_network, make_spikes
from torch import Tensor

import snnexp.models.event_conv
from snnexp.analysis.synops import SynopsMeter
from snnexp.arrays import for_kernels
from snnexp.models import event_spread, sparsity
from snnexp.models.batch_norm import _moments
from snnexp.models.event_conv import dense_input_gradient, event_conv
from snnexp.models.event_lists import dense_maps, density, list_maps
from snnexp.models.weights import Conv2d
from snnexp.quiet import resting_by
from snnexp.ranks import Rows


def make_maps(
    shape: tuple[int, ...], share: float, kind: str = "spikes", dtype: torch.dtype = torch.float64, seed: int = 0
) -> Tensor:
    """Maps [N, C, H, W] in channels_last; kind: spikes, or other numbers."""
    generator = torch.Generator().manual_seed(seed)
    there = torch.rand(*shape, generator=generator, dtype=torch.float64) < share
    values = torch.ones(shape) if kind == "spikes" else torch.randn(*shape, generator=generator, dtype=torch.float64)
    return (there * values).to(dtype).contiguous(memory_format=torch.channels_last)


@given(
    frames=st.integers(1, 40),
    channels=st.integers(1, 20),
    outputs=st.sampled_from([1, 2, 5, 8, 9, 12, 16, 17, 31, 32, 33, 40, 64, 70]),
    size=st.integers(1, 5),
    stride=st.integers(1, 3),
    pad=st.integers(0, 5),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    share=st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0]),
    kind=st.sampled_from(["spikes", "numbers"]),
    has_bias=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_equals_the_dense_convolution_and_its_gradients(
    frames: int,
    channels: int,
    outputs: int,
    size: int,
    stride: int,
    pad: int,
    height: int,
    width: int,
    share: float,
    kind: str,
    has_bias: bool,
    seed: int,
) -> None:
    height, width = max(height, size - 2 * pad), max(width, size - 2 * pad)
    x = make_maps((frames, channels, height, width), share, kind, seed=seed).requires_grad_()
    weight = torch.randn(outputs, channels, size, size, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(outputs, dtype=torch.float64, requires_grad=True) if has_bias else None
    dense = F.conv2d(x, weight, bias, stride, pad)
    target = torch.randn(dense.shape, dtype=torch.float64)
    for way in (False, True):
        ours = event_conv(x, weight, bias, stride, pad, dense_gradient=way)
        assert ours_equals(dense, ours, target, x, weight, bias)
        dense = F.conv2d(x, weight, bias, stride, pad)
    lists = as_events(x.detach().unsqueeze(0).contiguous())
    assert torch.equal(dense_maps(lists, torch.float64), x) and for_kernels(dense_maps(lists, torch.float64))
    assert ours_equals(dense, event_conv(lists, weight, bias, stride, pad), target, weight, bias)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(("outputs", "width", "taken"), [(5, 8, True), (16, 6, True), (33, 5, True), (8, 6, False)])
def test_a_batch_norms_sums_are_taken_as_the_output_is_written(
    monkeypatch: pytest.MonkeyPatch, outputs: int, width: int, taken: bool
) -> None:
    """Windows of four, two and one pixels; where they do not fill the rows, the norm reads the output."""
    x = make_maps((40, 3, 7, width), 0.4)
    weight, bias = (torch.randn(*shape, dtype=torch.float64) for shape in ((outputs, 3, 3, 3), (outputs,)))
    found = []
    for threads, past in ((1, 1 << 40), (2, 1 << 40), (2, 0)):
        monkeypatch.setattr(snnexp.models.event_conv, "PAST", past)
        torch.set_num_threads(threads)
        y = event_conv(x, weight, bias, 1, 1, sums=True)
        assert hasattr(y, "channel_sums") == taken
        found.append((y, _moments(y, 1e-5)))
    y, moments = found[0]
    for other, same in found[1:]:
        assert torch.equal(y, other) and all(np.array_equal(a, b) for a, b in zip(moments, same, strict=True))
    rows = y.permute(0, 2, 3, 1).reshape(-1, outputs)
    np.testing.assert_allclose(moments.mean, rows.mean(0), rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(moments.var, rows.var(0, correction=0), rtol=1e-12)
    y.add_(1)  # they are no longer those of what is there
    np.testing.assert_allclose(_moments(y, 1e-5).mean, moments.mean + 1, rtol=1e-12)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(("outputs", "width"), [(32, 1), (16, 1), (16, 2), (16, 3), (8, 1), (64, 1), (32, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_narrower_than_a_window_leave_the_next_row_alone(
    outputs: int, width: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large outputs go past the caches, whole windows at a time: not where a row is shorter than one."""
    monkeypatch.setattr(snnexp.models.event_conv, "PAST", 0)
    torch.set_num_threads(2)
    x = make_maps((40, 2, 9, width), 0.3, dtype=dtype)
    weight = torch.randn(outputs, 2, 3, 3, dtype=dtype)
    expected = F.conv2d(x, weight, padding=1)
    guarded: list[Tensor] = []

    def with_guard(shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool) -> Tensor:
        frames, channels, height, width = shape
        size = frames * channels * height * width
        whole = torch.full([size + 512], 7.0, dtype=dtype)
        first = -whole.data_ptr() % 64 // whole.element_size()
        guarded.append(whole[first + size :])
        return whole[first : first + size].view(frames, height, width, channels).permute(0, 3, 1, 2)

    monkeypatch.setattr(snnexp.models.event_conv.buffers, "empty", with_guard)
    for _ in range(3):
        y = event_conv(x, weight, None, 1, 1)
        assert torch.allclose(y, expected, rtol=1e-4, atol=1e-4)
    assert all(bool((guard == 7).all()) for guard in guarded) and guarded


def ours_equals(dense: Tensor, ours: Tensor, target: Tensor, *inputs: Tensor | None) -> bool:
    """Whether both are the same, and the gradients that they hand to the inputs."""
    given = [t for t in inputs if t is not None]
    pairs = zip((ours, *gradients(ours, target, given)), (dense, *gradients(dense, target, given)), strict=True)
    return all(torch.allclose(a, b, rtol=1e-10, atol=1e-10) for a, b in pairs)


def gradients(y: Tensor, target: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad((y * target).sum(), inputs)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("outputs", [12, 70])
def test_threads_and_the_way_the_spikes_come_change_no_bit(outputs: int) -> None:
    x = make_maps((100, 3, 9, 8), 0.1, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(outputs, 3, 5, 5, generator=generator, requires_grad=True)
    bias = torch.randn(outputs, generator=generator, requires_grad=True)
    target = torch.randn(100, outputs, 9, 8, generator=generator)
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        for spikes in (x, as_events(x.unsqueeze(0).contiguous(), values=False)):
            y = event_conv(spikes, weight, bias, 1, 2)
            results.append((y, *gradients(y, target, [weight, bias])))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["spikes", "numbers"])
def test_spikes_that_add_to_outputs_and_windows_that_collect_spikes_give_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, kind: str, dtype: torch.dtype
) -> None:
    for outputs, size, pad, width in ((1, 1, 0, 5), (7, 3, 1, 2), (8, 5, 4, 3), (3, 4, 0, 9), (16, 2, 3, 1)):
        x = make_maps((3, 2, 6, width), 0.4, kind, dtype)
        weight, bias = torch.randn(outputs, 2, size, size, dtype=dtype), torch.randn(outputs, dtype=dtype)
        found = []
        for spread in (True, False):
            monkeypatch.setattr(event_spread, "pays", lambda *_, answer=spread: answer)
            found.append(event_conv(x, weight, bias, 1, pad))
        assert torch.equal(*found)


def test_few_spikes_add_to_few_outputs() -> None:
    lists, weight = list_maps(make_maps((4, 2, 20, 20), 0.02), 16), torch.zeros(8, 2, 3, 3, dtype=torch.float64)
    assert event_spread.pays(lists, weight, 1)
    assert not event_spread.pays(list_maps(make_maps((4, 2, 20, 20), 0.2), 16), weight, 1)
    assert event_spread.pays(list_maps(make_maps((4, 2, 20, 20), 0.2, "numbers"), 16), weight, 1)


def test_float32_is_no_worse_than_the_dense_convolution() -> None:
    x = make_maps((40, 8, 12, 12), 0.05, "numbers")
    weight = torch.randn(20, 8, 3, 3, dtype=torch.float64, requires_grad=True)
    exact = F.conv2d(x, weight, None, 1, 1)
    target = torch.randn_like(exact)
    single = weight.detach().float().requires_grad_()
    results = [exact, event_conv(x.float(), single, None, 1, 1), F.conv2d(x.float(), single, None, 1, 1)]
    assert results[1].dtype == torch.float32
    found = [(y, *gradients(y, target, [w])) for y, w in zip(results, (weight, single, single), strict=True)]
    for right, ours, dense in zip(*found, strict=True):
        assert (ours - right).abs().max() <= 2 * (dense - right).abs().max()


def test_lists_hold_what_is_not_zero() -> None:
    x = make_maps((20, 3, 5, 4), 0.3, "numbers")
    x[7], x[11, :, 2] = 0, 0  # an empty frame, an empty row
    lists = list_maps(x, 16)
    rows = lists.first.reshape(20, 5, 5)
    assert rows[0, 0, 0] == 0
    assert rows[-1, -1, -1] == x.count_nonzero() == len(lists.values)
    assert rows[7, 0, 0] == rows[7, -1, -1]
    assert rows[11, 2, 0] == rows[11, 2, -1]
    found = torch.zeros(20, 5, 12, dtype=torch.float64)
    for n, y in torch.cartesian_prod(torch.arange(20), torch.arange(5)).tolist():
        for j in range(rows[n, y, 0], rows[n, y, -1]):
            found[n, y, lists.entries[j] // 16] = lists.values[j]
    assert torch.equal(found.view(20, 5, 4, 3).permute(0, 3, 1, 2), x)
    assert list_maps((x != 0).double().contiguous(memory_format=torch.channels_last), 16).values.size == 0


def test_density_is_counted_in_a_sample_of_the_frames() -> None:
    x = torch.zeros(16, 2, 3, 5).contiguous(memory_format=torch.channels_last)
    x[7, 1, 2] = 2.0
    assert density(x) == 5 / 90  # frames 0, 7 and 14
    assert density(as_events(x.unsqueeze(0).contiguous())) == 5 / 480
    assert density(x[:0]) == 0


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_what_is_no_number_reaches_its_windows(odd: float) -> None:
    x = torch.zeros(2, 3, 6, 6).contiguous(memory_format=torch.channels_last)
    x[1, 2, 3, 3] = odd
    y = event_conv(x, torch.rand(4, 3, 3, 3), None, 1, 1)  # and pixels that are made with theirs: 0 nan is nan
    assert not y[1, :, 2:5, 2:5].isfinite().any()
    assert y[0].isfinite().all()


def test_no_frames_at_all() -> None:
    weight = torch.rand(4, 2, 3, 3, requires_grad=True)
    y = event_conv(torch.zeros(0, 2, 5, 5).contiguous(memory_format=torch.channels_last), weight, None, 1, 1)
    assert y.shape == (0, 4, 5, 5)
    y.sum().backward()
    assert weight.grad is not None and weight.grad.abs().max() == 0


def test_who_knows_where_gradients_are_needed_computes_them() -> None:
    class Halved:
        def input_gradient(self, grad: Tensor, weight: Tensor, shape: torch.Size, stride: int, pad: int) -> Tensor:
            return dense_input_gradient(grad, weight, shape, stride, pad) / 2

    x = make_maps((3, 2, 6, 6), 0.3).requires_grad_()
    weight = torch.randn(4, 2, 3, 3, dtype=torch.float64)
    whole, half = (event_conv(x, weight, None, 1, 1, needed) for needed in (None, Halved()))
    target = torch.randn_like(whole)
    (expected,), (found,) = (gradients(y, target, [x]) for y in (whole, half))
    assert torch.equal(found, expected / 2)
    assert expected.is_contiguous(memory_format=torch.channels_last)


NETWORKS = [
    "c5k3-SN-MP2-c20k3s2-SN-FC-SN",
    "c5k5p0-BN-SN-AP2-c40k3-BN-SN-MP2-FC-SN",
    "c4k3-SN-+(c4k3-SN-c4k3-SN)-+(c8k3s2-SN|c8k1s2-SN)-DP0.5-c9k2-SN-FC-SN",
]


@pytest.mark.parametrize("spec", NETWORKS)
@pytest.mark.parametrize("lists", [False, True])
def test_a_network_gives_the_same_whether_its_convolutions_follow_the_spikes(spec: str, lists: bool) -> None:
    info = make_info(steps=4)
    more = {"weight_norm": "BN" not in spec, "gain": 2.0, "build": {"channels_last": True}}
    dense, network = (make_network(spec, info, sparse=s, **more).double() for s in ("never", "always"))
    network.load_state_dict(dense.state_dict())
    frames = make_spikes(info).double()
    assert network.wants_events and not dense.wants_events
    results = []
    for net, x in ((dense, frames), (network, as_events(frames) if lists else frames)):
        torch.manual_seed(0)
        loss = net(x).mem.square().sum()
        results.append((loss, *torch.autograd.grad(loss, list(net.parameters()))))
    assert results[0][0] > 0
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    told = sparsity.tags(network)
    assert [name for name in told if "event-driven (model.sparse=always)" in told[name]] == [*told]
    assert len(told) == sum(layer.kind == "conv" for layer in network.layers) and not sparsity.tags(dense)


def test_segments_of_time_follow_the_spikes() -> None:
    info = make_info(steps=6)
    networks = [
        make_network(
            NETWORKS[0], info, sparse=s, gain=2.0, build={"channels_last": True, "checkpoint_steps": 2}
        ).double()
        for s in ("never", "always")
    ]
    frames = make_spikes(info).double()
    results = []
    for net, x in zip(networks, (frames, as_events(frames)), strict=True):
        net.load_state_dict(networks[0].state_dict())
        loss = net(x).mem.square().sum()
        results.append((loss, *torch.autograd.grad(loss, list(net.parameters()))))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_synaptic_operations_are_those_of_dense_frames() -> None:
    info = make_info(steps=4)
    network = make_network(NETWORKS[0], info, sparse="always", gain=2.0, build={"channels_last": True}).eval()
    frames = make_spikes(info)
    found = []
    for x in (frames, as_events(frames)):
        meter = SynopsMeter(network)
        network(x, meter)
        found.append(meter.result())
    assert found[0] == found[1] and found[0].effective_acs > 0


@pytest.fixture
def measurements(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[sparsity.Place]]:
    """An empty cache, and a measurement that takes no time; what was measured."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    measured: list[sparsity.Place] = []

    def measure(place: sparsity.Place) -> sparsity.Limits:
        measured.append(place)
        return sparsity.Limits(0.1, 0.25 + len(measured) / 100)

    monkeypatch.setattr(sparsity, "measure", measure)
    sparsity.limits_of.cache_clear()
    yield measured
    sparsity.limits_of.cache_clear()


def make_conv() -> Conv2d:
    conv = Conv2d(8, 16, 3, 1, 1, True)
    conv.rule = sparsity.Rule("conv1")
    return conv


def test_auto_goes_by_the_density_of_each_batch(measurements: list[sparsity.Place]) -> None:
    conv, shape = make_conv(), (64, 8, 24, 24)
    assert conv.rule is not None

    def chosen(share: float, learns: bool = True, lists: bool = False) -> tuple[bool, bool]:
        x = make_maps(shape, share, dtype=torch.float32)
        assert conv.rule is not None
        forward, gradient = conv.rule.follows(as_events(x.unsqueeze(0)) if lists else x, conv, learns)
        return forward, gradient

    assert [chosen(share) for share in (0, 0.2, 0.5)] == [(True, True), (True, False), (False, False)]
    assert chosen(0.2, learns=False) == (True, True)  # forward alone pays for longer
    assert [chosen(share, lists=True) for share in (0.05, 0.2)] == [(True, True), (False, False)]  # never one alone
    assert conv.rule.told.endswith(
        "0.00 % of its inputs are not 0 in the first batch: event-driven (event-driven below 10 %, forward below 26 %)"
    )
    assert len(measurements) == 1 and measurements[0].frames == 64


def test_event_lists_have_a_limit_of_their_own(measurements: list[sparsity.Place]) -> None:
    conv = make_conv()
    assert conv.rule is not None
    frames = make_maps((64, 8, 24, 24), 0.05).view(8, 8, 8, 24, 24)
    assert conv.rule.follows(as_events(frames), conv, True).gradient
    assert measurements == [sparsity.Place(8, 16, 3, 1, 1, 24, 24, 64, "float32", lists=True)]


def test_small_batches_are_dense_and_nothing_is_measured_for_them(measurements: list[sparsity.Place]) -> None:
    conv = make_conv()
    assert conv.rule is not None and not any(conv.rule.follows(make_maps((4, 8, 24, 24), 0.0), conv, True))
    assert not measurements and conv.rule.limits is None


def test_what_was_measured_is_kept_for_later_runs(measurements: list[sparsity.Place]) -> None:
    place = sparsity.Place(8, 16, 3, 1, 1, 24, 24, 64, "float32")
    first = sparsity.limits_of(place)
    sparsity.limits_of.cache_clear()  # as in another process
    assert sparsity.limits_of(place) == first and len(measurements) == 1
    assert sparsity.limits_of(place._replace(outputs=17)) != first and len(measurements) == 2


def test_where_nothing_can_be_kept_nothing_is_measured(
    measurements: list[sparsity.Place], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert sparsity.limits_of(sparsity.Place(8, 16, 3, 1, 1, 24, 24, 64, "float32")) == sparsity.UNMEASURED
    assert not measurements


def test_of_processes_that_begin_together_one_measures(
    measurements: list[sparsity.Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    def another_was_first(path: Path) -> Any:
        path.with_name(f"{sparsity._key(place)}.json").write_text("[0.01, 0.02]")
        return nullcontext()

    place = sparsity.Place(8, 16, 3, 1, 1, 24, 24, 64, "float32")
    monkeypatch.setattr(sparsity, "file_lock", another_was_first)
    assert sparsity.limits_of(place) == (0.01, 0.02) and not measurements


def test_processes_measure_for_the_same_frames_and_go_by_the_first_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    conv, places = make_conv(), []
    for start, stop in ((0, 16), (16, 31)):
        rows = Rows(start, stop, 31, (16, 15))
        monkeypatch.setattr(sparsity.collectives, "rows", lambda rows=rows: rows)
        places.append(sparsity._place(torch.zeros(4 * (stop - start), 8, 24, 24), conv))
    assert places[0] == places[1] and places[0].frames == 64
    monkeypatch.setattr(sparsity.ranks, "several", lambda: True)
    monkeypatch.setattr(sparsity.ranks, "from_first", lambda make: {"conv1": [0.1, 0.2]})
    sparsity.agree(conv)
    assert sparsity.limits_in(conv) == {"conv1": [0.1, 0.2]}


def test_users_without_a_home(measurements: list[sparsity.Place], monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    assert sparsity.limits_of(sparsity.Place(8, 16, 3, 1, 1, 24, 24, 64, "float32")) == sparsity.UNMEASURED
    assert not measurements


def test_a_run_goes_on_with_the_limits_of_its_state(measurements: list[sparsity.Place]) -> None:
    info = make_info()
    network = make_network(NETWORKS[0], info, build={"channels_last": True})
    assert sparsity.limits_in(network) == {}
    sparsity.go_by(network, {"conv2": [0.03, 0.04], "conv9": [0.5, 0.5]})
    assert sparsity.limits_in(network) == {"conv2": [0.03, 0.04]}
    always = make_network(NETWORKS[0], info, sparse="always")
    sparsity.go_by(always, {"conv2": [0.03, 0.04]})
    assert sparsity.limits_in(always) == {}


@pytest.mark.parametrize("lists", [False, True])
def test_measuring_leaves_the_runs_random_numbers_and_threads_alone(lists: bool) -> None:
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    with torch.no_grad():
        limits = sparsity.measure(sparsity.Place(2, 3, 3, 1, 1, 6, 6, 4, "float64", lists))
    assert all(limit in (0.0, *sparsity.DENSITIES) for limit in limits)
    assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == threads
    assert torch.is_grad_enabled()


class Clock(sparsity.Trial):
    """Following takes 0.1 ms a call, 0.06 ms a frame and as much again at full density; dense: 0.1 ms a frame."""

    frames = 0

    def times(self, x: Any, follows: bool) -> tuple[float, float]:
        Clock.frames = x.shape[0]
        seconds = 1e-4 + len(x) * 6e-5 * (1 + float(x.mean())) if follows else len(x) * 1e-4
        return seconds, 2 * seconds


def test_limits_are_measured_on_as_few_frames_as_tell_what_a_batch_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    place = sparsity.Place(8, 64, 5, 1, 0, 24, 24, 4096, "float32")
    monkeypatch.setattr(sparsity, "Trial", Clock)
    monkeypatch.setattr(sparsity, "_page_seconds", lambda: 0.0)
    assert sparsity.measure(place) == (0.19, 0.19)  # 0.1 / 8 + 0.06 * 1.19 is less than 0.85 of 0.1, with 1.25 more
    assert Clock.frames == 8  # 1 ms with the gradient, and more than three times what one frame takes
    monkeypatch.setattr(sparsity, "_page_seconds", lambda: 1.0)
    for kept, limits in ((True, (0.19, 0.4)), (False, (0.0, 0.0))):  # only the dense output's memory goes, or both's
        monkeypatch.setattr(sparsity.allocator, "prepared", kept)
        assert sparsity.measure(place) == limits  # outputs are of the forward product alone


def test_others_rest_while_limits_are_measured_and_not_while_that_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    moments: list[str] = []

    class Timed(Clock):
        def times(self, x: Any, follows: bool) -> tuple[float, float]:
            moments.append("dense" if not follows else "following")
            return super().times(x, follows)

    @contextmanager
    def rest() -> Iterator[None]:
        moments.append("rest")
        yield
        moments.append("go on")

    monkeypatch.setattr(sparsity, "Trial", Timed)
    with resting_by(rest):
        sparsity.measure(sparsity.Place(8, 64, 5, 1, 0, 24, 24, 4096, "float32"))
    assert moments[:3] == ["following", "dense", "rest"] and moments[-1] == "go on" and len(moments) > 20
    sparsity.measure(sparsity.Place(8, 64, 5, 1, 0, 24, 24, 4096, "float32"))
    assert moments.count("rest") == 1


def test_a_weights_gradient_that_the_engine_sums_up_takes_no_pass_over_the_map(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparsity, "Trial", Clock)
    monkeypatch.setattr(sparsity, "_page_seconds", lambda: 0.0)
    place = sparsity.Place(2, 64, 5, 1, 0, 24, 24, 4096, "float32")
    assert sparsity.measure(place).training == 0.19
    assert (
        sparsity.measure(place._replace(summed=True)).training == 0.4
    )  # 0.1 / 8 + 0.06 (1.4 + 1.5 * 0.4) is 0.13 of 0.2
    odd = place._replace(outputs=60)  # which fill no vectors
    assert sparsity.measure(odd._replace(summed=True)) == sparsity.measure(odd)
    behind = "c16k3-BN-SN-MP2-c16k3-BN-SN-MP2-FC10-SN", "c16k3-SN-MP2-FC10-SN", "MP2-c16k3-BN-SN-AP2-FC10-SN"
    learning = "BN-c16k3-BN-SN-AP2-FC10-SN", "SN-c16k3-BN-SN-AP2-FC10-SN"  # from the gradient of what goes in
    made = [make_network(spec, make_info(), build={"channels_last": True}) for spec in (*behind, *learning)]
    assert [net.get_submodule("conv1").summed for net in made] == [True, False, True, False, False]
    assert not made[0].get_submodule("conv2").summed


def test_the_dense_convolution_is_not_computed_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    conv = make_conv()
    conv.rule = sparsity.Rule("conv1", sparsity.ALWAYS)
    monkeypatch.setattr(Conv2d, "_conv_forward", None)
    assert conv(make_maps((2, 8, 5, 5), 0.5, dtype=torch.float32)).shape == (2, 16, 5, 5)
