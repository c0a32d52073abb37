"""Where residual blocks fork and join: sums of maps, and of their gradients, in memory that goes from step to step.

Autograd's own sums ask for new memory each time, whose first touch costs several times as much as adding
(`buffers.py`); and it sums gradients [T, B, C, H, W] in channels_last at a third of the speed. No number changes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from snnexp import buffers
from snnexp.arrays import for_kernels, share_memory


def large(x: Any) -> bool:
    """Whether maps [N, C, H, W] in channels_last have a gradient, and are so large that this file is for them."""
    return (
        isinstance(x, Tensor)
        and x.requires_grad
        and torch.is_grad_enabled()
        and x.numel() * x.element_size() >= buffers.LEAST
        and for_kernels(x)
    )


def forked(x: Tensor) -> tuple[Tensor, Tensor]:
    """x for both ways through a block."""
    both: tuple[Tensor, Tensor] = _Forked.apply(x)  # type: ignore[no-untyped-call]
    return both


def added(a: Tensor, b: Tensor) -> Tensor:
    """a + b, of what both ways made."""
    if not (large(a) and large(b)) or a.shape != b.shape or a.dtype != b.dtype:
        return a + b
    y: Tensor = _Joined.apply(a, b)  # type: ignore[no-untyped-call]
    return y


class _Forked(torch.autograd.Function):
    """x -> x, x"""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        return share_memory(x), share_memory(x)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, a: Tensor | None, b: Tensor | None) -> Tensor | None:
        return (b if a is None else a) if a is None or b is None else _sum(a, b)


class _Joined(torch.autograd.Function):
    """a, b -> a + b"""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        return _sum(a, b)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return grad, grad


def _sum(a: Tensor, b: Tensor) -> Tensor:
    return torch.add(a, b, out=buffers.empty(a.shape, a.dtype, channels_last=True))
