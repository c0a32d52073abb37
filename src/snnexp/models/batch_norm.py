"""Batch norm over [T*B, ...] per channel, with kernels of our own for training on the CPU in channels_last.

    y = (x - m) / sqrt(v + eps) * weight + bias        m, v: mean and biased variance over all rows of a channel
    dx = weight / sqrt(v + eps) * (g - mean(g) - (x - m) / (v + eps) * mean(g (x - m)))

torch's takes three readings of the input forward and writes its gradient to fresh memory. These take two, and may put
the gradient where the gradient of the output came in. Sums are taken over pieces of a fixed size, each in the input's
precision over few rows and then in float64, so that threads change nothing, and shifted by a row of the input, so that
a mean far from zero costs no digits. Source: Ioffe & Szegedy, arXiv:1502.03167; over time as well as batch.

Where several processes share a batch, the statistics are those of all of them: `shared_norm.py`.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from snnexp import collectives
from snnexp.arrays import flat_maps
from snnexp.layout import stacked
from snnexp.models import shared_norm
from snnexp.parallel import run_parallel

PIECE = 8192  # rows that one sum is taken over


class BatchNorm2d(nn.BatchNorm2d):
    """torch's BatchNorm2d, faster in training for float maps in channels_last on the CPU.

    overwrite_gradient: backward may write over the gradient that it is given. Safe if nobody else holds that tensor, as
        behind a layer of ours that made it for this one.
    """

    overwrite_gradient: bool = False

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [N, C, H, W]."""
        weight, momentum, means, variances = self.weight, self.momentum, self.running_mean, self.running_var
        special = momentum is None or means is None or variances is None
        if special or not (self.training and self.affine and weight.dtype == x.dtype and _is_ours(x)):
            return shared_norm.normalised(self, x) if shared_norm.joins(self) else super().forward(x)
        y, rows, mean, var = _BatchNorm.apply(  # type: ignore[no-untyped-call]
            x, weight, self.bias, self.eps, self.overwrite_gradient
        )
        shared_norm.follow(self, rows, mean, var)  # not while a segment of time is repeated
        return cast(Tensor, y)


class BatchNorm1d(nn.BatchNorm1d):
    """torch's BatchNorm1d, joined with those of other processes that have rows of the same batch."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [N, C]."""
        return shared_norm.normalised(self, x) if shared_norm.joins(self) else super().forward(x)


def per_step(norm: nn.Module, x: Tensor) -> Tensor:
    """Normalise each step of x [T, B, ...] by itself."""
    return stacked([norm(_regular(step)) for step in x.unbind(0)])


def _regular(step: Tensor) -> Tensor:
    """Maps [B, C, H, W] whose strides say channels_last also if B = 1; torch's batch norm misreads others.

    `contiguous` leaves them as they are, since strides of dimensions of size 1 do not count.
    """
    if step.dim() != 4 or step.shape[0] != 1 or step.stride(1) != 1:
        return step
    return torch.empty(step.shape, dtype=step.dtype, device=step.device, memory_format=torch.channels_last).copy_(step)


def _is_ours(x: Tensor) -> bool:
    """Whether the kernels take x: on the CPU, in a precision of theirs, channels last, and more than one row."""
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and x.dim() == 4
        and not torch.is_autocast_enabled("cpu")
        and x.is_contiguous(memory_format=torch.channels_last)
        and x.numel() > x.shape[1] >= 4
    )


class _BatchNorm(torch.autograd.Function):
    """x [N, C, H, W] in channels_last, weight [C], bias [C] -> y, rows, and mean and biased variance [C] in float64."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, overwrite: bool
    ) -> tuple[Tensor, int, Tensor, Tensor]:
        from snnexp.models.batch_norm_kernels import normalise, sums_of  # numba takes 0.2 s to import

        flat, rows, channels = flat_maps(x), x.numel() // x.shape[1], x.shape[1]
        shift = flat[:channels].copy()
        first, second = _over_pieces(sums_of, rows, channels, flat, None, shift) / rows
        with np.errstate(invalid="ignore"):  # inf - inf is the nan that torch gives
            mean, var = shift + first, np.maximum(second - first * first, 0)
        count = rows
        if collectives.rows() is not None:
            count, *joint = shared_norm.moments(rows, torch.from_numpy(mean), torch.from_numpy(var))
            mean, var = (values.numpy() for values in joint)
        inverse = 1 / np.sqrt(var + eps)
        scale = weight.detach().numpy() * inverse
        y = torch.empty_like(x)
        coefficients = (a.astype(flat.dtype) for a in (mean, scale, bias.detach().numpy()))
        _over_pieces(normalise, rows, channels, flat, flat_maps(y), *coefficients)
        ctx.save_for_backward(x, weight)
        ctx.statistics = count, mean, inverse
        ctx.overwrite = overwrite
        means, variances = torch.from_numpy(mean), torch.from_numpy(var)
        ctx.mark_non_differentiable(means, variances)
        return y, count, means, variances

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        from snnexp.models.batch_norm_kernels import input_gradient, sums_of

        x, weight = ctx.saved_tensors
        count, mean, inverse = ctx.statistics
        grad = grad.contiguous(memory_format=torch.channels_last)
        g, flat, rows, channels = flat_maps(grad), flat_maps(x), x.numel() // x.shape[1], x.shape[1]
        total, product = _over_pieces(sums_of, rows, channels, flat, g, mean.astype(flat.dtype))
        grad_weight, grad_bias = (torch.from_numpy(a).to(weight.dtype) for a in (product * inverse, total))
        if collectives.rows() is not None:
            if collectives.absent():
                grad_weight, grad_bias = torch.zeros_like(grad_weight), torch.zeros_like(grad_bias)
            joint = shared_norm.gradient_sums(torch.from_numpy(total), torch.from_numpy(product))
            total, product = (values.numpy() for values in joint)
        grad_x = None
        if collectives.absent():
            grad_x = torch.zeros_like(x)
        elif ctx.needs_input_grad[0]:
            grad_x = grad if ctx.overwrite else grad.clone()
            scale = weight.detach().numpy() * inverse
            coefficients = (mean, scale, scale * total / count, scale * inverse * inverse * product / count)
            _over_pieces(
                input_gradient, rows, channels, flat, flat_maps(grad_x), *(a.astype(flat.dtype) for a in coefficients)
            )
        return grad_x, grad_weight, grad_bias, None, None


def _over_pieces(kernel: Any, rows: int, channels: int, *arrays: NDArray[Any] | None) -> NDArray[np.float64]:
    """Run a kernel over pieces of rows in threads; returns its two sums per channel, [2, C], added up in order."""
    pieces = -(-rows // PIECE)
    sums = np.zeros((pieces, 2, channels))
    run_parallel(
        lambda start, stop: kernel(*arrays, sums, channels, rows, PIECE, start, stop),
        pieces,
        torch.get_num_threads(),
    )
    total: NDArray[np.float64] = sums.sum(0)
    return total
