"""Dense 3x3 convolutions with stride 1 by Winograd's minimal filtering F(2x2, 3x3), on the CPU.

    Y = A' [(G w G') * (B' d B)] A       d: the 4x4 inputs of a tile, Y: its 2x2 outputs, * element by element and
                                         summed over channels

Sixteen products in the place of 36; the transforms are sums. Source: Lavin & Gray, "Fast algorithms for convolutional
neural networks", arXiv:1509.09308, section 4.1. Rounding errors are no larger than those of a sum of 9 C products: the
sums are shorter. The input's gradient is a convolution with the kernel turned by half a turn, the weights' gradient
G' [sum over tiles of (A g A') * (B' d B)] G.

Tiles go through a second-level cache in chunks: transformed inputs [16, tiles, channels] times transformed weights
[16, panels, channels, columns] (`blocks.py`) make [16, tiles, outputs]. Chunks do not depend on the number of threads.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snnexp.arrays import flat_maps, number_type
from snnexp.models.input_gradient import LEAST_WORK, VECTOR
from snnexp.parallel import run_parallel

LEAST_TILES = 256  # below which transforming the weights costs what the products save
WEIGHTS_PER_TILE = 256  # weights (outputs x channels) per tile above which they do not stay in the caches
SCRATCH = 640 << 10  # bytes of a chunk's transformed inputs and products
LONG = 48  # tiles of a chunk, at least, where the sums of the weights' gradient do not stay in the caches
PIECES = 16  # of the tiles, at most, that the weights' gradient is summed over
SUMS = 32 << 20  # bytes of these sums, at most, if there are more than two


class Shape(NamedTuple):
    """What the kernels ask: of the input, of the output, and of the tiles in a row and a column of it."""

    height: int
    width: int
    channels: int
    out_height: int
    out_width: int
    outputs: int
    high: int
    wide: int
    pad: int
    tiles: int  # of all frames


def _shape_of(x: Tensor, outputs: int, pad: int) -> Shape:
    frames, channels, height, width = x.shape
    out_height, out_width = height + 2 * pad - 2, width + 2 * pad - 2
    high, wide = (max(-(-n // 2), 0) for n in (out_height, out_width))
    return Shape(height, width, channels, out_height, out_width, outputs, high, wide, pad, frames * high * wide)


def fits(x: Tensor, weight: Tensor, stride: int, pad: int) -> bool:
    """Whether the convolution of x [N, C, H, W] with weight [O, C, 3, 3] is one for this file: able to, and faster."""
    outputs, channels, *size = weight.shape
    lanes = VECTOR // weight.element_size()
    if size != [3, 3] or stride != 1 or not 0 <= pad <= 2 or channels % lanes or outputs % lanes or x.dim() != 4:
        return False
    if x.device.type != "cpu" or x.dtype != weight.dtype or x.dtype not in (torch.float32, torch.float64):
        return False
    if torch.is_autocast_enabled("cpu") or not x.is_contiguous(memory_format=torch.channels_last):
        return False
    shape = _shape_of(x, outputs, pad)
    work = 9 * channels * outputs * x.shape[0] * shape.out_height * shape.out_width
    return work >= LEAST_WORK and shape.tiles >= max(LEAST_TILES, channels * outputs // WEIGHTS_PER_TILE)


def speed(weight: Tensor) -> float:
    """How many times as fast it is as oneDNN's products at full speed (measured, with AVX-512 and AVX2 alike)."""
    fewer = min(weight.shape[:2])
    return 2.0 * fewer / (fewer + 18)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, pad: int) -> Tensor:
    """F.conv2d(x, weight, bias, 1, pad) in channels_last, for what `fits`."""
    return _convolved(x, weight, bias, pad, turned=False)


def input_gradient(grad: Tensor, weight: Tensor, pad: int) -> Tensor:
    """The gradient of x from that of the output, in channels_last."""
    return _convolved(grad, weight, None, 2 - pad, turned=True)


def _convolved(x: Tensor, weight: Tensor, bias: Tensor | None, pad: int, turned: bool) -> Tensor:
    from snnexp.models.blocks import ROWS  # numba takes 0.2 s to import
    from snnexp.models.winograd_kernels import convolve as kernel

    outputs, channels = weight.shape[:2]
    if turned:
        outputs, channels = channels, outputs
    shape = _shape_of(x, outputs, pad)
    size = (x.shape[0], outputs, shape.out_height, shape.out_width)
    out = torch.empty(size, dtype=x.dtype, memory_format=torch.channels_last)
    start = np.zeros(outputs, number_type(x.dtype))
    if bias is not None:
        start[:] = bias.detach().numpy()
    chunk = min(SCRATCH // (16 * x.element_size() * (channels + outputs)), -(-shape.tiles // PIECES))
    chunk = max(-(-chunk // ROWS), 1) * ROWS
    given = (flat_maps(x), _packed(weight, turned), start, flat_maps(out), tuple(shape), chunk)
    _run(lambda first, last: kernel(*given, first, last), -(-shape.tiles // chunk))
    return out


def _packed(weight: Tensor, turned: bool) -> NDArray[Any]:
    """weight [O, C, 3, 3] transformed, as [16, panels, channels, columns] flat; turned: for the input's gradient."""
    from snnexp.models.blocks import columns_of
    from snnexp.models.winograd_kernels import pack

    weight = weight.detach()
    if not weight.is_contiguous(memory_format=torch.channels_last):
        weight = weight.contiguous()
    (outputs, channels), (by_output, by_channel, by_y, by_x) = weight.shape[:2], weight.stride()
    strides = (0, by_channel, by_output, by_y, by_x)
    if turned:
        outputs, channels = channels, outputs
        strides = (2 * (by_y + by_x), by_output, by_channel, -by_y, -by_x)
    columns = columns_of(weight.element_size())
    panels = -(-outputs // columns)
    packed = np.zeros(16 * panels * channels * columns, number_type(weight.dtype))
    flat = weight.as_strided((weight.numel(),), (1,)).numpy()
    _run(lambda start, stop: pack(flat, packed, channels, outputs, strides, start, stop), panels)
    return packed


def weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, pad: int) -> tuple[Tensor, Tensor]:
    """The gradients of weight and bias from that of the output, grad [N, O, H', W'] in channels_last."""
    from snnexp.models.blocks import ROWS, columns_of
    from snnexp.models.winograd_kernels import weight_gradient as kernel

    (outputs, channels), size = weight.shape[:2], x.element_size()
    shape, columns = _shape_of(x, outputs, pad), columns_of(size)
    padded = -(-outputs // ROWS) * ROWS, -(-channels // columns) * columns
    pieces = min(PIECES, max(2, SUMS // (16 * size * padded[0] * padded[1])))
    piece = -(-shape.tiles // pieces)
    pieces = -(-shape.tiles // piece)
    chunk = min(max(SCRATCH // (16 * size * (channels + outputs)), LONG), piece)
    sums = np.zeros((pieces, 16, *padded), number_type(x.dtype))
    bias = np.zeros((pieces, outputs), sums.dtype)
    given = (flat_maps(x), flat_maps(grad), sums.reshape(-1), bias.reshape(-1), tuple(shape), chunk, piece)
    _run(lambda start, stop: kernel(*given, start, stop), pieces)
    total = torch.from_numpy(sums).sum(0).view(16, -1)
    nine = (torch.kron(_G, _G).to(x.dtype).t() @ total).view(3, 3, *padded)
    found = nine[:, :, :outputs, :channels].permute(2, 3, 0, 1)
    return torch.empty_like(weight).copy_(found), torch.from_numpy(bias).sum(0)


_G = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], dtype=torch.float64)


def _run(kernel: Any, tasks: int) -> None:
    run_parallel(kernel, tasks, torch.get_num_threads())
