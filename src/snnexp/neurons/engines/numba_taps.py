"""What generated numba kernels call to take the gradient of a first convolution's weights as they go.

Between the convolution and the neurons is a batch norm, whose gradient of x, its input, is

    g scale - offset - (x - mean) slope

with values of a channel that are known once all of g is. So the products of the convolution's input with g, and with x
- mean, are summed apart, and so is the input: the three make the weights' gradient in the end (`Packing.gradients`),
and g, as large as x, is never written. Each spike adds what is above it to the taps that see it, while that is in a
cache. Without a norm there are only products with g, and what the bias gets. An edit here makes new kernels.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from __future__ import annotations

import numba
import numpy as np

from snnexp.neurons.engines.numba_helpers import compiled, room
from snnexp.vectors import BYTES, add_scaled, load, store, subtract


@compiled
def add_taps(grad, x, at, mean, pairs, first, entries, values, shape, row, frame, top):
    """pairs += the products of what is not zero in a frame with grad, whole rows from row `top` of the output on.

    grad: `row` numbers in a row, flat; x lies at at, and is flat, too; mean: of the channels, repeated for as many
    pixels as the kernel is wide. pairs: sums of products with the gradient [C, ky, kx from right to left, O], of those
    with x - mean [the same], and of inputs [C, ky, kx]: what a spike in a row of the kernel adds is one piece.
    """
    height, width, channels, size, pad, shift, outputs = shape
    rows, weighted, wide, lanes = grad.size // row, values.size > 0, row // outputs, BYTES // grad.itemsize
    half, begins, ends = channels * size * size * outputs, max(top - pad, 0), min(top + rows - pad + size - 1, height)
    for y in range(begins, ends):
        line = (frame * height + y) * (width + 1)
        low, high = max(y + pad - top - rows + 1, 0), min(y + pad - top, size - 1)
        for j in range(first[line], first[line + width]):
            place = np.uint32(entries[j]) >> np.uint32(shift)
            column = np.int64(place // np.uint32(channels))
            c, value = np.int64(place) - column * channels, values[j] if weighted else grad.dtype.type(1)
            left, right = max(column + pad - wide + 1, 0), min(column + pad, size - 1)
            held, begin = (right - left + 1) * outputs, (column + pad - right) * outputs
            for ky in range(low, high + 1):
                source, tap = (y + pad - ky - top) * row + begin, (c * size + ky) * size + size - 1 - right
                to = tap * outputs
                for o in range(0, held, lanes):
                    g, d = load(grad, source + o), subtract(load(x, at + source + o), load(mean, o))
                    store(pairs, to + o, add_scaled(load(pairs, to + o), g, value))
                    store(pairs, half + to + o, add_scaled(load(pairs, half + to + o), d, value))
                count = np.uint64(2 * half + tap)
                for k in range(count, count + np.uint64(right - left + 1)):
                    pairs[k] += value


@numba.njit(error_model="numpy")
def with_margins(grad, row, shape):
    """Room for rows of grad with `size` - 1 pixels of zeros to both sides, and a vector behind."""
    margins = 2 * (shape[3] - 1) * shape[6]
    out = room(grad, grad.size // row * (row + margins) + BYTES // grad.itemsize)
    out[:] = 0
    return out


@compiled
def add_taps_alone(grad, wider, pairs, first, entries, values, shape, row, frame, top):
    """The same without a norm, and for any number of outputs: products with the gradient alone.

    wider: `with_margins`, so that each spike has all of its row of the kernel, some with zeros. pairs [C, ky, kx from
    right to left x O up to whole vectors, and some room behind].
    """
    height, width, channels, size, pad, shift, outputs = shape
    rows, weighted, lanes = grad.size // row, values.size > 0, BYTES // grad.itemsize
    begin, end = max(top - pad, 0), min(top + rows - pad + size - 1, height)
    line, whole = (frame * height) * (width + 1), (size * outputs + lanes - 1) // lanes * lanes
    if begin >= end or first[line + begin * (width + 1)] == first[line + (end - 1) * (width + 1) + width]:
        return
    wide, margin = row + 2 * (size - 1) * outputs, (size - 1) * outputs
    for r in range(rows):
        to, at = np.uint64(r * wide + margin), np.uint64(r * row)
        for j in range(np.uint64(row)):
            wider[to + j] = grad[at + j]
    for y in range(begin, end):
        line = (frame * height + y) * (width + 1)
        low, high = max(y + pad - top - rows + 1, 0), min(y + pad - top, size - 1)
        for j in range(first[line], first[line + width]):
            place = np.uint32(entries[j]) >> np.uint32(shift)
            column = np.int64(place // np.uint32(channels))
            c, value = np.int64(place) - column * channels, values[j] if weighted else grad.dtype.type(1)
            for ky in range(low, high + 1):
                source, to = (y + pad - ky - top) * wide + (column + pad) * outputs, (c * size + ky) * whole
                for o in range(0, whole, lanes):
                    store(pairs, to + o, add_scaled(load(pairs, to + o), load(wider, source + o), value))


@compiled
def add_up(grad, total):
    """total += grad, as far as that goes."""
    for j in range(grad.size):
        total[j] += grad[j]


@compiled
def keep_total(total, sums, outputs):
    """The last of sums += total, of whole pixels of so many numbers, which begins anew."""
    last = sums.size - outputs
    for pixel in range(0, total.size, outputs):
        for o in range(outputs):
            sums[last + o] += total[pixel + o]
            total[pixel + o] = 0


@compiled
def keep_taps(pairs, sums):
    """sums += pairs, which begin anew."""
    for k in range(pairs.size):
        sums[k] += pairs[k]
        pairs[k] = 0
