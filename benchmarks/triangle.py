"""A compact surrogate as snnTorch calls one, which has none of this shape: its own `triangular` is another function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class _Triangle(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, half_width: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.half_width = half_width
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return grads[0] * (1 / ctx.half_width - x.abs() / ctx.half_width**2).clamp_(min=0), None


def triangle(half_width: float) -> Callable[[Tensor], Tensor]:
    """A step whose derivative is a triangle of area 1 that is 0 from |x| = half_width on."""

    def spike(x: Tensor) -> Tensor:
        y: Tensor = _Triangle.apply(x, half_width)  # type: ignore[no-untyped-call]
        return y

    return spike
