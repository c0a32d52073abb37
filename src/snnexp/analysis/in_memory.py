"""Sums per neuron, to which kernels add in the order in which maps lie in memory; in the neurons' own at the end."""

from __future__ import annotations

from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snnexp.layout import memory_order

FULL = 1 << 30  # counts, from which on they are moved to where there is more room


class KernelSums:
    """Whole numbers per neuron of one layer: int32 in several parts, for as many threads, for each order there was.

    In which part something is counted does not matter: whole numbers have one sum.
    """

    def __init__(self) -> None:
        self._parts: dict[tuple[int, ...], NDArray[np.int32]] = {}
        self._shape: tuple[int, ...] = ()
        self._so_far: Tensor | None = None
        self._most = 0

    def parts(self, order: tuple[int, ...], shape: tuple[int, ...], count: int, most: int) -> NDArray[np.int32]:
        """Where to add to: [count or more, neurons], neurons in this order of the dimensions of [T, B, *shape].

        most: the largest number that is going to be added to any of them.
        """
        if self._most + most > FULL:
            self._so_far, self._parts, self._most = self.total(), {}, 0
        self._shape, self._most = shape, self._most + most
        found = self._parts.get(order)
        if found is None or len(found) < count:
            kept = found
            found = self._parts[order] = np.zeros((count, prod(shape)), np.int32)
            found[0] += 0 if kept is None else kept.sum(0, dtype=np.int32)
        return found

    def total(self) -> Tensor | None:
        """The sums, flat, in float64 and the order of the shape; None: nobody has added anything."""
        total = self._so_far
        for order, parts in self._parts.items():
            sums = torch.from_numpy(parts.sum(0, dtype=np.float64))
            if order != tuple(sorted(order)):
                back = [order.index(d) for d in sorted(order)]
                sums = sums.view([self._shape[d - 2] for d in order]).permute(back).reshape(-1)
            total = sums if total is None else total + sums
        return total


def order_of(x: Tensor) -> tuple[int, ...]:
    """In which order the dimensions of a neuron lie in the memory of x [T, B, *shape]."""
    return tuple(memory_order(x)[2:]) if x.dim() > 3 else (2,)


def flat_in(order: tuple[int, ...], x: Tensor) -> NDArray[np.generic]:
    """The memory of x [..., *shape] in this order of the neurons' dimensions, flat; no copy if it is x's own."""
    first = x.dim() - len(order)
    turned = x if order == tuple(sorted(order)) else x.permute(*range(first), *(d - 2 + first for d in order))
    found: NDArray[np.generic] = turned.contiguous().view(-1).numpy()
    return found
