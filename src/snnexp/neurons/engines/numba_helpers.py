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

from snnexp.vectors import (
    BYTES,
    add,
    divided,
    filled,
    larger,
    load,
    product,
    store,
    store_behind,
    subtract,
    where_positive,
)

PAGE = 4096  # bytes


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
def room(like, size):
    """So many numbers of the type of `like`, not set, that begin with a page.

    A vector that crosses a cache line takes twice as long, and one that is written delays those that are read at the
    same place of another page before it.
    """
    memory = np.empty(size + PAGE // like.itemsize, like.dtype)
    skipped = (PAGE - memory.ctypes.data % PAGE) % PAGE // like.itemsize
    return memory[skipped : skipped + size]


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


# 2x2 windows, the usual ones, are worked on by vectors. A pixel of few channels fills none: a vector then reaches into
# the next pixel, whose own numbers are written later, and at the end of a row, where there is no next one, back into
# the pixel before, whose numbers it keeps. What pools is compiled once and not for each kernel.


@numba.njit(error_model="numpy", forceinline=True)
def _vectors(row, inner, lanes):
    """Windows in a row; where vectors may begin; vectors of a pixel; how far the others reach back.

    No vectors if the row is too short for that.
    """
    wide, back = row // inner // 2, max(lanes - inner, 0)
    if back == 0:
        return wide, wide, (inner + lanes - 1) // lanes, 0
    if (wide + 1) * inner < 2 * lanes:
        return wide, 0, 0, 0
    return wide, wide - (lanes - 1) // inner, 1, back


@compiled
def pool(spk, out, bands, row, inner, size, average):
    """Pool `bands` bands of spikes [bands, size, row] into out [bands, row // inner // size, inner], both flat."""
    if size != 2 or _vectors(row, inner, BYTES // out.itemsize)[2] == 0:
        _pool_any(spk, out, bands, row, inner, size, average)
    elif average:  # a constant in what is inlined
        _pool(spk, out, bands, row, inner, True)
    else:
        _pool(spk, out, bands, row, inner, False)


@numba.njit(error_model="numpy", forceinline=True)
def _pool(spk, out, bands, row, inner, average):
    wide, whole, vectors, back = _vectors(row, inner, BYTES // out.itemsize)
    lanes, last, share = BYTES // out.itemsize, max(inner - BYTES // out.itemsize, 0), out.dtype.type(4)
    for band in range(bands):
        for w in range(whole):
            for v in range(vectors):
                i = w * inner + min(v * lanes, last)
                four = _four(spk, 2 * (band * row + w * inner) + min(v * lanes, last), row, inner)
                store(out, band * wide * inner + i, _pooled(four, average, share))
        for w in range(whole, wide):
            four = _four(spk, 2 * (band * row + w * inner) - back, row, inner)
            store_behind(out, (band * wide + w) * inner - back, _pooled(four, average, share), back)


@numba.njit(error_model="numpy", forceinline=True)
def _four(spk, at, row, inner):
    """The pixels of a 2x2 window."""
    return load(spk, at), load(spk, at + inner), load(spk, at + row), load(spk, at + row + inner)


@numba.njit(error_model="numpy", forceinline=True)
def _pooled(four, average, share):
    a, b, c, d = four
    return divided(add(add(add(a, b), c), d), share) if average else larger(larger(a, b), larger(c, d))


@numba.njit(error_model="numpy")
def _pool_any(spk, out, bands, row, inner, size, average):
    """The same for any size and row, number by number."""
    wide = row // inner // size
    share = out.dtype.type(size * size)
    for band in range(bands):
        for w in range(wide):
            o, first = (band * wide + w) * inner, band * size * row + w * size * inner
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


@compiled
def unpool(spk, grad_out, grad, free, bands, row, inner, size, average, one, zero):
    """Hand the gradient of each pooled value back: for the maximum to the first of its spikes, else to the first one.

    As torch does it. `grad` [bands, size, row] is zero wherever no window reaches; free [inner] is scratch.
    """
    if size != 2 or _vectors(row, inner, BYTES // grad.itemsize)[2] == 0:
        _unpool_any(spk, grad_out, grad, free, bands, row, inner, size, average, one, zero)
    elif average:
        _unpool(spk, grad_out, grad, bands, row, inner, True, one)
    else:
        _unpool(spk, grad_out, grad, bands, row, inner, False, one)


@numba.njit(error_model="numpy", forceinline=True)
def _unpool(spk, grad_out, grad, bands, row, inner, average, one):
    wide, whole, vectors, back = _vectors(row, inner, BYTES // grad.itemsize)
    lanes, last, share = BYTES // grad.itemsize, max(inner - BYTES // grad.itemsize, 0), grad.dtype.type(4)
    for band in range(bands):
        for w in range(whole):
            for v in range(vectors):
                i, at = min(v * lanes, last), 2 * (band * row + w * inner) + min(v * lanes, last)
                g = load(grad_out, (band * wide + w) * inner + i)
                a, b, c, d = _routed(_four(spk, at, row, inner), g, average, share, filled(spk, one))
                store(grad, at, a)
                store(grad, at + inner, b)
                store(grad, at + row, c)
                store(grad, at + row + inner, d)
        for w in range(whole, wide):
            at, g = 2 * (band * row + w * inner) - back, load(grad_out, (band * wide + w) * inner - back)
            a, b, c, d = _routed(_four(spk, at, row, inner), g, average, share, filled(spk, one))
            store_behind(grad, at, a, back)
            store_behind(grad, at + inner, b, back)
            store_behind(grad, at + row, c, back)
            store_behind(grad, at + row + inner, d, back)


@numba.njit(error_model="numpy", forceinline=True)
def _routed(four, g, average, share, ones):
    """The gradients of a window's pixels, g that of what was pooled from them."""
    if average:
        g = divided(g, share)
        return g, g, g, g
    a, b, c, d = four
    left = subtract(ones, a)
    b = product(left, b)
    left = subtract(left, b)
    c = product(left, c)
    left = subtract(left, c)
    d = product(left, d)
    own = add(a, subtract(left, d))  # its own spike, or nobody's
    return where_positive(own, g), where_positive(b, g), where_positive(c, g), where_positive(d, g)


@numba.njit(error_model="numpy")
def _unpool_any(spk, grad_out, grad, free, bands, row, inner, size, average, one, zero):
    """The same for any size and row, number by number; free [inner] is scratch."""
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
