"""The loops of Winograd's convolution; `winograd.py` says what they compute and how memory lies."""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, import-untyped, assignment"

from __future__ import annotations

import numba
import numpy as np

from snnexp.models.blocks import ROWS, VECTORS, add_product, product
from snnexp.models.vectors import BYTES, add, add_scaled, load, store, subtract, zeros

_compile = numba.njit(nogil=True, cache=True, error_model="numpy")
_inline = numba.njit(error_model="numpy", forceinline=True)


@_inline
def _tile(number, shape):
    """Frame, row and column of a tile."""
    high, wide = shape[6], shape[7]
    return number // (high * wide), number // wide % high, number % wide


@_inline
def _patch(x, patch, frame, y, left, shape, lanes):
    """Copy the 4x4 pixels from (y, left) on, with zeros where the map has none."""
    height, width, channels = shape[0], shape[1], shape[2]
    for i in range(4):
        for j in range(4):
            at = (i * 4 + j) * channels
            source = ((frame * height + y + i) * width + left + j) * channels
            there = 0 <= y + i < height and 0 <= left + j < width
            for c in range(0, channels, lanes):
                store(patch, at + c, load(x, source + c) if there else zeros(x))


@_inline
def _ends(a, b, c, d):
    """The transform of four numbers: a - c, b + c, c - b, b - d."""
    return subtract(a, c), add(b, c), subtract(c, b), subtract(b, d)


@_inline
def _spread_out(source, at, row, pixel, v, place, apart, channels, lanes):
    """v[16 products][tile] = B' d B of one tile, for all channels."""
    for c in range(0, channels, lanes):
        p = at + c
        a0, a1, a2, a3 = _ends(
            load(source, p), load(source, p + row), load(source, p + 2 * row), load(source, p + 3 * row)
        )
        p += pixel
        b0, b1, b2, b3 = _ends(
            load(source, p), load(source, p + row), load(source, p + 2 * row), load(source, p + 3 * row)
        )
        p += pixel
        c0, c1, c2, c3 = _ends(
            load(source, p), load(source, p + row), load(source, p + 2 * row), load(source, p + 3 * row)
        )
        p += pixel
        d0, d1, d2, d3 = _ends(
            load(source, p), load(source, p + row), load(source, p + 2 * row), load(source, p + 3 * row)
        )
        q = place + c
        for four in (_ends(a0, b0, c0, d0), _ends(a1, b1, c1, d1), _ends(a2, b2, c2, d2), _ends(a3, b3, c3, d3)):
            store(v, q, four[0])
            store(v, q + apart, four[1])
            store(v, q + 2 * apart, four[2])
            store(v, q + 3 * apart, four[3])
            q += 4 * apart


@_inline
def _inputs(x, patch, v, first, count, shape, row, apart, lanes):
    """Transform the input of `count` tiles from `first` on."""
    height, width, channels, pad = shape[0], shape[1], shape[2], shape[8]
    for t in range(count):
        frame, ty, tx = _tile(first + t, shape)
        y, left = 2 * ty - pad, 2 * tx - pad
        if y >= 0 and left >= 0 and y + 4 <= height and left + 4 <= width:
            at = ((frame * height + y) * width + left) * channels
            _spread_out(x, at, width * channels, channels, v, t * row, apart, channels, lanes)
        else:
            _patch(x, patch, frame, y, left, shape, lanes)
            _spread_out(patch, 0, 4 * channels, channels, v, t * row, apart, channels, lanes)


@_inline
def _two(a, b, c, d):
    """The transform back: a + b + c, b - c - d."""
    return add(add(a, b), c), subtract(subtract(b, c), d)


@_inline
def _outputs(m, bias, out, first, count, shape, row, apart, lanes):
    """Transform the products of `count` tiles back, and write their outputs."""
    out_height, out_width, outputs = shape[3], shape[4], shape[5]
    for t in range(count):
        frame, ty, tx = _tile(first + t, shape)
        at = ((frame * out_height + 2 * ty) * out_width + 2 * tx) * outputs
        below, beside = 2 * ty + 1 < out_height, 2 * tx + 1 < out_width
        for o in range(0, outputs, lanes):
            p = t * row + o
            a0, a1 = _two(load(m, p), load(m, p + 4 * apart), load(m, p + 8 * apart), load(m, p + 12 * apart))
            p += apart
            b0, b1 = _two(load(m, p), load(m, p + 4 * apart), load(m, p + 8 * apart), load(m, p + 12 * apart))
            p += apart
            c0, c1 = _two(load(m, p), load(m, p + 4 * apart), load(m, p + 8 * apart), load(m, p + 12 * apart))
            p += apart
            d0, d1 = _two(load(m, p), load(m, p + 4 * apart), load(m, p + 8 * apart), load(m, p + 12 * apart))
            start = load(bias, o)
            left, right = _two(a0, b0, c0, d0)
            store(out, at + o, add(left, start))
            if beside:
                store(out, at + outputs + o, add(right, start))
            if below:
                left, right = _two(a1, b1, c1, d1)
                store(out, at + out_width * outputs + o, add(left, start))
                if beside:
                    store(out, at + (out_width + 1) * outputs + o, add(right, start))


@_inline
def _four(a, b, c, zero):
    """The transform of three weights: a, (a + b + c) / 2, (a - b + c) / 2, c."""
    outer, half = add(a, c), zero.dtype.type(0.5)
    return a, add_scaled(zeros(zero), add(outer, b), half), add_scaled(zeros(zero), subtract(outer, b), half), c


@_compile
def pack(weights, packed, inputs, outputs, strides, start, stop):
    """packed [16, panels, inputs, columns] flat = G w G' of the weights w[input, output, y, x].

    A task is one panel of outputs. strides: where in `weights` the first one is, and how far the next input, output, y
    and x are.
    """
    first, by_input, by_output, by_y, by_x = strides
    lanes = BYTES // weights.itemsize
    columns = lanes * VECTORS
    apart = (outputs + columns - 1) // columns * inputs * columns
    nine = np.zeros(9 * columns, weights.dtype)
    for panel in range(start, stop):
        begin, held = first + panel * columns * by_output, min(columns, outputs - panel * columns)
        for i in range(inputs):
            for tap in range(9):
                at = np.uint64(begin + i * by_input + tap // 3 * by_y + tap % 3 * by_x)
                for j in range(held):
                    nine[tap * columns + j] = weights[at]
                    at += np.uint64(by_output)
            for j in range(0, held, lanes):
                k = 3 * columns
                a = _four(load(nine, j), load(nine, j + k), load(nine, j + 2 * k), weights)
                j += columns
                b = _four(load(nine, j), load(nine, j + k), load(nine, j + 2 * k), weights)
                j += columns
                c = _four(load(nine, j), load(nine, j + k), load(nine, j + 2 * k), weights)
                place = (panel * inputs + i) * columns + j - 2 * columns
                for v, w, x in ((a[0], b[0], c[0]), (a[1], b[1], c[1]), (a[2], b[2], c[2]), (a[3], b[3], c[3])):
                    row = _four(v, w, x, weights)
                    store(packed, place, row[0])
                    store(packed, place + apart, row[1])
                    store(packed, place + 2 * apart, row[2])
                    store(packed, place + 3 * apart, row[3])
                    place += 4 * apart


@_compile
def convolve(x, weights, bias, out, shape, chunk, start, stop):
    """out [frames, out_height, out_width, outputs] flat = the convolution of x [frames, height, width, channels].

    A task is `chunk` tiles, a multiple of ROWS. weights [16, panels, channels, columns], bias [outputs] flat.
    """
    channels, outputs, tiles, lanes = shape[2], shape[5], shape[9], BYTES // x.itemsize
    columns = lanes * VECTORS
    panels = (outputs + columns - 1) // columns
    row, out_row = channels + lanes, panels * columns + lanes
    apart, out_apart = chunk * row + lanes, chunk * out_row + lanes
    v, m, patch = np.zeros(16 * apart, x.dtype), np.zeros(16 * out_apart, x.dtype), np.zeros(16 * channels, x.dtype)
    for task in range(start, stop):
        first = task * chunk
        count = min(chunk, tiles - first)
        _inputs(x, patch, v, first, count, shape, row, apart, lanes)
        for i in range(16):
            for panel in range(panels):
                w = (i * panels + panel) * channels * columns
                for r in range(0, count, ROWS):
                    a, c = i * apart + r * row, i * out_apart + r * out_row + panel * columns
                    product(v, a, row, 1, weights, w, columns, m, c, out_row, channels)
        _outputs(m, bias, out, first, count, shape, out_row, out_apart, lanes)


@_inline
def _fan(a, b, zero):
    """The adjoint of the transform back: a, a + b, a - b, -b."""
    return a, add(a, b), subtract(a, b), subtract(zero, b)


@_inline
def _gradients(g, z, bias, mine, first, count, shape, row, apart, lanes):
    """Transform the output's gradient of `count` tiles, and add it up for the bias, from `mine` on."""
    out_height, out_width, outputs = shape[3], shape[4], shape[5]
    zero = zeros(g)
    for t in range(count):
        frame, ty, tx = _tile(first + t, shape)
        at = ((frame * out_height + 2 * ty) * out_width + 2 * tx) * outputs
        below, beside = 2 * ty + 1 < out_height, 2 * tx + 1 < out_width
        for o in range(0, outputs, lanes):
            p, q = at + o, at + o + out_width * outputs
            a, b, c, d = load(g, p), zero, zero, zero
            if beside:
                b = load(g, p + outputs)
            if below:
                c = load(g, q)
                if beside:
                    d = load(g, q + outputs)
            place, above, under = t * row + o, _fan(a, c, zero), _fan(b, d, zero)
            for v, w in ((above[0], under[0]), (above[1], under[1]), (above[2], under[2]), (above[3], under[3])):
                four = _fan(v, w, zero)
                store(z, place, four[0])
                store(z, place + apart, four[1])
                store(z, place + 2 * apart, four[2])
                store(z, place + 3 * apart, four[3])
                place += 4 * apart
            store(bias, mine + o, add(load(bias, mine + o), add(add(a, b), add(c, d))))


@_compile
def weight_gradient(x, g, sums, bias, shape, chunk, piece, start, stop):
    """sums [pieces, 16, padded outputs, padded channels] flat += the gradient of transformed weights.

    A task is a piece of `piece` tiles, which go by in chunks. g [frames, out_height, out_width, outputs] and
    bias [pieces, outputs] flat; the latter += the gradient of the bias.
    """
    channels, outputs, tiles, lanes = shape[2], shape[5], shape[9], BYTES // x.itemsize
    columns = lanes * VECTORS
    wide, high = (channels + columns - 1) // columns * columns, (outputs + ROWS - 1) // ROWS * ROWS
    row, out_row = wide + lanes, high + lanes
    apart, out_apart = chunk * row + lanes, chunk * out_row + lanes
    v, z, patch = np.zeros(16 * apart, x.dtype), np.zeros(16 * out_apart, x.dtype), np.zeros(16 * channels, x.dtype)
    for task in range(start, stop):
        total = task * 16 * high * wide
        for first in range(task * piece, min((task + 1) * piece, tiles), chunk):
            count = min(chunk, min((task + 1) * piece, tiles) - first)
            _inputs(x, patch, v, first, count, shape, row, apart, lanes)
            _gradients(g, z, bias, task * outputs, first, count, shape, out_row, out_apart, lanes)
            for i in range(16):
                for c in range(0, wide, columns):
                    for o in range(0, high, ROWS):
                        at = total + (i * high + o) * wide + c
                        add_product(z, i * out_apart + o, 1, out_row, v, i * apart + c, row, sums, at, wide, count)
