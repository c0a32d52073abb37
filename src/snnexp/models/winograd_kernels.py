"""The loops of Winograd's convolution; `winograd.py` says what they compute and how memory lies.

`tiling` says what tiles are like: how many inputs they have to a side, which may overlap those of their neighbours, how
far the tiles are apart, how many outputs they have to a side, how many products that takes, and how many transformed
weights: with stride 2 some of them are in more than one product.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, import-untyped, assignment"

from __future__ import annotations

import numba
import numpy as np

from snnexp.models.blocks import ROWS, VECTORS, add_block_product, block_product
from snnexp.models.winograd_transforms import (
    fan_out,
    fan_out_apart,
    gather_apart,
    gather_between,
    gather_four,
    gather_two,
    points_of,
    spread_apart,
    spread_four,
    spread_three,
    spread_two,
    weights_apart,
    weights_back,
    weights_back_apart,
    weights_of_four,
    weights_of_two,
)
from snnexp.vectors import BYTES, add, add_product, load, store, subtract, zeros

SHORT = 32  # tiles whose outputs are added up in their precision
ROOM, NINE = 63, 54  # vectors between the two halves of a transform; where it puts nine weights

_compile = numba.njit(nogil=True, cache=True, error_model="numpy")
_inline = numba.njit(error_model="numpy", forceinline=True)


@_inline
def _tile(number, shape):
    """Frame, row and column of a tile."""
    high, wide = shape[6], shape[7]
    return number // (high * wide), number // wide % high, number % wide


@_inline
def number_of(i, tiling):
    """Which of the transformed weights are in product i: with stride 2 the last two of five rows, or columns, share."""
    return i if tiling[3] == tiling[4] else min(i // 5, 3) * 4 + min(i % 5, 3)


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
def inputs(x, patch, room, v, place, first, count, tiling, shape, row, panel, apart, lanes, k):
    """Transform the inputs of `count` tiles from `first` on: v from `place` on.

    Rows of tiles are `row` apart, `columns` channels and the next ones `panel`, products `apart`.
    """
    height, width, channels, pad, size = shape[0], shape[1], shape[2], shape[8], tiling[0]
    columns = lanes * VECTORS
    for t in range(count):
        frame, ty, tx = _tile(first + t, shape)
        y, left = tiling[1] * ty - pad, tiling[1] * tx - pad
        source, at, line = x, ((frame * height + y) * width + left) * channels, width * channels
        if y < 0 or left < 0 or y + size > height or left + size > width:
            _patch(x, patch, frame, y, left, size, shape, lanes)
            source, at, line = patch, 0, size * channels
        for c in range(0, channels, lanes):
            to = place + t * row + c // columns * panel + c % columns
            if size == 4:
                spread_two(source, at + c, line, channels, v, to, apart)
            elif size == 6:
                spread_four(source, at + c, line, channels, v, to, apart, room, lanes, k)
            elif size == 5:
                spread_apart(source, at + c, line, channels, v, to, apart, room, lanes)
            else:
                spread_three(source, at + c, line, channels, v, to, apart, room, lanes)


@_inline
def outputs_of(m, bias, room, out, first, count, tiling, shape, start, stop, row, apart, lanes, k):
    """Transform the products of `count` tiles back, and write the outputs from start to stop, as far as they are."""
    out_height, out_width, outputs, size, side = shape[3], shape[4], shape[5], tiling[0], tiling[2]
    for t in range(count):
        frame, ty, tx = _tile(first + t, shape)
        at = ((frame * out_height + side * ty) * out_width + side * tx) * outputs
        below, beside = min(side, out_height - side * ty), min(side, out_width - side * tx)
        for o in range(start, stop, lanes):
            offset, source = load(bias, o), t * row + o - start
            if side == 2:
                four = gather_two(m, source, apart) if size == 4 else gather_apart(m, source, apart, room, lanes)
                store(out, at + o, add(four[0], offset))
                if beside > 1:
                    store(out, at + outputs + o, add(four[1], offset))
                if below > 1:
                    store(out, at + out_width * outputs + o, add(four[2], offset))
                    if beside > 1:
                        store(out, at + (out_width + 1) * outputs + o, add(four[3], offset))
            else:
                if size == 6:
                    gather_four(m, source, apart, room, lanes, k)
                else:
                    gather_between(m, source, apart, room, lanes)
                for i in range(below):
                    for j in range(beside):
                        store(out, at + (i * out_width + j) * outputs + o, add(load(room, (4 * i + j) * lanes), offset))


@_inline
def _sum_up(out, shift, part, sums, mine, first, count, tiling, shape, lanes):
    """sums[mine:] [2, outputs] += what the outputs of `count` tiles are above shift, and its square; part is 0."""
    out_height, out_width, outputs, side = shape[3], shape[4], shape[5], tiling[2]
    for t in range(count):
        frame, ty, tx = _tile(first + t, shape)
        at = ((frame * out_height + side * ty) * out_width + side * tx) * outputs
        below, beside = min(side, out_height - side * ty), min(side, out_width - side * tx)
        for o in range(0, outputs, lanes):
            a, b, mean = zeros(out), zeros(out), load(shift, o)  # of a tile: it need not wait for the one before
            for i in range(below):
                for j in range(beside):
                    d = subtract(load(out, at + (i * out_width + j) * outputs + o), mean)
                    a, b = add(a, d), add_product(b, d, d)
            store(part, o, add(load(part, o), a))
            store(part, outputs + o, add(load(part, outputs + o), b))
        if t % SHORT == SHORT - 1 or t == count - 1:
            for i in range(part.size):
                sums[mine + i] += part[i]
                part[i] = 0


@_inline
def transform_weights(weights, begin, held, rows, tiling, strides, packed, place, apart, nine, room, lanes, k):
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
            if tiling[0] == 4:
                weights_of_two(nine, j, columns, packed, to + j, apart, k)
            elif tiling[0] == 6:
                weights_of_four(nine, j, columns, packed, to + j, apart, room, lanes, k)
            else:
                weights_apart(nine, j, columns, packed, to + j, apart)


@_compile
def pack(weights, packed, inputs, outputs, tiling, strides, start, stop):
    """packed [transformed weights, panels x inputs + 1, columns] flat = G w G' of the weights w[input, output, y, x].

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
        transform_weights(weights, begin, held, inputs, tiling, strides, packed, place, apart, nine, room, lanes, k)


@_compile
def convolve(x, weights, bias, out, sums, tiling, shape, chunk, start, stop):
    """out [frames, out_height, out_width, outputs] flat = the convolution of x [frames, height, width, channels].

    A task is `chunk` tiles, a multiple of ROWS. weights [transformed ones, panels x channels + 1, columns] and
    bias [outputs] flat. sums [tasks, 2, outputs] flat, if not empty: of what out is above the bias, and of its square.
    """
    channels, outputs, tiles, lanes = shape[2], shape[5], shape[9], BYTES // x.itemsize
    columns, count, k = lanes * VECTORS, tiling[3], points_of(x)
    panels = (outputs + columns - 1) // columns
    row, out_row = channels + lanes, panels * columns + lanes
    apart, out_apart = chunk * row + lanes, chunk * out_row + lanes
    v, m = np.zeros(count * apart, x.dtype), np.zeros(count * out_apart, x.dtype)
    patch, room = np.zeros(tiling[0] ** 2 * channels, x.dtype), np.zeros(ROOM * lanes, x.dtype)
    part = np.zeros(2 * outputs, x.dtype)
    for task in range(start, stop):
        first = task * chunk
        held = min(chunk, tiles - first)
        inputs(x, patch, room, v, 0, first, held, tiling, shape, row, columns, apart, lanes, k)
        for i in range(count):
            number = number_of(i, tiling)
            for panel in range(panels):
                w = ((number * panels + panel) * channels + number) * columns
                for r in range(0, held, ROWS):
                    a, c = i * apart + r * row, i * out_apart + r * out_row + panel * columns
                    block_product(v, a, row, 1, weights, w, columns, m, c, out_row, channels)
        outputs_of(m, bias, room, out, first, held, tiling, shape, 0, outputs, out_row, out_apart, lanes, k)
        if sums.size > 0:
            _sum_up(out, bias, part, sums, task * part.size, first, held, tiling, shape, lanes)


@_inline
def gradients(g, y, norm, room, z, place, bias, mine, first, count, tiling, shape, row, wide, panel, apart, lanes, k):
    """Transform the output's gradients of `count` tiles, and add them up for the bias, from `mine` on.

    In z from `place` on rows of tiles are `row` apart, `wide` outputs and the next ones `panel`, products `apart`.
    y, norm: not empty if g is the gradient of a batch norm of y, the output: it becomes that of y in its place.
    """
    out_height, out_width, outputs, side = shape[3], shape[4], shape[5], tiling[2]
    for t in range(count):
        frame, ty, tx = _tile(first + t, shape)
        at = ((frame * out_height + side * ty) * out_width + side * tx) * outputs
        below, beside = min(side, out_height - side * ty), min(side, out_width - side * tx)
        for o in range(0, outputs, lanes):
            total, mean, scale, offset, slope = load(bias, mine + o), zeros(g), zeros(g), zeros(g), zeros(g)
            if norm.size > 0:
                mean, scale = load(norm, o), load(norm, outputs + o)
                offset, slope = load(norm, 2 * outputs + o), load(norm, 3 * outputs + o)
            for i in range(side):
                for j in range(side):
                    p = at + (i * out_width + j) * outputs + o
                    one = load(g, p) if i < below and j < beside else zeros(g)
                    if norm.size > 0 and i < below and j < beside:
                        one = add_product(add_product(offset, one, scale), subtract(load(y, p), mean), slope)
                        store(g, p, one)
                    store(room, (side * i + j) * lanes, one)
                    total = add(total, one)
            store(bias, mine + o, total)
            to = place + t * row + o // wide * panel + o % wide
            if side == 4:
                fan_out(room, z, to, apart, lanes, k)
            else:
                fan_out_apart(room, z, to, apart, lanes)


@_compile
def weight_gradient(x, g, y, norm, sums, bias, tiling, shape, chunk, piece, start, stop):
    """sums [pieces, transformed weights, padded outputs, padded channels] flat += their gradient.

    A task is a piece of `piece` tiles, which go by in chunks. g [frames, out_height, out_width, outputs]
    and bias [pieces, outputs] flat; the latter += the gradient of the bias. y, norm: see `gradients`.
    """
    channels, outputs, tiles, lanes = shape[2], shape[5], shape[9], BYTES // x.itemsize
    columns, k, products, distinct = lanes * VECTORS, points_of(x), tiling[3], tiling[4]
    wide, high = (channels + columns - 1) // columns * columns, (outputs + ROWS - 1) // ROWS * ROWS
    row, out_row = wide + lanes, high + lanes
    apart, out_apart = chunk * row + lanes, chunk * out_row + lanes
    v, z = np.zeros(products * apart, x.dtype), np.zeros(products * out_apart, x.dtype)
    patch, room = np.zeros(tiling[0] ** 2 * channels, x.dtype), np.zeros(ROOM * lanes, x.dtype)
    for task in range(start, stop):
        total = task * distinct * high * wide
        for first in range(task * piece, min((task + 1) * piece, tiles), chunk):
            count = min(chunk, min((task + 1) * piece, tiles) - first)
            inputs(x, patch, room, v, 0, first, count, tiling, shape, row, columns, apart, lanes, k)
            mine = task * outputs
            place = out_row, high, 0, out_apart
            gradients(g, y, norm, room, z, 0, bias, mine, first, count, tiling, shape, *place, lanes, k)
            for i in range(products):
                begin = total + number_of(i, tiling) * high * wide
                for c in range(0, wide, columns):
                    for o in range(0, high, ROWS):
                        at = begin + o * wide + c
                        add_block_product(
                            z, i * out_apart + o, 1, out_row, v, i * apart + c, row, sums, at, wide, count
                        )


@_inline
def back_to_weights(sums, place, row, apart, weights, strides, distinct, first, last, c, held, room, lanes, k):
    """weights [outputs, channels, y, x] = G' s G for the outputs from first to last, and `held` channels from c on.

    sums: from `place` on, rows of outputs `row` apart, the `distinct` ones `apart`. strides: how far the next output,
    channel, y and x are.
    """
    by_output, by_channel, by_y, by_x = strides
    for o in range(first, last):
        for j in range(0, held, lanes):
            source = place + (o - first) * row + j
            for i in range(distinct):
                store(room, i * lanes, load(sums, source + i * apart))
            if distinct == 36:
                weights_back(room, room, NINE * lanes, lanes, lanes, k)
            else:
                weights_back_apart(room, room, NINE * lanes, lanes, lanes)
            to = o * by_output + (c + j) * by_channel
            for tap in range(9):
                at, source = np.uint64(to + tap // 3 * by_y + tap % 3 * by_x), np.uint64((NINE + tap) * lanes)
                if by_channel == 1:
                    store(weights, np.int64(at), load(room, np.int64(source)))
                    continue
                for _ in range(lanes):
                    weights[at] = room[source]
                    at += np.uint64(by_channel)
                    source += np.uint64(1)


@_compile
def unpack(sums, weights, strides, distinct, pieces, shape, start, stop):
    """weights [outputs, channels, y, x] = G' s G of the sums of all pieces, for the outputs from start to stop."""
    channels, outputs, lanes, k = shape[2], shape[5], BYTES // sums.itemsize, points_of(sums)
    columns = lanes * VECTORS
    wide, high = (channels + columns - 1) // columns * columns, (outputs + ROWS - 1) // ROWS * ROWS
    row, room = np.zeros(distinct * wide, sums.dtype), np.zeros(ROOM * lanes, sums.dtype)
    for o in range(start, stop):
        for i in range(distinct):
            for c in range(0, channels, lanes):
                total = zeros(sums)
                for piece in range(pieces):
                    total = add(total, load(sums, ((piece * distinct + i) * high + o) * wide + c))
                store(row, i * wide + c, total)
        back_to_weights(row, 0, wide, wide, weights, strides, distinct, o, o + 1, 0, channels, room, lanes, k)
