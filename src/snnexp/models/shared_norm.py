"""Batch norm whose statistics are those of the whole batch, of which several processes have some rows each.

    forward   rows, mean and sum of squares about it of each process, put together (Chan et al. 1979)
    backward  sum(g) and sum(g (x - m)) of all processes; see `batch_norm.py` for the equations

All in float64, so that the number of processes changes no more than the last bits. torch's SyncBatchNorm refuses the
CPU. This is plain torch for any device and precision; `batch_norm.py` has the kernels that are faster on the CPU.
"""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from snnexp import collectives, ranks
from snnexp.errors import ConfigError

Norm = nn.modules.batchnorm._BatchNorm


def joins(norm: Norm) -> bool:
    """Whether the norm goes by statistics of a batch that other processes have rows of."""
    return collectives.rows() is not None and (norm.training or norm.running_mean is None)


def moments(rows: int, mean: Tensor, var: Tensor) -> tuple[int, Tensor, Tensor]:
    """Rows, mean and biased variance [C] (float64) of this process -> those of all, the same bits in each of them."""
    own = torch.cat([mean.new_tensor([0 if collectives.absent() else rows]), mean, var])
    counts, means, variances = torch.split(collectives.all_of(own), [1, len(mean), len(mean)], 1)
    there = counts > 0  # what a stand-in has been given may be anything
    means, variances = (torch.where(there, part, 0) for part in (means, variances))
    total = counts.sum()
    joint = (counts * means).sum(0) / total
    return int(total), joint, (counts * (variances + (means - joint).square())).sum(0) / total


def gradient_sums(total: Tensor, product: Tensor) -> tuple[Tensor, Tensor]:
    """sum(g) and sum(g (x - m)) [C] (float64) of this process -> those of all."""
    own = torch.stack([total, product])
    both = collectives.add_up(torch.zeros_like(own) if collectives.absent() else own)
    return both[0], both[1]


def follow(norm: Norm, rows: int, mean: Tensor, var: Tensor) -> None:
    """Let the running statistics follow those of a batch of so many rows."""
    means, variances, seen = norm.running_mean, norm.running_var, norm.num_batches_tracked
    if not norm.training or not norm.track_running_stats or means is None or variances is None or seen is None:
        return
    with torch.no_grad():
        seen.add_(1)
        factor = 1 / float(seen) if norm.momentum is None else norm.momentum
        for running, new in ((means, mean), (variances, var * (rows / (rows - 1)))):
            running.lerp_(new.to(running.dtype), factor)


def normalised(norm: Norm, x: Tensor) -> Tensor:
    """x [N, C, ...] by the statistics of all processes' rows.

    Raises: ValueError if there is one value per channel in all, as torch does.
    """
    y, rows, mean, var = _SharedNorm.apply(x, norm.weight, norm.bias, norm.eps)  # type: ignore[no-untyped-call]
    follow(norm, rows, mean, var)
    return cast(Tensor, y)


def join_norms(network: nn.Module, key: str) -> None:
    """Let torch's own batch norms within a user's module join the other processes'; nothing in a single process.

    Raises: ConfigError, which names `key`, for a batch norm that computes in a way of its own.
    """
    if not ranks.several():
        return
    for name, module in network.named_modules():
        if not isinstance(module, Norm) or isinstance(module, nn.SyncBatchNorm):
            continue
        if type(module).forward is not Norm.forward:
            raise ConfigError(
                f"{key}: {name} ({type(module).__name__}) normalises by the batch in a way of its own, and several "
                "processes would each see their part only. Use nn.BatchNorm1d or nn.BatchNorm2d, or train without "
                "torchrun."
            )
        module.forward = partial(_either, module)  # type: ignore[method-assign]


def _either(norm: Norm, x: Tensor) -> Tensor:
    return normalised(norm, x) if joins(norm) else Norm.forward(norm, x)


class _SharedNorm(torch.autograd.Function):
    """x [N, C, ...], weight [C] or None, bias [C] or None -> y, rows, and mean and biased variance [C] in float64."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, int, Tensor, Tensor]:
        exact = x if x.dtype == torch.float64 else x.float()
        mean, var = _statistics(exact)
        rows, mean, var = moments(x.numel() // x.shape[1], mean.double(), var.double())
        if rows == 1:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {list(x.shape)}")
        inverse = (var + eps).rsqrt()
        y = functional.batch_norm(exact, mean.to(exact.dtype), var.to(exact.dtype), weight, bias, eps=eps)
        ctx.save_for_backward(x, weight, mean, inverse)
        ctx.rows, ctx.has_bias, ctx.absent = rows, bias is not None, collectives.absent()
        ctx.mark_non_differentiable(mean, var)
        return y.to(x.dtype), rows, mean, var

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse = ctx.saved_tensors
        over = [d for d in range(x.dim()) if d != 1]
        g, exact = (t if t.dtype == torch.float64 else t.float() for t in (grad, x))
        apart = exact - _wide(mean, exact)
        own = g.sum(over).double(), (g * apart).sum(over).double()
        total, product = gradient_sums(*own)
        scale = inverse if weight is None else inverse * weight
        dx = g * _wide(scale, g)
        dx.addcmul_(apart, _wide(-scale * inverse.square() * product / ctx.rows, g))
        dx.sub_(_wide(scale * total / ctx.rows, g))
        kept = 0.0 if ctx.absent else 1.0
        dw = None if weight is None else (kept * own[1] * inverse).to(weight.dtype)
        db = (kept * own[0]).to(mean.dtype if weight is None else weight.dtype) if ctx.has_bias else None
        return torch.zeros_like(x) if ctx.absent else dx.to(x.dtype), dw, db, None


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance [C] of x [N, C, ...]; on the CPU by torch's own fast way."""
    if x.device.type == "cpu":
        return torch.batch_norm_update_stats(x, None, None, 0.0)
    var, mean = torch.var_mean(x, [d for d in range(x.dim()) if d != 1], correction=0)
    return mean, var


def _wide(values: Tensor, like: Tensor) -> Tensor:
    """Values [C] for arithmetic with [N, C, ...]."""
    return values.to(like.dtype).view(1, -1, *[1] * (like.dim() - 2))
