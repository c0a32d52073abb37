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
from torch import Tensor, nn

from snnexp.data.base import EventFrames


def event_driven_weight(linear: nn.Linear) -> None:
    """Store the weight of `linear` column by column. Its shape [out, in] and values stay; the state dict is plain."""
    linear.weight = nn.Parameter(linear.weight.detach().t().contiguous().t())
    linear.register_state_dict_post_hook(_contiguous_in_state_dict)  # type: ignore[no-untyped-call]


def _contiguous_in_state_dict(module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
    state[prefix + "weight"] = state[prefix + "weight"].contiguous()  # safetensors refuses strided tensors


def event_linear(frames: EventFrames, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The layer's output [T*B, out] for event lists, as F.linear gives on the dense input; weight and bias learn.

    weight: [out, in]; fastest if stored column by column.
    """
    columns = weight.t().contiguous()  # no copy if stored column by column
    if columns.is_cuda:
        y = F.embedding_bag(
            frames.indices.long(),
            columns,
            frames.offsets,
            mode="sum",
            per_sample_weights=frames.values,
            include_last_offset=True,
        )
    else:
        y = _EventProduct.apply(columns, frames.indices, frames.offsets, frames.values)  # type: ignore[no-untyped-call]
    return y if bias is None else y + bias


class _EventProduct(torch.autograd.Function):
    """columns [in, out], events of each row -> [rows, out]; the gradient of columns is the same sum transposed."""

    @staticmethod
    def forward(ctx: Any, columns: Tensor, indices: Tensor, offsets: Tensor, values: Tensor | None) -> Tensor:
        ctx.events = (indices, offsets, values)
        ctx.shape = columns.shape
        out = torch.empty(offsets.numel() - 1, columns.shape[1], dtype=columns.dtype)
        _run(_forward, columns, indices, offsets, values, out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        indices, offsets, values = ctx.events
        columns_grad = torch.zeros(ctx.shape, dtype=grad.dtype)
        share = grad.shape[1] // torch.get_num_threads()
        block = max(64, (share + 15) // 16 * 16)  # outputs per task; 16 floats are a cache line, which has one owner
        _run(_backward, grad.contiguous(), indices, offsets, values, columns_grad, block)
        return columns_grad, None, None, None


def _run(
    kernel: Any, source: Tensor, indices: Tensor, offsets: Tensor, values: Tensor | None, target: Tensor, *extra: int
) -> None:
    dtype = np.float64 if source.dtype == torch.float64 else np.float32
    weights = np.empty(0, dtype) if values is None else values.detach().numpy().astype(dtype, copy=False)
    numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))
    kernel(source.detach().numpy(), indices.numpy(), offsets.numpy(), weights, target.numpy(), *extra)


@numba.njit(parallel=True, cache=True)
def _forward(columns, indices, offsets, values, out):  # type: ignore[no-untyped-def]
    rows, width = out.shape
    weighted = values.size > 0
    for r in numba.prange(rows):
        acc = out[r]
        acc[:] = 0
        j, end = offsets[r], offsets[r + 1]
        while j + 4 <= end:  # four at a time: the sum is read and written once instead of four times
            a, b, c, d = columns[indices[j]], columns[indices[j + 1]], columns[indices[j + 2]], columns[indices[j + 3]]
            if weighted:
                va, vb, vc, vd = values[j], values[j + 1], values[j + 2], values[j + 3]
                for o in range(width):
                    acc[o] = acc[o] + va * a[o] + vb * b[o] + vc * c[o] + vd * d[o]
            else:
                for o in range(width):
                    acc[o] = acc[o] + a[o] + b[o] + c[o] + d[o]
            j += 4
        while j < end:
            a = columns[indices[j]]
            if weighted:
                va = values[j]
                for o in range(width):
                    acc[o] += va * a[o]
            else:
                for o in range(width):
                    acc[o] += a[o]
            j += 1


@numba.njit(parallel=True, cache=True)
def _backward(grad, indices, offsets, values, columns_grad, block):  # type: ignore[no-untyped-def]
    rows, width = grad.shape
    weighted = values.size > 0
    for b in numba.prange((width + block - 1) // block):  # each task owns its outputs, so the order of sums is fixed
        low, high = b * block, min((b + 1) * block, width)
        for r in range(rows):
            g = grad[r, low:high]
            for j in range(offsets[r], offsets[r + 1]):
                target = columns_grad[indices[j], low:high]
                if weighted:
                    v = values[j]
                    for o in range(high - low):
                        target[o] += v * g[o]
                else:
                    for o in range(high - low):
                        target[o] += g[o]
