"""The loop of a convolution with few outputs whose spikes add to the outputs around them; see `event_spread.py`."""
# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from __future__ import annotations

import numba
import numpy as np

from snnexp.vectors import BYTES, add, add_scaled, load, store


# "contract": single numbers are rounded as those of vectors are
@numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})
def spread(first, entries, values, weights, bias, out, shape, output, start, stop):
    """out [frames, out_height, out_width, outputs] flat = the convolution, of frames start..stop.

    weights [channels, cut, ky, room] flat; bias: a row of the output without spikes.
    """
    height, width, channels, size, pad, tile = shape
    out_height, out_width, outputs, vectors, room = output
    lanes, weighted, row, zero = BYTES // out.itemsize, values.size > 0, out_width * outputs, out.dtype.type(0)
    for frame in range(start, stop):
        begin, end = frame * out_height * row, (frame + 1) * out_height * row
        for oy in range(out_height):
            at = np.uint64(begin + oy * row)
            for j in range(np.uint64(row)):
                out[at + j] = bias[j]
        for y in range(height):
            line = (frame * height + y) * (width + 1)
            low, high = max(y + pad - out_height + 1, 0), min(y + pad, size - 1)
            for j in range(first[line], first[line + width]):
                place = np.uint32(entries[j]) // np.uint32(tile)
                x = np.int64(place // np.uint32(channels))
                c = np.int64(place) - x * channels
                left, right = max(size - 1 - x - pad, 0), max(x + pad - out_width + 1, 0)
                held = (size - left - right) * outputs
                w = (c * size + min(right, size - 1)) * size * room + left * outputs
                column = (x + pad - size + 1 + left) * outputs
                value = values[j] if weighted else out.dtype.type(1)
                for ky in range(low, high + 1):
                    at, source = begin + (y + pad - ky) * row + column, w + ky * room
                    if held <= 0:
                        continue
                    if at + vectors * lanes > end or value - value != zero:  # nor is a nan 0 times the zeros behind
                        for o in range(held):
                            out[at + o] += weights[source + o] * value if weighted else weights[source + o]
                    elif weighted:
                        for v in range(0, vectors * lanes, lanes):
                            store(out, at + v, add_scaled(load(out, at + v), load(weights, source + v), value))
                    else:
                        for v in range(0, vectors * lanes, lanes):
                            store(out, at + v, add(load(out, at + v), load(weights, source + v)))
