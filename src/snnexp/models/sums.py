"""Sums over a batch's time steps that a loss wants with their gradient: spike counts, and what spikes cost.

An observer's counts have no gradient, because engines count as they run. A loss on them needs none of the steps again:
the count's derivative by each spike is 1, so its gradient is one number per neuron and sample, the same at all steps.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, cast

import torch
from torch import Tensor


class Sums:
    """What one forward pass shall sum up, and the sums; with segments of time, those of all segments.

    Args:
        counts: spiking layers whose spikes are counted: `found["sn1"]` is [B, *shape].
        prices: layers with weights -> what a spike at each of its inputs costs, [inputs]: `found["fc2"]` is the sum
            over the batch, a scalar. The spikes must be 0 or 1. A recurrent matrix is `rfc1.recurrent`.
    """

    def __init__(self, counts: Collection[str] = (), prices: Mapping[str, Tensor] | None = None) -> None:
        self.counts = frozenset(counts)
        self.prices = dict(prices or {})
        self.found: dict[str, Tensor] = {}

    def add(self, name: str, value: Tensor) -> None:
        """Add what a segment of time found."""
        self.found[name] = self.found[name] + value if name in self.found else value

    def part(self) -> Sums:
        """The same wishes, for one segment."""
        return Sums(self.counts, self.prices)

    def spent(self, name: str, x: Any) -> None:
        """Add the price of the inputs x [T*B, ...] of the layer with weights `name`, if it has one."""
        if name in self.prices and isinstance(x, Tensor):
            price = self.prices[name].to(x.dtype if x.dtype == torch.float64 else torch.float32)
            self.add(name, (x.flatten(1).to(price.dtype) @ price.flatten()).sum())


def counted(spk: Tensor, counts: Tensor) -> Tensor:
    """`counts` [B, ...] of the spikes spk [T, B, ...], as if summed here: each spike gets the gradient."""
    return cast(Tensor, _Counted.apply(spk, counts.detach()))  # type: ignore[no-untyped-call]


class _Counted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, spk: Tensor, counts: Tensor) -> Tensor:
        ctx.spikes = spk.shape, spk.dtype
        return counts.view_as(counts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        shape, dtype = ctx.spikes
        return grads[0].to(dtype).unsqueeze(0).expand(shape), None
