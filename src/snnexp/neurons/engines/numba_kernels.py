"""The neuron equation as numba kernels: one walk forward and one back over [T, M], M = batch x neurons.

A kernel takes a range of blocks of columns and walks each block through all T: what a block carries from step to step
stays in the first-level cache, and the innermost loop, over the block's columns, becomes vector instructions. Columns
do not interact, so the result has the same bits for every block size and number of threads. No fast-math: operations
and their order are the reference's, so its membranes and spikes come out bit for bit, and nan and inf go the same way.

The options are frozen into each kernel (`ForwardOptions`, `BackwardOptions`) as constants that the compiler folds. One
pair of kernels is compiled per set of options and precision, on first use, and cached on disk beside this file.
Everything that a kernel calls is in this file, so that an edit here invalidates that cache.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, no-any-return"

from __future__ import annotations

import math
from functools import cache
from typing import Any, NamedTuple

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic, overload

NONE, ZERO, SUBTRACT, SUBTRACT_FIRST = 0, 1, 2, 3  # positions in names.RESETS
NO_POOL, MAX_POOL, AVG_POOL = 0, 1, 2
ATAN, FAST_SIGMOID, SIGMOID, TRIANGULAR, RECTANGULAR = 0, 1, 2, 3, 4  # positions in names.FUSED_SURROGATES


class ForwardOptions(NamedTuple):
    """What the forward kernel is compiled for; the first part is `Dynamics`, the rest how it is used."""

    reset: int
    strict: bool
    tau_form: bool
    fire_once: bool
    force_last_spike: bool
    relative: bool
    spiking: bool
    has_current: bool
    in_place: bool  # membranes go where the input was
    store_current: bool  # backward will need I; of a recurrent layer without current, its whole input
    counting: bool  # spikes of each column over all steps
    pool: int
    recurrent: bool  # a block is one sample


class BackwardOptions(NamedTuple):
    """What the backward kernel is compiled for."""

    reset: int  # NONE also for ignore_reset_in_backward, but `kept_reset` still tells what beta was multiplied with
    kept_reset: int
    strict: bool
    tau_form: bool
    detach_reset: bool
    fire_once: bool
    relative: bool
    spiking: bool
    surrogate: int
    has_current: bool
    has_grad_spk: bool
    has_grad_mem: bool
    wants_threshold: bool
    wants_beta: bool
    wants_alpha: bool
    in_place: bool  # the input's gradient goes where the membranes were
    pool: int


def _compile(kernel):
    """Compile on the first call, with the GIL released, and keep the result on disk where that is possible."""
    options = {"nogil": True, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(kernel)
    except RuntimeError:  # neither this folder nor the user's cache folder can be written
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


@numba.njit(error_model="numpy", forceinline=True)
def derivative(code, x, a, b, one, zero):
    """Return the surrogate's derivative at x; the forms of a and b are those of `Surrogate.constants`."""
    if code == ATAN:
        z = b * x
        return a / (one + z * z)
    z = b * abs(x)
    if code == FAST_SIGMOID:
        z = one + z
        return a / (z * z)
    if code == TRIANGULAR:
        z = one - z
        return zero if z <= zero else a * z  # this way round nan stays nan
    if code == RECTANGULAR:
        return a if z < one else zero
    e = exp_of_negative(-z)
    if code == SIGMOID:
        return a * e / ((one + e) * (one + e))
    return a * e


@numba.njit(error_model="numpy")
def _spread(values, column, out, width):
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
def _block(index, block, columns, height, row, size):
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
def _pool(spk, out, bands, row, inner, size, average):
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
def _unpool(spk, grad_out, grad, free, bands, row, inner, size, average, one, zero):
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
def _push(spk, weight, push, zero):
    """push = the sum of the weights [from, to] (flat) of the neurons that spike."""
    width = np.uint64(push.size)
    push[:] = zero
    for j in range(width):
        s = spk[j]
        if s != zero:
            at = j * width
            for o in range(width):
                push[o] += s * weight[at + o]


@cache
def forward_kernel(options: ForwardOptions) -> Any:
    """Return the forward kernel for these options, compiled on its first call.

    Its arrays: x, spk, mem, stored [T, M] (stored: I, or empty); threshold, beta, alpha [1 or neurons]; kept, removed,
    cur, fired, first [M]: beta's factor and R of the next step, I, F and the time of the first spike, in and out;
    counts [M]: spikes, added to; before [M] and weight [neurons * neurons] (from, to; flat): spikes of the step before
    the first, and what spikes add to their own layer's next input if it is recurrent; times [T] and last: the steps'
    numbers and that of the sample's last one. With pooling spk is what comes out of it, unpooled [M] is scratch, and
    height, row, inner, size are `_block`'s and `_pool`'s.
    """
    reset, strict, tau_form, fire_once, force_last, relative, spiking, has_current = options[:8]
    in_place, store_current, counting, pool, recurrent = options[8:]
    remembers = fire_once or force_last

    @_compile
    def forward(
        x, spk, mem, stored, threshold, beta, alpha, kept, removed, cur, fired, first, counts, unpooled, before, weight,
        times, last, one, zero, height, row, inner, size, block, start, stop,
    ):  # fmt: skip
        steps, columns = x.shape
        widest = block if pool == NO_POOL else block * size * row
        theta = threshold[:1].repeat(widest)
        leak = beta[:1].repeat(widest)
        share = alpha[:1].repeat(widest)
        push = kept[:1].repeat(block if recurrent else 1)
        for index in range(start, stop):
            c, width, pooled_row, bands = _block(index, block, columns, height, row, size)
            if spiking:
                _spread(threshold, c, theta, width)
            _spread(beta, c, leak, width)
            if has_current:
                _spread(alpha, c, share, width)
            kept_, removed_, cur_ = kept[c : c + width], removed[c : c + width], cur[c : c + width]
            fired_, first_ = fired[c : c + width], first[c : c + width]
            counts_ = counts[c : c + width]
            wide = row // inner // size * inner if pool != NO_POOL else 0
            for t in range(steps):
                now = times[t]
                x_ = x[t, c : c + width]
                spk_ = spk[t, c : c + width] if pool == NO_POOL else unpooled[c : c + width]
                mem_ = x_ if in_place else mem[t, c : c + width]
                forced = force_last and now == last
                if recurrent:
                    _push(before[c : c + width] if t == 0 else spk[t - 1, c : c + width], weight, push, zero)
                for j in range(width):
                    i = x_[j]
                    if recurrent:
                        i = i + push[j]
                        if store_current and not has_current:
                            stored[t, c + j] = i
                    if has_current:
                        i = share[j] * cur_[j] + i
                        cur_[j] = i
                    u = leak[j] * kept_[j] + ((one - leak[j]) * i if tau_form else i)
                    if reset == SUBTRACT:
                        u = u - removed_[j]
                    mem_[j] = u
                    if not spiking:
                        kept_[j] = u
                    else:
                        distance = u / theta[j] - one if relative else u - theta[j]
                        s = (one if distance > zero else zero) if strict else (one if distance >= zero else zero)
                        if remembers:
                            silent = one - fired_[j]
                            if fire_once:
                                s = s * silent
                            if forced and silent > s:
                                s = silent
                            if fire_once:
                                first_[j] = now if s > zero else first_[j]
                            fired_[j] = s if s > fired_[j] else fired_[j]
                        spk_[j] = s
                        if counting:
                            counts_[j] += s
                        if reset == ZERO:
                            kept_[j] = u * (one - s)
                        elif reset == SUBTRACT_FIRST:
                            kept_[j] = u - theta[j] * s
                        else:
                            kept_[j] = u
                        if reset == SUBTRACT:
                            removed_[j] = theta[j] * s
                if store_current and has_current:
                    stored[t, c : c + width] = cur_
                if pool != NO_POOL and bands > 0:
                    _pool(
                        spk_, spk[t, pooled_row * wide : (pooled_row + bands) * wide], bands, row, inner, size,
                        pool == AVG_POOL,
                    )  # fmt: skip

    return forward


@cache
def backward_kernel(options: BackwardOptions) -> Any:
    """Return the backward kernel for these options, compiled on its first call.

    Its arrays: mem, current, grad_spk, grad_mem, grad_x [T, M] (empty where not asked for; grad_spk [1, M] with
    grad_step = 0 if it is the same at all steps, and pooled with pooling); threshold, beta, alpha [1
    or neurons]; first [M]; grad_u, grad_cur [M]: zero, out the gradients of U[0] and I[0]; to_cur [M]: in, the gradient
    of the last state's I, out, what I[0] passes on to I[-1]; grad_threshold, grad_beta, grad_alpha [M]: added to.
    """
    reset, kept_reset, strict, tau_form, detach, fire_once, relative, spiking, surrogate = options[:9]
    has_current, has_grad_spk, has_grad_mem, wants_threshold, wants_beta, wants_alpha, in_place, pool = options[9:]

    @_compile
    def backward(
        mem, current, grad_spk, grad_mem, grad_x, threshold, beta, alpha, first, grad_u, grad_cur, to_cur,
        grad_threshold, grad_beta, grad_alpha, times, a, b, one, zero, grad_step, height, row, inner, size, block,
        start, stop,
    ):  # fmt: skip
        steps, columns = mem.shape
        widest = block if pool == NO_POOL else block * size * row
        theta = threshold[:1].repeat(widest)
        leak = beta[:1].repeat(widest)
        share = alpha[:1].repeat(widest)
        routed = threshold[:1].repeat(widest if pool != NO_POOL else 1)
        spikes = threshold[:1].repeat(widest if pool == MAX_POOL else 1)
        free = threshold[:1].repeat(inner)
        for index in range(start, stop):
            c, width, pooled_row, bands = _block(index, block, columns, height, row, size)
            wide = row // inner // size * inner if pool != NO_POOL else 0
            if pool != NO_POOL:
                routed[:] = zero
            if spiking:
                _spread(threshold, c, theta, width)
            _spread(beta, c, leak, width)
            if has_current:
                _spread(alpha, c, share, width)
            grad_u_, grad_cur_, to_cur_ = grad_u[c : c + width], grad_cur[c : c + width], to_cur[c : c + width]
            first_ = first[c : c + width]
            g_threshold, g_beta, g_alpha = (
                grad_threshold[c : c + width], grad_beta[c : c + width], grad_alpha[c : c + width],
            )  # fmt: skip
            for back in range(steps):
                t = steps - 1 - back
                now = times[t]
                mem_ = mem[t, c : c + width]
                grad_x_ = mem_ if in_place else grad_x[t, c : c + width]
                if pool == MAX_POOL:
                    for j in range(width):
                        if fire_once:
                            spikes[j] = one if first_[j] == now else zero
                        else:
                            distance = mem_[j] / theta[j] - one if relative else mem_[j] - theta[j]
                            spikes[j] = (
                                (one if distance > zero else zero) if strict else (one if distance >= zero else zero)
                            )
                if pool != NO_POOL and bands > 0 and has_grad_spk:
                    _unpool(
                        spikes, grad_spk[t, pooled_row * wide : (pooled_row + bands) * wide], routed, free, bands, row,
                        inner, size, pool == AVG_POOL, one, zero,
                    )  # fmt: skip
                if pool != NO_POOL:
                    grad_spk_ = routed[:width]
                else:
                    grad_spk_ = grad_spk[t * grad_step, c : c + width] if has_grad_spk else mem_
                grad_mem_ = grad_mem[t, c : c + width] if has_grad_mem else mem_
                current_ = current[t, c : c + width] if tau_form and wants_beta else mem_
                for j in range(width):
                    u = mem_[j]
                    later = grad_u_[j]  # gradient of U[t+1]
                    through = leak[j] * later
                    g = grad_mem_[j] if has_grad_mem else zero
                    if not spiking:
                        g = g + through
                        if wants_beta:
                            g_beta[j] += later * u
                    else:
                        distance = u / theta[j] - one if relative else u - theta[j]
                        if fire_once:
                            s = one if first_[j] == now else zero
                        else:
                            s = (one if distance > zero else zero) if strict else (one if distance >= zero else zero)
                        gs = grad_spk_[j] if has_grad_spk else zero
                        if reset == ZERO:
                            g = g + through * (one - s)
                            if not detach:
                                gs = gs - through * u
                        else:
                            g = g + through
                        if reset == SUBTRACT:
                            if wants_threshold:
                                g_threshold[j] -= later * s
                            if not detach:
                                gs = gs - later * theta[j]
                        if reset == SUBTRACT_FIRST:
                            if wants_threshold:
                                g_threshold[j] -= through * s
                            if not detach:
                                gs = gs - through * theta[j]
                        if wants_beta:
                            if kept_reset == ZERO:
                                g_beta[j] += later * (u * (one - s))
                            elif kept_reset == SUBTRACT_FIRST:
                                g_beta[j] += later * (u - theta[j] * s)
                            else:
                                g_beta[j] += later * u
                        if fire_once:
                            gs = gs * (one if first_[j] >= now else zero)
                        gd = gs * derivative(surrogate, distance, a, b, one, zero)
                        if relative:
                            g = g + gd / theta[j]
                            if wants_threshold:
                                g_threshold[j] -= gd * u / (theta[j] * theta[j])
                        else:
                            g = g + gd
                            if wants_threshold:
                                g_threshold[j] -= gd
                    grad_u_[j] = g
                    if tau_form:
                        if wants_beta:
                            g_beta[j] -= g * current_[j]
                        g = (one - leak[j]) * g
                    if has_current:
                        g = g + to_cur_[j]
                        grad_cur_[j] = g
                        to_cur_[j] = share[j] * g
                    grad_x_[j] = g
                if wants_alpha and t > 0:
                    before_ = current[t - 1, c : c + width]
                    for j in range(width):
                        g_alpha[j] += grad_cur_[j] * before_[j]

    return backward
