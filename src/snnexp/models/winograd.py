"""Dense 3x3 convolutions with stride 1 by Winograd's minimal filtering, on the CPU.

    Y = A' [(G w G') * (B' d B)] A       d: the inputs of a tile, (m + 2) x (m + 2), Y: its m x m outputs,
                                         * element by element and summed over channels

Tiles of 2x2 outputs take 16 products in the place of 36, tiles of 4x4 36 in the place of 144; the transforms cost less.
Source: Lavin & Gray, "Fast algorithms for convolutional neural networks", arXiv:1509.09308, section 4. The input's
gradient is a convolution with the kernel turned by half a turn, the weights' gradient G' [sum over tiles of
(A g A') * (B' d B)] G.

Rounding: forward, where a small difference may move a spike, tiles are 2x2; its errors are smaller than those of a sum
of 9 C products, since its sums are shorter. Gradients have tiles of 4x4, with points that are chosen for small errors
instead of few operations (`winograd_transforms.py`): about twice those of the dense sums.

Tiles go through a second-level cache in chunks: transformed inputs [products, tiles, channels] times transformed
weights [products, panels x channels, columns] (`blocks.py`) make [products, tiles, outputs]. Transformed weights are up
to four times as large as they are: where they, or the sums for their gradient, would not stay in the cache, all tiles
are transformed first and products are made a panel of the weights at a time (`winograd_panel_kernels.py`). Chunks,
pieces and panels do not depend on the number of threads.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snnexp import buffers
from snnexp.arrays import flat_maps, flat_weights, for_kernels, gapless, number_type
from snnexp.models.input_gradient import LEAST_WORK, VECTOR
from snnexp.parallel import run_parallel

FORWARD, BACKWARD = 2, 4  # side of a tile's outputs
SCRATCH = 256 << 10  # bytes of a chunk's transformed inputs and products
SHORT, LONG = 24, 96  # tiles of a chunk, at least; LONG: in the weights' gradient if the sums do not stay in a cache
CACHE = 1 << 20
PANELS = 12 << 20  # bytes of transformed weights from which on each panel of them is made where it is used
PANEL = 512 << 10  # of a panel's transformed weights that are made at once
PRODUCTS = 1 << 20  # bytes of a panel's products, at most
WIDE = 128  # outputs of a panel of the weights' gradient
GROUP = 10 << 20  # bytes of transformed inputs and gradients of the tiles that go together into sums that are kept,
WHOLE = 128 << 20  # or into sums that are not, which are at least
LARGE = 8 << 20
PIECES = 16  # of the tiles, at most, that tasks are made of
SUMS = 32 << 20  # bytes of the weights' gradients of all pieces, at most, if there are more than two


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


def _shape_of(x: Tensor, outputs: int, pad: int, side: int) -> Shape:
    frames, channels, height, width = x.shape
    out_height, out_width = height + 2 * pad - 2, width + 2 * pad - 2
    high, wide = (max(-(-n // side), 0) for n in (out_height, out_width))
    return Shape(height, width, channels, out_height, out_width, outputs, high, wide, pad, frames * high * wide)


def fits(x: Tensor, weight: Tensor, stride: int, pad: int) -> bool:
    """Whether some of the products of a convolution of x [N, C, H, W] with weight [O, C, 3, 3] may be done here."""
    outputs, channels, *size = weight.shape
    lanes = VECTOR // weight.element_size()
    if size != [3, 3] or stride != 1 or not 0 <= pad <= 2 or channels % lanes or outputs % lanes:
        return False
    if x.dtype != weight.dtype or not for_kernels(x):
        return False
    shape = _shape_of(x, outputs, pad, 1)
    return 9 * channels * outputs * shape.tiles >= LEAST_WORK


def pays(x: Tensor, weight: Tensor, pad: int) -> bool:
    """Whether `convolve` is faster than the dense sums; transforming inputs for few outputs costs time."""
    outputs = weight.shape[0]
    return outputs * weight.element_size() >= 128 and _shape_of(x, outputs, pad, FORWARD).tiles >= 128


def makes_gradient(grad: Tensor, weight: Tensor, stride: int, pad: int) -> bool:
    """Whether `input_gradient` may be called, and is faster than the dense sums: not if tiles are mostly empty."""
    if not fits(grad, weight, stride, pad):
        return False
    shape = _shape_of(grad, weight.shape[1], 2 - pad, BACKWARD)
    pixels = len(grad) * shape.out_height * shape.out_width
    return shape.tiles >= 24 and 4 * shape.tiles <= 0.8 * pixels


def weight_gradient_pays(x: Tensor, weight: Tensor, pad: int) -> bool:
    """Whether `weight_gradient` is faster than the dense sums: the last transform counts, too."""
    outputs, channels = weight.shape[:2]
    return channels * weight.element_size() >= 128 and _shape_of(x, outputs, pad, BACKWARD).tiles >= 16


def speed(weight: Tensor) -> float:
    """How many times as fast the input's gradient is as oneDNN's products at full speed; measured with AVX-512."""
    fewer = min(weight.shape[:2])
    return 2.9 * fewer / (fewer + 16)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, pad: int) -> Tensor:
    """F.conv2d(x, weight, bias, 1, pad) in channels_last, for what `fits`."""
    return _convolved(x, weight, bias, pad, FORWARD)


def input_gradient(grad: Tensor, weight: Tensor, pad: int) -> Tensor:
    """The gradient of x from that of the output, both in channels_last."""
    return _convolved(grad, weight, None, 2 - pad, BACKWARD)


def _convolved(x: Tensor, weight: Tensor, bias: Tensor | None, pad: int, side: int) -> Tensor:
    """The convolution with a kernel, or for the gradient of its input with the kernel turned."""
    from snnexp.models.blocks import ROWS  # numba takes 0.2 s to import
    from snnexp.models.winograd_kernels import convolve as kernel

    outputs, channels = weight.shape[:2] if side == FORWARD else weight.shape[1::-1]
    shape = _shape_of(x, outputs, pad, side)
    size = (x.shape[0], outputs, shape.out_height, shape.out_width)
    out = buffers.empty(size, x.dtype, channels_last=True)
    start = np.zeros(outputs, number_type(x.dtype))
    if bias is not None:
        start[:] = bias.detach().numpy()
    products, item = (side + 2) ** 2, x.element_size()
    if products * channels * outputs * item >= PANELS and products * shape.tiles * 2 * VECTOR <= PRODUCTS:
        _convolve_in_panels(x, weight, start, out, side, shape)
        return out
    held = max(SCRATCH // (products * item * (channels + outputs)), SHORT)
    chunk = max(-(-min(held, -(-shape.tiles // PIECES)) // ROWS), 1) * ROWS
    given = (flat_maps(x), _packed(weight, side), start, flat_maps(out), side, tuple(shape), chunk)
    _run(lambda first, last: kernel(*given, first, last), -(-shape.tiles // chunk))
    return out


def _convolve_in_panels(x: Tensor, weight: Tensor, bias: NDArray[Any], out: Tensor, side: int, shape: Shape) -> None:
    """The convolution if its weights take more memory, transformed, than everything else."""
    from snnexp.models.blocks import ROWS, columns_of
    from snnexp.models.winograd_panel_kernels import convolve, spread_inputs

    products, item = (side + 2) ** 2, x.element_size()
    lanes, columns = VECTOR // item, columns_of(item)
    row, padded = shape.channels + lanes, -(-shape.tiles // ROWS) * ROWS
    layout = row, padded * row + lanes
    spread = buffers.empty([products, layout[1]], x.dtype)
    spread[:, shape.tiles * row :] = 0  # rows of blocks that are no tiles
    v = spread.numpy().reshape(-1)
    chunk = -(-shape.tiles // PIECES)
    maps = flat_maps(x)
    _run(lambda a, b: spread_inputs(maps, v, side, tuple(shape), layout, chunk, a, b), -(-shape.tiles // chunk))
    depth = max(PANEL // (products * columns * item), 1)
    weight = gapless(weight)
    given = (v, flat_weights(weight), bias, flat_maps(out), side, tuple(shape), _strides(weight, side), layout, depth)
    _run(lambda a, b: convolve(*given, a, b), -(-shape.outputs // columns))


def _strides(weight: Tensor, side: int) -> tuple[int, ...]:
    """Where the first weight is, and how far the next input, output, y and x are; turned for the gradient."""
    by_output, by_channel, by_y, by_x = weight.stride()
    if side == BACKWARD:
        return 2 * (by_y + by_x), by_output, by_channel, -by_y, -by_x
    return 0, by_channel, by_output, by_y, by_x


def _packed(weight: Tensor, side: int) -> NDArray[Any]:
    """weight [O, C, 3, 3] transformed, as [products, panels x channels + 1, columns] flat; turned for the gradient."""
    from snnexp.models.blocks import columns_of
    from snnexp.models.winograd_kernels import pack

    weight, strides = gapless(weight), _strides(gapless(weight), side)
    outputs, channels = weight.shape[:2] if side == FORWARD else weight.shape[1::-1]
    columns = columns_of(weight.element_size())
    panels = -(-outputs // columns)
    packed = buffers.empty([(side + 2) ** 2 * (panels * channels + 1) * columns], weight.dtype).numpy()
    if outputs % columns:
        packed[:] = 0
    flat = flat_weights(weight)
    _run(lambda start, stop: pack(flat, packed, channels, outputs, side, strides, start, stop), panels)
    return packed


def weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, pad: int) -> tuple[Tensor, Tensor]:
    """The gradients of weight and bias from that of the output, grad [N, O, H', W'] in channels_last."""
    from snnexp.models.blocks import ROWS, columns_of
    from snnexp.models.winograd_kernels import unpack
    from snnexp.models.winograd_kernels import weight_gradient as kernel

    (outputs, channels), size = weight.shape[:2], x.element_size()
    shape, columns = tuple(_shape_of(x, outputs, pad, BACKWARD)), columns_of(size)
    if 36 * outputs * channels * size > CACHE:
        return _weight_gradient_in_panels(grad, x, weight, Shape(*shape))
    padded = -(-outputs // ROWS) * ROWS, -(-channels // columns) * columns
    bytes_of_sums = 36 * size * padded[0] * padded[1]
    pieces = min(PIECES, max(2, SUMS // bytes_of_sums), max(1, shape[-1] // SHORT))
    piece = max(-(-shape[-1] // pieces), 1)
    pieces = -(-shape[-1] // piece)
    least = SHORT if bytes_of_sums < CACHE else LONG
    chunk = min(max(SCRATCH // (36 * size * (channels + outputs)), least), piece)
    sums = np.zeros((pieces, 36, *padded), number_type(x.dtype))
    bias = np.zeros((pieces, outputs), sums.dtype)
    given = (flat_maps(x), flat_maps(grad), sums.reshape(-1), bias.reshape(-1), shape, chunk, piece)
    _run(lambda start, stop: kernel(*given, start, stop), pieces)
    found = torch.empty_like(gapless(weight))
    target = (flat_weights(found), found.stride())
    _run(lambda start, stop: unpack(given[2], *target, pieces, shape, start, stop), outputs)
    return found, torch.from_numpy(bias.sum(0))


def _weight_gradient_in_panels(grad: Tensor, x: Tensor, weight: Tensor, shape: Shape) -> tuple[Tensor, Tensor]:
    """The same if the sums of a piece of the tiles do not stay in a second-level cache."""
    from snnexp.models import winograd_panel_kernels as kernels
    from snnexp.models.blocks import ROWS, columns_of

    (outputs, channels), item = weight.shape[:2], x.element_size()
    lanes, columns, high = VECTOR // item, columns_of(item), -(-outputs // ROWS) * ROWS
    panels, size = -(-channels // columns), 36 * item * (channels + outputs)
    whole = shape.tiles * size <= WHOLE and 36 * item * channels * outputs >= LARGE
    tiles = shape.tiles if whole else min(max(GROUP // size, 1), shape.tiles)
    wide = -(-min(WIDE if whole else outputs, outputs) // lanes) * lanes
    panel, z_panel, z_panels = tiles * columns, tiles * wide, -(-outputs // wide)
    layout = panel, panels * panel + columns, z_panel, z_panels * z_panel + lanes, wide
    v = buffers.empty([36 * layout[1]], x.dtype).numpy()
    z = buffers.empty([36 * layout[3] + ROWS], x.dtype).numpy()
    chunk = max(-(-tiles // PIECES), 1)
    maps, grads, found = flat_maps(x), flat_maps(grad), torch.empty_like(gapless(weight))
    bias = np.zeros((-(-shape.tiles // chunk) + 1, outputs), number_type(x.dtype))
    target = (flat_weights(found), found.stride())
    sums = None if whole else buffers.empty([36, panels, high, columns], x.dtype).numpy().reshape(-1)
    for base in range(0, shape.tiles, tiles):
        end = min(base + tiles, shape.tiles)
        given = (maps, grads, v, z, bias.reshape(-1), tuple(shape), layout, chunk, base, end)
        _run(lambda a, b, given=given: kernels.spread_both(*given, a, b), -(-(end - base) // chunk))
        if sums is not None:
            summed = (v, z, sums, outputs, panels, layout, end - base, base > 0)
            _run(lambda a, b, summed=summed: kernels.add_products(*summed, a, b), 36 * panels)
    if sums is None:
        _run(lambda a, b: kernels.weight_gradient(v, z, *target, tuple(shape), layout, a, b), z_panels * panels)
    else:
        _run(lambda a, b: kernels.weights_of_sums(sums, *target, channels, outputs, a, b), panels)
    return found, torch.from_numpy(bias.sum(0))


def _run(kernel: Any, tasks: int) -> None:
    run_parallel(kernel, tasks, torch.get_num_threads())
