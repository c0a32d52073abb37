"""What the fused engines share: layout, autograd, and the first and last state. A backend brings the two kernels.

Kernels see flat memory [T, M], M = batch x neurons in the order in which they lie in memory, so that channels_last
activations are neither copied nor reordered; values per neuron are brought into the same order.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from snnexp.neurons.engines.calls import BackwardCall, ForwardCall, PoolGrid
from snnexp.neurons.engines.recurrence import Backend, backward_recurrent
from snnexp.neurons.equation import Dynamics, Pool, State, reset_terms


class _Options(NamedTuple):
    dynamics: Dynamics
    backend: Backend
    overwrite_input: bool
    counts: bool = False
    private: bool = False  # nobody but backward needs the membranes
    pool: PoolGrid | None = None


def run_fused(
    x: Tensor,
    alpha: Tensor | None,
    beta: Tensor,
    threshold: Tensor,
    dynamics: Dynamics,
    state: State | None,
    backend: Backend,
    overwrite_input: bool = False,
    recurrent: Tensor | None = None,
) -> tuple[Tensor, Tensor, State]:
    """Run all time steps of x [T, B, *shape] with the backend's kernels; see `run_neurons` for the rest.

    spk has x's dtype; mem and the state have the dtype of the calculation: float64 for float64, else float32.
    """
    order, flat_x, values, options = _prepare(x, (alpha, beta, threshold), dynamics, backend, overwrite_input)
    state_order = [d - 1 for d in order[1:]]
    given = [None if s is None else s.permute(state_order).contiguous() for s in (state or (None, None, None, None))]
    spk, mem, cur, fired, _ = _Fused.apply(flat_x, *values, recurrent, *given, options)  # type: ignore[no-untyped-call]
    back = [order.index(d) for d in range(len(order))]
    spk, mem = spk.permute(back), mem.permute(back)
    state_back = [d - 1 for d in back[1:]]
    cur, fired = (None if s is None else s.permute(state_back) for s in (cur, fired))
    return spk, mem, State(mem[-1], spk[-1].to(mem.dtype), cur, fired)


def run_fused_layer(
    x: Tensor,
    alpha: Tensor | None,
    beta: Tensor,
    threshold: Tensor,
    dynamics: Dynamics,
    backend: Backend,
    overwrite_input: bool,
    recurrent: Tensor | None,
    pool: Pool | None,
    counts: bool,
    private: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Run a whole layer from rest, with what surrounds it in a network; see `run_layer`."""
    order, flat_x, values, options = _prepare(x, (alpha, beta, threshold), dynamics, backend, overwrite_input)
    grid = None if pool is None else _pool_grid(pool, flat_x, order)
    options = options._replace(counts=counts, private=private, pool=grid)
    outputs = _Fused.apply(flat_x, *values, recurrent, None, None, None, None, options)  # type: ignore[no-untyped-call]
    spk, mem, _, _, counted = outputs
    back = [order.index(d) for d in range(len(order))]
    counted = None if counted is None else counted.permute([d - 1 for d in back[1:]])
    return spk.permute(back), mem.permute(back), counted


def _prepare(
    x: Tensor, values: tuple[Tensor | None, ...], dynamics: Dynamics, backend: Backend, overwrite_input: bool
) -> tuple[list[int], Tensor, list[Tensor | None], _Options]:
    """Bring input and values into the order of memory."""
    order = memory_order(x)
    flat_x = x.permute(order)
    if not flat_x.is_contiguous():
        flat_x, overwrite_input = flat_x.contiguous(), True
    options = _Options(dynamics, backend, overwrite_input and not (x.is_leaf and x.requires_grad))
    return order, flat_x, [None if v is None else _permute_value(v, order) for v in values], options


def _pool_grid(pool: Pool, flat_x: Tensor, order: list[int]) -> PoolGrid:
    """Windows over maps [T, B, H, W, C] or [T, B, C, H, W], whichever flat_x is."""
    _, batch, *shape = flat_x.shape
    if order[2:] == [3, 4, 2]:
        height, width, channels = shape
        out = (batch, height // pool.size, width // pool.size, channels)
        return PoolGrid(pool.kind, pool.size, batch, height, width * channels, channels, out)
    channels, height, width = shape
    out = (batch, channels, height // pool.size, width // pool.size)
    return PoolGrid(pool.kind, pool.size, batch * channels, height, width, 1, out)


def memory_order(x: Tensor) -> list[int]:
    """Return the order of dimensions in which x lies in memory, with time and batch first."""
    if x.dim() == 5:  # maps are one of two: channels_last, or the order of the shape; strides of size 1 say nothing
        last = [0, 1, 3, 4, 2]
        return last if x.permute(last).is_contiguous() and not x.is_contiguous() else [0, 1, 2, 3, 4]
    return [0, 1, *sorted(range(2, x.dim()), key=lambda d: x.stride()[d], reverse=True)]


def _permute_value(value: Tensor, order: list[int]) -> Tensor:
    """Bring a value that broadcasts to [*shape] into the memory order; it then has all of the neurons' dimensions."""
    missing = len(order) - 2 - value.dim()
    return value.reshape((1,) * missing + tuple(value.shape)).permute([d - 2 for d in order[2:]])


def _flat(value: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    value = value.detach().to(dtype)
    return value.reshape(1) if value.numel() == 1 else value.expand(shape).reshape(-1).contiguous()


def _sum_to(columns: Tensor, full: torch.Size, value: Tensor) -> Tensor:
    """Sum gradients per column [M] over everything that shares one of the values.

    In float64, since sums over 50,000 terms cancel; on the CPU by numpy, whose order does not depend on threads.
    """
    shape = (1,) * (len(full) - value.dim()) + tuple(value.shape)
    axes = tuple(d for d, (a, b) in enumerate(zip(full, shape, strict=True)) if b == 1 and a != 1)
    grid = columns.view(full)
    if columns.device.type == "cpu":
        total = torch.from_numpy(np.asarray(grid.numpy().sum(axis=axes, dtype=np.float64, keepdims=True)))
    else:
        total = grid.sum(dim=axes, dtype=torch.float64, keepdim=True) if axes else grid
    return total.reshape(value.shape).to(value.dtype)


class _Fused(torch.autograd.Function):
    """(x [T, B, *], alpha, beta, threshold, recurrent, state's four, options) -> spk, mem, cur, fired, counts."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *rest: Any) -> tuple[Tensor | None, ...]:
        alpha, beta, threshold, recurrent, mem0, spk0, cur0, fired0, options = rest
        dynamics, backend, overwrite_input, counts, private, pool = cast(_Options, options)
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        steps, columns = x.shape[0], x[0].numel()
        needs = ctx.needs_input_grad
        keeps_x = alpha is None and dynamics.tau_form and needs[2]  # then x is the current
        keeps_current = alpha is not None and (needs[1] or (dynamics.tau_form and needs[2]))
        in_place = overwrite_input and not keeps_x and x.dtype == dtype

        def column(start: Tensor | None) -> Tensor:
            if start is None:
                return torch.zeros(columns, dtype=dtype, device=x.device)
            return start.detach().reshape(columns).to(dtype, copy=True)

        mem = _share_memory(x) if in_place else torch.empty(x.shape, dtype=dtype, device=x.device)
        if pool is not None:
            spk = torch.empty((steps, *pool.out_shape), dtype=x.dtype, device=x.device)
        else:
            spk = torch.empty_like(x) if dynamics.spiking else torch.zeros_like(x)
        stored = torch.empty_like(mem) if keeps_current or (keeps_x and recurrent is not None) else None
        kept, removed = None, None
        if mem0 is not None:
            kept, removed = reset_terms(mem0, spk0, threshold, dynamics)
        fired = column(fired0) if dynamics.remembers_firing else None
        first = None
        if dynamics.spiking and dynamics.fire_once and fired is not None:
            first = torch.where(fired > 0, -1.0, float(steps)).to(dtype)
        call = ForwardCall(
            dynamics=dynamics,
            x=x.detach().view(steps, columns),
            spk=spk.view(steps, columns if pool is None else pool.columns),
            mem=mem.view(steps, columns),
            stored=None if stored is None else stored.view(steps, columns),
            threshold=_flat(threshold, x.shape[2:], dtype),
            beta=_flat(beta, x.shape[2:], dtype),
            alpha=None if alpha is None else _flat(alpha, x.shape[2:], dtype),
            kept=column(kept),
            removed=column(removed) if dynamics.spiking and dynamics.reset == "subtract" else None,
            cur=None if alpha is None else column(cur0),
            fired=fired,
            first=first,
            in_place=in_place,
            last=steps - 1,
            counts=torch.zeros(columns, dtype=dtype, device=x.device) if counts else None,
            pool=pool,
            unpooled=None if pool is None else torch.empty(columns, dtype=dtype, device=x.device),
        )
        if columns and recurrent is None:
            backend.forward(call)
        elif columns:
            backend.forward_recurrent(call, recurrent.detach(), spk0)
        if in_place:
            torch.autograd.graph.increment_version(x)  # whoever saved x for backward gets torch's error, not garbage
        ctx.options, ctx.input_dtype = options, x.dtype
        ctx.set_materialize_grads(False)
        kept_spk = None if recurrent is None else spk
        current = x if keeps_x and stored is None else stored
        ctx.save_for_backward(mem, current, alpha, beta, threshold, recurrent, kept_spk, mem0, spk0, cur0, call.first)
        last_cur = None if call.cur is None else call.cur.view(x.shape[1:])
        last_fired = None if call.fired is None else call.fired.view(x.shape[1:])
        counted = None if call.counts is None else call.counts.view(x.shape[1:])
        closed = (last_fired, counted, mem if private else None, None if dynamics.spiking else spk)
        ctx.mark_non_differentiable(*(t for t in closed if t is not None))
        return spk, mem, last_cur, last_fired, counted

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        grad_spk, grad_mem, grad_last_cur, _, _ = grads
        if getattr(ctx, "spent", False):  # torch says so by itself, unless saved tensors are packed by somebody's hooks
            raise RuntimeError("the membranes were modified by an inplace operation: the first backward pass used them")
        mem, stored, alpha, beta, threshold, recurrent, spk, mem0, spk0, cur0, first = ctx.saved_tensors
        dynamics, backend, _, _, private, pool = cast(_Options, ctx.options)
        shape, columns, steps, dtype = mem.shape, mem[0].numel(), mem.shape[0], mem.dtype
        needs = ctx.needs_input_grad

        def flat(grad: Tensor | None) -> Tensor | None:
            return None if grad is None else grad.contiguous().view(steps, -1)

        def flat_or_constant(grad: Tensor | None) -> Tensor | None:
            """A loss of sums over time has one gradient for all steps: autograd hands over a view of it."""
            if grad is None or recurrent is not None or pool is not None or steps == 1 or grad.stride(0) != 0:
                return flat(grad)
            return grad[:1].contiguous().view(1, -1)

        def column(wanted: bool, start: Tensor | None = None) -> Tensor | None:
            if not wanted:
                return None
            zero = torch.zeros(columns, dtype=dtype, device=mem.device)
            return zero if start is None else zero.copy_(start.reshape(columns))

        in_place = private and ctx.input_dtype == dtype and recurrent is None
        grad_x = mem if in_place else torch.empty_like(mem, dtype=ctx.input_dtype)
        call = BackwardCall(
            dynamics=dynamics,
            mem=mem.view(steps, columns),
            stored=flat(None if stored is None else stored.to(dtype)),
            grad_spk=flat_or_constant(grad_spk) if dynamics.spiking else None,
            grad_mem=flat(grad_mem),
            grad_x=grad_x.view(steps, columns),
            threshold=_flat(threshold, shape[2:], dtype),
            beta=_flat(beta, shape[2:], dtype),
            alpha=None if alpha is None else _flat(alpha, shape[2:], dtype),
            first=first,
            grad_u=torch.zeros(columns, dtype=dtype, device=mem.device),
            grad_cur=column(alpha is not None),
            to_cur=column(alpha is not None, grad_last_cur),
            grad_threshold=column(needs[3]),
            grad_beta=column(needs[2]),
            grad_alpha=column(alpha is not None and needs[1]),
            in_place=in_place,
            pool=pool,
        )
        grad_recurrent = None
        if columns and recurrent is None:
            backend.backward(call)
            if in_place:  # a second backward pass gets torch's error about the membranes, not garbage
                torch.autograd.graph.increment_version(mem)
                ctx.spent = True
        elif columns:
            grad_recurrent, from_first = backward_recurrent(backend, call, recurrent, spk, spk0, needs[4])
        values = [
            None if g is None or v is None else _sum_to(g, shape[1:], v)
            for g, v in ((call.grad_alpha, alpha), (call.grad_beta, beta), (call.grad_threshold, threshold))
        ]
        states: list[Tensor | None] = [None, None, None]
        if mem0 is not None:
            more_values, states = _first_step(call, alpha, beta, threshold, mem0, spk0, cur0, dynamics)
            values = [v if v is None or m is None else v + m for v, m in zip(values, more_values, strict=True)]
            if recurrent is not None and columns:
                states[1] = from_first if states[1] is None else states[1] + from_first
        return (grad_x, *values, grad_recurrent, *states, None, None)


def _share_memory(x: Tensor) -> Tensor:
    """Return a tensor on x's memory that autograd takes for a new one."""
    alias = torch.empty(0, dtype=x.dtype, device=x.device)
    return alias.set_(x.untyped_storage(), x.storage_offset(), x.size(), x.stride())  # type: ignore[arg-type]


def _first_step(
    call: BackwardCall,
    alpha: Tensor | None,
    beta: Tensor,
    threshold: Tensor,
    mem0: Tensor,
    spk0: Tensor,
    cur0: Tensor | None,
    dynamics: Dynamics,
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """Return what the first step adds to the gradients of (alpha, beta, threshold) and of the state (mem, spk, cur).

    U[0] = beta U'[-1] - R[0] + ... and I[0] = alpha I[-1] + ...: two lines, so autograd does them.
    """
    inputs = [None if t is None else t.detach().requires_grad_() for t in (alpha, beta, threshold, mem0, spk0, cur0)]
    a, b, theta, mem, spk, cur = inputs
    assert b is not None and theta is not None and mem is not None and spk is not None
    with torch.enable_grad():
        kept, removed = reset_terms(mem, spk, theta, dynamics)
        results = [b * kept if removed is None else b * kept - removed]
        grads = [call.grad_u.view(mem.shape)]
        if a is not None and cur is not None and call.grad_cur is not None:
            results.append(a * cur)
            grads.append(call.grad_cur.view(mem.shape))
        wanted = [t for t in inputs if t is not None]
        found = iter(torch.autograd.grad(results, wanted, grads, allow_unused=True))
    all_grads = [None if t is None else next(found) for t in inputs]
    return all_grads[:3], all_grads[3:]
