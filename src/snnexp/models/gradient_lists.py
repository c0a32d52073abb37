"""Input gradients of convolutions that walk what is not zero in the gradient of the output.

    dx[n, oy s + ky - pad, ox s + kx - pad, c] += g[n, oy, ox, o] W[o, c, ky, kx]

Behind a max pooling, or with a surrogate of compact support, most of g is exactly zero. Maps are in channels_last.
Weights are packed as [tiles, ky, o, tile], a tile being three or four vectors of the pieces (kx, c), which lie one
behind the other in a row of the input, too. A task lists its output pixels' (o), then goes through the pixels for each
ky and tile with all sums of one in registers, and adds these to its own rows of the input. Each number is summed over
blocks of o, ky and pixels in this order, whatever the number of threads.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from snnexp import buffers
from snnexp.arrays import flat_maps
from snnexp.models.input_gradient import VECTOR
from snnexp.parallel import run_parallel

BLOCK = 128  # outputs that are listed at once, at most; their weights should stay in a first-level cache
ROOM = 1 << 18  # bytes of maps and lists that a task works on: half of a small second-level cache
LEAST_TASKS = 16  # that the frames make, if there are so many
# Products of a dense layer in whose time (measured: docs/benchmarks.md)
PRODUCT = 1.4  # a product here
VISIT = 260.0  # a pixel's list is begun, for one ky and tile
NUMBER = 46.0  # a number of either gradient is read, listed, written
PACKED = 220.0  # a weight is packed
LOADED = (4.0, 20.0)  # a task loads a packed weight from a cache, or from memory
CACHED = 1 << 22  # bytes of packed weights that stay in a cache


def cost(share: float, weight: Tensor, grad: torch.Size, shape: torch.Size) -> float:
    """Products of a dense layer in whose time an input's gradient of this shape is made from lists.

    share: of the output's gradient that is not 0; grad: its shape [N, O, OH, OW]; weight [O, C, k, k].
    """
    outputs, channels, size, _ = weight.shape
    tiles, tile = _tiles(size * channels, weight.element_size())
    rows = grad[0] * grad[2] * grad[3] * size * tiles  # pixels, each for every ky and tile
    numbers, packed = grad.numel() + shape.numel(), outputs * size * tiles * tile
    tasks = min(shape[0] * shape[2], numbers * weight.element_size() // ROOM + LEAST_TASKS)
    loaded = LOADED[packed * weight.element_size() > CACHED] * tasks
    moved = NUMBER * numbers + PACKED * weight.numel() + loaded * packed
    return rows * (share * outputs * tile * PRODUCT + -(-outputs // BLOCK) * VISIT) + moved


def _tiles(run: int, itemsize: int) -> tuple[int, int]:
    """How many tiles hold a run of so many numbers, and the numbers of a tile: three vectors of them, or four."""
    lanes = VECTOR // itemsize
    vectors = -(-run // lanes)
    tiles = -(-vectors // 4)
    return tiles, lanes * (3 if vectors <= 3 * tiles else 4)


def listed_input_gradient(grad: Tensor, weight: Tensor, shape: torch.Size, stride: int, pad: int) -> Tensor:
    """The gradient of a convolution's input of this shape [N, C, H, W], in channels_last.

    grad [N, O, OH, OW]; weight [O, C, k, k], in the same precision.
    """
    from snnexp.models.gradient_lists_kernels import listed_gradient  # numba takes 0.2 s to import

    (outputs, channels, size, _), (frames, _, height, width) = weight.shape, shape
    out_height, out_width = grad.shape[2:]
    found = buffers.empty(shape, grad.dtype, channels_last=True)
    if found.numel() == 0:
        return found
    run, bytes_ = size * channels, grad.element_size()
    tiles, tile = _tiles(run, bytes_)
    rows = weight.detach().permute(2, 0, 3, 1).reshape(size, outputs, run)
    packed = F.pad(rows, (0, tiles * tile - run)).view(size, outputs, tiles, tile).permute(2, 0, 1, 3).reshape(-1)
    row = max((out_width - 1) * stride + size, pad + width) * channels + tiles * tile - run
    band, group = _split(frames, height, row * bytes_ + out_width * outputs * (bytes_ + 1) / stride, size)
    tasks = -(-frames // group) * -(-height // band)
    maps = flat_maps(grad.contiguous(memory_format=torch.channels_last)), packed.numpy(), flat_maps(found)
    geometry = (height, width, channels, out_height, out_width, outputs, size, stride, pad)
    given = *maps, *_BITS, geometry, (frames, tiles, tile, row, band, group, BLOCK)
    run_parallel(lambda start, stop: listed_gradient(*given, start, stop), tasks, torch.get_num_threads())
    return found


def _split(frames: int, height: int, row: float, least: int) -> tuple[int, int]:
    """Rows of the input, and frames, of a task, if a row takes so many bytes.

    least: rows; with fewer, most of what a task lists is listed by others, too.
    """
    rows = max(int(ROOM / row), least)
    if rows >= height:
        return height, max(min(rows // height, frames // LEAST_TASKS), 1)
    return -(-height // -(-height // rows)), 1


def _bits() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Of each byte: its bits' numbers from the lowest on, flat, eight places each; and how many there are."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    return np.argsort(1 - bits, axis=1, kind="stable").astype(np.uint8).reshape(-1), bits.sum(1, dtype=np.uint8)


_BITS = _bits()
