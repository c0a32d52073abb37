"""The numba engine (CPU): the whole time loop as one compiled call forward and one back, threads over columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from snnexp.arrays import number_type
from snnexp.neurons.compiler.plan import SCALARS, forward_plan
from snnexp.neurons.engines.calls import BackwardCall, ForwardCall, InputNorm, Near, PoolGrid, Taps
from snnexp.neurons.engines.numba_norm import repeated
from snnexp.neurons.engines.numba_source import BackwardUse, ForwardUse, Kernel, backward_kernel, forward_kernel
from snnexp.neurons.engines.recurrence import Backend, some_steps
from snnexp.parallel import run_parallel

BLOCK = 1024  # columns that a thread walks through time together: about ten rows of them stay in the first-level cache
NORM_BLOCK = 1 << 14  # of what is normalised: memory that is written elsewhere than it is read wants longer pieces
ROOM = 1 << 19  # bytes of membranes that a block works out again, at most: half of a small second-level cache
AGAIN_BLOCK = 512  # columns of such a block, at least
LEAST_BLOCKS = 16  # if that leaves them long enough
GROUPS = 128  # of blocks, at most, that take the products of `Taps` together
PAST = 1 << 24  # bytes of a gradient from which on it is written past the caches
WATCHED_STEPS = 16  # of a recurrent layer, before it is decided anew how to go on
BUSY_SHARE = 0.25  # of spikes, above which one dense product per step is faster than adding up single weights
BUSY_SHARE_LARGE = 0.08  # for weights that the second-level cache does not hold
SMALL_WEIGHTS = 1 << 18  # values
SERIAL_BELOW = 1 << 16  # elements; less work than this is done before a second thread has woken up


class NumbaBackend(Backend):
    """Calls generated kernels on the tensors' own memory; `compiled=False` runs them as plain Python."""

    makes_columns = True

    def __init__(self, compiled: bool = True) -> None:
        self.compiled = compiled

    def forward(self, call: ForwardCall) -> None:
        use = ForwardUse(call.in_place, call.counts is not None, call.pool.kind if call.pool else "")
        use = use._replace(needed=call.needed is not None, norm=call.norm is not None, local=call.local)
        arguments = _forward_arguments(call)
        if use.near(call.dynamics):
            arguments |= _near_arguments(call)
        else:
            use = use._replace(unseen=call.unseen)
        use = use._replace(single=_single(arguments))
        kernel = forward_kernel(call.dynamics, call.names, call.wants, use, self.compiled)
        steps, columns = call.x.shape
        pixel = 0 if call.norm is None else call.norm.mean.size
        self._launch(kernel, arguments, call.pool, steps, columns, pixel=pixel)
        if call.near is not None and call.norm is None:
            call.near.picked[:] = _array(call.mem).reshape(-1)[call.near.places[:-1]]

    def backward(self, call: BackwardCall) -> None:
        kernel, arguments = self._backward_kernel(call), _backward_arguments(call)
        (steps, columns), block, sums, group = call.mem.shape, None, np.zeros(0), 1
        if call.norm is not None:
            stored = forward_plan(call.dynamics, call.names, call.wants).stored
            block = _block_again(call.mem, call.pool, call.norm.mean.size, len(stored))
            sums = np.zeros((_count_blocks(block, call.pool, columns), 2, call.norm.mean.size))
            arguments |= _norm_arguments(call.norm) | {"x_rows": _array(call.mem), "sums": sums}
            arguments["past"] = call.grad_x.numel() * call.grad_x.element_size() >= PAST
        if call.taps is not None and call.pool is not None:
            block = _bands(call.pool, BLOCK) if block is None else block
            blocks = _count_blocks(block, call.pool, columns)
            group = -(-blocks // GROUPS)
            if call.taps.frames != steps * call.pool.outer:  # kernels would read beyond the lists
                raise ValueError(f"{call.taps.frames} frames are listed, but there are {steps} x {call.pool.outer}")
            arguments |= _taps_arguments(call.taps, -(-blocks // group), call.norm is None) | {"group": group}
        self._launch(kernel, arguments, call.pool, steps, columns, block=block, group=group)
        if call.norm is not None:
            call.norm.summed = call.grad_x.data_ptr(), sums.sum(0)
        if call.taps is not None:
            call.taps.products = arguments["tap_sums"].sum(0)

    def works_out_again(self, x: Tensor, pool: PoolGrid | None, norm: InputNorm, stored: int) -> bool:
        return _block_again(x, pool, norm.mean.size, stored) > 0

    def _backward_kernel(self, call: BackwardCall) -> Kernel:
        has = call.grad_spk is not None, call.grad_mem is not None
        use = BackwardUse(call.in_place, call.pool.kind if call.pool else "", *has, call.norm is not None)
        use = use._replace(local=call.local, single=_single(_value_arguments(call)), taps=call.taps is not None)
        return backward_kernel(call.dynamics, call.names, call.wants, use, self.compiled)

    def forward_recurrent(self, call: ForwardCall, weight: Tensor, spk0: Tensor | None) -> None:
        """Each sample walks through time on its own, adding up the weights of the neurons that spike.

        Few usually do. Where many do, one dense product per step is faster: what the last steps did decides.
        """
        size, steps = weight.shape[0], call.x.shape[0]
        from_to = weight.t().contiguous()
        limit = BUSY_SHARE if from_to.numel() <= SMALL_WEIGHTS else BUSY_SHARE_LARGE
        counting = call.counts is not None
        use = ForwardUse(call.in_place, counting, recurrent=True, store_input="x" in call.stored)
        use = use._replace(single=_single(_value_arguments(call)))
        kernel = forward_kernel(call.dynamics, call.names, call.wants, use, self.compiled)
        silent = torch.zeros_like(call.mem[0])
        busy = False
        for start in range(0, steps, WATCHED_STEPS):
            stop = min(start + WATCHED_STEPS, steps)
            if busy:
                self.forward_steps(call, weight, spk0, range(start, stop))
            else:
                before = call.spk[start - 1] if start > 0 else silent if spk0 is None else spk0.reshape(-1)
                rows = some_steps(call, slice(start, stop), ("x", "spk", "mem", "stored", "noise"))
                arguments = _forward_arguments(replace(call, **rows, time=call.time + start))
                arguments |= {"before": _array(before), "weight": _array(from_to.reshape(-1))}
                self._launch(kernel, arguments, None, stop - start, call.x.shape[1], block=size)
            busy = float(call.spk[start:stop].mean()) > limit

    def stepper(self, call: BackwardCall) -> Callable[[int], None]:
        """As by step, with everything made ready once: a step's arithmetic takes as long as one Python call."""
        kernel, arguments = self._backward_kernel(call), _backward_arguments(call)
        rows = [n for n in kernel.arguments if n.endswith("_rows") and n != "grad_spk_rows"] + ["times"]

        def step(t: int) -> None:
            now = slice(t, t + 1)
            self._launch(kernel, arguments | {n: arguments[n][now] for n in rows}, None, 1, call.mem.shape[1])

        return step

    def _launch(
        self,
        kernel: Kernel,
        named: dict[str, Any],
        pool: PoolGrid | None,
        steps: int,
        columns: int,
        block: int | None = None,
        pixel: int = 0,
        group: int = 1,
    ) -> None:
        """block: columns of one, or bands, if they are not to be chosen; pixel: channels of what is normalised.

        group: blocks that one thread does in order.
        """
        arguments = [named[name] for name in kernel.arguments]
        near = kernel.arguments.index("near") if "near" in kernel.arguments else None
        threads = torch.get_num_threads() if self.compiled and steps * columns >= SERIAL_BELOW else 1
        if pool is None:
            if pixel:  # whole pixels, and at least four blocks for each thread
                block = pixel * -(-min(NORM_BLOCK, -(-columns // (4 * threads))) // pixel)
            if block is None:
                share = -(-columns // threads)
                block = min(BLOCK, -(-share // 64) * 64) if self.compiled else columns
        else:
            arguments += [pool.height, pool.row, pool.inner, pool.size]
            block = _bands(pool, NORM_BLOCK if pixel else BLOCK) if block is None else block
        blocks = _count_blocks(block, pool, columns)
        run = kernel.compiled if self.compiled else kernel.plain
        totals = [] if near is None else list(arguments[near])

        def work(start: int, stop: int) -> None:
            given = list(arguments)
            if near is not None:
                given[near] = totals.pop()  # nobody else's meanwhile
            run(*given, block, start * group, min(stop * group, blocks))
            if near is not None:
                totals.append(given[near])

        run_parallel(work, -(-blocks // group), threads)


def _block_again(x: Tensor, pool: PoolGrid | None, channels: int, stored: int) -> int:
    """Columns of a block, or bands, whose membranes of all steps (and what else is stored) fit into ROOM; 0: none.

    It does not hang on the number of threads: the sums of the gradient are taken block by block.
    """
    steps, columns = x.shape
    most = ROOM // (steps * x.element_size() * (1 + stored))
    if pool is not None:
        band = pool.size * pool.row
        return 0 if most < band else max(min(most // 2 // band, -(-pool.height // pool.size)), 1)
    shortest = -(-min(AGAIN_BLOCK, columns) // channels) * channels
    return 0 if most < shortest else max(min(most // 2, columns // LEAST_BLOCKS) // channels * channels, shortest)


def _bands(pool: PoolGrid, columns: int) -> int:
    """Bands of a block of about so many columns."""
    return max(1, min(-(-pool.height // pool.size), columns // (pool.size * pool.row)))


def _count_blocks(block: int, pool: PoolGrid | None, columns: int) -> int:
    """Blocks of so many columns, or bands."""
    if pool is None:
        return -(-columns // block)
    bands = -(-pool.height // pool.size)
    return pool.outer * -(-bands // block)


def _single(arguments: Mapping[str, Any]) -> tuple[str, ...]:
    """Values that are one number."""
    values = {name.removesuffix("_values"): a for name, a in arguments.items() if name.endswith("_values")}
    return tuple(name for name, value in values.items() if value.size == 1)


def _forward_arguments(call: ForwardCall) -> dict[str, Any]:
    """What a kernel may take, by name."""
    rows = {"x": call.x, "spk": call.spk, "mem": call.mem, **call.stored}
    rows |= {n: t for n, t in (("noise", call.noise), ("needed", call.needed)) if t is not None}
    named = _shared_arguments(call, call.x.shape[0], rows | {"x": call.x})
    if "x" in call.stored:
        named["input_rows"] = _array(call.stored["x"])
    if call.norm is not None:
        named |= _norm_arguments(call.norm)
    if call.counts is not None:
        named["counts"] = _array(call.counts)
    return named


def _near_arguments(call: ForwardCall) -> dict[str, Any]:
    """Of a kernel that counts membranes in a window. Where nobody wants that, it is the same, and nothing is in it."""
    near, number = call.near, number_type(call.x.dtype)
    if near is None:
        center = _array(call.values["threshold"]) if "threshold" in call.values else np.zeros(1, number)
        radius = np.full(center.size if call.dynamics.relative_surrogate else 1, -1, number)
        nothing = np.zeros((torch.get_num_threads(), 0), np.int32), np.full(1, np.iinfo(np.int64).max)
        near = Near(center, radius, *nothing, np.zeros(0, number))
    named = {"near_center_values": near.center, "near_radius_values": near.radius, "near": near.totals}
    return named | {"places": near.places, "picked": near.picked}


def _backward_arguments(call: BackwardCall) -> dict[str, Any]:
    """What a kernel may take, by name."""
    rows = {"mem": call.mem, **call.stored, "grad_x": call.grad_x}
    rows |= {n: t for n, t in (("grad_spk", call.grad_spk), ("grad_mem", call.grad_mem)) if t is not None}
    named = _shared_arguments(call, call.mem.shape[0], rows)
    named["grad_step"] = 0 if call.grad_spk is not None and call.grad_spk.shape[0] < call.mem.shape[0] else 1
    return named


def _norm_arguments(norm: InputNorm) -> dict[str, Any]:
    return {f"norm_{name}": repeated(getattr(norm, name)) for name in ("mean", "scale", "bias")}


def _taps_arguments(taps: Taps, groups: int, alone: bool) -> dict[str, Any]:
    """alone: without a norm."""
    _, _, channels, size, _, _, outputs = taps.shape
    numbers = channels * size * taps.line + outputs if alone else size * size * channels * (2 * outputs + 1)
    found = {f"tap_{name}": getattr(taps, name) for name in ("first", "entries", "values", "shape")}
    return found | {"tap_sums": np.zeros((groups, numbers))}


def _shared_arguments(call: ForwardCall | BackwardCall, steps: int, rows: dict[str, Tensor]) -> dict[str, Any]:
    number = number_type(call.mem.dtype)
    named: dict[str, Any] = {f"{name}_rows": _array(row) for name, row in rows.items()}
    named |= _value_arguments(call)
    named |= {f"{name}_columns": _array(column) for name, column in call.columns.items()}
    if call.dynamics.spiking and call.dynamics.surrogate.fused:
        named |= {n: number(v) for n, v in zip(SCALARS, call.dynamics.surrogate.constants, strict=False)}
    return named | {"times": np.arange(call.time, call.time + steps, dtype=number), "end": number(call.last)}


def _value_arguments(call: ForwardCall | BackwardCall) -> dict[str, Any]:
    return {f"{name}_values": _array(value) for name, value in call.values.items()}


def _array(tensor: Tensor) -> np.ndarray[Any, Any]:
    return tensor.detach().numpy()
