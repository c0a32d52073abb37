"""Where a layer's input needs a gradient, from the spikes below to the backward pass of the layer with weights above.

Which of the ways to a convolution's input gradient is taken, the masked, the listed or the dense one, is decided here.

The spiking layer's engine says it (`neurons.compiler.plan.where_needed`), the flow carries it as long as nothing else
touches the spikes, and the layer above asks it in backward. Who else reads the gradient of spikes would find zeros.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.module import _has_any_global_hook

from snnexp.models import pointwise, winograd
from snnexp.models.batch_norm import NormGradient, with_sums
from snnexp.models.gradient_lists import cost as walking_cost
from snnexp.models.gradient_lists import listed_input_gradient
from snnexp.models.input_gradient import LEAST_WORK, conv_cost, conv_input_gradient, linear_input_gradient, may_pay
from snnexp.models.spec import WEIGHT_KINDS, LayerPlan
from snnexp.neurons.equation import Pool

log = logging.getLogger(__name__)

KEEPS = ("dropout", "dropout_step")  # layers that only scale what passes, and its gradient
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")  # who sees spikes there


class Needed:
    """What a layer's backward pass asks.

    Args:
        mask: uint8 [N, C, H, W] in channels_last, or [N, in], like the layer's input: 1 where its gradient is needed;
            None: everywhere.
        always: do without the rules for when that is faster.
        tell: is told in words what was chosen.
        zeros: the gradient of a convolution's output is likely to have zeros, and walking the rest may be faster.
    """

    def __init__(
        self,
        mask: Tensor | None,
        always: bool = False,
        tell: Callable[[str], None] | None = None,
        zeros: bool = False,
    ) -> None:
        self.mask = mask
        self.always = always
        self.tell = tell
        self.zeros = zeros
        self._filled: float | None = None  # the share of the output's gradient that is not 0, if it was counted

    @cached_property
    def share(self) -> float:
        """The share of the input whose gradient is needed."""
        if self.mask is None:
            return 1.0
        lying = self.mask.permute(0, 2, 3, 1) if self.mask.dim() == 4 else self.mask
        return float(np.count_nonzero(lying.numpy())) / max(self.mask.numel(), 1)

    def flattened(self) -> Needed:
        """Of the same input as [N, C*H*W]."""
        return Needed(None if self.mask is None else self.mask.flatten(1), self.always, self.tell)

    def input_gradient(self, grad: Tensor, weight: Tensor, shape: torch.Size, stride: int, pad: int) -> Tensor:
        """The gradient of a convolution's input of this shape, from that of its output: where needed, or everywhere."""
        found, how = None, "dense"
        speed = winograd.speed(weight, stride) if winograd.makes_gradient(grad, weight, shape, stride, pad) else 1.0
        if self._walks(grad, weight, shape, stride, speed):
            found, how = listed_input_gradient(grad, weight, shape, stride, pad), "from what is not 0"
        elif self.mask is not None:
            found = conv_input_gradient(grad, weight, stride, pad, self.mask, self._judged, speed)
            how = "dense" if found is None else "only there"
        self._say(how)
        return dense_input_gradient(grad, weight, shape, stride, pad) if found is None else found

    def linear_input_gradient(self, grad: Tensor, columns: Tensor) -> Tensor:
        """The same for a fully connected layer with weights columns [in, out]."""
        assert self.mask is not None
        found = linear_input_gradient(grad, columns, self.mask, self._judged)
        self._say("dense" if found is None else "only there")
        return grad @ columns.t() if found is None else found

    def _walks(self, grad: Tensor, weight: Tensor, shape: torch.Size, stride: int, speed: float) -> bool:
        """Whether to walk what is not 0 in the gradient of a convolution's output: if that is the fastest way."""
        if not self.zeros or (self.always and self.mask is not None):
            return False
        from snnexp.models.event_lists import density  # numba takes 0.2 s to import

        if self.always:
            self._filled = None if self.tell is None else density(grad)
            return True
        # all products, in float32 of 8 channels at once; `speed`: as if so many times fewer
        channels = weight.shape[1] if grad.dtype == torch.float64 else -(-weight.shape[1] // 8) * 8
        dense = grad.numel() * weight[0, 0].numel() * channels
        others = 0.9 * dense / speed
        if self.mask is not None:
            others = min(others, conv_cost(self.share, weight, shape, stride))
        if dense < LEAST_WORK or walking_cost(0.0, weight, grad.shape, shape) >= others:
            return False
        self._filled = density(grad)
        return walking_cost(self._filled, weight, grad.shape, shape) < others

    @property
    def _judged(self) -> float | None:
        return None if self.always else self.share

    def _say(self, how: str) -> None:
        if self.tell is None:
            return
        shares = [] if self.mask is None else [f"{100 * self.share:.2f} % of its input's gradient is needed"]
        if self._filled is not None:
            shares.append(f"{100 * self._filled:.2f} % of its output's gradient is not 0")
        if shares:
            why = " (model.sparse=always)" if self.always else ""
            self.tell(f"{' and '.join(shares)} in the first batch: {how}{why}")


def dense_input_gradient(grad: Tensor, weight: Tensor, shape: torch.Size, stride: int, pad: int) -> Tensor:
    """The gradient of a convolution's input [N, C, H, W] from that of the output, at all positions."""
    if winograd.makes_gradient(grad, weight, shape, stride, pad):
        return winograd.input_gradient(grad, weight, shape, stride, pad)
    if pointwise.fits(grad, weight, stride, pad):
        return pointwise.input_gradient(grad, weight, shape, stride)
    x = torch.empty(shape, dtype=grad.dtype, memory_format=torch.channels_last)  # only its layout is looked at
    sides = ([stride] * 2, [pad] * 2, [1, 1], False, [0, 0], 1, [True, False, False])
    grad_x: Tensor = torch.ops.aten.convolution_backward(grad, x, weight, None, *sides)[0]
    return grad_x


def dense_weight_gradient(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: int,
    pad: int,
    wanted: Sequence[bool],
    biased: bool,
    norm: NormGradient | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of a convolution's weights and bias, as far as they are wanted, from that of the output.

    norm: as `winograd.weight_gradient` takes it; for where that is called, and a weight's gradient is wanted.
    """
    grads: Sequence[Tensor | None] = (None, None)
    way = _way(x, weight, stride, pad) if any(wanted) else None
    if way is winograd and winograd.weight_gradient_pays(x, weight, stride, pad):
        grads = winograd.weight_gradient(grad, x, weight, stride, pad, norm)
    elif way is pointwise:
        grads = pointwise.weight_gradient(grad, x, weight, stride)
    elif any(wanted):
        sides = ([stride] * 2, [pad] * 2, [1, 1], False, [0, 0], 1, [False, *wanted])
        sizes = [weight.shape[0]] if biased else None
        _, *grads = torch.ops.aten.convolution_backward(grad, x, weight, sizes, *sides)
    return grads[0] if wanted[0] else None, grads[1] if wanted[1] else None


def _way(x: Tensor, weight: Tensor, stride: int, pad: int) -> Any:
    """`winograd` or `pointwise`, where these fit, or None."""
    return next((way for way in (winograd, pointwise) if way.fits(x, weight, stride, pad)), None)


def asks(network: Any, layer: LayerPlan, pool: Pool | None) -> bool:
    """Whether nobody but the layer with weights above sees a spiking layer's gradient, and may leave some of it out.

    network: a `Network`; pool: the pooling layer that the engine does with the spikes.
    """
    start = layer.position + (1 if pool is None else 2)
    above = _above(network.layers, start, network.sparse == "always")
    compact = network.neurons[layer.name].dynamics.surrogate.compact
    hooked = _has_any_global_hook()  # type: ignore[no-untyped-call]
    if above is None or not network.training or not compact or network.sparse == "never" or hooked:
        return False
    passed = (part for part in network.layers[start : above.position + 1] if part.kind in (*KEEPS, above.kind))
    modules = [network.neurons[layer.name], *(network.get_submodule(part.name) for part in passed)]
    return not any(getattr(module, hooks) for module in modules for hooks in HOOKS)


def needed_of(network: Any, layer: LayerPlan, pool: Pool | None, mask: Tensor | None) -> Needed | None:
    """What the layer with weights above gets to know, if the engine said it: mask [T, B, ...]."""
    above = None if mask is None else _above(network.layers, layer.position + (1 if pool is None else 2), True)
    if mask is None or above is None:
        return None
    tell = _teller(network.get_submodule(above.name), above.name)
    return Needed(mask.flatten(0, 1), network.sparse == "always", tell)


_told: WeakSet[nn.Module] = WeakSet()  # layers of which it was said what was chosen


def _teller(module: nn.Module, name: str) -> Callable[[str], None] | None:
    """Logs what was chosen for a layer; None if it was said before."""

    def tell(what: str) -> None:
        _told.add(module)
        log.info("%s: %s", name, what)

    return None if module in _told else tell


def with_zeros(needed: Needed | None, module: nn.Module, name: str, always: bool) -> Needed:
    """What is asked of a convolution, the gradient of whose output is likely to have zeros."""
    if needed is None:
        return Needed(None, always, _teller(module, name), zeros=True)
    return Needed(needed.mask, needed.always, needed.tell, zeros=True)  # of a fork's, a shortcut asks the same


def _above(layers: Sequence[LayerPlan], start: int, always: bool) -> LayerPlan | None:
    """The layer with weights that may leave out gradients of spikes that go on with layer `start`, if there is one."""
    rest = (layer for layer in layers[start:] if layer.kind not in (*KEEPS, "flatten", "fork"))
    layer = next(rest, None)
    if layer is None or layer.kind not in WEIGHT_KINDS:
        return None
    products = float(layer.out_shape[0])  # that the gradient of one input is a sum of
    if layer.kind == "conv":
        products *= (layer.args["k"] / layer.args["s"]) ** 2
    return layer if always or may_pay(products) else None


def fits(x: Tensor, weight: Tensor, needed: Needed | None) -> bool:
    """Whether the kernels take such a layer: on the CPU, in a precision of theirs, maps in channels_last."""
    mask = None if needed is None else needed.mask
    return (
        x.requires_grad
        and (mask is None or x.shape == mask.shape)
        and x.dtype == weight.dtype
        and not torch.is_autocast_enabled("cpu")
        and all(t is None or t.dim() == 2 or t.is_contiguous(memory_format=torch.channels_last) for t in (x, mask))
    )


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    pad: int,
    needed: Needed | None,
    sums: bool = False,
) -> Tensor:
    """F.conv2d, whose backward gives x its gradient only where it is needed, if that is faster; None: everywhere.

    Many 3x3 convolutions are done by Winograd's algorithm (`winograd.py`), 1x1 ones with a stride as products of rows
    (`pointwise.py`), exact to rounding. sums: a batch norm reads the output, and would add it up (`with_sums`).
    """
    way = _way(x, weight, stride, pad)
    if needed is None and way is None:
        return F.conv2d(x, weight, bias, stride, pad)
    found: list[NDArray[np.float64]] | None = [] if sums else None
    y: Tensor = _Conv.apply(x, weight, bias, stride, pad, needed, way, found)  # type: ignore[no-untyped-call]
    if found:
        with_sums(y, np.zeros(len(weight)) if bias is None else bias.detach().double().numpy(), found[0])
    return y


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, needed: Needed) -> Tensor:
    """F.linear, whose backward gives x its gradient only where it is needed, if that is faster."""
    y: Tensor = _Linear.apply(x, weight, bias, needed)  # type: ignore[no-untyped-call]
    return y


class _Conv(torch.autograd.Function):
    """(x [N, C, H, W], weight, bias or None, stride, pad, needed or None, way, sums) -> the convolution, dense forward.

    way: `winograd` or `pointwise`, where these fit, or None; sums: as for `winograd.convolve`.

    takes_norm: the gradient that comes back may be that of a batch norm of the output, if `norm_behind` says so. It is
    overwritten (`overwrites`).
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: int,
        pad: int,
        needed: Needed | None,
        way: Any,
        sums: list[NDArray[np.float64]] | None,
    ) -> Tensor:
        makes = way is winograd and winograd.weight_gradient_pays(x, weight, stride, pad)
        ctx.takes_norm, ctx.overwrites, ctx.norm_behind = makes and ctx.needs_input_grad[1], True, None
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.pad, ctx.needed, ctx.biased = stride, pad, needed, bias is not None
        if way is pointwise:
            return pointwise.convolve(x, weight, bias, stride)
        if way is winograd and winograd.pays(x, weight, stride, pad):
            return winograd.convolve(x, weight, bias, stride, pad, sums)
        return F.conv2d(x, weight, bias, stride, pad)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        wanted, norm, ctx.norm_behind = ctx.needs_input_grad[1:3], ctx.norm_behind, None
        grads = dense_weight_gradient(grad, x, weight, ctx.stride, ctx.pad, wanted, ctx.biased, norm)
        grad_x = None
        if ctx.needs_input_grad[0]:
            compute = dense_input_gradient if ctx.needed is None else ctx.needed.input_gradient
            grad_x = compute(grad, weight, x.shape, ctx.stride, ctx.pad)
        return grad_x, *grads, None, None, None, None, None


class _Linear(torch.autograd.Function):
    """(x [rows, in], weight [out, in], bias or None, needed) -> the product, dense forward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, needed: Needed) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.needed = needed
        return F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_x = ctx.needed.linear_input_gradient(grad, weight.t()) if needs_x else None
        return grad_x, grad.t() @ x if needs_weight else None, grad.sum(0) if needs_bias else None, None
