"""The loops of Winograd's convolution where transformed weights are more than a second-level cache holds.

All tiles are transformed first, and products are made a panel of the weights at a time: forward, and for the input's
gradient, that panel is transformed in the cache and goes with all tiles; the gradient of a panel's weights is summed
over all tiles in the cache and transformed back there. What is large in memory is the weights themselves.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, import-untyped, assignment"

from __future__ import annotations

import numba
import numpy as np

from snnexp.models.blocks import ROWS, VECTORS, add_block_product, block_product
from snnexp.models.winograd_kernels import (
    ROOM,
    back_to_weights,
    gradients,
    inputs,
    number_of,
    outputs_of,
    transform_weights,
)
from snnexp.models.winograd_transforms import points_of
from snnexp.vectors import BYTES, add, load, store

DEEP = 64  # tiles

_compile = numba.njit(nogil=True, cache=True, error_model="numpy")
_inline = numba.njit(error_model="numpy", forceinline=True)


@_compile
def spread_inputs(x, v, tiling, shape, layout, chunk, start, stop):
    """v [products, tiles, channels] = B' d B of the input's tiles. A task is `chunk` tiles.

    layout: how far rows of tiles and products are apart.
    """
    channels, tiles, lanes, k = shape[2], shape[9], BYTES // x.itemsize, points_of(x)
    row, apart = layout
    patch, room = np.zeros(tiling[0] ** 2 * channels, x.dtype), np.zeros(ROOM * lanes, x.dtype)
    for task in range(start, stop):
        first = task * chunk
        count, panel = min(chunk, tiles - first), lanes * VECTORS
        inputs(x, patch, room, v, first * row, first, count, tiling, shape, row, panel, apart, lanes, k)


@_compile
def convolve(v, weights, bias, out, tiling, shape, strides, layout, depth, start, stop):
    """out [frames, out_height, out_width, outputs] flat = the convolution, of inputs that `spread_inputs` made.

    A task is a panel of outputs, whose weights are transformed `depth` channels at a time. strides: see `pack`.
    """
    channels, outputs, tiles, lanes, k = shape[2], shape[5], shape[9], BYTES // v.itemsize, points_of(v)
    (row, apart), columns, count = layout, lanes * VECTORS, tiling[3]
    out_apart, w_apart = ((tiles + ROWS - 1) // ROWS * ROWS + 1) * columns, (depth + 1) * columns
    m, w = np.zeros(count * out_apart, v.dtype), np.zeros(tiling[4] * w_apart, v.dtype)
    nine, room = np.zeros(9 * columns, v.dtype), np.zeros(ROOM * lanes, v.dtype)
    for panel in range(start, stop):
        o = panel * columns
        held = min(columns, outputs - o)
        for c in range(0, channels, depth):
            rows, begin = min(depth, channels - c), strides[0] + c * strides[1] + o * strides[2]
            transform_weights(weights, begin, held, rows, tiling, strides, w, 0, w_apart, nine, room, lanes, k)
            for i in range(count):
                for r in range(0, tiles, ROWS):
                    a, b, to = i * apart + r * row + c, number_of(i, tiling) * w_apart, i * out_apart + r * columns
                    if c == 0:
                        block_product(v, a, row, 1, w, b, columns, m, to, columns, rows)
                    else:
                        add_block_product(v, a, row, 1, w, b, columns, m, to, columns, rows)
        outputs_of(m, bias, room, out, 0, tiles, tiling, shape, o, o + held, columns, out_apart, lanes, k)


@_compile
def spread_both(x, g, y, norm, v, z, bias, tiling, shape, layout, chunk, base, stop_tile, start, stop):
    """Transform the tiles from `base` to `stop_tile` for the weights' gradient. A task is `chunk` of them.

    v [products, panels, tiles, columns] of inputs, z [products, panels, tiles, wide] of the output's gradients, both
    flat, and bias [all chunks, outputs] += the gradient of the bias. layout: how far panels and products of v are
    apart, then those of z, and `wide`.
    """
    channels, outputs, lanes, k = shape[2], shape[5], BYTES // x.itemsize, points_of(x)
    (panel, apart, z_panel, z_apart, wide), columns = layout, lanes * VECTORS
    patch, room = np.zeros(tiling[0] ** 2 * channels, x.dtype), np.zeros(ROOM * lanes, x.dtype)
    for task in range(start, stop):
        first = base + task * chunk
        count, mine = min(chunk, stop_tile - first), first // chunk * outputs
        place, z_place = (first - base) * columns, (first - base) * wide
        inputs(x, patch, room, v, place, first, count, tiling, shape, columns, panel, apart, lanes, k)
        lie = wide, wide, z_panel, z_apart
        gradients(g, y, norm, room, z, z_place, bias, mine, first, count, tiling, shape, *lie, lanes, k)


@_inline
def _sum_over(z, a, wide, v, b, columns, sums, to, tiles, added, part, lanes):
    """A block of `sums` = or += the products over all tiles, DEEP at a time: a long chain of sums rounds coarsely."""
    for first in range(0, tiles, DEEP):
        z_at, v_at, depth = a + first * wide, b + first * columns, min(DEEP, tiles - first)
        if first == 0 and not added:
            block_product(z, z_at, 1, wide, v, v_at, columns, sums, to, columns, depth)
            continue
        block_product(z, z_at, 1, wide, v, v_at, columns, part, 0, columns, depth)
        for j in range(0, ROWS * columns, lanes):
            store(sums, to + j, add(load(sums, to + j), load(part, j)))


@_compile
def add_products(v, z, sums, tiling, outputs, panels, layout, tiles, added, start, stop):
    """sums [transformed weights, panels of v, padded outputs, columns] flat = their gradients over these tiles.

    A task is one of the transformed weights and a panel of channels; z has one panel. added: to what `sums` holds.
    """
    lanes = BYTES // v.itemsize
    (panel, apart, _, z_apart, wide), columns, high = layout, lanes * VECTORS, (outputs + ROWS - 1) // ROWS * ROWS
    part = np.zeros(ROWS * columns, v.dtype)
    for task in range(start, stop):
        number, p, more = task // panels, task % panels, added
        for i in range(tiling[3]):
            if number_of(i, tiling) != number:
                continue
            for o in range(0, outputs, ROWS):
                a, b, to = i * z_apart + o, i * apart + p * panel, (task * high + o) * columns
                _sum_over(z, a, wide, v, b, columns, sums, to, tiles, more, part, lanes)
            more = True


@_compile
def weights_of_sums(sums, weights, strides, distinct, channels, outputs, start, stop):
    """weights = G' s G of the sums that `add_products` made. A task is a panel of channels."""
    lanes, k = BYTES // sums.itemsize, points_of(sums)
    columns, high = lanes * VECTORS, (outputs + ROWS - 1) // ROWS * ROWS
    panels = (channels + columns - 1) // columns
    room = np.zeros(ROOM * lanes, sums.dtype)
    for p in range(start, stop):
        c = p * columns
        held, place, step = min(columns, channels - c), p * high * columns, panels * high * columns
        back_to_weights(sums, place, columns, step, weights, strides, distinct, 0, outputs, c, held, room, lanes, k)


@_compile
def weight_gradient(v, z, weights, strides, tiling, shape, layout, start, stop):
    """weights = their gradient over all tiles. A task is a panel of z's outputs and one of v's channels."""
    channels, outputs, tiles, lanes, k = shape[2], shape[5], shape[9], BYTES // v.itemsize, points_of(v)
    (panel, apart, z_panel, z_apart, wide), columns, distinct = layout, lanes * VECTORS, tiling[4]
    panels, high = (channels + columns - 1) // columns, (wide + ROWS - 1) // ROWS * ROWS
    step = (high + 1) * columns  # one more: or all would share sets of caches
    sums, room, seen = np.zeros(distinct * step, v.dtype), np.zeros(ROOM * lanes, v.dtype), np.zeros(distinct, np.bool_)
    part = np.zeros(ROWS * columns, v.dtype)
    for task in range(start, stop):
        p, q = task // panels, task % panels
        c, first = q * columns, p * wide
        last = min(first + wide, outputs)
        seen[:] = False
        for i in range(tiling[3]):
            number = number_of(i, tiling)
            for o in range(0, last - first, ROWS):
                a, b, to = i * z_apart + p * z_panel + o, i * apart + q * panel, number * step + o * columns
                _sum_over(z, a, wide, v, b, columns, sums, to, tiles, seen[number], part, lanes)
            seen[number] = True
        held = min(columns, channels - c)
        back_to_weights(sums, 0, columns, step, weights, strides, distinct, first, last, c, held, room, lanes, k)
