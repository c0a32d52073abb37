"""The event-driven product: exact, deterministic for any number of threads, and right at the edges."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import as_events, make_info, make_network, make_spikes
from torch import Tensor

from snnexp.models.event_linear import event_driven_weight, event_linear, spike_linear
from snnexp.models.weights import SPARSE_HIDDEN_BELOW, Linear


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


@given(rows=st.integers(1, 9), features=st.integers(1, 70), outputs=st.integers(1, 140), share=st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_spikes_give_the_dense_product_and_all_its_gradients(
    rows: int, features: int, outputs: int, share: float
) -> None:
    x = (dense_frames(rows, features, share).view(rows, features) > 0).double().requires_grad_()
    weight = torch.randn(outputs, features, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(outputs, dtype=torch.float64, requires_grad=True)
    target = torch.randn(rows, outputs, dtype=torch.float64)
    ours = spike_linear(x, weight, bias, 2.0)
    assert ours is not None
    results = [F.linear(x, weight, bias), ours]
    torch.testing.assert_close(results[1], results[0], rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad((y * target).sum(), [x, weight, bias]) for y in results]
    for found, dense in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(found, dense, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("odd", [0.5, 2.0, -1.0, float("nan"), float("inf")])
def test_what_is_not_a_spike_is_left_to_the_dense_product(odd: float) -> None:
    x = torch.zeros(3, 20)
    x[1, 4] = 1
    assert spike_linear(x, torch.rand(4, 20), None, 2.0) is not None
    x[2, 17] = odd
    assert spike_linear(x, torch.rand(4, 20), None, 2.0) is None


def test_too_many_spikes_are_left_to_the_dense_product() -> None:
    x = torch.zeros(10, 10)
    x[:, 0] = 1
    assert spike_linear(x, torch.rand(4, 10), None, 0.1) is None
    assert spike_linear(x, torch.rand(4, 10), None, 0.11) is not None


def test_rows_that_spike_far_too_much_are_not_all_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("snnexp.models.event_linear._count", None)  # so that counting fails
    assert spike_linear(torch.ones(40, 10), torch.rand(4, 10), None, 0.5) is None


@pytest.mark.parametrize("sparse", ["always", "never"])
def test_a_network_gives_the_same_whether_its_layers_follow_the_spikes(sparse: str) -> None:
    info = make_info(steps=6)
    frames = make_spikes(info)
    expected, network = (make_network("FC20-SN-FC9-SN-FC-SN", info, sparse=s).double() for s in ("auto", sparse))
    network.load_state_dict(expected.state_dict())
    weights = [m for m in network.modules() if isinstance(m, Linear)]
    assert [m.sparse_below > 1 for m in weights] == [False, sparse == "always", sparse == "always"]
    results = []
    for net in (expected, network):
        loss = net(frames.double()).mem.square().sum()
        results.append((loss, *torch.autograd.grad(loss, list(net.parameters()))))
    assert results[0][0] > 0
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_only_wide_layers_behind_spikes_follow_them() -> None:
    spec = "c4k3-SN-MP2-FC300-SN-DP0.5-FC300-SN-FC-SN"
    network = make_network(spec, make_info())
    below = {n: m.sparse_below for n, m in network.named_children() if isinstance(m, Linear)}
    assert list(below.values()) == [SPARSE_HIDDEN_BELOW, 0.0, 0.0]  # dropout scales; few outputs are not worth it


def test_no_rows_at_all() -> None:
    weight, bias = torch.rand(4, 6, requires_grad=True), torch.rand(4)
    y = event_linear(as_events(torch.zeros(1, 0, 1, 2, 3)), weight, bias)
    assert y.shape == (0, 4)
    y.sum().backward()
    assert spike_linear(torch.zeros(0, 6), weight, bias, 2.0) is None
