"""What the fused engines share: layout, autograd, and the first and last state. A backend brings the two kernels.

Kernels see flat memory [T, M], M = batch x neurons in the order in which they lie in memory, so that channels_last
activations are neither copied nor reordered; values per neuron are brought into the same order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from snnexp.neurons.equation import Dynamics, State, reset_terms


@dataclass
class ForwardCall:
    """One forward pass over flat tensors. `cur` and `fired` [M]: in, before the first step; out, after the last."""

    dynamics: Dynamics
    x: Tensor  # [T, M]
    spk: Tensor  # [T, M], in x's dtype; not written unless spiking
    mem: Tensor  # [T, M], may share x's memory: see in_place
    stored: Tensor | None  # [T, M]: the current of each step, if backward will need it
    threshold: Tensor  # [1] or [neurons]
    beta: Tensor
    alpha: Tensor | None
    kept: Tensor  # [M]: U' of the step before the first
    removed: Tensor | None  # [M]: R of the first step (reset subtract)
    cur: Tensor | None
    fired: Tensor | None
    first: Tensor | None  # [M], out: step of the first spike; -1 if fired before, T if never (fire_once only)
    in_place: bool


@dataclass
class BackwardCall:
    """One backward pass over flat tensors; tensors that are None are not wanted or not there."""

    dynamics: Dynamics
    mem: Tensor  # [T, M]
    stored: Tensor | None  # [T, M]: I of each step
    grad_spk: Tensor | None
    grad_mem: Tensor | None
    grad_x: Tensor  # out [T, M]
    threshold: Tensor
    beta: Tensor
    alpha: Tensor | None
    first: Tensor | None
    grad_u: Tensor  # [M] out: gradient of U[0]
    grad_cur: Tensor | None  # [M] out: gradient of I[0]
    to_cur: Tensor | None  # [M] in: gradient of the last state's current; out: what I[0] passes on to the first state's
    grad_threshold: Tensor | None  # [M] out, to be summed over what shares a value
    grad_beta: Tensor | None
    grad_alpha: Tensor | None


class Backend(Protocol):
    """The two kernels of an engine."""

    def forward(self, call: ForwardCall) -> None: ...

    def backward(self, call: BackwardCall) -> None: ...


class _Options(NamedTuple):
    dynamics: Dynamics
    backend: Backend
    overwrite_input: bool


def run_fused(
    x: Tensor,
    alpha: Tensor | None,
    beta: Tensor,
    threshold: Tensor,
    dynamics: Dynamics,
    state: State | None,
    backend: Backend,
    overwrite_input: bool = False,
) -> tuple[Tensor, Tensor, State]:
    """Run all time steps of x [T, B, *shape] with the backend's kernels; see `run_neurons` for the rest.

    spk has x's dtype; mem and the state have the dtype of the calculation: float64 for float64, else float32.
    """
    order = _memory_order(x)
    flat_x = x.permute(order)
    if not flat_x.is_contiguous():
        flat_x, overwrite_input = flat_x.contiguous(), True
    state_order = [d - 1 for d in order[1:]]
    given = [None if s is None else s.permute(state_order).contiguous() for s in (state or (None, None, None, None))]
    values = [None if v is None else _permute_value(v, order) for v in (alpha, beta, threshold)]
    options = _Options(dynamics, backend, overwrite_input and not (x.is_leaf and x.requires_grad))
    spk, mem, cur, fired = _Fused.apply(flat_x, *values, *given, options)  # type: ignore[no-untyped-call]
    back = [order.index(d) for d in range(len(order))]
    spk, mem = spk.permute(back), mem.permute(back)
    state_back = [d - 1 for d in back[1:]]
    cur, fired = (None if s is None else s.permute(state_back) for s in (cur, fired))
    return spk, mem, State(mem[-1], spk[-1].to(mem.dtype), cur, fired)


def _memory_order(x: Tensor) -> list[int]:
    """Return the order of dimensions in which x lies in memory, with time and batch first."""
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
    """(x [T, B, *], alpha, beta, threshold, mem, spk, cur, fired, options) -> spk, mem, last cur, last fired."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        alpha, beta, threshold, mem0, spk0, cur0, fired0, options = rest
        dynamics, backend, overwrite_input = options
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        steps, columns = x.shape[0], x[0].numel()
        needs = ctx.needs_input_grad
        keeps_x = alpha is None and dynamics.tau_form and needs[2]
        keeps_current = alpha is not None and (needs[1] or (dynamics.tau_form and needs[2]))
        in_place = overwrite_input and not keeps_x and x.dtype == dtype

        def column(start: Tensor | None) -> Tensor:
            if start is None:
                return torch.zeros(columns, dtype=dtype, device=x.device)
            return start.detach().reshape(columns).to(dtype, copy=True)

        mem = _share_memory(x) if in_place else torch.empty(x.shape, dtype=dtype, device=x.device)
        spk = torch.empty_like(x) if dynamics.spiking else torch.zeros_like(x)
        stored = torch.empty_like(mem) if keeps_current else None
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
            spk=spk.view(steps, columns),
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
        )
        if columns:
            backend.forward(call)
        if in_place:
            torch.autograd.graph.increment_version(x)  # whoever saved x for backward gets torch's error, not garbage
        ctx.options, ctx.input_dtype = options, x.dtype
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(mem, x if keeps_x else stored, alpha, beta, threshold, mem0, spk0, cur0, call.first)
        last_cur = None if call.cur is None else call.cur.view(x.shape[1:])
        last_fired = None if call.fired is None else call.fired.view(x.shape[1:])
        ctx.mark_non_differentiable(*(t for t in (last_fired, None if dynamics.spiking else spk) if t is not None))
        return spk, mem, last_cur, last_fired

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        grad_spk, grad_mem, grad_last_cur, _ = grads
        mem, stored, alpha, beta, threshold, mem0, spk0, cur0, first = ctx.saved_tensors
        dynamics, backend, _ = cast(_Options, ctx.options)
        shape, columns, steps, dtype = mem.shape, mem[0].numel(), mem.shape[0], mem.dtype
        needs = ctx.needs_input_grad

        def flat(grad: Tensor | None) -> Tensor | None:
            return None if grad is None else grad.contiguous().view(steps, columns)

        def column(wanted: bool, start: Tensor | None = None) -> Tensor | None:
            if not wanted:
                return None
            zero = torch.zeros(columns, dtype=dtype, device=mem.device)
            return zero if start is None else zero.copy_(start.reshape(columns))

        grad_x = torch.empty_like(mem, dtype=ctx.input_dtype)
        call = BackwardCall(
            dynamics=dynamics,
            mem=mem.view(steps, columns),
            stored=flat(None if stored is None else stored.to(dtype)),
            grad_spk=flat(grad_spk) if dynamics.spiking else None,
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
        )
        if columns:
            backend.backward(call)
        values = [
            None if g is None or v is None else _sum_to(g, shape[1:], v)
            for g, v in ((call.grad_alpha, alpha), (call.grad_beta, beta), (call.grad_threshold, threshold))
        ]
        states: list[Tensor | None] = [None, None, None]
        if mem0 is not None:
            more_values, states = _first_step(call, alpha, beta, threshold, mem0, spk0, cur0, dynamics)
            values = [v if v is None or m is None else v + m for v, m in zip(values, more_values, strict=True)]
        return (grad_x, *values, *states, None, None)


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
