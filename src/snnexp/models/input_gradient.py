"""Input gradients of convolutions and fully connected layers, worked out only where they are needed.

    dx[n, iy, ix, c] = sum over ky, kx, o of W[o, c, ky, kx] g[n, oy, ox, o]
    where oy s = iy + pad - ky, ox s = ix + pad - kx

A surrogate gradient of compact support is exactly zero away from the threshold, so most of what a layer hands back to
the spikes below comes to nothing (`neurons.compiler.plan.where_needed`). Each number that is needed is a product of two
vectors: with the weights as [C, ky, kx, O], flipped, and maps channels last, every row of the kernel is one piece of
both. With a stride s the pixels fall into s x s kinds, each with its own share of the kernel. A fully connected layer
is the case of one pixel. Sums have one order, whatever the number of threads.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from snnexp import buffers
from snnexp.arrays import flat_maps
from snnexp.parallel import run_parallel

VECTOR = 64  # bytes of the kernels' vectors, which rows of weights are multiples of
COPY_BYTES = 1 << 17  # of the output's gradient that a task holds: half of a small second-level cache
SLOWDOWN = 2.4  # of a product here against one of a dense layer
NEAR = 2048  # weights of a channel that stay in a first-level cache; more take a third longer
FIXED = 110.0  # products in whose time a number of the gradient is listed, or summed up in the end
PACKED = 200.0  # products in whose time a weight is packed
LEAST_WORK = 3e7  # products of a dense gradient, below which the calls cost more than there is to gain
ROWS = 64  # of a fully connected layer that a task does together


def pays(share: float, products: float, padded: float, rows: int, channels: int) -> bool:
    """Whether a gradient of rows x channels, of which the share is needed, is faster here than dense.

    products: that each number of it is a sum of; padded: with the zeros of packed weights.
    """
    if rows * channels * products < LEAST_WORK:
        return False
    return _cost(share, padded, rows, channels) < 0.9 * rows * channels * products


def _cost(share: float, padded: float, rows: int, channels: int) -> float:
    """Products of a dense layer in whose time it is worked out here."""
    slowdown = SLOWDOWN * (1.3 if padded > NEAR else 1)
    return channels * (rows * (share * slowdown * (padded + FIXED) + FIXED) + PACKED * padded)


def conv_cost(share: float, weight: Tensor, shape: torch.Size, stride: int) -> float:
    """The same for a convolution's input of this shape [N, C, H, W]; weight [O, C, k, k]."""
    outputs, channels, size, _ = weight.shape
    table = _table(channels, outputs, size, stride, VECTOR // weight.element_size())
    return _cost(share, float((table[:, 1] * table[:, 2]).mean()), shape[0] * shape[2] * shape[3], channels)


def may_pay(products: float) -> bool:
    """Whether it ever is, so that anybody need say what is needed."""
    return 0.9 * products > FIXED


class Pieces(NamedTuple):
    """How a convolution's input falls apart: what is the same for all frames."""

    kinds: NDArray[np.int32]  # of each pixel
    places: NDArray[np.int64]  # where each pixel's products begin in a frame of g with zeros around it
    taps: int  # output rows that an input row takes part in, at most
    row: int  # numbers in a row of that frame


@lru_cache(64)
def _pieces(height: int, width: int, size: int, stride: int, pad: int, outputs: int) -> Pieces:
    iy, ix = np.mgrid[:height, :width] + pad
    taps = -(-size // stride)
    row = ((width - 1 + pad) // stride + taps) * outputs
    y, x = (at // stride + taps + (at % stride - size) // stride for at in (iy, ix))
    kinds = (iy % stride * stride + ix % stride).astype(np.int32)
    return Pieces(kinds.ravel(), (y * row + x * outputs).ravel(), taps, row)


def _table(channels: int, outputs: int, size: int, stride: int, lanes: int) -> NDArray[np.int64]:
    """Of each kind of pixels: where its weights begin, how many rows of them a channel has, and how long a row is."""
    table, at = [], 0
    for ry in range(stride):
        for rx in range(stride):
            rows, columns = (max(0, -(-(size - r) // stride)) for r in (ry, rx))
            length = -(-columns * outputs // lanes) * lanes if rows else 0
            table.append((at, rows, length))
            at += channels * rows * length
    return np.array(table, np.int64)


def _packed(weight: Tensor, stride: int, table: NDArray[np.int64]) -> NDArray[Any]:
    """The weights of each kind of pixels, [C, rows, length], with zeros at the end of rows."""
    outputs, channels, size, _ = weight.shape
    last, parts = weight.detach().reshape(outputs, -1).t().contiguous().view(channels, size, size, outputs), []
    for kind, (_, rows, length) in enumerate(table.tolist()):
        if rows and length:
            part = last[:, kind // stride :: stride, kind % stride :: stride].flip(1, 2).flatten(2)
            parts.append(F.pad(part, (0, length - part.shape[2])).reshape(-1))
    packed: NDArray[Any] = torch.cat(parts).numpy()
    return packed


def conv_input_gradient(
    grad: Tensor, weight: Tensor, stride: int, pad: int, needed: Tensor, share: float | None, speed: float = 1.0
) -> Tensor | None:
    """The gradient of a convolution's input where `needed` is 1, else 0; None if the dense one is faster.

    grad [N, O, OH, OW]; weight [O, C, k, k]; needed uint8 [N, C, H, W] in channels_last, and so is what is
    returned; share: of it that is 1, None: whatever it costs; speed: of the dense one, 1 if it makes all products.
    """
    (outputs, channels, size, _), (frames, _, height, width) = weight.shape, needed.shape
    table = _table(channels, outputs, size, stride, VECTOR // weight.element_size())
    padded, numbers = float((table[:, 1] * table[:, 2]).mean()), frames * height * width
    taps = [_taps(*sides, size, stride, pad) for sides in zip(grad.shape[2:], (height, width), strict=True)]
    products = frames * outputs * taps[0] * taps[1] / max(numbers, 1) / speed  # of a number, edges among them
    if share is not None and not pays(share, products, padded, numbers, channels):
        return None
    pieces = _pieces(height, width, size, stride, pad, outputs)
    found = buffers.empty(needed.shape, grad.dtype, channels_last=True)
    geometry = (height, width, channels, grad.shape[2], grad.shape[3], outputs, stride, pad, pieces.taps, pieces.row)
    rows = COPY_BYTES // (pieces.row * grad.element_size()) - pieces.taps
    band = min(height, max(1, rows * stride))
    flat = flat_maps(grad.contiguous(memory_format=torch.channels_last)), _packed(weight, stride, table)
    _run(*flat, flat_maps(needed), flat_maps(found), pieces, table, geometry, band, frames * -(-height // band))
    return found


def _taps(out: int, side: int, size: int, stride: int, pad: int) -> int:
    """Pairs of an output and an input row that one takes part in the other: the padding is in none."""
    first = np.arange(out) * stride - pad
    return int((np.minimum(first + size, side) - np.maximum(first, 0)).clip(0).sum())


def linear_input_gradient(grad: Tensor, columns: Tensor, needed: Tensor, share: float | None) -> Tensor | None:
    """The same for a fully connected layer: grad [rows, out], columns [in, out], needed uint8 [rows, in]."""
    (rows, outputs), inputs = grad.shape, columns.shape[0]
    lanes = VECTOR // grad.element_size()
    length = -(-outputs // lanes) * lanes
    if share is not None and not pays(share, outputs, length, rows, inputs):
        return None
    weights = F.pad(columns.detach(), (0, length - outputs)).contiguous()
    found = torch.empty(needed.shape, dtype=grad.dtype)
    one = Pieces(np.zeros(rows, np.int32), np.arange(rows) * outputs, 1, outputs)
    geometry = (rows, 1, inputs, rows, 1, outputs, 1, 0, 1, outputs)
    table = np.array([(0, 1, length)], np.int64)
    given = grad.detach().contiguous(), weights, needed.contiguous()
    g, w, where = (t.reshape(-1).numpy() for t in given)
    _run(g, w, where, found.view(-1).numpy(), one, table, geometry, ROWS, -(-rows // ROWS))
    return found


def _run(
    grad: NDArray[Any],
    weights: NDArray[Any],
    needed: NDArray[np.uint8],
    found: NDArray[Any],
    pieces: Pieces,
    table: NDArray[np.int64],
    geometry: tuple[int, ...],
    band: int,
    tasks: int,
) -> None:
    from snnexp.models.input_gradient_kernels import input_gradient  # numba takes 0.2 s to import

    given = (grad, weights, needed, found, pieces.kinds, table, pieces.places, geometry, band)
    run_parallel(lambda start, stop: input_gradient(*given, start, stop), tasks, torch.get_num_threads())
