"""The loops of Winograd's convolution; `winograd.py` says what they compute and how memory lies.

`side` is that of a tile's outputs, 2 or 4. Its inputs overlap those of its neighbours by two rows and columns.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, import-untyped, assignment"

from __future__ import annotations

import numba
import numpy as np

from snnexp.models.blocks import ROWS, VECTORS, add_block_product, block_product
from snnexp.models.winograd_transforms import (
    fan_out,
    gather_four,
    gather_two,
    points_of,
    spread_four,
    spread_two,
    weights_back,
    weights_of_four,
    weights_of_two,
)
from snnexp.vectors import BYTES, add, load, store, zeros

ROOM, NINE = 63, 54  # vectors between the two halves of a transform; where it puts nine weights

_compile = numba.njit(nogil=True, cache=True, error_model="numpy")
_inline = numba.njit(error_model="numpy", forceinline=True)


@_inline
def _tile(number, shape):
    """Frame, row and column of a tile."""
    high, wide = shape[6], shape[7]
    return number // (high * wide), number // wide % high, number % wide


@_inline
def _patch(x, patch, frame, y, left, size, shape, lanes):
    """Copy the pixels from (y, left) on, size x size, with zeros where the map has none."""
    height, width, channels = shape[0], shape[1], shape[2]
    for i in range(size):
        for j in range(size):
            at = (i * size + j) * channels
            source = ((frame * height + y + i) * width + left + j) * channels
            there = 0 <= y + i < height and 0 <= left + j < width
            for c in range(0, channels, lanes):
                store(patch, at + c, load(x, source + c) if there else zeros(x))


@_inline
def inputs(x, patch, room, v, place, first, count, side, shape, row, panel, apart, lanes, k):
    """Transform the inputs of `count` tiles from `first` on: v from `place` on.

    Rows of tiles are `row` apart, `columns` channels and the next ones `panel`, products `apart`.
    """
    height, width, channels, pad, size = shape[0], shape[1], shape[2], shape[8], side + 2
    columns = lanes * VECTORS
    for t in range(count):
        frame, ty, tx = _tile(first + t, shape)
        y, left = side * ty - pad, side * tx - pad
        source, at, line = x, ((frame * height + y) * width + left) * channels, width * channels
        if y < 0 or left < 0 or y + size > height or left + size > width:
            _patch(x, patch, frame, y, left, size, shape, lanes)
            source, at, line = patch, 0, size * channels
        for c in range(0, channels, lanes):
            to = place + t * row + c // columns * panel + c % columns
            if side == 2:
                spread_two(source, at + c, line, channels, v, to, apart)
            else:
                spread_four(source, at + c, line, channels, v, to, apart, room, lanes, k)


@_inline
def outputs_of(m, bias, room, out, first, count, side, shape, start, stop, row, apart, lanes, k):
    """Transform the products of `count` tiles back, and write the outputs from start to stop, as far as they are."""
    out_height, out_width, outputs = shape[3], shape[4], shape[5]
    for t in range(count):
        frame, ty, tx = _tile(first + t, shape)
        at = ((frame * out_height + side * ty) * out_width + side * tx) * outputs
        below, beside = min(side, out_height - side * ty), min(side, out_width - side * tx)
        for o in range(start, stop, lanes):
            offset, source = load(bias, o), t * row + o - start
            if side == 2:
                four = gather_two(m, source, apart)
                store(out, at + o, add(four[0], offset))
                if beside > 1:
                    store(out, at + outputs + o, add(four[1], offset))
                if below > 1:
                    store(out, at + out_width * outputs + o, add(four[2], offset))
                    if beside > 1:
                        store(out, at + (out_width + 1) * outputs + o, add(four[3], offset))
            else:
                gather_four(m, source, apart, room, lanes, k)
                for i in range(below):
                    for j in range(beside):
                        store(out, at + (i * out_width + j) * outputs + o, add(load(room, (4 * i + j) * lanes), offset))


@_inline
def transform_weights(weights, begin, held, rows, side, strides, packed, place, apart, nine, room, lanes, k):
    """Transform the weights of `held` outputs and `rows` inputs from number `begin` on: packed from `place` on."""
    _, by_input, by_output, by_y, by_x = strides
    columns = lanes * VECTORS
    for i in range(rows):
        for tap in range(9):
            at = np.uint64(begin + i * by_input + tap // 3 * by_y + tap % 3 * by_x)
            for j in range(held):
                nine[tap * columns + j] = weights[at]
                at += np.uint64(by_output)
        to = place + i * columns
        for j in range(0, held, lanes):
            if side == 2:
                weights_of_two(nine, j, columns, packed, to + j, apart, k)
            else:
                weights_of_four(nine, j, columns, packed, to + j, apart, room, lanes, k)


@_compile
def pack(weights, packed, inputs, outputs, side, strides, start, stop):
    """packed [products, panels x inputs + 1, columns] flat = G w G' of the weights w[input, output, y, x].

    A task is one panel of outputs. strides: where in `weights` the first one is, and how far the next input, output, y
    and x are.
    """
    lanes, k = BYTES // weights.itemsize, points_of(weights)
    columns = lanes * VECTORS
    apart = ((outputs + columns - 1) // columns * inputs + 1) * columns  # one more: or all would share sets of caches
    nine, room = np.zeros(9 * columns, weights.dtype), np.zeros(ROOM * lanes, weights.dtype)
    for panel in range(start, stop):
        begin, held = strides[0] + panel * columns * strides[2], min(columns, outputs - panel * columns)
        place = panel * inputs * columns
        transform_weights(weights, begin, held, inputs, side, strides, packed, place, apart, nine, room, lanes, k)


@_compile
def convolve(x, weights, bias, out, side, shape, chunk, start, stop):
    """out [frames, out_height, out_width, outputs] flat = the convolution of x [frames, height, width, channels].

    A task is `chunk` tiles, a multiple of ROWS. weights [products, panels x channels + 1, columns] and
    bias [outputs] flat.
    """
    channels, outputs, tiles, lanes = shape[2], shape[5], shape[9], BYTES // x.itemsize
    columns, count, k = lanes * VECTORS, (side + 2) ** 2, points_of(x)
    panels = (outputs + columns - 1) // columns
    row, out_row = channels + lanes, panels * columns + lanes
    apart, out_apart = chunk * row + lanes, chunk * out_row + lanes
    v, m = np.zeros(count * apart, x.dtype), np.zeros(count * out_apart, x.dtype)
    patch, room = np.zeros(count * channels, x.dtype), np.zeros(ROOM * lanes, x.dtype)
    for task in range(start, stop):
        first = task * chunk
        held = min(chunk, tiles - first)
        inputs(x, patch, room, v, 0, first, held, side, shape, row, columns, apart, lanes, k)
        for i in range(count):
            for panel in range(panels):
                w = ((i * panels + panel) * channels + i) * columns
                for r in range(0, held, ROWS):
                    a, c = i * apart + r * row, i * out_apart + r * out_row + panel * columns
                    block_product(v, a, row, 1, weights, w, columns, m, c, out_row, channels)
        outputs_of(m, bias, room, out, first, held, side, shape, 0, outputs, out_row, out_apart, lanes, k)


@_inline
def gradients(g, room, z, place, bias, mine, first, count, shape, row, wide, panel, apart, lanes, k):
    """Transform the output's gradients of `count` tiles of 4x4, and add them up for the bias, from `mine` on.

    In z from `place` on rows of tiles are `row` apart, `wide` outputs and the next ones `panel`, products `apart`.
    """
    out_height, out_width, outputs = shape[3], shape[4], shape[5]
    for t in range(count):
        frame, ty, tx = _tile(first + t, shape)
        at = ((frame * out_height + 4 * ty) * out_width + 4 * tx) * outputs
        below, beside = min(4, out_height - 4 * ty), min(4, out_width - 4 * tx)
        for o in range(0, outputs, lanes):
            total = load(bias, mine + o)
            for i in range(4):
                for j in range(4):
                    p = at + (i * out_width + j) * outputs + o
                    one = load(g, p) if i < below and j < beside else zeros(g)
                    store(room, (4 * i + j) * lanes, one)
                    total = add(total, one)
            store(bias, mine + o, total)
            fan_out(room, z, place + t * row + o // wide * panel + o % wide, apart, lanes, k)


@_compile
def weight_gradient(x, g, sums, bias, shape, chunk, piece, start, stop):
    """sums [pieces, 36, padded outputs, padded channels] flat += the gradient of transformed weights.

    A task is a piece of `piece` tiles of 4x4 outputs, which go by in chunks. g [frames, out_height, out_width, outputs]
    and bias [pieces, outputs] flat; the latter += the gradient of the bias.
    """
    channels, outputs, tiles, lanes = shape[2], shape[5], shape[9], BYTES // x.itemsize
    columns, k = lanes * VECTORS, points_of(x)
    wide, high = (channels + columns - 1) // columns * columns, (outputs + ROWS - 1) // ROWS * ROWS
    row, out_row = wide + lanes, high + lanes
    apart, out_apart = chunk * row + lanes, chunk * out_row + lanes
    v, z = np.zeros(36 * apart, x.dtype), np.zeros(36 * out_apart, x.dtype)
    patch, room = np.zeros(36 * channels, x.dtype), np.zeros(ROOM * lanes, x.dtype)
    for task in range(start, stop):
        total = task * 36 * high * wide
        for first in range(task * piece, min((task + 1) * piece, tiles), chunk):
            count = min(chunk, min((task + 1) * piece, tiles) - first)
            inputs(x, patch, room, v, 0, first, count, 4, shape, row, columns, apart, lanes, k)
            gradients(g, room, z, 0, bias, task * outputs, first, count, shape, out_row, high, 0, out_apart, lanes, k)
            for i in range(36):
                for c in range(0, wide, columns):
                    for o in range(0, high, ROWS):
                        at = total + (i * high + o) * wide + c
                        add_block_product(
                            z, i * out_apart + o, 1, out_row, v, i * apart + c, row, sums, at, wide, count
                        )


@_inline
def back_to_weights(sums, place, row, apart, weights, strides, first, last, c, held, room, lanes, k):
    """weights [outputs, channels, y, x] = G' s G for the outputs from first to last, and `held` channels from c on.

    sums: from `place` on, rows of outputs `row` apart, the 36 `apart`. strides: how far the next output, channel, y and
    x are.
    """
    by_output, by_channel, by_y, by_x = strides
    for o in range(first, last):
        for j in range(0, held, lanes):
            source = place + (o - first) * row + j
            for i in range(36):
                store(room, i * lanes, load(sums, source + i * apart))
            to = o * by_output + (c + j) * by_channel
            if by_channel == 1 and by_y == 3 * by_x:
                weights_back(room, weights, to, by_x, lanes, k)
                continue
            weights_back(room, room, NINE * lanes, lanes, lanes, k)
            for tap in range(9):
                at, source = np.uint64(to + tap // 3 * by_y + tap % 3 * by_x), np.uint64((NINE + tap) * lanes)
                for _ in range(lanes):
                    weights[at] = room[source]
                    at += np.uint64(by_channel)
                    source += np.uint64(1)


@_compile
def unpack(sums, weights, strides, pieces, shape, start, stop):
    """weights [outputs, channels, y, x] = G' s G of the sums of all pieces, for the outputs from start to stop."""
    channels, outputs, lanes, k = shape[2], shape[5], BYTES // sums.itemsize, points_of(sums)
    columns = lanes * VECTORS
    wide, high = (channels + columns - 1) // columns * columns, (outputs + ROWS - 1) // ROWS * ROWS
    row, room = np.zeros(36 * wide, sums.dtype), np.zeros(ROOM * lanes, sums.dtype)
    for o in range(start, stop):
        for i in range(36):
            for c in range(0, channels, lanes):
                total = zeros(sums)
                for piece in range(pieces):
                    total = add(total, load(sums, ((piece * 36 + i) * high + o) * wide + c))
                store(row, i * wide + c, total)
        back_to_weights(row, 0, wide, wide, weights, strides, o, o + 1, 0, channels, room, lanes, k)
