"""The convolution that follows spikes: exact, deterministic for any number of threads, and right at the edges."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import as_events
from torch import Tensor

from snnexp.models.event_conv import dense_input_gradient, event_conv
from snnexp.models.event_lists import density, list_maps


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
    assert ours_equals(dense, event_conv(x, weight, bias, stride, pad), target, x, weight, bias)
    lists = as_events(x.detach().unsqueeze(0).contiguous())
    dense = F.conv2d(x, weight, bias, stride, pad)
    assert ours_equals(dense, event_conv(lists, weight, bias, stride, pad), target, weight, bias)


def ours_equals(dense: Tensor, ours: Tensor, target: Tensor, *inputs: Tensor | None) -> bool:
    """Whether both are the same, and the gradients that they hand to the inputs."""
    given = [t for t in inputs if t is not None]
    pairs = zip((ours, *gradients(ours, target, given)), (dense, *gradients(dense, target, given)), strict=True)
    return all(torch.allclose(a, b, rtol=1e-10, atol=1e-10) for a, b in pairs)


def gradients(y: Tensor, target: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad((y * target).sum(), inputs)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


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
    x[8, 1, 2] = 2.0
    assert density(x) == 5 / 60
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
