"""The event-driven product: exact, deterministic for any number of threads, and right at the edges."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import as_events
from torch import Tensor

from snnexp.models.event_linear import event_driven_weight, event_linear


def dense_frames(rows: int, features: int, share: float, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(rows * features)
    spikes = torch.rand(rows, 1, 1, 1, features, generator=generator) < share
    return (spikes * torch.randint(1, 5, spikes.shape, generator=generator)).to(dtype)


@given(rows=st.integers(1, 9), features=st.integers(1, 70), outputs=st.integers(1, 140), share=st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_equals_the_dense_product_and_its_gradients(rows: int, features: int, outputs: int, share: float) -> None:
    x = dense_frames(rows, features, share)
    weight = torch.randn(outputs, features, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(outputs, dtype=torch.float64, requires_grad=True)
    target = torch.randn(rows, outputs, dtype=torch.float64)
    results = [F.linear(x.view(rows, features), weight, bias), event_linear(as_events(x), weight, bias)]
    torch.testing.assert_close(results[1], results[0], rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad((y * target).sum(), [weight, bias]) for y in results]
    for ours, dense in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(ours, dense, rtol=1e-12, atol=1e-12)


def test_lists_without_values_count_one_each() -> None:
    x = (dense_frames(5, 33, 0.4) > 0).double()
    weight = torch.randn(7, 33, dtype=torch.float64)
    assert torch.equal(
        event_linear(as_events(x, values=False), weight, None), event_linear(as_events(x, values=True), weight, None)
    )


def test_no_events_give_the_bias_and_no_gradient() -> None:
    weight = torch.ones(3, 4, requires_grad=True)
    y = event_linear(as_events(torch.zeros(2, 2, 1, 2, 2)), weight, torch.tensor([1.0, 2.0, 3.0]))
    assert y.tolist() == [[1.0, 2.0, 3.0]] * 4
    y.sum().backward()
    assert weight.grad is not None
    assert weight.grad.abs().max() == 0


def test_float32_is_no_worse_than_the_dense_product() -> None:
    x = dense_frames(200, 500, 0.05)
    weight = torch.randn(100, 500, dtype=torch.float64)
    exact = F.linear(x.view(200, 500), weight)
    ours = event_linear(as_events(x.float()), weight.float(), None)
    dense = F.linear(x.view(200, 500).float(), weight.float())
    assert ours.dtype == torch.float32
    assert (ours - exact).abs().max() <= 2 * (dense - exact).abs().max()


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_the_number_of_threads_changes_no_bit() -> None:
    frames = as_events(dense_frames(300, 200, 0.1, torch.float32))
    results = []
    for count in (1, 2):
        torch.set_num_threads(count)
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(150, 200, generator=generator, requires_grad=True)
        y = event_linear(frames, weight, None)
        y.backward(torch.randn(y.shape, generator=generator))
        results.append((y, weight.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][1] is not None and results[1][1] is not None
    assert torch.equal(results[0][1], results[1][1])


def test_column_storage_trains_like_plain_storage() -> None:
    torch.manual_seed(0)
    plain, columns = torch.nn.Linear(30, 8), torch.nn.Linear(30, 8)
    columns.load_state_dict(plain.state_dict())
    event_driven_weight(columns)
    assert columns.weight.stride() == (1, 8)
    assert columns.state_dict()["weight"].is_contiguous()
    frames = dense_frames(6, 30, 0.5, torch.float32)
    for layer in (plain, columns):
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            event_linear(as_events(frames), layer.weight, layer.bias).square().sum().backward()
            optimizer.step()
        assert layer.weight.grad is not None
    torch.testing.assert_close(columns.weight, plain.weight)
    assert columns.weight.stride() == (1, 8)
