"""Dense 3x3 convolutions by Winograd's minimal filtering, on the CPU.

    Y = A' [(G w G') * (B' d B)] A       d: the inputs of a tile, (m + 2) x (m + 2), Y: its m x m outputs,
                                         * element by element and summed over channels

Tiles of 2x2 outputs take 16 products in the place of 36, tiles of 4x4 36 in the place of 144; the transforms cost less.
Source: Lavin & Gray, "Fast algorithms for convolutional neural networks", arXiv:1509.09308, section 4. The input's
gradient is a convolution with the kernel turned by half a turn, the weights' gradient G' [sum over tiles of
(A g A') * (B' d B)] G.

With stride 2, and one pixel of zeros around, the first and third weight meet every other input: a kernel of two, three
products for two outputs; the second weight meets the inputs between, in two. Tiles of 2x2 outputs take 25 products for
36; the input's gradient has tiles of 4x4 inputs with as many.

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

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snnexp import buffers
from snnexp.arrays import flat_maps, flat_weights, for_kernels, gapless, number_type
from snnexp.models.batch_norm import NormGradient
from snnexp.models.input_gradient import LEAST_WORK, VECTOR
from snnexp.parallel import run_parallel

SCRATCH = 256 << 10  # bytes of a chunk's transformed inputs and products
SHORT = 24  # tiles of a chunk, at least
CACHE = 1 << 20  # bytes of the sums for the weights' gradient that each piece of the tiles has its own of
PANELS = 12 << 20  # bytes of transformed weights from which on each panel of them is made where it is used
PANEL = 512 << 10  # of a panel's transformed weights that are made at once
PRODUCTS = 1 << 20  # bytes of a panel's products, at most
WIDE = 128  # outputs of a panel of the weights' gradient
GROUP = 8 << 20  # bytes of transformed inputs and gradients of the tiles that go together into sums that are kept,
WHOLE = 128 << 20  # or into sums that are not, which are at least
LARGE = 8 << 20
PIECES = 16  # of the tiles, at most, that tasks are made of


class Tiling(NamedTuple):
    """What tiles are like."""

    size: int  # inputs to a side
    step: int  # from the first input of one to that of the next
    side: int  # outputs to a side
    products: int
    weights: int  # transformed ones; with stride 2 some are in more than one product


TWO, FOUR = Tiling(4, 2, 2, 16, 16), Tiling(6, 4, 4, 36, 36)  # forward, and of gradients
APART, BETWEEN = Tiling(5, 4, 2, 25, 16), Tiling(3, 2, 4, 25, 16)  # with stride 2; BETWEEN: of the input's gradient


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


def _shape_of(x: Tensor, outputs: int, pad: int, tiling: Tiling, size: Sequence[int] | None = None) -> Shape:
    """size: height and width of the output, where the input's do not say them."""
    frames, channels, height, width = x.shape
    stride = tiling.step // tiling.side
    high, wide = ((n + 2 * pad - 3) // stride + 1 for n in (height, width)) if size is None else size
    rows, columns = (max(-(-n // tiling.side), 0) for n in (high, wide))
    return Shape(height, width, channels, high, wide, outputs, rows, columns, pad, frames * rows * columns)


def fits(x: Tensor, weight: Tensor, stride: int, pad: int) -> bool:
    """Whether some of the products of a convolution of x [N, C, H, W] with weight [O, C, 3, 3] may be done here."""
    shape = _shape_of(x, len(weight), pad, TWO if stride == 1 else APART)
    return _takes(x, weight, stride, pad) and _products(x, weight, shape.out_height, shape.out_width) >= LEAST_WORK


def _takes(maps: Tensor, weight: Tensor, stride: int, pad: int) -> bool:
    """maps: the input, or the output's gradient."""
    outputs, channels, *size = weight.shape
    lanes = VECTOR // weight.element_size()
    if size != [3, 3] or (stride, pad) not in ((1, 0), (1, 1), (1, 2), (2, 1)) or channels % lanes or outputs % lanes:
        return False
    return maps.dtype == weight.dtype and for_kernels(maps)


def _products(maps: Tensor, weight: Tensor, height: int, width: int) -> int:
    """Of the dense sums of outputs of this size."""
    return weight.numel() * len(maps) * max(height, 0) * max(width, 0)


def pays(x: Tensor, weight: Tensor, stride: int, pad: int) -> bool:
    """Whether `convolve` is faster than the dense sums; transforming inputs for few outputs costs time."""
    tiling = TWO if stride == 1 else APART
    shape = _shape_of(x, len(weight), pad, tiling)
    return len(weight) * weight.element_size() >= 128 and shape.tiles >= 128 and _fills(tiling, shape, len(x))


def _fills(tiling: Tiling, shape: Shape, frames: int, outputs: int | None = None) -> bool:
    """Whether tiles that are not full still take less products than the dense sums, of so many outputs in a frame."""
    outputs = shape.out_height * shape.out_width if outputs is None else outputs
    return tiling.products * shape.tiles <= 0.8 * 9 * frames * outputs


def makes_gradient(grad: Tensor, weight: Tensor, shape: torch.Size, stride: int, pad: int) -> bool:
    """Whether `input_gradient` may be called, for an input of this shape, and is faster than the dense sums."""
    tiling, tiles = _gradient_tiles(grad, weight, shape, stride, pad)
    if not _takes(grad, weight, stride, pad) or _products(grad, weight, *grad.shape[2:]) < LEAST_WORK:
        return False
    return tiles.tiles >= 24 and _fills(tiling, tiles, len(grad), grad.shape[2] * grad.shape[3])


def _gradient_tiles(grad: Tensor, weight: Tensor, shape: Sequence[int], stride: int, pad: int) -> tuple[Tiling, Shape]:
    if stride == 1:
        return FOUR, _shape_of(grad, weight.shape[1], 2 - pad, FOUR)
    return BETWEEN, _shape_of(grad, weight.shape[1], 0, BETWEEN, shape[2:])


def weight_gradient_pays(x: Tensor, weight: Tensor, stride: int, pad: int) -> bool:
    """Whether `weight_gradient` is faster than the dense sums: the last transform counts, too."""
    tiling = FOUR if stride == 1 else APART
    shape = _shape_of(x, len(weight), pad, tiling)
    full = stride == 1 or _fills(tiling, shape, len(x))
    return weight.shape[1] * weight.element_size() >= 128 and shape.tiles >= 16 and full


def speed(weight: Tensor, stride: int) -> float:
    """How many times as fast the input's gradient is as oneDNN's products at full speed; measured with AVX-512."""
    fewer = min(weight.shape[:2])
    return (2.9 if stride == 1 else 1.4) * fewer / (fewer + 16)


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, pad: int, sums: list[NDArray[Any]] | None = None
) -> Tensor:
    """F.conv2d(x, weight, bias, stride, pad) in channels_last, for what `fits`.

    sums: gets the sums of what the output is above the bias, and of its square, [2, O], if they were taken.
    """
    tiling = TWO if stride == 1 else APART
    return _convolved(x, weight, bias, tiling, _shape_of(x, len(weight), pad, tiling), sums)


def input_gradient(grad: Tensor, weight: Tensor, shape: Sequence[int], stride: int, pad: int) -> Tensor:
    """The gradient of x, of this shape, from that of the output, both in channels_last."""
    return _convolved(grad, weight, None, *_gradient_tiles(grad, weight, shape, stride, pad))


def _convolved(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tiling: Tiling,
    shape: Shape,
    sums: list[NDArray[Any]] | None = None,
) -> Tensor:
    """The convolution with a kernel, or for the gradient of its input with the kernel turned."""
    from snnexp.models.blocks import ROWS  # numba takes 0.2 s to import
    from snnexp.models.winograd_kernels import convolve as kernel

    outputs, channels = shape.outputs, shape.channels
    size = (x.shape[0], outputs, shape.out_height, shape.out_width)
    out = buffers.empty(size, x.dtype, channels_last=True)
    start = np.zeros(outputs, number_type(x.dtype))
    if bias is not None:
        start[:] = bias.detach().numpy()
    products, item = tiling.products, x.element_size()
    if tiling.weights * channels * outputs * item >= PANELS and products * shape.tiles * 2 * VECTOR <= PRODUCTS:
        _convolve_in_panels(x, weight, start, out, tiling, shape)
        return out
    held = max(SCRATCH // (products * item * (channels + outputs)), SHORT)
    chunk = max(-(-min(held, -(-shape.tiles // PIECES)) // ROWS), 1) * ROWS
    tasks = -(-shape.tiles // chunk)
    taken = np.zeros((0 if sums is None else tasks, 2, outputs))
    arrays = flat_maps(x), _packed(weight, tiling), start, flat_maps(out), taken.reshape(-1)
    _run(lambda first, last: kernel(*arrays, tuple(tiling), tuple(shape), chunk, first, last), tasks)
    if sums is not None:
        sums.append(taken.sum(0))
    return out


def _convolve_in_panels(
    x: Tensor, weight: Tensor, bias: NDArray[Any], out: Tensor, tiling: Tiling, shape: Shape
) -> None:
    """The convolution if its weights take more memory, transformed, than everything else."""
    from snnexp.models.blocks import ROWS, columns_of
    from snnexp.models.winograd_panel_kernels import convolve, spread_inputs

    item = x.element_size()
    lanes, columns = VECTOR // item, columns_of(item)
    row, padded = shape.channels + lanes, -(-shape.tiles // ROWS) * ROWS
    layout = row, padded * row + lanes
    v = buffers.scratch(tiling.products * layout[1], x.dtype)
    v.reshape(tiling.products, -1)[:, shape.tiles * row :] = 0  # rows of blocks that are no tiles
    chunk = -(-shape.tiles // PIECES)
    both, maps = (tuple(tiling), tuple(shape)), flat_maps(x)
    _run(lambda a, b: spread_inputs(maps, v, *both, layout, chunk, a, b), -(-shape.tiles // chunk))
    depth = max(PANEL // (tiling.weights * columns * item), 1)
    weight = gapless(weight)
    given = (v, flat_weights(weight), bias, flat_maps(out), *both, _strides(weight, tiling), layout, depth)
    _run(lambda a, b: convolve(*given, a, b), -(-shape.outputs // columns))


def _strides(weight: Tensor, tiling: Tiling) -> tuple[int, ...]:
    """Where the first weight is, and how far the next input, output, y and x are; turned for the gradient."""
    by_output, by_channel, by_y, by_x = weight.stride()
    if tiling in (FOUR, BETWEEN):
        return 2 * (by_y + by_x), by_output, by_channel, -by_y, -by_x
    return 0, by_channel, by_output, by_y, by_x


def _packed(weight: Tensor, tiling: Tiling) -> NDArray[Any]:
    """weight [O, C, 3, 3] as [transformed ones, panels x channels + 1, columns] flat; turned for the gradient."""
    from snnexp.models.blocks import columns_of
    from snnexp.models.winograd_kernels import pack

    weight, strides = gapless(weight), _strides(gapless(weight), tiling)
    outputs, channels = weight.shape[1::-1] if tiling in (FOUR, BETWEEN) else weight.shape[:2]
    columns = columns_of(weight.element_size())
    panels = -(-outputs // columns)
    packed = buffers.scratch(tiling.weights * (panels * channels + 1) * columns, weight.dtype)
    if outputs % columns:
        packed[:] = 0
    flat, kind = flat_weights(weight), tuple(tiling)
    _run(lambda start, stop: pack(flat, packed, channels, outputs, kind, strides, start, stop), panels)
    return packed


def weight_gradient(
    grad: Tensor, x: Tensor, weight: Tensor, stride: int, pad: int, norm: NormGradient | None = None
) -> tuple[Tensor, Tensor]:
    """The gradients of weight and bias from that of the output, grad [N, O, H', W'] in channels_last.

    norm: grad is that of a batch norm of the output, and becomes that of the output in its place.
    """
    from snnexp.models.blocks import ROWS, columns_of
    from snnexp.models.winograd_kernels import unpack
    from snnexp.models.winograd_kernels import weight_gradient as kernel

    (outputs, channels), item = weight.shape[:2], x.element_size()
    tiling = FOUR if stride == 1 else APART
    shape, columns = _shape_of(x, outputs, pad, tiling), columns_of(item)
    padded = -(-outputs // ROWS) * ROWS, -(-channels // columns) * columns
    bytes_of_sums = tiling.weights * item * padded[0] * padded[1]
    behind = np.empty(0, number_type(x.dtype)), np.empty(0, number_type(x.dtype))
    if norm is not None:
        behind = norm.x, np.concatenate((norm.mean, norm.scale, -norm.offset, -norm.slope))
    if bytes_of_sums > CACHE:
        return _weight_gradient_in_panels(grad, x, weight, tiling, shape, behind)
    pieces = min(PIECES, max(1, shape.tiles // SHORT))
    piece = max(-(-shape.tiles // pieces), 1)
    pieces = -(-shape.tiles // piece)
    chunk = min(max(SCRATCH // (tiling.products * item * (channels + outputs)), SHORT), piece)
    sums = np.zeros((pieces, tiling.weights, *padded), number_type(x.dtype))
    bias = np.zeros((pieces, outputs), sums.dtype)
    given = (flat_maps(x), flat_maps(grad), *behind, sums.reshape(-1), bias.reshape(-1), tuple(tiling), tuple(shape))
    _run(lambda start, stop: kernel(*given, chunk, piece, start, stop), pieces)
    found = torch.empty_like(gapless(weight))
    target = (flat_weights(found), found.stride(), tiling.weights)
    _run(lambda start, stop: unpack(given[4], *target, pieces, given[7], start, stop), outputs)
    return found, torch.from_numpy(bias.sum(0))


def _weight_gradient_in_panels(
    grad: Tensor, x: Tensor, weight: Tensor, tiling: Tiling, shape: Shape, behind: tuple[NDArray[Any], NDArray[Any]]
) -> tuple[Tensor, Tensor]:
    """The same if the sums of a piece of the tiles do not stay in a second-level cache."""
    from snnexp.models import winograd_panel_kernels as kernels
    from snnexp.models.blocks import ROWS, columns_of

    (outputs, channels), item = weight.shape[:2], x.element_size()
    lanes, columns, high = VECTOR // item, columns_of(item), -(-outputs // ROWS) * ROWS
    panels, size = -(-channels // columns), tiling.products * item * (channels + outputs)
    whole = shape.tiles * size <= WHOLE and tiling.weights * item * channels * outputs >= LARGE
    tiles = shape.tiles if whole else min(max(GROUP // size, 1), shape.tiles)
    wide = -(-min(WIDE if whole else outputs, outputs) // lanes) * lanes
    panel, z_panel, z_panels = tiles * columns, tiles * wide, -(-outputs // wide)
    layout = panel, panels * panel + columns, z_panel, z_panels * z_panel + lanes, wide
    v = buffers.scratch(tiling.products * layout[1], x.dtype)
    z = buffers.scratch(tiling.products * layout[3] + ROWS, x.dtype)
    chunk = max(-(-tiles // PIECES), 1)
    found = torch.empty_like(gapless(weight))
    bias = np.zeros((-(-shape.tiles // chunk) + 1, outputs), number_type(x.dtype))
    kind, target = tuple(tiling), (flat_weights(found), found.stride())
    given = (flat_maps(x), flat_maps(grad), *behind, v, z, bias.reshape(-1), kind, tuple(shape), layout, chunk)
    sums = None if whole else buffers.scratch(tiling.weights * panels * high * columns, x.dtype)
    for base in range(0, shape.tiles, tiles):
        ends = base, min(base + tiles, shape.tiles)
        _run(lambda a, b, ends=ends: kernels.spread_both(*given, *ends, a, b), -(-(ends[1] - base) // chunk))
        if sums is not None:
            summed = (v, z, sums, kind, outputs, panels, layout, ends[1] - base, base > 0)
            _run(lambda a, b, summed=summed: kernels.add_products(*summed, a, b), tiling.weights * panels)
    if sums is None:
        rest = (kind, tuple(shape), layout)
        _run(lambda a, b: kernels.weight_gradient(v, z, *target, *rest, a, b), z_panels * panels)
    else:
        held = (*target, tiling.weights, channels, outputs)
        _run(lambda a, b: kernels.weights_of_sums(sums, *held, a, b), panels)
    return found, torch.from_numpy(bias.sum(0))


def _run(kernel: Any, tasks: int) -> None:
    run_parallel(kernel, tasks, torch.get_num_threads())
