"""How maps lie in memory: in the order of their shape, or channels_last; what is made of several keeps it.

torch's own stack, cat and sums over time write maps [T, B, C, H, W] in the order of their shape, and all layers that
follow go on in it: slower ones, and a copy wherever one wants channels_last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from snnexp.arrays import flat_maps
from snnexp.parallel import run_parallel

TURNED = 1 << 16  # numbers, below which torch is fast enough


def memory_order(x: Tensor) -> list[int]:
    """Return the order of dimensions in which x [T, B, ...] lies in memory, with time and batch first.

    Maps are one of two, which one sample of one step tells: a frame that is the same at all steps lies in memory once.
    """
    if x.dim() == 5:
        sample = x[:1, :1]  # strides of size 1 say nothing
        last = [0, 1, 3, 4, 2]
        return last if sample.permute(last).is_contiguous() and not sample.is_contiguous() else [0, 1, 2, 3, 4]
    return [0, 1, *sorted(range(2, x.dim()), key=lambda d: x.stride()[d], reverse=True)]


def joined(parts: Sequence[Tensor]) -> Tensor:
    """torch.cat of [t, B, ...] over time, in the memory order of the first part."""
    order = memory_order(parts[0])
    return torch.cat([part.permute(order) for part in parts]).permute(_back(order))


def stacked(steps: Sequence[Tensor]) -> Tensor:
    """torch.stack of [B, ...] over time, in the memory order of the first step."""
    return joined([step.unsqueeze(0) for step in steps])


def last_steps(x: Tensor, steps: int) -> Tensor:
    """x[-steps:], a view; its gradient fills up all of x's in x's memory order."""
    order = memory_order(x)
    return x.permute(order)[-steps:].permute(_back(order))


def largest(x: Tensor) -> Tensor:
    """x.amax((0, 1)) of x [T, B, ...]; of maps in channels_last torch makes it sixteen times as slowly."""
    order = memory_order(x)
    back = [d - 2 for d in _back(order)[2:]]
    return x.permute(order).amax((0, 1)).permute(back)


def repeated(x: Tensor, steps: int) -> Tensor:
    """x [B, ...] at all steps, a view [T, B, ...]; the sum that is its gradient keeps the memory order."""
    y: Tensor = _Repeated.apply(x, steps)  # type: ignore[no-untyped-call]
    return y


def laid_as(state: Any, step: Tensor) -> Any:
    """A state, a named tuple of [B, ...] or None, in the memory order of a step of the same shape."""
    if step.dim() != 4 or memory_order(step.unsqueeze(0))[2] != 3:
        return state
    return type(state)(*(x if x is None else x.contiguous(memory_format=torch.channels_last) for x in state))


def flattened(x: Tensor) -> Tensor:
    """x.flatten(1): maps [N, C, H, W] in channels_last are turned by a kernel, faster than by torch."""
    large = (
        x.dim() == 4 and x.device.type == "cpu" and x.numel() >= TURNED and x.dtype in (torch.float32, torch.float64)
    )
    if not large or x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last):
        return x.flatten(1)
    y: Tensor = _Flattened.apply(x)  # type: ignore[no-untyped-call]
    return y


class _Flattened(torch.autograd.Function):
    """x [N, C, H, W] in channels_last -> [N, C*H*W], and the gradient back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.shape = x.shape
        y = torch.empty(x.shape[0], x[0].numel(), dtype=x.dtype)
        _turn(flat_maps(x), y.view(-1).numpy(), len(x), x.shape[2] * x.shape[3], x.shape[1])
        return y

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        frames, channels, height, width = ctx.shape
        x = torch.empty(ctx.shape, dtype=grad.dtype, memory_format=torch.channels_last)
        _turn(grad.contiguous().view(-1).numpy(), flat_maps(x), frames, channels, height * width)
        return x


def _turn(x: NDArray[Any], out: NDArray[Any], frames: int, rows: int, columns: int) -> None:
    from snnexp.layout_kernels import turn  # numba takes 0.2 s to import

    run_parallel(lambda start, stop: turn(x, out, rows, columns, start, stop), frames, torch.get_num_threads())


class _Repeated(torch.autograd.Function):
    """x [B, ...], steps -> [T, B, ...]"""

    @staticmethod
    def forward(ctx: Any, x: Tensor, steps: int) -> Tensor:
        return x.expand(steps, *x.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        order = memory_order(grad)
        return grad.permute(order).sum(0, keepdim=True).permute(_back(order)).squeeze(0), None


def _back(order: list[int]) -> list[int]:
    return [order.index(d) for d in range(len(order))]
