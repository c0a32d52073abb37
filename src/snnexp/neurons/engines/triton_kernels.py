"""The neuron equation as Triton kernels: one program walks a block of columns of [T, M] through all T, forward or back.

The options are compile-time constants. Calculation is in float32 (float64 for float64 input), whatever the input's
precision. Loads of UNROLL steps are issued before the first of them is used: the walk is serial in time and would
otherwise wait for memory once per step. Steps past the end of time are masked.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, no-any-return, untyped-decorator, assignment"
# ruff: noqa: RUF005

from __future__ import annotations

import triton
import triton.language as tl

NONE = tl.constexpr(0)  # positions in names.RESETS
ZERO = tl.constexpr(1)
SUBTRACT = tl.constexpr(2)
SUBTRACT_FIRST = tl.constexpr(3)


@triton.jit
def _divide(a, b, DOUBLE: tl.constexpr):
    """Correctly rounded a / b; Triton's own float32 division is approximate."""
    if DOUBLE:
        out = a / b
    else:
        out = tl.div_rn(a, b)
    return out


@triton.jit
def _derivative(x, A: tl.constexpr, B: tl.constexpr, CODE: tl.constexpr):
    """The surrogate's derivative at x; CODE: position in names.FUSED_SURROGATES; A, B: `Surrogate.constants`."""
    z = B * tl.abs(x)
    if CODE == 0:  # atan
        out = A / (1.0 + z * z)
    elif CODE == 1:  # fast_sigmoid
        out = A / ((1.0 + z) * (1.0 + z))
    elif CODE == 2:  # sigmoid
        e = tl.exp(-z)
        out = A * e / ((1.0 + e) * (1.0 + e))
    elif CODE == 3:  # triangular; this way round nan stays nan
        out = tl.where(1.0 - z <= 0.0, 0.0, A * (1.0 - z))
    elif CODE == 4:  # rectangular
        out = tl.where(z < 1.0, A, 0.0)
    else:  # exponential
        out = A * tl.exp(-z)
    return out.to(x.dtype)


@triton.jit
def _spike(u, theta, STRICT: tl.constexpr, RELATIVE: tl.constexpr, DOUBLE: tl.constexpr):
    """Return x = U - theta (or U/theta - 1) and the spikes."""
    if RELATIVE:
        distance = _divide(u, theta, DOUBLE) - 1.0
    else:
        distance = u - theta
    if STRICT:
        spk = (distance > 0).to(u.dtype)
    else:
        spk = (distance >= 0).to(u.dtype)
    return distance, spk


@triton.jit
def _forward_step(
    x, now, last, kept, removed, cur, fired, first, theta, beta, alpha, spk_at, mem_at, stored_at, active,
    RESET: tl.constexpr, STRICT: tl.constexpr, TAU_FORM: tl.constexpr, FIRE_ONCE: tl.constexpr,
    FORCE_LAST: tl.constexpr, RELATIVE: tl.constexpr, SPIKING: tl.constexpr, HAS_CURRENT: tl.constexpr,
    STORE_CURRENT: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    """One step forward: stores S, U and perhaps I, returns what is carried on; nothing changes where not active."""
    i = x
    if HAS_CURRENT:
        i = alpha * cur + x
        cur = tl.where(active, i, cur)
        if STORE_CURRENT:
            tl.store(stored_at, i, mask=active)
    if TAU_FORM:
        u = beta * kept + (1.0 - beta) * i
    else:
        u = beta * kept + i
    if SPIKING:
        if RESET == SUBTRACT:
            u = u - removed
        _distance, s = _spike(u, theta, STRICT, RELATIVE, DOUBLE)
        if FIRE_ONCE or FORCE_LAST:
            silent = 1.0 - fired
            if FIRE_ONCE:
                s = s * silent
            if FORCE_LAST:
                s = tl.where(now == last, tl.maximum(silent, s), s)
            if FIRE_ONCE:
                first = tl.where(active, tl.where(s > 0, now.to(first.dtype), first), first)
            fired = tl.where(active, tl.maximum(s, fired), fired)
        tl.store(spk_at, s.to(spk_at.dtype.element_ty), mask=active)
        if RESET == ZERO:
            kept = tl.where(active, u * (1.0 - s), kept)
        elif RESET == SUBTRACT_FIRST:
            kept = tl.where(active, u - theta * s, kept)
        else:
            kept = tl.where(active, u, kept)
        if RESET == SUBTRACT:
            removed = tl.where(active, theta * s, removed)
    else:
        kept = tl.where(active, u, kept)
    tl.store(mem_at, u, mask=active)
    return kept, removed, cur, fired, first


@triton.jit
def forward_kernel(
    x_ptr, spk_ptr, mem_ptr, stored_ptr, theta_ptr, beta_ptr, alpha_ptr,
    kept_ptr, removed_ptr, cur_ptr, fired_ptr, first_ptr,
    time, last, steps, columns, theta_period, beta_period, alpha_period,
    RESET: tl.constexpr, STRICT: tl.constexpr, TAU_FORM: tl.constexpr, FIRE_ONCE: tl.constexpr,
    FORCE_LAST: tl.constexpr, RELATIVE: tl.constexpr, SPIKING: tl.constexpr, HAS_CURRENT: tl.constexpr,
    STORE_CURRENT: tl.constexpr, DOUBLE: tl.constexpr, BLOCK: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """All steps forward for one block of columns; arrays as for the numba kernel of the same name."""
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    theta = tl.load(theta_ptr + column % theta_period)
    beta = tl.load(beta_ptr + column % beta_period)
    alpha, cur, removed, fired, first = beta, beta, beta, beta, beta
    kept = tl.load(kept_ptr + column, mask=inside, other=0.0)
    if HAS_CURRENT:
        alpha = tl.load(alpha_ptr + column % alpha_period)
        cur = tl.load(cur_ptr + column, mask=inside, other=0.0)
    if SPIKING and RESET == SUBTRACT:
        removed = tl.load(removed_ptr + column, mask=inside, other=0.0)
    if SPIKING and (FIRE_ONCE or FORCE_LAST):
        fired = tl.load(fired_ptr + column, mask=inside, other=0.0)
    if SPIKING and FIRE_ONCE:
        first = tl.load(first_ptr + column, mask=inside, other=0.0)
    for chunk in range(tl.cdiv(steps, UNROLL)):
        ahead = ()
        for k in tl.static_range(UNROLL):
            t = chunk * UNROLL + k
            at = t.to(tl.int64) * columns + column
            active = column < tl.where(t < steps, columns, 0)
            ahead = ahead + (tl.load(x_ptr + at, mask=active, other=0.0).to(beta.dtype),)
        for k in tl.static_range(UNROLL):
            t = chunk * UNROLL + k
            at = t.to(tl.int64) * columns + column
            active = column < tl.where(t < steps, columns, 0)
            kept, removed, cur, fired, first = _forward_step(
                ahead[k], time + t, last, kept, removed, cur, fired, first, theta, beta, alpha,
                spk_ptr + at, mem_ptr + at, stored_ptr + at, active,
                RESET, STRICT, TAU_FORM, FIRE_ONCE, FORCE_LAST, RELATIVE, SPIKING, HAS_CURRENT, STORE_CURRENT, DOUBLE,
            )  # fmt: skip
    tl.store(kept_ptr + column, kept, mask=inside)
    if SPIKING and RESET == SUBTRACT:
        tl.store(removed_ptr + column, removed, mask=inside)
    if HAS_CURRENT:
        tl.store(cur_ptr + column, cur, mask=inside)
    if SPIKING and (FIRE_ONCE or FORCE_LAST):
        tl.store(fired_ptr + column, fired, mask=inside)
    if SPIKING and FIRE_ONCE:
        tl.store(first_ptr + column, first, mask=inside)


@triton.jit
def _backward_step(
    u, i, before, gs, g, t, later, to_cur, g_theta, g_beta, g_alpha, theta, beta, alpha, first,
    RESET: tl.constexpr, KEPT_RESET: tl.constexpr, STRICT: tl.constexpr, TAU_FORM: tl.constexpr,
    DETACH: tl.constexpr, FIRE_ONCE: tl.constexpr, RELATIVE: tl.constexpr, SPIKING: tl.constexpr,
    SURROGATE: tl.constexpr, A: tl.constexpr, B: tl.constexpr, HAS_CURRENT: tl.constexpr,
    WANTS_THRESHOLD: tl.constexpr, WANTS_BETA: tl.constexpr, WANTS_ALPHA: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    """One step back. gs, g: gradients that reach S[t] and U[t] from outside; later: that of U[t+1].

    Returns the gradients of U[t] and I[t], what I[t] passes on to I[t-1], and the sums of the values' gradients.
    """
    through = beta * later
    if SPIKING:
        distance, s = _spike(u, theta, STRICT, RELATIVE, DOUBLE)
        if FIRE_ONCE:
            s = (first == t).to(u.dtype)
        if RESET == ZERO:
            g = g + through * (1.0 - s)
            if not DETACH:
                gs = gs - through * u
        else:
            g = g + through
        if RESET == SUBTRACT:
            if WANTS_THRESHOLD:
                g_theta -= later * s
            if not DETACH:
                gs = gs - later * theta
        if RESET == SUBTRACT_FIRST:
            if WANTS_THRESHOLD:
                g_theta -= through * s
            if not DETACH:
                gs = gs - through * theta
        if WANTS_BETA:
            if KEPT_RESET == ZERO:
                g_beta += later * (u * (1.0 - s))
            elif KEPT_RESET == SUBTRACT_FIRST:
                g_beta += later * (u - theta * s)
            else:
                g_beta += later * u
        if FIRE_ONCE:
            gs = gs * (first >= t).to(u.dtype)
        gd = gs * _derivative(distance, A, B, SURROGATE)
        if RELATIVE:
            g = g + _divide(gd, theta, DOUBLE)
            if WANTS_THRESHOLD:
                g_theta -= _divide(gd * u, theta * theta, DOUBLE)
        else:
            g = g + gd
            if WANTS_THRESHOLD:
                g_theta -= gd
    else:
        g = g + through
        if WANTS_BETA:
            g_beta += later * u
    gi = g
    if TAU_FORM:
        if WANTS_BETA:
            g_beta -= g * i
        gi = (1.0 - beta) * g
    if HAS_CURRENT:
        gi = gi + to_cur
        to_cur = alpha * gi
        if WANTS_ALPHA:
            g_alpha += gi * before
    return g, gi, to_cur, g_theta, g_beta, g_alpha


@triton.jit
def backward_kernel(
    mem_ptr, current_ptr, grad_spk_ptr, grad_mem_ptr, grad_x_ptr, theta_ptr, beta_ptr, alpha_ptr,
    first_ptr, grad_u_ptr, grad_cur_ptr, to_cur_ptr, grad_theta_ptr, grad_beta_ptr, grad_alpha_ptr,
    time, steps, columns, theta_period, beta_period, alpha_period,
    RESET: tl.constexpr, KEPT_RESET: tl.constexpr, STRICT: tl.constexpr, TAU_FORM: tl.constexpr,
    DETACH: tl.constexpr, FIRE_ONCE: tl.constexpr, RELATIVE: tl.constexpr, SPIKING: tl.constexpr,
    SURROGATE: tl.constexpr, A: tl.constexpr, B: tl.constexpr, HAS_CURRENT: tl.constexpr,
    SPK_CONSTANT: tl.constexpr, HAS_GRAD_SPK: tl.constexpr, HAS_GRAD_MEM: tl.constexpr,
    WANTS_THRESHOLD: tl.constexpr, WANTS_BETA: tl.constexpr, WANTS_ALPHA: tl.constexpr,
    DOUBLE: tl.constexpr, BLOCK: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """All steps back for one block of columns; arrays as for the numba kernel of the same name."""
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    theta = tl.load(theta_ptr + column % theta_period)
    beta = tl.load(beta_ptr + column % beta_period)
    zero = tl.zeros_like(beta)
    alpha, to_cur, first = beta, zero, zero
    if HAS_CURRENT:
        alpha = tl.load(alpha_ptr + column % alpha_period)
        to_cur = tl.load(to_cur_ptr + column, mask=inside, other=0.0)
    if SPIKING and FIRE_ONCE:
        first = tl.load(first_ptr + column, mask=inside, other=0.0)
    later = tl.load(grad_u_ptr + column, mask=inside, other=0.0)
    gi, g_theta, g_beta, g_alpha = zero, zero, zero, zero
    if WANTS_THRESHOLD:
        g_theta = tl.load(grad_theta_ptr + column, mask=inside, other=0.0)
    if WANTS_BETA:
        g_beta = tl.load(grad_beta_ptr + column, mask=inside, other=0.0)
    if WANTS_ALPHA:
        g_alpha = tl.load(grad_alpha_ptr + column, mask=inside, other=0.0)
    for chunk in range(tl.cdiv(steps, UNROLL)):
        us, currents, befores, spks, mems = (), (), (), (), ()
        for k in tl.static_range(UNROLL):
            t = steps - 1 - chunk * UNROLL - k
            at = t.to(tl.int64) * columns + column
            active = column < tl.where(t >= 0, columns, 0)
            us = us + (tl.load(mem_ptr + at, mask=active, other=0.0),)
            if TAU_FORM and WANTS_BETA:
                currents = currents + (tl.load(current_ptr + at, mask=active, other=0.0),)
            else:
                currents = currents + (zero,)
            if WANTS_ALPHA:
                earlier = column < tl.where(t > 0, columns, 0)
                befores = befores + (tl.load(current_ptr + at - columns, mask=earlier, other=0.0),)
            else:
                befores = befores + (zero,)
            if HAS_GRAD_SPK:
                spks = spks + (
                    tl.load(grad_spk_ptr + (column if SPK_CONSTANT else at), mask=active, other=0.0).to(beta.dtype),
                )
            else:
                spks = spks + (zero,)
            if HAS_GRAD_MEM:
                mems = mems + (tl.load(grad_mem_ptr + at, mask=active, other=0.0).to(beta.dtype),)
            else:
                mems = mems + (zero,)
        for k in tl.static_range(UNROLL):
            t = steps - 1 - chunk * UNROLL - k
            if t >= 0:
                at = t.to(tl.int64) * columns + column
                later, gi, to_cur, g_theta, g_beta, g_alpha = _backward_step(
                    us[k], currents[k], befores[k], spks[k], mems[k], time + t, later, to_cur, g_theta, g_beta, g_alpha,
                    theta, beta, alpha, first,
                    RESET, KEPT_RESET, STRICT, TAU_FORM, DETACH, FIRE_ONCE, RELATIVE, SPIKING, SURROGATE, A, B,
                    HAS_CURRENT, WANTS_THRESHOLD, WANTS_BETA, WANTS_ALPHA, DOUBLE,
                )  # fmt: skip
                tl.store(grad_x_ptr + at, gi.to(grad_x_ptr.dtype.element_ty), mask=inside)
    tl.store(grad_u_ptr + column, later, mask=inside)
    if HAS_CURRENT:
        tl.store(grad_cur_ptr + column, gi, mask=inside)
        tl.store(to_cur_ptr + column, to_cur, mask=inside)
    if WANTS_THRESHOLD:
        tl.store(grad_theta_ptr + column, g_theta, mask=inside)
    if WANTS_BETA:
        tl.store(grad_beta_ptr + column, g_beta, mask=inside)
    if WANTS_ALPHA:
        tl.store(grad_alpha_ptr + column, g_alpha, mask=inside)
