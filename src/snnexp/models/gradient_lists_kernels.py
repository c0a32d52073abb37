"""The loops of an input gradient that walks what is not zero in the output's; `gradient_lists.py` says how memory lies.

A list ends with END and not with a count: a compiler unrolls a counted loop, and a short list then ends in two loops,
whose lengths no processor guesses.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, assignment"

from __future__ import annotations

import numba
import numpy as np

from snnexp.vectors import BYTES, add, add_scaled, copied, load, nonzero, one, put_eight, store, zeros

END = 255  # of a pixel's list, which has bytes

_compile = numba.njit(nogil=True, cache=True, error_model="numpy")
_inline = numba.njit(error_model="numpy", forceinline=True)


def _adder(vectors):
    """What adds a row of output pixels' share of one ky: to three or four vectors of `sums` of each pixel."""

    @_inline
    def add_row(grad, weights, lists, sums, given):
        i, at, base, to, tile, step, pixels, outputs = given
        lanes = tile // vectors
        for _ in range(pixels):
            o = np.int64(one(lists, i))
            if o != END:
                a, b, c, d = zeros(weights), zeros(weights), zeros(weights), zeros(weights)
                while o != END:
                    g, w = one(grad, at + o), base + o * tile
                    a, b = add_scaled(a, load(weights, w), g), add_scaled(b, load(weights, w + lanes), g)
                    c = add_scaled(c, load(weights, w + 2 * lanes), g)
                    if vectors == 4:
                        d = add_scaled(d, load(weights, w + 3 * lanes), g)
                    i += 1
                    o = np.int64(one(lists, i))
                store(sums, to, add(load(sums, to), a))
                store(sums, to + lanes, add(load(sums, to + lanes), b))
                store(sums, to + 2 * lanes, add(load(sums, to + 2 * lanes), c))
                if vectors == 4:
                    store(sums, to + 3 * lanes, add(load(sums, to + 3 * lanes), d))
            i += 1
            at += outputs
            to += step

    return add_row


_add_three, _add_four = _adder(3), _adder(4)


@_compile
def listed_gradient(grad, weights, out, picks, counts, shape, sizes, start, stop):
    """out [frames, height, width, channels] flat = the gradient of a convolution's input.

    A task is `band` rows of the input in each of `group` frames, and lists `most` outputs at once. grad [frames,
    out_height, out_width, outputs] and weights [tiles, size, outputs, tile] flat; picks [256, 8], counts [256]: the
    bits of each byte, and how many. The rows of a task's sums have `row` numbers, those of the padding among them.
    """
    height, width, channels, out_height, out_width, outputs, size, stride, pad = shape
    frames, tiles, tile, row, band, group, most = sizes
    blocks, bands = (outputs + most - 1) // most, (height + band - 1) // band
    high = min(out_height, (band + size - 2) // stride + 1)  # rows of the output that a band takes part in, at most
    lists = np.empty(group * high * out_width * (outputs + blocks) + 8, np.uint8)
    firsts = np.empty((blocks, group, high), np.int64)
    sums = np.empty(group * band * row, grad.dtype)
    for task in range(start, stop):
        frame, top = task // bands * group, task % bands * band
        some, rows = min(group, frames - frame), min(band, height - top)
        low = max(0, (top + pad - size + stride) // stride)
        high = min(out_height, (top + rows - 1 + pad) // stride + 1)
        _list(grad, lists, firsts, picks, counts, shape, most, frame, some, low, high)
        sums[:] = 0
        for block in range(blocks):
            for ky in range(size):
                begin = max(low, (top + pad - ky + stride - 1) // stride)
                end = min(high, (top + rows - 1 + pad - ky) // stride + 1)
                for t in range(tiles):
                    w = ((t * size + ky) * outputs + block * most) * tile
                    for f in range(some):
                        for oy in range(begin, end):
                            i, g = firsts[block, f, oy - low], ((frame + f) * out_height + oy) * out_width * outputs
                            to = (f * band + oy * stride - pad + ky - top) * row + t * tile
                            given = i, g + block * most, w, to, tile, stride * channels, out_width, outputs
                            if tile * grad.itemsize == 4 * BYTES:
                                _add_four(grad, weights, lists, sums, given)
                            else:
                                _add_three(grad, weights, lists, sums, given)
        for f in range(some):
            for y in range(rows):
                at, source = ((frame + f) * height + top + y) * width * channels, (f * band + y) * row + pad * channels
                copied(out, at, sums, source, width * channels)


@_inline
def _list(grad, lists, firsts, picks, counts, shape, most, frame, some, low, high):
    """By block of outputs, the numbers of each pixel's outputs whose gradient is not 0; firsts: where rows begin.

    Written always, and counted where it is not 0: a wrong guess of the processor costs more.
    """
    out_height, out_width, outputs = shape[3], shape[4], shape[5]
    lanes, j = BYTES // grad.itemsize, np.int64(0)
    for block in range(firsts.shape[0]):
        begin = block * most
        end = min(begin + most, outputs)
        whole = end - (end - begin) % lanes
        for f in range(some):
            for oy in range(low, high):
                firsts[block, f, oy - low] = j
                at = ((frame + f) * out_height + oy) * out_width * outputs
                for _ in range(out_width):
                    for o in range(begin, whole, lanes):
                        bits = nonzero(load(grad, at + o))
                        for part in range(0, lanes, 8):
                            byte = bits >> part & 255
                            put_eight(lists, j, picks, 8 * byte, o + part - begin)
                            j += np.int64(one(counts, byte))
                    for o in range(whole, end):
                        lists[j] = o - begin
                        j += np.int64(one(grad, at + o) != 0)
                    lists[j] = END
                    j += 1
                    at += outputs
