"""The loops of a convolution that follows the spikes; `event_conv.py` says how lists and packed weights lie in memory.

Vectors are explicit (`vectors.py`). Of a plain loop over outputs a compiler makes one that reads and writes the sums
once per spike; here they stay in registers while all spikes of a window are added.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, import-untyped, assignment"

from __future__ import annotations

import numba
import numpy as np

from snnexp.vectors import add as _add
from snnexp.vectors import add_product as _add_product
from snnexp.vectors import add_scaled as _add_scaled
from snnexp.vectors import copied as _copied
from snnexp.vectors import load as _load
from snnexp.vectors import moved as _moved
from snnexp.vectors import nonzero as _nonzero
from snnexp.vectors import store as _store
from snnexp.vectors import store_past as _store_past
from snnexp.vectors import subtract as _subtract
from snnexp.vectors import zeros as _zeros

SHORT = 32  # outputs of a channel, about, whose sums are taken in their precision
ROOM = 16  # entries that are copied at once: so many may be read behind the end of a list

_compile = numba.njit(nogil=True, cache=True, error_model="numpy")
_inline = numba.njit(error_model="numpy", forceinline=True)


@_inline
def _window(first, entries, values, weighted, local, scales, shape, frame, oy, x0, above):
    """Collect the spikes of a window of `span` columns from x0 on: where their weights are. Returns how many there are.

    Of `step` rows of the window from `above` on.

    The first ROOM entries of a row of it are copied without asking whether they are there: a wrong guess of the
    processor costs more.
    """
    height, width, channels, size, stride, pad, columns, span, pixels, tile, step = shape
    y0, count = oy * stride - pad, np.int64(0)
    low, high = min(max(x0, 0), width), max(min(x0 + span, width), 0)
    for ky in range(max(above, -y0), min(above + step, size, height - y0)):
        row = (frame * height + y0 + ky) * (width + 1)
        j, end = np.int64(first[row + low]), np.int64(first[row + high])
        shift = np.int32((ky * columns + (pixels - 1) * stride - x0) * channels * tile)
        _store(local, count, _moved(_load(entries, j), shift))
        for more in range(j + ROOM, end, ROOM):
            _store(local, count + more - j, _moved(_load(entries, more), shift))
        if weighted:
            for q in range(j, end):
                scales[count + q - j] = values[q]
        count += end - j
    return count


@_inline
def _scratch(shape, weighted, like):
    """Room for a window's spikes, for their values, and for four vectors of sums, which are 0."""
    channels, size, span, pixels, tile = shape[2], shape[3], shape[7], shape[8], shape[9]
    local = np.empty(size * span * channels + 2 * ROOM, np.int32)
    return local, np.empty(local.size if weighted else 1, like.dtype), np.zeros(tile * pixels, like.dtype)


@_inline
def _apart(shape):
    """How far the weights of a window's second to fourth vector are from those of the first."""
    channels, stride, pixels, tile = shape[2], shape[4], shape[8], shape[9]
    lanes, pixel = tile * pixels // 4, -stride * channels * tile
    if pixels == 4:
        return pixel, 2 * pixel, 3 * pixel
    return lanes, pixel if pixels == 2 else 2 * lanes, pixel + lanes if pixels == 2 else 3 * lanes


@_inline
def _places(outputs, pixels, lanes):
    """The same in the output."""
    if pixels == 4:
        return outputs, 2 * outputs, 3 * outputs
    return lanes, outputs if pixels == 2 else 2 * lanes, outputs + lanes if pixels == 2 else 3 * lanes


@_inline
def _put(array, at, apart, vectors):
    _store(array, at, vectors[0])
    _store(array, at + apart[0], vectors[1])
    _store(array, at + apart[1], vectors[2])
    _store(array, at + apart[2], vectors[3])


@_inline
def _take(array, at, apart):
    return _load(array, at), _load(array, at + apart[0]), _load(array, at + apart[1]), _load(array, at + apart[2])


@_inline
def _put_past(array, at, apart, vectors):
    _store_past(array, at, vectors[0])
    _store_past(array, at + apart[0], vectors[1])
    _store_past(array, at + apart[1], vectors[2])
    _store_past(array, at + apart[2], vectors[3])


@_inline
def _none(array):
    return _zeros(array), _zeros(array), _zeros(array), _zeros(array)


@_inline
def _minus(a, b):
    return _subtract(a[0], b[0]), _subtract(a[1], b[1]), _subtract(a[2], b[2]), _subtract(a[3], b[3])


@_inline
def _plus_squared(a, b):
    low = _add_product(a[0], b[0], b[0]), _add_product(a[1], b[1], b[1])
    return low[0], low[1], _add_product(a[2], b[2], b[2]), _add_product(a[3], b[3], b[3])


@_inline
def _add_sums(sums, task, a, b, part, side):
    """Add vectors of sums to a task's own, in float64."""
    at = task * 2 * part.size
    _put(part, 0, side, a)
    for k in range(part.size):
        sums[at + k] += part[k]
    _put(part, 0, side, b)
    for k in range(part.size):
        sums[at + part.size + k] += part[k]


@_inline
def _plus(a, b):
    return _add(a[0], b[0]), _add(a[1], b[1]), _add(a[2], b[2]), _add(a[3], b[3])


@_inline
def _plus_scaled(a, b, s):
    low = _add_scaled(a[0], b[0], s), _add_scaled(a[1], b[1], s)
    return low[0], low[1], _add_scaled(a[2], b[2], s), _add_scaled(a[3], b[3], s)


@_compile
def pack(weights, packed, strides, outputs, shape, start, stop):
    """packed [tiles, ky, columns, channels, tile] flat = the weights, and 0 where there are none. A task is a tile.

    strides: how far the next output, channel, ky and kx are in `weights`.
    """
    by_output, by_channel, by_y, by_x = strides
    channels, size, columns, tile = shape[2], shape[3], shape[6], shape[9]
    extra = (columns - size) // 2
    for t in range(start, stop):
        to, held = np.uint64(t * size * columns * channels * tile), min(tile, outputs - t * tile)
        for ky in range(size):
            for column in range(columns):
                there = held if extra <= column < extra + size else 0
                for c in range(channels):
                    at = np.uint64(t * tile * by_output + ky * by_y + max(column - extra, 0) * by_x + c * by_channel)
                    for _ in range(there):
                        packed[to] = weights[at]
                        at += np.uint64(by_output)
                        to += np.uint64(1)
                    for _ in range(there, tile):
                        packed[to] = 0
                        to += np.uint64(1)


@_compile
def unpack(sums, weights, strides, outputs, pieces, shape, start, stop):
    """weights = the sums [pieces, tiles, rows + 1, tile] flat of all pieces, in order. A task is a tile."""
    by_output, by_channel, by_y, by_x = strides
    channels, size, columns, tile = shape[2], shape[3], shape[6], shape[9]
    extra, apart = (columns - size) // 2, (size * columns * channels + 1) * tile
    tiles = (outputs + tile - 1) // tile
    for t in range(start, stop):
        for ky in range(size):
            for kx in range(size):
                for c in range(channels):
                    at = np.uint64(t * tile * by_output + ky * by_y + kx * by_x + c * by_channel)
                    row = t * apart + ((ky * columns + extra + kx) * channels + c) * tile
                    for j in range(np.uint64(row), np.uint64(row + min(tile, outputs - t * tile))):
                        total = sums[j]
                        for piece in range(np.uint64(1), np.uint64(pieces)):
                            total += sums[j + piece * np.uint64(tiles * apart)]
                        weights[at] = total
                        at += np.uint64(by_output)


@_compile
def forward(first, entries, values, weights, bias, out, sums, past, shape, output, block, start, stop):
    """out [frames, out_height, out_width, outputs] flat = the convolution.

    sums [tasks, 2, pixels, tile] flat, if not empty: of what out is above the bias, and of its square. Then windows
    fill the rows of out. past: vectors lie one by one, each where cache lines begin, and go past the caches.

    A task is one tile of outputs for `block` frames. weights [tiles, rows, tile] and bias [tiles, tile] flat. Weights
    that no second-level cache holds are gone through in parts, `step` rows of the window each, for all the frames.
    """
    size, stride, pad, pixels, tile, step = shape[3], shape[4], shape[5], shape[8], shape[9], shape[10]
    frames, out_height, out_width, outputs, rows = output
    blocks, lanes, weighted = (frames + block - 1) // block, tile * pixels // 4, values.size > 0
    local, scales, part = _scratch(shape, weighted, weights)
    apart, places, side = _apart(shape), _places(outputs, pixels, lanes), (lanes, 2 * lanes, 3 * lanes)
    for task in range(start, stop):
        base, o, end = task // blocks * rows * tile, task // blocks * tile, min((task % blocks + 1) * block, frames)
        held = min(tile, outputs - o)
        fits = (held == tile or outputs < tile) and out_width >= pixels
        for v in range(pixels):
            _copied(part, v * tile, bias, o, tile)
        begin = _take(part, 0, side)
        last = end * out_height * out_width * outputs - places[2] - lanes
        for above in range(0, size, step):
            summed, since = sums.size > 0 and above + step >= size, 0
            a = b = _none(out)
            for frame in range(task % blocks * block, end):
                for oy in range(out_height):
                    if since >= SHORT:
                        _add_sums(sums, task, a, b, part, side)
                        since, a, b = 0, _none(out), _none(out)
                    for group in range(0, out_width, pixels):
                        ox = min(group, max(out_width - pixels, 0))
                        x0, at = ox * stride - pad, ((frame * out_height + oy) * out_width + ox) * outputs + o
                        count = _window(first, entries, values, weighted, local, scales, shape, frame, oy, x0, above)
                        y = _take(out, at, places) if above else begin
                        if weighted:
                            for i in range(count):
                                y = _plus_scaled(y, _take(weights, base + local[i], apart), scales[i])
                        else:
                            for i in range(count):
                                y = _plus(y, _take(weights, base + local[i], apart))
                        if summed:
                            d = _minus(y, begin)
                            since, a, b = since + pixels, _plus(a, d), _plus_squared(b, d)
                        if past:
                            _put_past(out, at, places, y)
                            continue
                        if fits and at <= last:  # a vector may reach into the next pixel, which is written later
                            _put(out, at, places, y)
                            continue
                        _put(part, 0, side, y)
                        if pixels == 1 and held >= lanes:  # whole vectors, the last one over the end of another
                            for c in range(0, held - lanes, lanes):
                                _store(out, at + c, _load(part, c))
                            _store(out, at + held - lanes, _load(part, held - lanes))
                            continue
                        for q in range(min(pixels, out_width)):
                            for c in range(held):
                                out[at + q * outputs + c] = part[q * tile + c]
            if summed:
                _add_sums(sums, task, a, b, part, side)


@_inline
def _through_norm(g, x, norm, at, side):
    """The gradient of x, g that of its batch norm."""
    kinds = norm.size // 4
    mean, scale = _take(norm, at, side), _take(norm, at + kinds, side)
    offset, slope = _take(norm, at + 2 * kinds, side), _take(norm, at + 3 * kinds, side)
    a = _add_product(_add_product(offset[0], g[0], scale[0]), _subtract(x[0], mean[0]), slope[0])
    b = _add_product(_add_product(offset[1], g[1], scale[1]), _subtract(x[1], mean[1]), slope[1])
    c = _add_product(_add_product(offset[2], g[2], scale[2]), _subtract(x[2], mean[2]), slope[2])
    return a, b, c, _add_product(_add_product(offset[3], g[3], scale[3]), _subtract(x[3], mean[3]), slope[3])


@_compile
def weight_gradient(first, entries, values, grad, x, norm, sums, shape, output, block, start, stop):
    """sums [pieces, tiles, rows + 1, tile] flat += the gradient of packed weights; the last row is the bias's.

    A task is one tile of outputs for a piece of `block` frames, and adds in order to a part of `sums` of its own.
    x, norm: not empty if the gradient is that of a batch norm behind (`Packing.norm`).
    """
    size, stride, pad, pixels, tile, step = shape[3], shape[4], shape[5], shape[8], shape[9], shape[10]
    frames, out_height, out_width, outputs, rows = output
    blocks, lanes, weighted = (frames + block - 1) // block, tile * pixels // 4, values.size > 0
    local, scales, part = _scratch(shape, weighted, grad)
    apart, places, side = _apart(shape), _places(outputs, pixels, lanes), (lanes, 2 * lanes, 3 * lanes)
    tiles, last = (outputs + tile - 1) // tile, grad.size - places[2] - lanes
    for task in range(start, stop):
        o = task // blocks * tile
        base = (task % blocks * tiles + task // blocks) * (rows + 1) * tile
        part[:] = 0
        total, of_norm = _take(part, 0, side), task // blocks * tile * pixels
        for above in range(0, size, step):
            for frame in range(task % blocks * block, min((task % blocks + 1) * block, frames)):
                for oy in range(out_height):
                    for ox in range(0, out_width, pixels):
                        at = ((frame * out_height + oy) * out_width + ox) * outputs + o
                        if (
                            ox + pixels <= out_width and at <= last
                        ):  # what belongs to the next pixel lands in no output's row
                            g = _take(grad, at, places)
                            if norm.size > 0:
                                g = _through_norm(g, _take(x, at, places), norm, of_norm, side)
                        else:
                            part[:] = 0
                            for q in range(min(pixels, out_width - ox)):
                                for c in range(min(tile, outputs - o)):
                                    i, k, kinds = at + q * outputs + c, of_norm + q * tile + c, norm.size // 4
                                    part[q * tile + c] = grad[i]
                                    if norm.size > 0:
                                        far = (x[i] - norm[k]) * norm[k + 3 * kinds]
                                        part[q * tile + c] = grad[i] * norm[k + kinds] + norm[k + 2 * kinds] + far
                            g = _take(part, 0, side)
                        if _nonzero(g[0]) | _nonzero(g[1]) | _nonzero(g[2]) | _nonzero(g[3]) == 0:
                            continue  # behind pooling, whole rows and columns may be
                        x0 = ox * stride - pad
                        count = _window(first, entries, values, weighted, local, scales, shape, frame, oy, x0, above)
                        if above == 0:
                            total = _plus(total, g)
                        if weighted:
                            for i in range(count):
                                w = base + local[i]
                                _put(sums, w, apart, _plus_scaled(_take(sums, w, apart), g, scales[i]))
                        else:
                            for i in range(count):
                                w = base + local[i]
                                _put(sums, w, apart, _plus(_take(sums, w, apart), g))
        _put(part, 0, side, total)
        for q in range(pixels):
            for c in range(tile):
                sums[base + rows * tile + c] += part[q * tile + c]
