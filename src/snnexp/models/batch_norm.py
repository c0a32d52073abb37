"""Batch norm over [T*B, ...] per channel, with kernels of our own for training on the CPU in channels_last.

    y = (x - m) / sqrt(v + eps) * weight + bias        m, v: mean and biased variance over all rows of a channel
    dx = weight / sqrt(v + eps) * (g - mean(g) - (x - m) / (v + eps) * mean(g (x - m)))

torch's takes three readings of the input forward and writes its gradient to fresh memory. These take two, and may put
the gradient where the gradient of the output came in. Sums are taken over pieces of a fixed size, each in the input's
precision over few rows and then in float64, so that threads change nothing, and shifted by a row of the input, so that
a mean far from zero costs no digits. A convolution that takes them as it writes its output (`event_conv.py`,
`winograd.py`) can shift them by its bias only; where that costs more than two digits they are taken again.
Source: Ioffe & Szegedy, arXiv:1502.03167; over time as well as batch.

In front of a spiking layer of the numba engine only the sums of x are taken here, and the engine normalises as it loads
x (`norm_in_engine.py`).

Where several processes share a batch, the statistics are those of all of them: `shared_norm.py`.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from snnexp import buffers, collectives
from snnexp.arrays import flat_maps, for_kernels, number_type, share_memory
from snnexp.layout import stacked
from snnexp.models import shared_norm
from snnexp.neurons.engines.calls import InputNorm
from snnexp.parallel import run_parallel

PIECE = 8192  # rows that one sum is taken over
FAR = 10.0  # standard deviations from the shift, beyond which a mean costs more than two digits of the variance


class BatchNorm2d(nn.BatchNorm2d):
    """torch's BatchNorm2d, faster for float maps in channels_last on the CPU: in training, and without gradients.

    overwrite_gradient: backward may write over the gradient that it is given. Safe if nobody else holds that tensor, as
        behind a layer of ours that made it for this one.
    """

    overwrite_gradient: bool = False

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [N, C, H, W]."""
        found = self._prepared(x)
        if found is None:
            return shared_norm.normalised(self, x) if shared_norm.joins(self) else super().forward(x)
        return self._applied(x, *found, left=False)

    def left_to_engine(self, x: Tensor, sole: bool = False) -> tuple[Tensor, InputNorm] | None:
        """x anew, with what it is to be normalised by: for an engine that does it as it loads x (`run_layer`).

        None: `forward` has to do it. What comes back has x's numbers in y's place in the graph: nobody else may see it.
        sole: nobody else sees x either, so that whoever made x may get the gradient of y with what turns it into that
        of x, `NormGradient`, if it says that it takes that; some do so by overwriting it.
        """
        found = self._prepared(x)
        if found is None:
            return None
        maker = x.grad_fn if sole and getattr(x.grad_fn, "takes_norm", False) else None
        if getattr(maker, "overwrites", False) and not self.overwrite_gradient:
            maker = None
        if maker is not None and collectives.rows() is None:
            found[1].taps = getattr(maker, "taps", None)
        return self._applied(x, *found, left=True, maker=maker), found[1]

    def _prepared(self, x: Tensor) -> tuple[_Moments, InputNorm] | None:
        """The moments to normalise by, and the values that a kernel takes; None: it is torch's to do."""
        weight, momentum, means, variances = self.weight, self.momentum, self.running_mean, self.running_var
        special = momentum is None or means is None or variances is None or not self.affine
        if special or weight.dtype != x.dtype or not _is_ours(x) or not (self.training or not torch.is_grad_enabled()):
            return None
        if self.training:
            moments = _moments(x, self.eps)
        else:
            running, var = (t.detach().double().numpy() for t in (cast(Tensor, means), cast(Tensor, variances)))
            moments = _Moments(0, running, var, 1 / np.sqrt(var + self.eps))
        scale = weight.detach().numpy() * moments.inverse
        given = (moments.mean, scale, self.bias.detach().numpy())
        mean, scale, bias = (a.astype(number_type(x.dtype)) for a in given)
        return moments, InputNorm(mean, scale, bias)

    def _applied(self, x: Tensor, moments: _Moments, norm: InputNorm, left: bool, maker: Any = None) -> Tensor:
        y: Tensor = _BatchNorm.apply(  # type: ignore[no-untyped-call]
            x, self.weight, self.bias, moments, norm, self.overwrite_gradient, left, maker
        )
        if self.training:  # not while a segment of time is repeated
            shared_norm.follow(self, moments.rows, torch.from_numpy(moments.mean), torch.from_numpy(moments.var))
        return y


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
    return for_kernels(x) and x.numel() > x.shape[1] >= 4


class NormGradient(NamedTuple):
    """What turns g, the gradient of y, into that of x: g * scale - offset - (x - mean) * slope.

    products: in the place of g, of no use then: what the convolution that made x needs of it (`Taps`).
    """

    x: NDArray[Any]  # rows x channels, flat
    mean: NDArray[Any]  # [C] each, in x's precision
    scale: NDArray[Any]
    offset: NDArray[Any]
    slope: NDArray[Any]
    total: NDArray[np.float64]  # [C]: sum of g over all rows
    rows: int
    products: NDArray[np.float64] | None


class _Moments(NamedTuple):
    """Of a batch, or of those before it (running statistics; rows then is 0); in float64."""

    rows: int
    mean: NDArray[np.float64]  # [C] each
    var: NDArray[np.float64]  # biased
    inverse: NDArray[np.float64]  # 1 / sqrt(var + eps)


def with_sums(x: Tensor, shift: NDArray[np.float64], sums: NDArray[np.float64]) -> None:
    """Let maps x [N, C, H, W] carry the sums of x - shift [C] and of its square, [2, C]: their maker took them."""
    if not x.is_inference():  # they go with a version of x, which such tensors do not have
        x.channel_sums = (x._version, shift, sums)  # type: ignore[attr-defined]


def _carried(x: Tensor, rows: int) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Mean and variance by the sums that x's maker took; None: it took none, x has changed, or they are too rough."""
    kept: Any = getattr(x, "channel_sums", None)
    if kept is None or kept[0] != x._version:
        return None
    _, shift, sums = kept
    mean, var = _mean_and_var(shift, sums / rows)
    return None if (np.square(mean - shift) > FAR**2 * var).any() else (mean, var)


def _mean_and_var(shift: NDArray[Any], sums: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of the means of x - shift and of its square, [2, C]."""
    first, second = sums
    with np.errstate(invalid="ignore"):  # inf - inf is the nan that torch gives
        return shift + first, np.maximum(second - first * first, 0)


def _moments(x: Tensor, eps: float) -> _Moments:
    """Of x [N, C, H, W] in channels_last, and of what other processes have of the same batch."""
    from snnexp.models.batch_norm_kernels import sums_of  # numba takes 0.2 s to import

    flat, rows, channels = flat_maps(x), x.numel() // x.shape[1], x.shape[1]
    found = _carried(x, rows)
    if found is None:
        shift = flat[:channels].copy()
        found = _mean_and_var(shift, _over_pieces(sums_of, rows, channels, flat, None, shift) / rows)
    mean, var = found
    if collectives.rows() is not None:
        rows, *joint = shared_norm.moments(rows, torch.from_numpy(mean), torch.from_numpy(var))
        mean, var = (values.numpy() for values in joint)
    return _Moments(rows, mean, var, 1 / np.sqrt(var + eps))


class _BatchNorm(torch.autograd.Function):
    """x [N, C, H, W] in channels_last, weight [C], bias [C] -> y; `left`: x's numbers in y's place, see `InputNorm`.

    maker: x's node in the graph, if its backward takes y's gradient and a `NormGradient` (as `norm_behind`).
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        moments: _Moments,
        norm: InputNorm,
        overwrite: bool,
        left: bool,
        maker: Any,
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.moments, ctx.overwrite, ctx.norm, ctx.maker = moments, overwrite, norm if left else None, maker
        if left:
            return share_memory(x)
        from snnexp.models.batch_norm_kernels import normalise
        from snnexp.neurons.engines.numba_norm import repeated

        y, channels = buffers.empty_like(x), x.shape[1]
        values = map(repeated, (norm.mean, norm.scale, norm.bias))
        _over_pieces(normalise, x.numel() // channels, channels, flat_maps(x), flat_maps(y), *values)
        return y

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        from snnexp.models.batch_norm_kernels import input_gradient, sums_of

        x, weight = ctx.saved_tensors
        count, mean, _, inverse = ctx.moments
        flat, rows, channels = flat_maps(x), x.numel() // x.shape[1], x.shape[1]
        sums = None if ctx.norm is None else ctx.norm.sums_of(grad)
        products = None if ctx.norm is None else ctx.norm.products()
        if products is None:
            grad = grad.contiguous(memory_format=torch.channels_last)
        if sums is None:
            sums = _over_pieces(sums_of, rows, channels, flat, flat_maps(grad), mean.astype(flat.dtype))
        total, product = sums
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
            scale = weight.detach().numpy() * inverse
            numbers = (mean, scale, scale * total / count, scale * inverse * inverse * product / count)
            mean, scale, offset, slope = (a.astype(flat.dtype) for a in numbers)
            turns = NormGradient(flat, mean, scale, offset, slope, total, rows, products)
            if ctx.maker is not None:
                grad_x, ctx.maker.norm_behind = grad, turns
            else:
                grad_x = grad if ctx.overwrite else grad.clone()
                _over_pieces(input_gradient, rows, channels, flat, flat_maps(grad_x), *turns[1:5])
        return grad_x, grad_weight, grad_bias, None, None, None, None, None


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
