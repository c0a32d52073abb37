"""The loops of an input gradient only where it is needed; `input_gradient.py` says how memory lies."""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, assignment"

from __future__ import annotations

import numba
import numpy as np

from snnexp.vectors import BYTES, add_product, copied, load, total, zeros


@numba.njit(nogil=True, cache=True, error_model="numpy")
def input_gradient(grad, weights, needed, out, kinds, pieces, places, geometry, band, start, stop):
    """out [frames, height, width, channels] flat = the gradient of a convolution's input where `needed` is 1, else 0.

    A task is `band` rows of one frame. What it needs of grad [frames, out_height, out_width, outputs] is copied with
    zeros around it, so that every sum runs over whole rows of weights. Then each channel goes through its pixels, four
    at a time, which share the weights that they read.
    """
    height, width, channels, _, _, _, stride, pad, taps, row = geometry
    bands, room = (height + band - 1) // band, band * width
    copy = np.zeros(((band + stride - 2) // stride + 1 + taps) * row + BYTES, grad.dtype)
    lists = np.empty(pieces.shape[0] * channels * (room + 1), np.int32)
    ends = np.empty(pieces.shape[0] * channels, np.uint64)
    for task in range(start, stop):
        frame, top = task // bands, task % bands * band
        pixels = min(band, height - top) * width
        low, high = (top + pad) // stride, (top + pixels // width - 1 + pad) // stride + taps
        _copy_rows(grad, copy, frame, low, high, geometry)
        first, here = (frame * height + top) * width, top * width
        out[first * channels : (first + pixels) * channels] = 0
        _list(needed, lists, ends, room + 1, kinds, first, here, pixels, channels)
        for kind in range(pieces.shape[0]):
            at, rows, length = pieces[kind, 0], pieces[kind, 1], pieces[kind, 2]
            if length > 0:
                for c in range(channels):
                    e = kind * channels + c
                    w = at + c * rows * length
                    ones = lists[e * (room + 1) : np.int64(ends[e])]
                    _products(
                        weights, copy, out, places[here:], ones, w, rows, length, row, low * row, first, channels, c
                    )


@numba.njit(error_model="numpy", forceinline=True)
def _copy_rows(grad, copy, frame, low, high, geometry):
    """Rows low to high of a frame of grad into `copy`, with zeros around what there is."""
    _, _, _, out_height, out_width, outputs, _, _, taps, row = geometry
    left, wide = (taps - 1) * outputs, out_width * outputs
    held = min(wide, row - left)
    for r in range(low, high):
        oy, at = r - (taps - 1), (r - low) * row
        if oy < 0 or oy >= out_height:
            copy[at : at + row] = 0
            continue
        source = (frame * out_height + oy) * wide
        copy[at : at + left] = 0
        copied(copy, at + left, grad, source, held)
        copy[at + left + held : at + row] = 0


@numba.njit(error_model="numpy", forceinline=True)
def _list(needed, lists, ends, room, kinds, first, here, pixels, channels):
    """The pixels of each kind and channel that are needed, and where they end.

    Written always and counted if so: a wrong guess of the processor costs more. Unsigned: nothing is tested for a sign.
    """
    for e in range(ends.size):
        ends[e] = e * room
    for p in range(pixels):
        e, at = np.uint64(kinds[here + p] * channels), np.uint64((first + p) * channels)
        for c in range(np.uint64(channels)):
            j = ends[e + c]
            lists[j] = p
            ends[e + c] = j + np.uint64(needed[at + c])


@numba.njit(error_model="numpy", forceinline=True)
def _products(weights, copy, out, places, ones, w, rows, length, row, shift, first, channels, c):
    """A channel's sums at its pixels `ones`: `rows` rows of `length` weights from w on, times those of `copy`."""
    lanes, i = BYTES // weights.itemsize, 0
    while ones.size - i >= 4:
        p0, p1, p2, p3 = ones[i], ones[i + 1], ones[i + 2], ones[i + 3]
        g0, g1, g2, g3 = places[p0] - shift, places[p1] - shift, places[p2] - shift, places[p3] - shift
        a0, a1, a2, a3 = zeros(weights), zeros(weights), zeros(weights), zeros(weights)
        for r in range(rows):
            for o in range(0, length, lanes):
                v, s = load(weights, w + r * length + o), r * row + o
                a0, a1 = add_product(a0, v, load(copy, g0 + s)), add_product(a1, v, load(copy, g1 + s))
                a2, a3 = add_product(a2, v, load(copy, g2 + s)), add_product(a3, v, load(copy, g3 + s))
        out[(first + p0) * channels + c], out[(first + p1) * channels + c] = total(a0), total(a1)
        out[(first + p2) * channels + c], out[(first + p3) * channels + c] = total(a2), total(a3)
        i += 4
    while i < ones.size:
        p0, p1 = ones[i], ones[min(i + 1, ones.size - 1)]
        g0, g1 = places[p0] - shift, places[p1] - shift
        a0, a1 = zeros(weights), zeros(weights)
        for r in range(rows):
            for o in range(0, length, lanes):
                v, s = load(weights, w + r * length + o), r * row + o
                a0, a1 = add_product(a0, v, load(copy, g0 + s)), add_product(a1, v, load(copy, g1 + s))
        out[(first + p0) * channels + c], out[(first + p1) * channels + c] = total(a0), total(a1)
        i += 2
