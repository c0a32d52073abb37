"""A fully connected layer that reads event lists: its cost follows the events, not the pixels.

    y[r, :] = sum over the events (i, v) of row r of  v * W[:, i]  + bias        r = t*B + b

The weight is kept as [out, in] for everybody, but stored column by column (`event_driven_weight`), so that the weights
of one input are neighbours in memory: both directions then add whole rows. On the CPU two numba kernels do it; on CUDA
torch's embedding_bag. Sums run in the order of the events, whatever the number of threads. Lists pay up to about 8 % of
non-zero inputs (docs/models.md); `dataset.sparse` decides whether they are handed over, and a network that gets them
uses them.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from snnexp.arrays import number_type
from snnexp.data.base import EventFrames
from snnexp.models.needed import Needed
from snnexp.parallel import run_parallel

SAMPLED = 13  # of so many rows one is looked at first; a prime, so that it is not always the same samples'
CLEARLY = 1.5  # times the limit, from which on the others are not looked at


def event_driven_weight(linear: nn.Linear) -> None:
    """Store the weight of `linear` column by column. Its shape [out, in] and values stay; the state dict is plain."""
    linear.weight = nn.Parameter(linear.weight.detach().t().contiguous().t())
    linear.register_state_dict_post_hook(_contiguous_in_state_dict)  # type: ignore[no-untyped-call]


def _contiguous_in_state_dict(module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
    if (key := prefix + "weight") in state:  # a parametrization has it under another name
        state[key] = state[key].contiguous()  # safetensors refuses strided tensors


def event_linear(frames: EventFrames, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The layer's output [T*B, out] for event lists, as F.linear gives on the dense input; weight and bias learn.

    weight: [out, in]; fastest if stored column by column.
    """
    columns = weight.t().contiguous()  # no copy if stored column by column
    if not columns.is_cuda:
        lists = (frames.indices, frames.offsets, frames.values)
        product: Tensor = _EventProduct.apply(None, columns, bias, *lists, None)  # type: ignore[no-untyped-call]
        return product
    y = F.embedding_bag(
        frames.indices.long(),
        columns,
        frames.offsets,
        mode="sum",
        per_sample_weights=frames.values,
        include_last_offset=True,
    )
    return y if bias is None else y + bias


def spike_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, below: float, needed: Needed | None = None
) -> Tensor | None:
    """F.linear for spikes x [rows, in], by the lists of those that are there; None if that does not pay or fit.

    It pays if less than the share `below` of x is 1, and fits if all else is 0. Two of the three products follow the
    spikes: forward, and the weights' gradient; that of x is there where it is needed.
    """
    lists = _spike_lists(x.detach(), below)
    if lists is None:
        return None
    product: Tensor = _EventProduct.apply(x, weight.t().contiguous(), bias, *lists, None, needed)  # type: ignore[no-untyped-call]
    return product


def _spike_lists(x: Tensor, below: float) -> tuple[Tensor, Tensor] | None:
    """Positions of the ones in each row of x [rows, in] (int32), and where each row's begin (int64 [rows + 1])."""
    rows, width = x.shape
    flat = x.reshape(-1).numpy()
    if _share(flat, rows, width) >= CLEARLY * below:
        return None
    counts = np.zeros(rows + 1, np.int64)
    blocks, threads = -(-rows // _ROWS), torch.get_num_threads()
    run_parallel(lambda start, stop: _count(flat, width, counts, _ROWS, start, stop), blocks, threads)
    if counts.min(initial=0) < 0:
        return None
    offsets = np.cumsum(counts)
    if offsets[-1] >= below * x.numel():
        return None
    indices = np.empty(int(offsets[-1]), np.int32)
    run_parallel(lambda start, stop: _list(flat, width, offsets, indices, _ROWS, start, stop), blocks, threads)
    return torch.from_numpy(indices), torch.from_numpy(offsets)


def _share(flat: NDArray[Any], rows: int, width: int) -> float:
    """Mean of every SAMPLED-th row of x [rows * width] flat: the share that spikes, if these are spikes."""
    some = flat.reshape(rows, width)[::SAMPLED]
    return float(some.sum()) / max(some.size, 1)


class _EventProduct(torch.autograd.Function):
    """(x or None, columns [in, out], bias, events of each row) -> [rows, out].

    The gradient of columns is the same sum transposed. x [rows, in], if given, is what the lists were made from.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor | None,
        columns: Tensor,
        bias: Tensor | None,
        indices: Tensor,
        offsets: Tensor,
        values: Tensor | None,
        needed: Needed | None,
    ) -> Tensor:
        ctx.events, ctx.needed = (indices, offsets, values), needed
        ctx.save_for_backward(columns)
        rows, width = offsets.numel() - 1, columns.shape[1]
        out = torch.empty(rows, width, dtype=columns.dtype)
        start = np.zeros(width, columns.detach().numpy().dtype) if bias is None else bias.detach().numpy()
        _run(_forward, columns, indices, offsets, values, out, (start, _ROWS), -(-rows // _ROWS))
        return out

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (columns,) = ctx.saved_tensors
        indices, offsets, values = ctx.events
        needs_x, needs_columns, needs_bias = ctx.needs_input_grad[:3]
        columns_grad = None
        if needs_columns:
            columns_grad = torch.zeros(columns.shape, dtype=grad.dtype)
            bounds = _shares(indices, columns.shape[0], torch.get_num_threads())
            _run(_backward, grad.contiguous(), indices, offsets, values, columns_grad, (bounds,), bounds.size - 1)
        x_grad = None
        if needs_x:
            x_grad = grad @ columns.t() if ctx.needed is None else ctx.needed.linear_input_gradient(grad, columns)
        return x_grad, columns_grad, grad.sum(0) if needs_bias else None, None, None, None, None


_ROWS = 64  # per task of the forward product


def _shares(indices: Tensor, inputs: int, threads: int) -> NDArray[np.uint64]:
    """Bounds between ranges of inputs with about as many events each, going by a sample of them.

    A range of inputs is one piece of memory. Threads that shared rows, each with its own outputs, took three times as
    long: the processor fetches ahead across the border, lines that the other one is writing.
    """
    if threads == 1 or indices.numel() == 0:
        return np.array([0, inputs], np.uint64)
    pieces = 2 * threads
    some = np.sort(indices[:: max(1, indices.numel() // 4096)].numpy())
    cuts = some[np.arange(1, pieces) * len(some) // pieces]
    return np.concatenate([[0], cuts, [inputs]]).astype(np.uint64)


def _run(
    kernel: Any,
    source: Tensor,
    indices: Tensor,
    offsets: Tensor,
    values: Tensor | None,
    target: Tensor,
    extra: tuple[Any, ...],
    blocks: int,
) -> None:
    dtype = number_type(source.dtype)
    weights = np.empty(0, dtype) if values is None else values.detach().numpy().astype(dtype, copy=False)
    arguments = (source.detach().view(-1).numpy(), indices.numpy(), offsets.numpy(), weights, target.view(-1).numpy())
    width = target.shape[1]
    run_parallel(lambda start, stop: kernel(*arguments, width, *extra, start, stop), blocks, torch.get_num_threads())


# Flat arrays and unsigned indices: a view per event would count references to the same array in all threads, which
# costs more than the sum, and a signed index would be tested for being negative.


@numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})
def _forward(columns, indices, offsets, values, out, outputs, bias, block, start, stop):  # type: ignore[no-untyped-def]
    """columns [in * outputs] flat, out [rows * outputs] flat; tasks start..stop of `block` rows each."""
    width, one, four = np.uint64(outputs), np.uint64(1), np.uint64(4)
    weighted = values.size > 0
    for r in range(start * block, min(stop * block, offsets.size - 1)):
        y = np.uint64(r) * width
        for o in range(width):
            out[y + o] = bias[o]
        j, end = np.uint64(offsets[r]), np.uint64(offsets[r + 1])
        while j + four <= end:  # four at a time: the sum is read, written and rounded once instead of four times
            a, b = np.uint64(indices[j]) * width, np.uint64(indices[j + one]) * width
            c, d = np.uint64(indices[j + np.uint64(2)]) * width, np.uint64(indices[j + np.uint64(3)]) * width
            if weighted:
                va, vb, vc, vd = values[j], values[j + one], values[j + np.uint64(2)], values[j + np.uint64(3)]
                for o in range(width):
                    out[y + o] += (va * columns[a + o] + vb * columns[b + o]) + (
                        vc * columns[c + o] + vd * columns[d + o]
                    )
            else:
                for o in range(width):
                    out[y + o] += (columns[a + o] + columns[b + o]) + (columns[c + o] + columns[d + o])
            j += four
        while j < end:
            a = np.uint64(indices[j]) * width
            if weighted:
                va = values[j]
                for o in range(width):
                    out[y + o] += va * columns[a + o]
            else:
                for o in range(width):
                    out[y + o] += columns[a + o]
            j += one


@numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})
def _backward(grad, indices, offsets, values, columns_grad, outputs, bounds, start, stop):  # type: ignore[no-untyped-def]
    """grad [rows * outputs] flat, columns_grad [in * outputs] flat; inputs bounds[start] to bounds[stop] only.

    An input belongs to one task, which goes through the rows in order, so each sum has one order.
    """
    width, one = np.uint64(outputs), np.uint64(1)
    weighted = values.size > 0
    first, last = bounds[start], bounds[stop]
    some = first > bounds[0] or last < bounds[bounds.size - 1]
    for r in range(offsets.size - 1):
        g = np.uint64(r) * width
        j, end = np.uint64(offsets[r]), np.uint64(offsets[r + 1])
        if some:
            j, end = _lower_bound(indices, j, end, first), _lower_bound(indices, j, end, last)
        while j < end:
            target = np.uint64(indices[j]) * width
            if weighted:
                v = values[j]
                for o in range(width):
                    columns_grad[target + o] += v * grad[g + o]
            else:
                for o in range(width):
                    columns_grad[target + o] += grad[g + o]
            j += one


@numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})
def _lower_bound(indices, low, high, value):  # type: ignore[no-untyped-def]
    """First position in [low, high) of the rising indices that is not below value."""
    while low < high:
        middle = (low + high) >> np.uint64(1)
        if np.uint64(indices[middle]) < value:
            low = middle + np.uint64(1)
        else:
            high = middle
    return low


# Sums of zeros and ones may be taken in any order, so these two may use vectors.


@numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc"})
def _count(x, width, counts, block, start, stop):  # type: ignore[no-untyped-def]
    """counts[r + 1]: ones in row r of x [rows * width] flat; -1 if anything in it is neither 0 nor 1."""
    wide, one, zero = np.uint64(width), x.dtype.type(1), x.dtype.type(0)
    for r in range(start * block, min(stop * block, counts.size - 1)):
        at = np.uint64(r) * wide
        ones, others = zero, zero
        for i in range(wide):
            v = x[at + i]
            ones += v
            others += abs(v * (one - v))
        counts[r + 1] = np.int64(ones) if others == zero else -1


@numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc"})
def _list(x, width, offsets, indices, block, start, stop):  # type: ignore[no-untyped-def]
    """Write down where the ones of each row are. Sixteen inputs at a time are skipped if there is none."""
    wide, zero = np.uint64(width), x.dtype.type(0)
    for r in range(start * block, min(stop * block, offsets.size - 1)):
        at, j = np.uint64(r) * wide, np.uint64(offsets[r])
        for group in range(np.uint64(0), wide, np.uint64(16)):
            end = min(group + np.uint64(16), wide)
            total = zero
            for k in range(group, end):
                total += x[at + k]
            if total != zero:
                for k in range(group, end):
                    if x[at + k] != zero:
                        indices[j] = k
                        j += np.uint64(1)
