"""A layer as a network runs it: pooling and counting in the same pass, membranes overwritten, gradients of sums."""

import itertools
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from engine_cases import all_options, pairwise_options
from torch import Tensor

from snnexp.neurons.engines import can_pool, run_layer, run_neurons
from snnexp.neurons.engines import numba_helpers as helpers
from snnexp.neurons.engines.fused import run_fused_layer
from snnexp.neurons.engines.numba_engine import BUSY_SHARE, NumbaBackend
from snnexp.neurons.equation import Dynamics, Pool, State
from snnexp.neurons.names import FUSED_SURROGATES
from snnexp.neurons.surrogates import Surrogate

PLAIN = Dynamics(Surrogate("atan"))
SIZES = [(2, 3, 4, 6), (2, 3, 5, 7), (1, 1, 4, 4), (3, 5, 2, 2), (2, 2, 9, 3), (1, 4, 3, 10)]  # B, C, H, W


def pooled_by_torch(spk: Tensor, pool: Pool) -> Tensor:
    pooling = F.max_pool2d if pool.kind == "max" else F.avg_pool2d
    return pooling(spk.flatten(0, 1), pool.size).unflatten(0, spk.shape[:2])


def needed_by_torch(near: Tensor, spk: Tensor, pool: Pool) -> Tensor:
    """Which pooled spikes are near: the one that the maximum is taken from, or any of an average."""
    if pool.kind == "avg":
        return F.max_pool2d(near.double().flatten(0, 1), pool.size).unflatten(0, spk.shape[:2]).byte()
    _, taken = F.max_pool2d(spk.flatten(0, 1), pool.size, return_indices=True)
    found = near.flatten(0, 1).flatten(2).gather(2, taken.flatten(2)).view(taken.shape)
    return found.unflatten(0, spk.shape[:2]).byte()


def check_pooling(number: int, row: tuple, compiled: bool) -> None:
    """Against the reference engine and torch's pooling: outputs bit for bit, gradients to 1e-10."""
    reset, strict, tau_form, detach, ignore, fire_once, force_last, relative, has_current = row
    surrogate = Surrogate(FUSED_SURROGATES[number % len(FUSED_SURROGATES)], slope=3.0)
    dynamics = Dynamics(surrogate, reset, strict, tau_form, detach, ignore, fire_once, force_last, relative)
    if not can_pool(dynamics, "numba", torch.float64):
        assert force_last and not fire_once
        return
    pick, generator = random.Random(number), torch.Generator().manual_seed(number)
    batch, channels, height, width = pick.choice(SIZES)
    pool = Pool(pick.choice(["max", "avg"]), pick.choice([2, 2, 3]) if min(height, width) > 2 else 2)
    steps = pick.choice([1, 3, 6])

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    def value() -> Tensor:
        return draw(*pick.choice([(), (channels, 1, 1), (channels, height, width)])).requires_grad_()

    x = draw(steps, batch, channels, height, width) * 3 - 0.5
    if pick.random() < 0.6:
        x = x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (steps, batch))
    x.requires_grad_()
    alpha = value() if has_current else None
    beta, threshold = value(), (value() + 0.3).detach().requires_grad_()
    leaves = [v for v in (x, alpha, beta, threshold) if v is not None]

    spk, mem, _ = run_neurons(x, alpha, beta, threshold, dynamics)
    expected = pooled_by_torch(spk, pool)
    weight = draw(*expected.shape)
    found = run_fused_layer(
        x, alpha, beta, threshold, dynamics, NumbaBackend(compiled), False, None, pool, True, pick.random() < 0.5,
        needed=number % 3 > 0,
    )  # fmt: skip
    assert torch.equal(found[0], expected) and torch.equal(found[1], mem), (row, pool)
    assert found[2] is not None and torch.equal(found[2], spk.sum(0))
    wanted = torch.autograd.grad((expected * weight).sum(), leaves, allow_unused=True)
    if number % 3 > 0:  # what is not needed changes nothing
        distance = (mem / threshold - 1 if relative else mem - threshold).detach()
        where = needed_by_torch(dynamics.surrogate.derivative(distance) != 0, spk.detach(), pool)
        assert found[3] is not None and torch.equal(found[3], where)
        weight = weight * where
    got = torch.autograd.grad((found[0] * weight).sum(), leaves, allow_unused=True)
    for leaf, a, b in zip(leaves, wanted, got, strict=True):
        a, b = (torch.zeros_like(leaf) if g is None else g for g in (a, b))
        assert (a - b).abs().max() <= 1e-10 * max(a.abs().max().item(), 1e-3), (row, pool, leaf.shape)


def test_pooling_over_the_full_product_of_options():
    for number, row in enumerate(all_options()):
        check_pooling(number, row, compiled=False)


def test_pooling_compiled():
    for number, row in enumerate(pairwise_options(0)[:3]):
        check_pooling(number, row, compiled=True)


@pytest.mark.slow
def test_pooling_compiled_over_all_pairs_of_options():
    for number, row in enumerate(pairwise_options(1)):
        check_pooling(number, row, compiled=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("engine", ["reference", "numba"])
def test_run_layer_is_the_same_for_all_engines(engine, dtype):
    x = (torch.rand(5, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2).to(dtype)
    beta, threshold = torch.tensor(0.9), torch.tensor(1.0)
    spk, mem, _ = run_neurons(x, None, beta, threshold, PLAIN)
    run = run_layer(x, None, beta, threshold, PLAIN, engine, pool=Pool("max", 2), counts=True, private=True)
    assert run.spk.dtype == dtype and torch.equal(run.spk, pooled_by_torch(spk, Pool("max", 2)))
    assert torch.equal(run.mem, mem) and not run.mem.requires_grad
    assert run.counts is not None and torch.equal(run.counts, spk.float().sum(0))


@pytest.mark.parametrize("pool", [None, Pool("max", 2)])
def test_private_membranes_give_their_memory_to_the_gradient_and_say_so(pool):
    x = torch.rand(5, 2, 3, 4, 4, requires_grad=True)
    beta, threshold = torch.tensor(0.9), torch.tensor(1.0)
    run = run_layer(x, None, beta, threshold, PLAIN, "numba", pool=pool, private=True)
    address = run.mem.data_ptr()
    run.spk.sum().backward(retain_graph=True)
    assert x.grad is not None and x.grad.data_ptr() == address
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        run.spk.sum().backward()


@pytest.mark.parametrize("shape", [(7,), (2, 3, 3)])
def test_a_gradient_that_is_the_same_at_all_steps_is_never_written_out(shape):
    """Sums and means over time: a view with stride 0 comes in, and the result has the bits of the written-out one."""
    x = torch.rand(6, 3, *shape, requires_grad=True)
    beta, threshold = torch.tensor(0.9), torch.tensor(1.0, requires_grad=True)
    weight = torch.rand(3, *shape)
    grads = []
    for written_out in (False, True):
        spk = run_layer(x, None, beta, threshold, PLAIN, "numba").spk
        given = weight.expand_as(spk)
        grads.append(torch.autograd.grad(spk, [x, threshold], given.contiguous() if written_out else given))
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("kind", ["max", "avg"])
def test_threads_do_not_change_pooled_bits(kind):
    x = torch.rand(4, 3, 24, 33, 20).permute(0, 1, 4, 2, 3).requires_grad_()  # channels_last, more than 2**16 elements
    results = []
    for count in (1, 2):
        torch.set_num_threads(count)
        threshold = torch.full((20, 1, 1), 0.9, requires_grad=True)
        run = run_layer(x, None, torch.tensor(0.8), threshold, PLAIN, "numba", pool=Pool(kind, 2), counts=True)
        results.append((run.spk, run.counts, *torch.autograd.grad(run.spk.square().sum(), [x, threshold])))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_nan_and_inf_pool_as_in_the_reference():
    x = torch.rand(4, 1, 2, 4, 4) * 2
    for position, bad in itertools.product([(0, 0, 0, 0, 0), (2, 0, 1, 3, 2)], [float("nan"), float("inf")]):
        x[position] = bad
    x.requires_grad_()
    beta, threshold = torch.tensor(0.9), torch.tensor(1.0)
    spk, mem, _ = run_neurons(x, None, beta, threshold, PLAIN)
    expected = pooled_by_torch(spk, Pool("max", 2))
    run = run_layer(x, None, beta, threshold, PLAIN, "numba", pool=Pool("max", 2))
    torch.testing.assert_close(run.mem, mem, equal_nan=True, rtol=0, atol=0)
    assert torch.equal(run.spk, expected)
    weight = torch.rand_like(expected)
    (a,), (b,) = (torch.autograd.grad((s * weight).sum(), x) for s in (expected, run.spk))
    torch.testing.assert_close(a, b, equal_nan=True)


@pytest.mark.parametrize("share", [0.02, 0.9])
@pytest.mark.parametrize("state", [False, True])
def test_recurrent_layers_agree_whether_few_or_many_spike(share, state):
    """Few: the weights of those that do are added up. Many: a dense product per step, from the second stretch on."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(40, 3, 12, generator=generator, dtype=torch.float64)
    x = (x < share).double().mul(2).requires_grad_()
    weight = (torch.rand(12, 12, generator=generator, dtype=torch.float64) * 0.2 - 0.1).requires_grad_()
    beta, threshold = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.5, 1.0))
    start = None
    if state:
        mem = torch.rand(3, 12, generator=generator, dtype=torch.float64) * 2
        start = State(mem, (mem >= 1).double(), None, None)
    results = []
    for engine in ("reference", "numba"):
        spk, mem, _ = run_neurons(x, None, beta, threshold, PLAIN, start, engine, recurrent=weight)
        loss = (spk * torch.linspace(0, 1, 40, dtype=torch.float64).view(-1, 1, 1)).sum()
        results.append((spk, mem, *torch.autograd.grad(loss, [x, weight, beta, threshold])))
    rate = results[0][0].mean()
    assert rate < 0.1 if share < 0.5 else rate > BUSY_SHARE
    assert torch.equal(results[0][0], results[1][0])
    for a, b in zip(results[0][1:], results[1][1:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_a_second_backward_pass_is_refused_even_if_somebody_packs_saved_tensors():
    x = torch.rand(5, 2, 6, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
        run = run_layer(x, None, torch.tensor(0.9), torch.tensor(1.0), PLAIN, "numba", private=True)
    run.spk.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        run.spk.sum().backward()


@pytest.mark.parametrize("share", [0.1, 0.9])  # of spikes: single weights are added up, or one product per step
def test_recurrent_layers_count_their_spikes(share: float) -> None:
    """They counted none while few neurons fired."""
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.rand(40, 3, 16, generator=generator), torch.rand(16, 16, generator=generator) * 0.02
    beta, threshold = torch.tensor(0.0), torch.tensor(1.05 - share)
    run = run_layer(x, None, beta, threshold, PLAIN, "numba", recurrent=weight, counts=True)
    assert 0 < run.spk.mean() < 1 and torch.equal(run.counts, run.spk.sum(0))


def test_windows_of_any_number_of_channels_pool_alike_and_nothing_else_is_touched():
    """Vectors that reach into neighbouring pixels, against the loops for what is too short for them."""
    rng = np.random.default_rng(0)
    one, zero = np.float32(1), np.float32(0)
    for inner, width, bands, average in itertools.product(
        (1, 3, 4, 7, 12, 16, 21, 40), (2, 3, 8, 11), (1, 3), (False, True)
    ):
        row, wide = inner * width, width // 2
        spk = (rng.random(bands * 2 * row) < 0.3).astype(np.float32)
        grad_out, free = rng.standard_normal(bands * wide * inner, np.float32), np.empty(inner, np.float32)
        pooled, routed = np.full((2, grad_out.size + 64), 7.0, np.float32), np.full((2, spk.size + 64), 7.0, np.float32)
        ways = (helpers.pool, helpers.unpool), (helpers._pool_any, helpers._unpool_any)
        for which, (forward, backward) in enumerate(ways):
            forward(spk, pooled[which, : grad_out.size], bands, row, inner, 2, average)
            backward(spk, grad_out, routed[which, : spk.size], free, bands, row, inner, 2, average, one, zero)
        assert np.array_equal(pooled[0], pooled[1]) and np.array_equal(routed[0], routed[1]), (inner, width, bands)
