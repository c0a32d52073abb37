"""The numba engine (CPU): the whole time loop as one compiled call forward and one back, threads over columns.

Forward keeps the membranes only (plus the current, or the input, where a learned alpha or a learned beta in tau form
needs it); backward works out spikes and surrogates from them again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from snnexp.neurons.engines.calls import BackwardCall, ForwardCall, PoolGrid
from snnexp.neurons.engines.fused import run_fused
from snnexp.neurons.engines.numba_kernels import (
    AVG_POOL,
    MAX_POOL,
    NO_POOL,
    BackwardOptions,
    ForwardOptions,
    backward_kernel,
    forward_kernel,
)
from snnexp.neurons.engines.recurrence import Backend, some_steps
from snnexp.neurons.equation import Dynamics, State
from snnexp.neurons.names import RESETS
from snnexp.parallel import run_parallel

BLOCK = 1024  # columns that a thread walks through time together: about ten rows of them stay in the first-level cache
WATCHED_STEPS = 16  # of a recurrent layer, before it is decided anew how to go on
BUSY_SHARE = 0.25  # of spikes, above which one dense product per step is faster than adding up single weights
BUSY_SHARE_LARGE = 0.08  # for weights that the second-level cache does not hold
SMALL_WEIGHTS = 1 << 18  # values
SERIAL_BELOW = 1 << 16  # elements; less work than this is done before a second thread has woken up


def run(
    x: Tensor,
    alpha: Tensor | None,
    beta: Tensor,
    threshold: Tensor,
    dynamics: Dynamics,
    state: State | None,
    overwrite_input: bool = False,
    recurrent: Tensor | None = None,
) -> tuple[Tensor, Tensor, State]:
    """Run all time steps of x [T, B, *shape] on the CPU; returns spikes, membranes (like x) and the last state."""
    return run_fused(x, alpha, beta, threshold, dynamics, state, NumbaBackend(), overwrite_input, recurrent)


class NumbaBackend(Backend):
    """Calls the kernels of `numba_kernels` on the tensors' own memory; `compiled=False` runs them as plain Python."""

    def __init__(self, compiled: bool = True) -> None:
        self.compiled = compiled

    def forward(self, call: ForwardCall) -> None:
        self._launch(*_forward_arguments(call), call.pool, *call.x.shape)

    def backward(self, call: BackwardCall) -> None:
        self._launch(*_backward_arguments(call), call.pool, *call.mem.shape)

    def forward_recurrent(self, call: ForwardCall, weight: Tensor, spk0: Tensor | None) -> None:
        """Each sample walks through time on its own, adding up the weights of the neurons that spike.

        Few usually do. Where many do, one dense product per step is faster: what the last steps did decides.
        """
        size, steps = weight.shape[0], call.x.shape[0]
        from_to = weight.t().contiguous()
        limit = BUSY_SHARE if from_to.numel() <= SMALL_WEIGHTS else BUSY_SHARE_LARGE
        busy = False
        for start in range(0, steps, WATCHED_STEPS):
            stop = min(start + WATCHED_STEPS, steps)
            if busy:
                self.forward_steps(call, weight, spk0, range(start, stop))
            else:
                before = call.spk[start - 1] if start > 0 else spk0 if spk0 is None else spk0.reshape(-1)
                rows = some_steps(call, slice(start, stop), ("x", "spk", "mem", "stored"))
                part = replace(call, **rows, time=call.time + start)
                kernel, arguments = _forward_arguments(part, from_to, before)
                self._launch(kernel, arguments, None, stop - start, call.x.shape[1], block=size)
            busy = float(call.spk[start:stop].mean()) > limit

    def stepper(self, call: BackwardCall) -> Callable[[int], None]:
        """As by step, with everything made ready once: a step's arithmetic takes as long as one Python call."""
        kernel, arguments = _backward_arguments(call)
        mem, stored, grad_spk, grad_mem, grad_x = arguments[:5]
        columns, times = arguments[5:-6], arguments[-6]
        rest = arguments[-5:]

        def step(t: int) -> None:
            now = slice(t, t + 1)
            rows = (mem[now], stored[now], grad_spk, grad_mem[now], grad_x[now])
            self._launch(kernel, (*rows, *columns, times[now], *rest), None, 1, mem.shape[1])

        return step

    def _launch(
        self,
        kernel: Any,
        arguments: tuple[Any, ...],
        pool: PoolGrid | None,
        steps: int,
        columns: int,
        block: int | None = None,
    ) -> None:
        threads = torch.get_num_threads() if self.compiled and steps * columns >= SERIAL_BELOW else 1
        if pool is None:
            geometry = (0, 0, 1, 0)
            if block is None:
                share = -(-columns // threads)
                block = min(BLOCK, -(-share // 64) * 64) if self.compiled else columns
            blocks = -(-columns // block)
        else:
            geometry = (pool.height, pool.row, pool.inner, pool.size)
            bands = -(-pool.height // pool.size)
            block = max(1, min(bands, BLOCK // (pool.size * pool.row)))
            blocks = pool.outer * -(-bands // block)
        if self.compiled:
            run_parallel(lambda start, stop: kernel(*arguments, *geometry, block, start, stop), blocks, threads)
        else:
            kernel.py_func(*arguments, *geometry, block, 0, blocks)


def _forward_arguments(
    call: ForwardCall, weight: Tensor | None = None, before: Tensor | None = None
) -> tuple[Any, tuple[Any, ...]]:
    """The kernel for a call, and what it takes; weight [from, to] and before [M]: of a recurrent layer."""
    d = call.dynamics
    kernel = forward_kernel(
        ForwardOptions(
            reset=RESETS.index(d.reset) if d.spiking else 0,
            strict=d.strict,
            tau_form=d.tau_form,
            fire_once=d.fire_once,
            force_last_spike=d.force_last_spike,
            relative=d.relative_surrogate,
            spiking=d.spiking,
            has_current=call.alpha is not None,
            in_place=call.in_place,
            store_current=call.stored is not None,
            counting=call.counts is not None,
            pool=_pool_code(call.pool),
            recurrent=weight is not None,
        )
    )
    number = _numbers(call.mem)
    flat, grid = _empty(call.mem, 1), _empty(call.mem, 2)
    columns = (call.kept, call.removed, call.cur, call.fired, call.first, call.counts, call.unpooled, before)
    arguments = (
        *(_array(t, grid) for t in (call.x, call.spk, call.mem, call.stored)),
        *(_array(t, flat) for t in (call.threshold, call.beta, _or(call.alpha, call.beta))),
        *(_array(_or(t, call.kept), flat) for t in columns),
        _array(weight if weight is None else weight.reshape(-1), flat),
        np.arange(call.time, call.time + call.x.shape[0], dtype=number),
        number(call.last),
        number(1),
        number(0),
    )
    return kernel, arguments


def _backward_arguments(call: BackwardCall) -> tuple[Any, tuple[Any, ...]]:
    """The kernel for a call, and what it takes."""
    d = call.dynamics
    reset = RESETS.index(d.reset) if d.spiking else 0
    fused = d.spiking and d.surrogate.fused
    kernel = backward_kernel(
        BackwardOptions(
            reset=0 if d.ignore_reset_in_backward else reset,
            kept_reset=reset,
            strict=d.strict,
            tau_form=d.tau_form,
            detach_reset=d.detach_reset,
            fire_once=d.fire_once,
            relative=d.relative_surrogate,
            spiking=d.spiking,
            surrogate=d.surrogate.code if fused else 0,
            has_current=call.alpha is not None,
            has_grad_spk=call.grad_spk is not None,
            has_grad_mem=call.grad_mem is not None,
            wants_threshold=call.grad_threshold is not None,
            wants_beta=call.grad_beta is not None,
            wants_alpha=call.grad_alpha is not None,
            in_place=call.in_place,
            pool=_pool_code(call.pool),
        )
    )
    number = _numbers(call.mem)
    a, b = d.surrogate.constants if fused else (0.0, 0.0)
    flat, grid = _empty(call.mem, 1), _empty(call.mem, 2)
    columns = (call.first, call.grad_u, call.grad_cur, call.to_cur)
    arguments = (
        *(_array(t, grid) for t in (call.mem, call.stored, call.grad_spk, call.grad_mem, call.grad_x)),
        *(_array(t, flat) for t in (call.threshold, call.beta, _or(call.alpha, call.beta))),
        *(_array(_or(t, call.grad_u), flat) for t in columns),
        *(_array(_or(t, call.grad_u), flat) for t in (call.grad_threshold, call.grad_beta, call.grad_alpha)),
        np.arange(call.time, call.time + call.mem.shape[0], dtype=number),
        number(a),
        number(b),
        number(1),
        number(0),
        0 if call.grad_spk is not None and call.grad_spk.shape[0] < call.mem.shape[0] else 1,
    )
    return kernel, arguments


def _pool_code(pool: PoolGrid | None) -> int:
    return NO_POOL if pool is None else MAX_POOL if pool.kind == "max" else AVG_POOL


def _or(tensor: Tensor | None, stand_in: Tensor) -> Tensor:
    return stand_in if tensor is None else tensor


def _array(tensor: Tensor | None, stand_in: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return stand_in if tensor is None else tensor.detach().numpy()


def _numbers(like: Tensor) -> Any:
    return np.float64 if like.dtype == torch.float64 else np.float32


def _empty(like: Tensor, dimensions: int) -> np.ndarray[Any, Any]:
    return np.empty((0,) * dimensions, dtype=_numbers(like))
