"""The numba engine (CPU): the whole time loop as one compiled call forward and one back, threads over columns.

Forward keeps the membranes only (plus the current, or the input, where a learned alpha or a learned beta in tau form
needs it); backward works out spikes and surrogates from them again.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from snnexp.neurons.engines.fused import BackwardCall, ForwardCall, run_fused
from snnexp.neurons.engines.numba_kernels import BackwardOptions, ForwardOptions, backward_kernel, forward_kernel
from snnexp.neurons.equation import Dynamics, State
from snnexp.neurons.names import RESETS

BLOCK = 1024  # columns that a thread walks through time together: about ten rows of them stay in the first-level cache
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


class NumbaBackend:
    """Calls the kernels of `numba_kernels` on the tensors' own memory; `compiled=False` runs them as plain Python."""

    def __init__(self, compiled: bool = True) -> None:
        self.compiled = compiled

    def forward(self, call: ForwardCall) -> None:
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
            )
        )
        number = _numbers(call.mem)
        flat, grid = _empty(call.mem, 1), _empty(call.mem, 2)
        arguments = (
            *(_array(t, grid) for t in (call.x, call.spk, call.mem, call.stored)),
            *(_array(t, flat) for t in (call.threshold, call.beta, _or(call.alpha, call.beta))),
            *(_array(_or(t, call.kept), flat) for t in (call.kept, call.removed, call.cur, call.fired, call.first)),
            np.arange(call.time, call.time + call.x.shape[0], dtype=number),
            number(call.last),
            number(1),
            number(0),
        )
        self._launch(kernel, arguments, *call.x.shape)

    def backward(self, call: BackwardCall) -> None:
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
        )
        self._launch(kernel, arguments, *call.mem.shape)

    def _launch(self, kernel: Any, arguments: tuple[Any, ...], steps: int, columns: int) -> None:
        if not self.compiled:
            kernel.py_func(*arguments, columns, 0, 1)
            return
        threads = torch.get_num_threads() if steps * columns >= SERIAL_BELOW else 1
        share = -(-columns // threads)
        block = min(BLOCK, -(-share // 64) * 64)
        blocks = -(-columns // block)
        _parallel(lambda start, stop: kernel(*arguments, block, start, stop), blocks, threads)


def _or(tensor: Tensor | None, stand_in: Tensor) -> Tensor:
    return stand_in if tensor is None else tensor


def _array(tensor: Tensor | None, stand_in: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return stand_in if tensor is None else tensor.detach().numpy()


def _numbers(like: Tensor) -> Any:
    return np.float64 if like.dtype == torch.float64 else np.float32


def _empty(like: Tensor, dimensions: int) -> np.ndarray[Any, Any]:
    return np.empty((0,) * dimensions, dtype=_numbers(like))


# --- threads: our own pool; the default layer of numba's parallel=True must not be entered from two threads at once ---

_pool: ThreadPoolExecutor | None = None
_pool_size = 0


def _parallel(work: Callable[[int, int], None], blocks: int, threads: int) -> None:
    """Run work(start, stop) over all blocks on this thread and threads - 1 more. Kernels release the GIL."""
    if threads == 1 or blocks == 1:
        work(0, blocks)
        return
    pieces = min(blocks, 4 * threads)
    bounds = [blocks * i // pieces for i in range(pieces + 1)]
    queue = deque(pairwise(bounds))

    def drain() -> None:
        while True:
            try:
                start, stop = queue.popleft()
            except IndexError:
                return
            work(start, stop)

    others = [_workers(threads - 1).submit(drain) for _ in range(min(threads, pieces) - 1)]
    drain()
    for other in others:
        other.result()


def _workers(count: int) -> ThreadPoolExecutor:
    global _pool, _pool_size
    if _pool is None or _pool_size < count:
        _pool, _pool_size = ThreadPoolExecutor(count, thread_name_prefix="snnexp-neurons"), count
    return _pool


def _forget_pool() -> None:
    """In a forked child the pool's threads are gone."""
    global _pool
    _pool = None


os.register_at_fork(after_in_child=_forget_pool)
