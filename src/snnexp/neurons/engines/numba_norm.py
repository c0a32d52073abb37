"""What generated numba kernels call to normalise their input by channel as they load it, and to hand its gradient back.

An edit here makes new kernels.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from snnexp.neurons.engines.numba_helpers import compiled, room
from snnexp.vectors import BYTES, add, add_product, copied, fetch, load, store, store_past, subtract, zeros

WIDE = 512  # values of a loop, about
SHORT = 32  # pixels whose sums are taken in the gradient's precision


def repeated(values: NDArray[Any]) -> NDArray[Any]:
    """Values [C] repeated for several pixels, so that loops are long whatever the number of channels."""
    return np.concatenate([values] * max(1, WIDE // values.size))  # in a tenth of np.tile's time


@numba.njit(error_model="numpy", forceinline=True, fastmath={"contract"})
def normal(x, mean, scale, bias):
    """(x - mean) * scale + bias"""
    return (x - mean) * scale + bias


@numba.njit(error_model="numpy")
def normalise(x, out, mean, scale, bias):
    """Put normal x, of whole pixels, into out; the values are `repeated`."""
    wide, size = np.uint64(mean.size), np.uint64(x.size)
    at = np.uint64(0)
    while at < size:
        for k in range(min(wide, size - at)):
            out[at + k] = normal(x[at + k], mean[k], scale[k], bias[k])
        at += wide


@numba.njit(error_model="numpy")
def beside(mean, scale, bias, more):
    """The values, and so many rows of more numbers, in one piece of memory.

    Where each began with a page, they would push each other, and what a block holds, out of the first-level cache.
    """
    lanes = BYTES // mean.itemsize
    size = (mean.size + lanes - 1) // lanes * lanes
    out = room(mean, (3 + more) * size)
    copied(out, 0, mean, 0, mean.size)
    copied(out, size, scale, 0, mean.size)
    copied(out, 2 * size, bias, 0, mean.size)
    return out.reshape(3 + more, size)


@numba.njit(error_model="numpy")
def ahead(rows, t, start, stop):
    """Ask for columns start to stop of rows[t], if there is such a row.

    A block jumps from row to row, where no processor sees what comes next.
    """
    if 0 <= t < rows.shape[0]:
        first, lanes = t * rows.shape[1], BYTES // rows.itemsize
        for at in range(first + start, first + stop, lanes):
            fetch(rows, at)


@compiled
def hand_back(grad, x, out, at, shift, sums, past):
    """Put the gradient of normal numbers into out[at:]; add to sums [2, C] those of it and of it times (x - shift).

    x and out are flat, and x lies at the same place; shift [C]. past: `store_past`. Sums run over SHORT pixels in the
    gradient's precision, then in float64.
    """
    lanes, channels = BYTES // grad.itemsize, shift.size
    if channels % lanes:
        _by_numbers(grad, x, out, at, shift, sums)
    elif past and out.ctypes.data % BYTES == 0:
        _by_vectors(grad, x, out, at, shift, sums, True)
    else:
        _by_vectors(grad, x, out, at, shift, sums, False)


@compiled
def sum_up(grad, x, at, shift, sums):
    """The sums of `hand_back` alone, of channels that fill vectors: of two at once, where there are."""
    lanes, channels = BYTES // grad.itemsize, shift.size
    part = np.empty(4 * lanes, grad.dtype)
    for c in range(0, channels, 2 * lanes):
        other = min(lanes, channels - lanes - c)
        mean, more = load(shift, c), load(shift, c + other)
        for short in range(c, grad.size, SHORT * channels):
            a, b = zeros(grad), zeros(grad)
            d, e = zeros(grad), zeros(grad)
            for i in range(short, min(short + SHORT * channels, grad.size), channels):
                g, h = load(grad, i), load(grad, i + other)
                a, b = add(a, g), add_product(b, g, subtract(load(x, at + i), mean))
                d, e = add(d, h), add_product(e, h, subtract(load(x, at + i + other), more))
            store(part, 0, a)
            store(part, lanes, d)
            store(part, 2 * lanes, b)
            store(part, 3 * lanes, e)
            for k in range(lanes + other):
                sums[0, c + k] += part[k]
                sums[1, c + k] += part[2 * lanes + k]


@numba.njit(error_model="numpy", forceinline=True)
def _by_vectors(grad, x, out, at, shift, sums, past):
    lanes, channels = BYTES // grad.itemsize, shift.size
    part = np.empty(2 * lanes, grad.dtype)
    for c in range(0, channels, lanes):
        mean = load(shift, c)
        for short in range(c, grad.size, SHORT * channels):
            a, b = zeros(grad), zeros(grad)
            for i in range(short, min(short + SHORT * channels, grad.size), channels):
                g = load(grad, i)
                a, b = add(a, g), add_product(b, g, subtract(load(x, at + i), mean))
                if past:
                    store_past(out, at + i, g)
                else:
                    store(out, at + i, g)
            store(part, 0, a)
            store(part, lanes, b)
            for k in range(lanes):
                sums[0, c + k] += part[k]
                sums[1, c + k] += part[lanes + k]


@numba.njit(error_model="numpy", fastmath={"contract"})
def _by_numbers(grad, x, out, at, shift, sums):
    a, b = np.empty(shift.size, grad.dtype), np.empty(shift.size, grad.dtype)
    width = np.uint64(shift.size)
    for short in range(0, grad.size, SHORT * shift.size):
        a[:] = 0
        b[:] = 0
        for i in range(short, min(short + SHORT * shift.size, grad.size), shift.size):
            for c in range(width):
                g = grad[np.uint64(i) + c]
                a[c] += g
                b[c] += g * (x[np.uint64(at + i) + c] - shift[c])
                out[np.uint64(at + i) + c] = g
        for c in range(width):
            sums[0, c] += a[c]
            sums[1, c] += b[c]
