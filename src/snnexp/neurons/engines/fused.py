"""What the fused engines share: layout, autograd, and the first and last state. A backend brings the two kernels.

Kernels see flat memory [T, M], M = batch x neurons in the order in which they lie in memory, so that channels_last
activations are neither copied nor reordered; values per neuron are brought into the same order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from snnexp import buffers
from snnexp.arrays import share_memory
from snnexp.layout import memory_order
from snnexp.neurons.compiler.plan import Backward, Forward, backward_plan, derived_values, forward_plan, where_needed
from snnexp.neurons.compiler.symbols import Symbol, evaluate
from snnexp.neurons.engines.calls import BackwardCall, ForwardCall, InputNorm, Near, PoolGrid, Taps
from snnexp.neurons.engines.recurrence import Backend, backward_recurrent
from snnexp.neurons.equation import Dynamics, Pool, State, state_names, state_of, value_dict

Values = Mapping[str, Tensor]


class _Options(NamedTuple):
    dynamics: Dynamics
    names: tuple[str, ...]  # of the values
    backend: Backend
    overwrite_input: bool
    counts: bool
    private: bool  # nobody but backward needs the membranes
    pool: PoolGrid | None
    noise: Tensor | None  # like x
    needed: bool = False  # say where the gradient of spikes is
    norm: InputNorm | None = None  # what x is normalised by
    unseen: bool = False  # nobody looks at the membranes
    near: Near | None = None
    taps: Taps | None = None  # nobody needs the gradient of x, which is not normalised, but who made it these of it
    states: bool = True  # somebody asks for the last state
    learns: bool = True  # there may be a backward pass


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
    more: Values | None = None,
    noise: Tensor | None = None,
) -> tuple[Tensor, Tensor, State]:
    """Run all time steps of x [T, B, *shape] with the backend's kernels; see `run_neurons` for the rest.

    spk has x's dtype; mem and the state have the dtype of the calculation: float64 for float64, else float32.
    """
    values = value_dict(alpha, beta, threshold, more)
    spk, mem, _, _, *extra = _run(x, values, dynamics, backend, overwrite_input, recurrent, noise, state)
    last = zip(state_names(dynamics, values), (mem[-1], spk[-1].to(mem.dtype), *extra), strict=True)
    return spk, mem, state_of(dynamics, dict(last))


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
    more: Values | None = None,
    noise: Tensor | None = None,
    start: State | None = None,
    needed: bool = False,
    norm: InputNorm | None = None,
    unseen: bool = False,
    near: Near | None = None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Run a whole layer, with what surrounds it in a network; see `run_layer`."""
    values = value_dict(alpha, beta, threshold, more)
    given = (x, values, dynamics, backend, overwrite_input, recurrent, noise, start)
    spk, mem, counted, where, *_ = _run(*given, pool, counts, private, needed, norm, unseen, near, states=False)
    return spk, mem, counted, where


def _run(
    x: Tensor,
    values: Values,
    dynamics: Dynamics,
    backend: Backend,
    overwrite_input: bool,
    recurrent: Tensor | None,
    noise: Tensor | None,
    start: State | None,
    pool: Pool | None = None,
    counts: bool = False,
    private: bool = False,
    needed: bool = False,
    norm: InputNorm | None = None,
    unseen: bool = False,
    near: Near | None = None,
    states: bool = True,
) -> list[Any]:
    """Spikes, membranes, counts or None, where the spikes' gradient is or None, and the last of the extra states.

    Kernels see input and values as they lie.
    """
    given = _parts(start, state_names(dynamics, values), order := memory_order(x))
    values, flat_x = with_derived(dynamics, values), x.permute(order)
    if not flat_x.is_contiguous():
        flat_x, overwrite_input = buffers.empty(flat_x.shape, x.dtype, x.device).copy_(flat_x), True
    overwrite_input = overwrite_input and not (x.is_leaf and x.requires_grad) and norm is None
    flat_noise = None if noise is None else noise.permute(order).contiguous()
    grid = None if pool is None else _pool_grid(pool, flat_x, order)
    needed = needed and where_needed(dynamics, tuple(values)) is not None
    options = _Options(dynamics, tuple(values), backend, overwrite_input, counts, private, grid, flat_noise)
    options = options._replace(needed=needed, norm=norm, unseen=unseen, near=near, states=states)
    taps = getattr(x, "taps", None) if private and recurrent is None and norm is None else None
    options = options._replace(learns=torch.is_grad_enabled(), taps=taps)
    flat_values = (_permute_value(v, order) for v in values.values())
    outputs = _Fused.apply(flat_x, recurrent, options, *flat_values, *given)  # type: ignore[no-untyped-call]
    back = [order.index(d) for d in range(len(order))]
    of_a_step = [d - 1 for d in back[1:]]
    counted, where, *extra = outputs[2:]
    where = None if where is None else where.permute(back)
    found = [None if o is None else o.permute(of_a_step) for o in (counted, *extra)]
    return [outputs[0].permute(back), outputs[1].permute(back), found[0], where, *found[1:]]


def _parts(state: State | None, names: Sequence[str], order: list[int]) -> list[Tensor]:
    """A state's parts in the order of memory; none of no state."""
    if state is None:
        return []
    found = [getattr(state, name) for name in names]
    parts = [torch.zeros_like(state.mem) if s is None else s for s in found]
    return [s.permute([d - 1 for d in order[1:]]).contiguous() for s in parts]


def with_derived(dynamics: Dynamics, values: Values) -> Values:
    """The values, and what a user's equation makes of them alone, with gradients."""
    more = derived_values(dynamics, tuple(values)).items()
    return {**values, **{name: evaluate(symbol, lambda s: values[s.name]) for name, symbol in more}}


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
    """(x [T, B, *], recurrent, options, values, a state's parts or none) -> spk, mem, counts, needed, extra states."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, recurrent: Tensor | None, options: _Options, *rest: Tensor) -> tuple[Any, ...]:
        dynamics, names, private = options.dynamics, options.names, options.private
        values, given = rest[: len(names)], rest[len(names) :]
        ctx.options, ctx.input_dtype = options._replace(noise=None, near=None), x.dtype
        ctx.wants = frozenset(n for n, needed in zip(names, ctx.needs_input_grad[3:], strict=False) if needed)
        plan = forward_plan(dynamics, names, ctx.wants)
        learns = options.learns and any(ctx.needs_input_grad)
        call, ctx.again = _forward_call(x, recurrent is not None, options, plan, values, given, ctx.wants, learns)
        if x.numel() and recurrent is None:
            options.backend.forward(call)
        elif x.numel() and recurrent is not None:
            options.backend.forward_recurrent(call, recurrent.detach(), given[1] if given else None)
        if call.in_place:
            torch.autograd.graph.increment_version(x)  # whoever saved x for backward gets torch's error, not garbage
        rows = {} if ctx.again else dict(call.stored)
        if "x" in plan.stored:
            rows.setdefault("x", x)
        firsts = {column: call.columns[column] for column in plan.latches.values()}
        ctx.row_names, ctx.first_names = tuple(rows), tuple(firsts)
        spk = call.spk.view(x.shape if options.pool is None else (len(x), *options.pool.out_shape))
        mem = call.mem.view(len(call.mem), *x.shape[1:])
        kept_spk = None if recurrent is None else spk
        ctx.save_for_backward(
            x if ctx.again else mem, recurrent, kept_spk, *values, *given, *rows.values(), *firsts.values()
        )
        ctx.set_materialize_grads(False)
        asked = state_names(dynamics, names)[2:] if options.states else ()
        extra = {name: call.columns[name].view(x.shape[1:]) for name in asked}
        counted = None if call.counts is None else call.counts.view(x.shape[1:])
        where = None if call.needed is None else call.needed.view(spk.shape)
        closed = [counted, where, mem if private else None, None if dynamics.spiking else spk]
        closed += [extra[name] for name in plan.constant if name in extra]
        ctx.mark_non_differentiable(*(t for t in closed if t is not None))
        return spk, mem, counted, where, *extra.values()

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad_spk: Any, grad_mem: Any, _: Any, __: Any, *grad_extra: Any) -> tuple[Any, ...]:
        if getattr(ctx, "spent", False):  # torch says so by itself, unless saved tensors are packed by somebody's hooks
            raise RuntimeError("the membranes were modified by an inplace operation: the first backward pass used them")
        options = cast(_Options, ctx.options)
        dynamics, names, backend = options.dynamics, options.names, options.backend
        mem, recurrent, spk, *saved = ctx.saved_tensors
        values, saved = dict(zip(names, saved, strict=False)), saved[len(names) :]
        kept = (*ctx.row_names, *ctx.first_names)
        given, rows = saved[: len(saved) - len(kept)], dict(zip(kept, saved[len(saved) - len(kept) :], strict=True))
        taps = None if options.pool is None else options.norm.taps if ctx.again and options.norm else options.taps
        in_place = options.private and ctx.input_dtype == mem.dtype and recurrent is None and not (ctx.again or taps)
        nothing = None if taps is None else mem.new_zeros(1).expand(mem.shape)  # in the place of a gradient
        grad_x = mem if in_place else buffers.empty_like(mem, ctx.input_dtype) if nothing is None else nothing
        steps = mem.shape[0]
        repeats = recurrent is None and options.pool is None and steps > 1
        call = BackwardCall(
            dynamics=dynamics,
            names=names,
            wants=ctx.wants,
            mem=mem.view(steps, -1),
            stored={name: rows[name].to(mem.dtype).view(steps, -1) for name in ctx.row_names},
            grad_spk=_flat_gradient(grad_spk, repeats) if dynamics.spiking else None,
            grad_mem=_flat_gradient(grad_mem, False),
            grad_x=grad_x.view(steps, -1),
            values={name: _flat(value, mem.shape[2:], mem.dtype) for name, value in values.items()},
            columns={name: rows[name] for name in ctx.first_names},
            last=steps - 1,
            in_place=in_place,
            pool=options.pool,
            norm=options.norm if ctx.again else None,
            taps=taps,
        )
        plan = backward_plan(dynamics, names, ctx.wants, call.grad_spk is not None, call.grad_mem is not None)
        arriving = dict(zip((f"grad_{s}" for s in state_names(dynamics, names)[2:]), grad_extra, strict=False))
        if backend.makes_columns and recurrent is None and not (given or plan.rest_values or options.states):
            call.local = tuple(n for n in plan.body.columns if n.removeprefix("grad_") not in ctx.wants)
        for name in (n for n in plan.body.columns if n not in call.local):
            call.columns[name], start = torch.zeros_like(mem[0]).view(-1), arriving.get(name)
            if start is not None:
                call.columns[name].copy_(start.reshape(-1))
        grad_recurrent, from_first = None, None
        if mem.numel() and recurrent is None:
            backend.backward(call)
            if in_place:  # a second backward pass gets torch's error about the membranes, not garbage
                torch.autograd.graph.increment_version(mem)
                ctx.spent = True
        elif mem.numel():
            spk0, wants_weight = given[1] if given else None, ctx.needs_input_grad[1]
            grad_recurrent, from_first = backward_recurrent(backend, call, recurrent, spk, spk0, wants_weight)
        grads = {n: _sum_to(call.columns[f"grad_{n}"], mem.shape[1:], values[n]) for n in names if n in ctx.wants}
        states = _first_step(call, plan, values, given, grads, mem.shape[1:], from_first)
        return grad_x, grad_recurrent, None, *(grads.get(name) for name in names), *states


def _forward_call(
    x: Tensor,
    is_recurrent: bool,
    options: _Options,
    plan: Forward,
    values: Sequence[Tensor],
    given: Sequence[Tensor],
    wants: frozenset[str],
    learns: bool,
) -> tuple[ForwardCall, bool]:
    """Make the memory that a forward pass fills; learns: there may be a backward pass.

    Returns: also whether that works membranes out again. It does not hang on who looks at them: sums for the norm's
    gradient are then taken in another order, and watching must not change bits.
    """
    dynamics, names, pool = options.dynamics, options.names, options.pool
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    steps, columns = x.shape[0], x[0].numel()
    in_place = options.overwrite_input and "x" not in plan.stored and x.dtype == dtype
    own = set[str]()  # columns of the engine's
    if options.backend.makes_columns and not (is_recurrent or given or options.states):
        own = {n for n, s in plan.rest.items() if s.op == "const"} - {*plan.latches}
    alone = options.private and not (dynamics.noisy or given or plan.latches or {*plan.rest} - own)
    norm, flat = options.norm if alone else None, x.view(steps, columns)
    again = norm is not None and learns and options.backend.works_out_again(flat, pool, norm, len(plan.stored))
    if norm is not None and options.unseen and (again or not learns):
        mem = x.new_empty((0, *x.shape[1:]))
    else:
        mem = share_memory(x) if in_place else buffers.empty_like(x, dtype)
    keeps = [n for n in plan.stored if n != "x" or is_recurrent]
    if pool is not None:
        spk = buffers.empty((steps, pool.columns), x.dtype, x.device)
    else:
        spk = (buffers.empty_like(x) if dynamics.spiking else torch.zeros_like(x)).view(steps, columns)
    flat_values = {name: _flat(v, x.shape[2:], dtype) for name, v in zip(names, values, strict=True)}
    started = dict(zip(state_names(dynamics, names), given, strict=False))
    call = ForwardCall(
        dynamics=dynamics,
        names=names,
        wants=wants,
        x=flat.detach(),
        spk=spk,
        mem=mem.view(len(mem), columns),
        stored={n: buffers.empty_like(mem).view(len(mem), columns) for n in keeps},
        values=flat_values,
        columns=_start(plan, started, flat_values, mem, own),
        in_place=in_place,
        last=steps - 1,
        counts=_spike_counts(columns, dtype, x.device, options),
        pool=pool,
        noise=None if options.noise is None else options.noise.view(steps, columns),
        needed=torch.empty(spk.shape, dtype=torch.uint8) if options.needed else None,
        norm=options.norm,
        near=options.near,
        local=tuple(sorted(own)),
    )
    return call, again


def _spike_counts(columns: int, dtype: torch.dtype, device: torch.device, options: _Options) -> Tensor | None:
    """What spikes are added to; who counts membranes, too, puts them there."""
    if not options.counts:
        return None
    make = torch.zeros if options.near is None else torch.empty
    return make(columns, dtype=dtype, device=device)


def _flat_gradient(grad: Tensor | None, may_repeat: bool) -> Tensor | None:
    """The gradient [T, M]. A loss of sums over time has one for all steps, [1, M]: autograd hands over a view of it."""
    if grad is None:
        return None
    grad = grad[:1] if may_repeat and grad.stride(0) == 0 else grad
    return grad.contiguous().view(grad.shape[0], -1)


def _start(
    plan: Forward, given: dict[str, Tensor], values: dict[str, Tensor], like: Tensor, own: set[str]
) -> dict[str, Tensor]:
    """The columns [M] before the first step of `like` [T, B, *shape], without those of the engine's own."""
    batch, steps = like.shape[1], like.shape[0]
    neurons = prod(like.shape[2:])
    columns = {}
    for name, symbol in (plan.start if given else plan.rest).items():
        if name in own:
            continue
        if symbol.op == "const":
            columns[name] = like.new_full((batch * neurons,), symbol.name)
            continue
        value = evaluate(symbol, lambda s: given[s.name].view(batch, -1) if s.op == "old" else values[s.name])
        columns[name] = value.to(like.dtype).expand(batch, neurons).reshape(-1).clone()
    for state, column in plan.latches.items():
        columns[column] = torch.where(columns[state] > 0, -1.0, float(steps)).to(like.dtype)
    return columns


def _first_step(
    call: BackwardCall,
    plan: Backward,
    values: dict[str, Tensor],
    given: list[Tensor],
    grads: dict[str, Tensor],
    shape: torch.Size,
    from_first: Tensor | None,
) -> list[Tensor | None]:
    """Return the gradients of the states that were given to start from; adds the first step's late part to `grads`."""
    states = state_names(call.dynamics, call.names)
    tensors = {s: t.reshape(shape[0], -1) for s, t in zip(states, given, strict=False)}

    def leaf_value(symbol: Symbol) -> Tensor:
        if symbol.op == "old":
            return tensors[symbol.name]
        return call.columns[symbol.name].view(shape[0], -1) if symbol.op == "column" else call.values[symbol.name]

    for name, symbol in (plan.first_values if given else plan.rest_values).items():
        part = evaluate(symbol, leaf_value).expand(shape[0], -1).reshape(shape)
        grads[name] = grads[name] + part.sum_to_size(values[name].shape).to(grads[name].dtype)
    if not given:
        return []
    found: dict[str, Tensor | None] = dict.fromkeys(states)
    for name, symbol in plan.first_state.items():
        found[name] = evaluate(symbol, leaf_value).expand(tensors[name].shape).reshape(shape)
    found |= {s: call.columns[f"grad_{s}"].view(shape) for s in states[2:] if f"grad_{s}" in call.columns}
    if from_first is not None:
        spk = found["spk"]
        found["spk"] = from_first if spk is None else spk + from_first
    return list(found.values())
