"""Counts, during a pass, how often each neuron's membrane is within its surrogate's reach, and where membranes lie.

    gradient reach   of a neuron: the share of its steps and samples at which the surrogate's derivative is at least
                     eps times its peak (`neurons/reach.py`)
    gradient-dead    its reach is 0: no gradient passes its spikes in the whole pass, whether it fires or not

The numba engine counts as it runs (`calls.Near`), so that no membranes need to be there. Where it cannot, on the CPU
one compiled pass over them; elsewhere, and for derivatives that are not said by one distance, plain torch, some steps
at a time. Distances are sampled evenly over each batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from math import gcd
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snnexp import collectives
from snnexp.analysis.in_memory import KernelSums, flat_in, order_of
from snnexp.arrays import number_type
from snnexp.models.observer import Firing
from snnexp.neurons.engines.calls import Near
from snnexp.neurons.reach import Reach, Window
from snnexp.parallel import run_parallel
from snnexp.ranks import Rows

SAMPLED = 512  # distances per batch (or segment of its time steps) and layer, at most
SPARED, LEAST = 16, 64  # and at most one of so many, but never fewer than these
PENDING = 64  # batches of distances that are binned together
PIECE = 1 << 22  # membranes that torch looks at together
SERIAL_BELOW = 1 << 16  # membranes: less work is done before a second thread has woken up
# Distances span orders of magnitude: bins are even in asinh(20 x), a tenth of an e-fold where x is large.
EDGES: NDArray[np.float64] = np.sinh(np.arange(-120, 121) / 10) / 20


class NearCounter:
    """Running sums of one layer in one pass."""

    def __init__(self, reach: Reach, neurons: int, device: torch.device) -> None:
        self.reach = reach
        self._near = torch.zeros(neurons, dtype=torch.float64, device=device)  # by torch, in the order of the shape
        self._host = KernelSums()  # by kernels
        self._histogram = np.zeros(len(EDGES) + 1, np.int64)  # of distances between EDGES, and beyond both ends
        self._picked = np.empty(SAMPLED * PENDING, np.float32)
        self._filled = 0
        self._pending: list[Tensor] = []

    def add(self, firing: Firing, fired: Tensor | None) -> None:
        """Add one batch, or one segment of its time steps; fired [B, neurons]: spikes in the segments before.

        Nothing in it may ask for a gradient.
        """
        if firing.near is not None:
            self._add_distances(firing.near)
            return
        mem, window = firing.membranes().detach(), self.reach.window()
        if window is not None and mem.device.type == "cpu" and mem.dtype in (torch.float32, torch.float64):
            self._compiled(mem, window, fired)
        else:
            self._plain(mem, fired)

    def prepared(self, x: Tensor) -> Near | None:
        """What the engine is to count of a layer with input x [T, B, *shape]; None: the membranes are counted here."""
        window = self.reach.window()
        if window is None or self.reach.once:
            return None
        order, shape, steps = order_of(x), tuple(x.shape[2:]), x.shape[0] * x.shape[1]
        center, radius = (_in_order(v, order, shape, x.dtype) for v in window)
        places = _places(x.shape[0], x.shape[1], self._near.numel(), collectives.rows())
        picked = np.empty(len(places) - 1, number_type(x.dtype))
        return Near(center, radius, self._host.parts(order, shape, torch.get_num_threads(), steps), places, picked)

    @property
    def near(self) -> Tensor:
        """At how many steps and samples each neuron was in reach, flat, float64."""
        total = self._host.total()
        return self._near if total is None else self._near + total

    def state_dict(self) -> dict[str, Any]:
        """All sums; they are whole numbers, so it does not matter in which parts they were counted."""
        return {"near": self.near, "distances": torch.from_numpy(self.distances().copy())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self._near.copy_(state["near"])
        self._histogram = state["distances"].numpy().copy()

    def join(self) -> None:
        """The counts of all processes, at the end of a pass."""
        near, self._host = self.near.clone(), KernelSums()
        self._near = collectives.add_up(near)
        self._histogram = collectives.add_up(torch.from_numpy(self.distances().copy())).numpy()

    def distances(self) -> NDArray[np.int64]:
        """The histogram of the sampled distances, over EDGES."""
        self._bin()
        return self._histogram

    def _compiled(self, mem: Tensor, window: Window, fired: Tensor | None) -> None:
        from snnexp.analysis.reach_kernels import count_near, count_near_once  # numba takes 0.2 s to import

        order, shape = order_of(mem), tuple(mem.shape[2:])
        values = flat_in(order, mem)
        neurons = self._near.numel()
        columns = mem.shape[1] * neurons
        center, radius = (_in_order(v, order, shape, mem.dtype) for v in window)
        parts = torch.get_num_threads() if values.size >= SERIAL_BELOW else 1
        near = self._host.parts(order, shape, parts, mem.shape[0] * mem.shape[1])
        count: Callable[[int, int], None]
        if self.reach.once:
            spent = np.zeros(columns, np.float32) if fired is None else _permuted(fired, order, shape).numpy()
            strict = self.reach.dynamics.strict
            count = partial(count_near_once, values, center, radius, near[:parts], columns, spent, strict)
        else:
            count = partial(count_near, values, center, radius, near[:parts])
        run_parallel(count, parts, parts)
        places = _places(mem.shape[0], mem.shape[1], neurons, collectives.rows())
        self._add_distances(Near(center, radius, near, places, values[places[:-1]]))

    def _add_distances(self, near: Near) -> None:
        """Keep how far the picked membranes are from the center; over it, if each has a radius of its own."""
        if self._filled > len(self._picked) - SAMPLED:
            self._bin()
        level = near.center[near.places[:-1] % near.center.size]
        distances = near.picked - level
        free = self._picked[self._filled : self._filled + len(distances)]
        free[:] = distances / level if near.radius.size > 1 else distances
        self._filled += len(distances)

    def _plain(self, mem: Tensor, fired: Tensor | None) -> None:
        """Any device, precision and derivative."""
        dynamics = self.reach.dynamics
        near = torch.zeros(mem.shape[1:], dtype=torch.float64, device=mem.device)
        waits = torch.ones(mem.shape[1:], dtype=torch.bool, device=mem.device)
        if fired is not None and self.reach.once:
            waits = fired.view(mem.shape[1:]) == 0
        at_once = 1 if self.reach.once else max(1, PIECE // max(mem[0].numel(), 1))
        stride, seen = _stride(mem.numel(), mem[0].numel()), 0
        mine = collectives.rows()
        at = None if mine is None else torch.from_numpy(_sampled(mine, mem.shape[0], mem[0, 0].numel()))
        for piece in torch.split(mem, at_once):
            distance = self.reach.distance(piece)
            within = self.reach.within(distance)
            if self.reach.once:
                within = within & waits
                waits = waits & ~(distance > 0 if dynamics.strict else distance >= 0)[0]
            near += within.sum(0)
            chosen: slice | Tensor = slice(-seen % stride, None, stride)
            if at is not None:
                chosen = (at[(at >= seen) & (at < seen + distance.numel())] - seen).to(mem.device)
            self._pending.append(distance.reshape(-1)[chosen].float())
            seen += distance.numel()
        self._near += near.sum(0).view(-1)
        if len(self._pending) > PENDING:
            self._bin()

    def _bin(self) -> None:
        parts = [self._picked[: self._filled], *(t.cpu().numpy() for t in self._pending)]
        self._filled, self._pending = 0, []
        values = np.concatenate(parts).astype(np.float64)
        values = values[~np.isnan(values)]
        self._histogram += np.bincount(np.searchsorted(EDGES, values, side="right"), minlength=len(EDGES) + 1)


def quantile(histogram: NDArray[np.int64], share: float) -> float:
    """The distance below which that share of a histogram over EDGES lies; beyond the edges: the edge. nan: empty."""
    total = histogram.sum()
    if not total:
        return float("nan")
    below = np.cumsum(histogram)
    number = int(np.searchsorted(below, share * total))
    if number == 0 or number >= len(EDGES):
        return float(EDGES[0 if number == 0 else -1])
    within = (share * total - below[number - 1]) / histogram[number]
    return float(EDGES[number - 1] + within * (EDGES[number] - EDGES[number - 1]))


@lru_cache(256)
def _stride(total: int, columns: int) -> int:
    """As many membranes as wanted, from all columns in turn: the step has no factor in common with their number."""
    wanted = max(min(SAMPLED, total // SPARED), min(total, LEAST))
    stride = max(-(-total // max(wanted, 1)), 1)
    while gcd(stride, columns) > 1 and stride > 1:
        stride += 1
    return stride


@lru_cache(256)
def _places(steps: int, samples: int, neurons: int, mine: Rows | None) -> NDArray[np.int64]:
    """Where in flat memory [T, B, N] membranes are sampled, ascending; behind them a place beyond it."""
    columns = samples * neurons
    if mine is None:
        at = np.arange(0, steps * columns, _stride(steps * columns, columns), dtype=np.int64)
    else:
        at = _sampled(mine, steps, neurons)
    return np.append(at[:SAMPLED], steps * columns)


def _sampled(mine: Rows, steps: int, neurons: int) -> NDArray[np.int64]:
    """Where in this process's membranes [T, b, N] those lie that are sampled of the whole batch's."""
    columns = mine.total * neurons
    at = np.arange(0, steps * columns, _stride(steps * columns, columns), dtype=np.int64)
    step, row, neuron = at // columns, at % columns // neurons, at % neurons
    here = (row >= mine.start) & (row < mine.stop)
    return ((step * (mine.stop - mine.start) + row - mine.start) * neurons + neuron)[here]


def _in_order(
    value: Tensor | float, order: tuple[int, ...], shape: tuple[int, ...], dtype: torch.dtype
) -> NDArray[np.floating[Any]]:
    """A value that broadcasts to the neurons' shape, flat in the order of memory: one number, or one per neuron."""
    if not isinstance(value, Tensor):
        return np.full(1, value, number_type(dtype))
    if value.numel() > 1:
        value = value.expand(shape)
        value = value.permute([d - 2 for d in order]) if order != tuple(sorted(order)) else value
    return value.detach().to(dtype).reshape(-1).numpy()


def _permuted(fired: Tensor, order: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
    """Spikes so far [B, neurons], flat in the order of memory."""
    return fired.view(-1, *shape).permute([0, *(d - 1 for d in order)]).reshape(-1).float().contiguous()
