"""What generated numba kernels call: vector e^x, values spread over a block's columns, pooling, recurrent pushes.

No fast-math: operations and their order are the reference's, so its membranes and spikes come out bit for bit, and nan
and inf go the same way. An edit here makes new kernels: their source holds this file's hash.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, no-any-return"

from __future__ import annotations

import math

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic, overload


def compiled(kernel):
    """Compile on the first call, with the GIL released, and keep the result on disk where that is possible."""
    options = {"nogil": True, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(kernel)
    except RuntimeError:  # no folder can be written
        return numba.njit(**options)(kernel)


@intrinsic
def _float_from_bits(typing_context, bits):
    """Reinterpret an int32 as a float32."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], context.get_value_type(types.float32))

    return types.float32(types.int32), generate


def exp_of_negative(y):
    """Return e^y for y <= 0. In float32 within 2 units in the last place, and made of vector instructions only:
    the C library's expf would be called once per element."""
    return math.exp(y)


@overload(exp_of_negative, jit_options={"error_model": "numpy", "forceinline": True})
def _exp_of_negative(y):
    if y != types.float32:
        return lambda y: math.exp(y)
    f = numba.float32
    log2e, high, low, round_bits = f(1.44269504), f(0.693359375), f(-2.12194440e-4), f(12582912.0)
    c0, c1, c2 = f(1.9875691500e-4), f(1.3981999507e-3), f(8.3334519073e-3)
    c3, c4, c5 = f(4.1665795894e-2), f(1.6666665459e-1), f(5.0000001201e-1)
    one, zero, lowest = f(1.0), f(0.0), f(-87.0)

    def implementation(y):  # Cephes expf: e^y = 2^n e^r, |r| <= ln(2)/2
        clipped = y if y > lowest else lowest
        n = (clipped * log2e + round_bits) - round_bits
        r = (clipped - n * high) - n * low
        p = ((((c0 * r + c1) * r + c2) * r + c3) * r + c4) * r + c5
        scale = _float_from_bits(numba.int32(numba.int32(n) + numba.int32(127)) << numba.int32(23))
        result = (p * r * r + r + one) * scale
        result = result if y > lowest else zero
        return result if y == y else y  # nan stays nan

    return implementation


@numba.njit(error_model="numpy")
def spread(values, column, out, width):
    """Fill out[:width] with the values of columns column, column + 1, ...; `values` repeats over the columns."""
    period = values.shape[0]
    if period == 1:
        value = values[0]
        for j in range(width):
            out[j] = value
        return
    done, k = 0, column % period
    while done < width:
        run = min(period - k, width - done)
        for j in range(run):
            out[done + j] = values[k + j]
        done, k = done + run, 0


@numba.njit(error_model="numpy", forceinline=True)
def block_at(index, block, columns, height, row, size):
    """Return (first column, columns, first pooled row, pooled rows) of a block.

    Without pooling (size = 0) a block is `block` columns. With it, columns are [outer, height, row], and a block is
    `block` bands of `size` rows of one map: one piece of memory. The last band may be short, and then makes no output.
    """
    if size == 0:
        c = index * block
        return c, min(block, columns - c), 0, 0
    bands, out_height = (height + size - 1) // size, height // size
    groups = (bands + block - 1) // block
    outer, band = index // groups, index % groups * block
    c = (outer * height + band * size) * row
    return c, min(block * size, height - band * size) * row, outer * out_height + band, min(block, out_height - band)


@numba.njit(error_model="numpy")
def pool(spk, out, bands, row, inner, size, average):
    """Pool `bands` bands of spikes [bands, size, row] into out [bands, row // inner // size, inner], both flat."""
    wide = row // inner // size
    share = out.dtype.type(size * size)
    for band in range(bands):
        for w in range(wide):
            o, first = (band * wide + w) * inner, band * size * row + w * size * inner
            if size == 2:  # the usual one, in one pass over its four corners
                a, b, c, d = _corners(first, row, inner)
                for i in range(np.uint64(inner)):
                    if average:
                        out[np.uint64(o) + i] = (spk[a + i] + spk[b + i] + spk[c + i] + spk[d + i]) / share
                    else:
                        out[np.uint64(o) + i] = max(max(spk[a + i], spk[b + i]), max(spk[c + i], spk[d + i]))
                continue
            for h in range(size):
                for k in range(size):
                    s = first + h * row + k * inner
                    for i in range(inner):
                        if h == 0 and k == 0:
                            out[o + i] = spk[s + i]
                        elif average:
                            out[o + i] += spk[s + i]
                        else:
                            out[o + i] = max(out[o + i], spk[s + i])
            if average:
                for i in range(inner):
                    out[o + i] = out[o + i] / share


@numba.njit(error_model="numpy", forceinline=True)
def _corners(first, row, inner):
    """Where the four pixels of a 2x2 window begin; unsigned, so that nothing is tested for being negative."""
    a, below, right = np.uint64(first), np.uint64(row), np.uint64(inner)
    return a, a + right, a + below, a + below + right


@numba.njit(error_model="numpy")
def unpool(spk, grad_out, grad, free, bands, row, inner, size, average, one, zero):
    """Hand the gradient of each pooled value back: for the maximum to the first of its spikes, else to the first one.

    As torch does it. `grad` [bands, size, row] is zero wherever no window reaches; free [inner] is scratch.
    """
    wide = row // inner // size
    share = grad.dtype.type(size * size)
    for band in range(bands):
        for w in range(wide):
            o, first = (band * wide + w) * inner, band * size * row + w * size * inner
            if average:
                for h in range(size):
                    for k in range(size):
                        s = first + h * row + k * inner
                        for i in range(inner):
                            grad[s + i] = grad_out[o + i] / share
                continue
            if size == 2:
                a, b, c, d = _corners(first, row, inner)
                for i in range(np.uint64(inner)):
                    g, left = grad_out[np.uint64(o) + i], one - spk[a + i]
                    taken_b = left * spk[b + i]
                    left -= taken_b
                    taken_c = left * spk[c + i]
                    left -= taken_c
                    taken_d = left * spk[d + i]
                    left -= taken_d
                    grad[a + i] = g if spk[a + i] + left > zero else zero  # its own spike, or nobody's
                    grad[b + i] = g if taken_b > zero else zero
                    grad[c + i] = g if taken_c > zero else zero
                    grad[d + i] = g if taken_d > zero else zero
                continue
            for i in range(inner):
                free[i] = one - spk[first + i]
            for h in range(size):
                for k in range(size):
                    if h > 0 or k > 0:
                        s = first + h * row + k * inner
                        for i in range(inner):
                            taken = free[i] * spk[s + i]
                            grad[s + i] = grad_out[o + i] if taken > zero else zero
                            free[i] -= taken
            for i in range(inner):
                grad[first + i] = grad_out[o + i] if spk[first + i] + free[i] > zero else zero


@numba.njit(error_model="numpy")
def push(spk, weight, push, zero):
    """push = the sum of the weights [from, to] (flat) of the neurons that spike."""
    width = np.uint64(push.size)
    push[:] = zero
    for j in range(width):
        s = spk[j]
        if s != zero:
            at = j * width
            for o in range(width):
                push[o] += s * weight[at + o]
