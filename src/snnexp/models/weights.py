"""Layers with weights: convolution, fully connected, recurrent; initialisation; ETTFS' normalisation and affine."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from itertools import takewhile
from math import sqrt
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snnexp.config import ModelConf
from snnexp.data.base import EventFrames
from snnexp.models.delays import Delay
from snnexp.models.needed import Needed, conv2d, fits, linear, with_zeros
from snnexp.models.sparsity import ALWAYS, Rule
from snnexp.models.spec import DROPOUT_KINDS, NORMS, LayerPlan
from snnexp.models.tokens import BRANCHES

log = logging.getLogger(__name__)

# model.sparse=auto: a hidden layer follows the spikes if it has this many outputs and less than this share of its input
# spike (measured: docs/models.md). The products of narrow layers cost less than making the lists.
SPARSE_FROM_OUTPUTS = 256
SPARSE_HIDDEN_BELOW = 0.07

_PRECISIONS = (torch.float32, torch.float64)  # of the kernels
# Behind these the gradient of a convolution's output has zeros: where the surrogate is 0, or a maximum lies elsewhere.
_ZEROS_BEHIND = ("spiking", "max_pool", "join", "shortcut", *DROPOUT_KINDS)
_LARGEST = 2**31  # numbers of a convolution's input: positions in lists have 32 bits


class Affine(nn.Module):
    """I' = g * I + b with learned g = 1 and b = 0 at the start, one pair per layer or per channel (ETTFS, Eq. 17)."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(shape))
        self.offset = nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * x + self.offset


def standardise(weight: Tensor, sigma: float, eps: float = 1e-5) -> Tensor:
    """(W - mean(W)) / (std(W) + eps) * sigma over the whole layer (ETTFS, Eq. 16); the gradient passes through it."""
    return (weight - weight.mean()) / (weight.std(correction=0) + eps) * sigma


class Linear(nn.Linear):
    """Fully connected. `sigma`: standardise the weights to this at each forward pass; `affine` follows the layer.

    sparse_below: inputs are spikes; if a batch has less than this share of them, its product follows the spikes
        (`event_linear.py`), which is exact to rounding. 0: always dense.
    """

    fresh: Callable[[], nn.Module]  # makes another one, drawn as this one was

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias)
        self.sigma: float | None = None
        self.affine: Affine | None = None
        self.name = ""  # in messages
        self.sparse_below = 0.0
        self._said = False

    def effective_weight(self) -> Tensor:
        """The weights that act, [out, in]."""
        return self.weight if self.sigma is None else standardise(self.weight, self.sigma)

    def forward(self, x: Tensor, needed: Needed | None = None) -> Tensor:
        """needed: where x needs a gradient, if nobody but a spiking layer below gets to see it; None: everywhere."""
        weight, y = self.effective_weight(), None
        needed = needed if needed is not None and fits(x, weight, needed) else None
        if self.sparse_below and _fits_lists(x, weight):
            from snnexp.models.event_linear import spike_linear  # numba takes 0.2 s to import

            y = spike_linear(x, weight, self.bias, self.sparse_below, needed)
            if self.training and not self._said:
                self._say(float(x.detach().mean()), y is not None)
        if y is None:
            y = F.linear(x, weight, self.bias) if needed is None else linear(x, weight, self.bias, needed)
        return y if self.affine is None else cast(Tensor, self.affine(y))

    def _say(self, density: float, event_driven: bool) -> None:
        """Tell once what the rule chose, for the first batch."""
        self._said = True
        kind = "event-driven" if event_driven else "dense"
        rule = "model.sparse=always" if self.sparse_below > 1 else f"below {self.sparse_below:.0%} event-driven"
        log.info("%s: %.2f %% of its inputs spike in the first batch: %s (%s)", self.name, 100 * density, kind, rule)


def _fits_lists(x: Tensor, weight: Tensor) -> bool:
    """Whether the kernels take x: two dimensions, on the CPU, in a precision of theirs."""
    return (
        x.dim() == 2
        and x.device.type == "cpu"
        and x.dtype == weight.dtype
        and x.dtype in _PRECISIONS
        and not torch.is_autocast_enabled("cpu")
    )


class Conv2d(nn.Conv2d):
    """2-D convolution. `sigma`: standardise the weights to this at each forward pass; `affine` follows the layer.

    rule: whether a batch's product follows what is not zero in its input (`event_conv.py`), which is exact to rounding;
        None: always dense.
    zeros_behind: what follows hands back a gradient that may have zeros (not a norm, not an average).
    norm_behind: a batch norm follows.
    summed: the engine may sum the weights' gradient up: nothing before it learns, and a batch norm, neurons and
        pooling follow.
    """

    fresh: Callable[[], nn.Module]  # makes another one, drawn as this one was

    def __init__(self, channels: int, out: int, size: int, stride: int, pad: int, bias: bool) -> None:
        super().__init__(channels, out, size, stride=stride, padding=pad, bias=bias)
        self.sigma: float | None = None
        self.affine: Affine | None = None
        self.rule: Rule | None = None
        self.zeros_behind = self.norm_behind = self.summed = False

    def effective_weight(self) -> Tensor:
        """The weights that act, [out, in, k, k]."""
        return self.weight if self.sigma is None else standardise(self.weight, self.sigma)

    def forward(self, x: Tensor | EventFrames, needed: Needed | None = None) -> Tensor:
        """needed: where x needs a gradient, as in `Linear`."""
        weight, stride, pad = self.effective_weight(), self.stride[0], int(self.padding[0])
        needed = self._asked(x, weight, needed)
        sums = self.norm_behind and self.training
        follows = self.rule.follows(x, self, self.training) if self.rule and _fits_windows(x, weight) else None
        if follows is not None and follows.forward:
            from snnexp.models.event_conv import event_conv  # numba takes 0.2 s to import

            y = event_conv(x, weight, self.bias, stride, pad, needed, sums, dense_gradient=not follows.gradient)
        else:
            x = _dense(x, weight) if isinstance(x, EventFrames) else x
            y = conv2d(x, weight, self.bias, stride, pad, needed, sums)
        return y if self.affine is None else cast(Tensor, self.affine(y))

    def _asked(self, x: Tensor | EventFrames, weight: Tensor, needed: Needed | None) -> Needed | None:
        """What the backward pass asks before it computes the gradient of x; None: nothing."""
        if not isinstance(x, Tensor) or not fits(x, weight, needed):
            return None
        if self.rule is None or not self.zeros_behind or not _fits_windows(x, weight):
            return needed
        return with_zeros(needed, self, self.rule.name, self.rule.limits is ALWAYS)


def _dense(x: EventFrames, weight: Tensor) -> Tensor:
    """Event lists as maps in channels_last, in the weight's precision."""
    if weight.device.type == "cpu" and weight.dtype in _PRECISIONS:
        from snnexp.models.event_lists import dense_maps  # numba takes 0.2 s to import

        return dense_maps(x, weight.dtype)
    return x.to_dense(weight.dtype).flatten(0, 1).contiguous(memory_format=torch.channels_last)


def _fits_windows(x: Tensor | EventFrames, weight: Tensor) -> bool:
    """Whether the kernels of a convolution take x: on the CPU, in a precision of theirs."""
    if weight.device.type != "cpu" or weight.dtype not in _PRECISIONS or torch.is_autocast_enabled("cpu"):
        return False
    if isinstance(x, EventFrames):
        return x.indices.numel() < _LARGEST
    return x.dim() == 4 and x.dtype == weight.dtype and x.device.type == "cpu" and x.numel() < _LARGEST


class RecurrentLinear(Linear):
    """Fully connected, and a second weight matrix from the layer's own spikes of the step before:

    I[t] = W x[t] + b + V S[t-1]

    delay: the spikes come back by so many steps later still (RFC<out>DL<max>).
    """

    delay: Delay | None

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias)
        self.recurrent = nn.Linear(out_features, out_features, bias=False)
        self.delay = None


def build_weights(layer: LayerPlan, model: ModelConf, spikes: float, normalised: bool = False) -> Conv2d | Linear:
    """Build and initialise the layer `layer`.

    spikes: for ETTFS, T if each input fires once in the T steps, so that Var(I[t]) = 1 needs Var(W) = T/N; 1 for an
    input of unit second moment at every step, as a standardised image is (our choice; the paper's is not known).
    normalised: a norm behind the weights would take `model.gain` out again, and has it in its own scale.
    """
    module: Conv2d | Linear
    if layer.kind == "conv":
        k, s, p = int(layer.args["k"]), int(layer.args["s"]), int(layer.args["p"])
        module = Conv2d(layer.in_shape[0], layer.out_shape[0], k, s, p, layer.bias)
    else:
        kind = RecurrentLinear if layer.kind == "recurrent" else Linear
        module = kind(layer.in_shape[0], layer.out_shape[0], bias=layer.bias)
    if isinstance(module, RecurrentLinear) and "max" in layer.args:
        module.delay = Delay(layer.out_shape, int(layer.args["max"]), model.delay)
    if model.weight_norm:
        module.sigma = sqrt(spikes / layer.fan_in)
    if model.affine != "none":
        channel = (layer.out_shape[0], *([1] * (len(layer.out_shape) - 1)))
        module.affine = Affine(channel if model.affine == "channel" else ())
    with torch.no_grad():
        _initialise(module.weight, model, spikes, layer.fan_in, 1.0 if normalised else float(model.gain))
        if model.init == "ettfs" and module.bias is not None:
            module.bias.zero_()
        if isinstance(module, RecurrentLinear):  # its inputs are spikes, whatever the layer's are
            _initialise(module.recurrent.weight, model, spikes, layer.out_shape[0], float(model.gain))
    module.fresh = partial(build_weights, layer, model, spikes, normalised)
    return module


def _initialise(weight: Tensor, model: ModelConf, spikes: float, fan_in: int, gain: float) -> None:
    """PyTorch's default U(+-1/sqrt(N)) is already there; otherwise He's, or ETTFS' U(+-sqrt(3 T/N)). Then the gain."""
    if model.init == "kaiming_uniform":
        nn.init.kaiming_uniform_(weight, a=0)
    elif model.init == "kaiming_normal":
        nn.init.kaiming_normal_(weight, a=0)
    elif model.init == "ettfs":
        bound = sqrt(3 * spikes / fan_in)
        nn.init.uniform_(weight, -bound, bound)
    weight.mul_(gain)


def normalised(layers: Sequence[LayerPlan], weights: LayerPlan) -> bool:
    """Whether a norm before the next neurons takes every factor of these weights out again: its scale has the gain."""
    rest = takewhile(lambda layer: layer.kind not in ("spiking", *BRANCHES), layers[weights.position + 1 :])
    return any(layer.kind in NORMS for layer in rest)


def follow_spikes(
    weights: Conv2d | Linear, name: str, model: ModelConf, channels_last: bool, layers: Sequence[LayerPlan]
) -> None:
    """Let a convolution, or a hidden fully connected layer, follow its input spikes where that is faster.

    channels_last: the network's maps are in that layout, as an event-driven convolution makes them; layers: all that
    there are, `name` among them.
    """
    if isinstance(weights, Conv2d):
        kinds, at = [layer.kind for layer in layers], [layer.name for layer in layers].index(name)
        behind = kinds[at + 1] if kinds[at + 1 :] else ""
        weights.zeros_behind, weights.norm_behind = behind in _ZEROS_BEHIND, behind == "batch_norm"
        followed = weights.norm_behind and kinds[at + 2 : at + 3] == ["spiking"]
        pooled = kinds[at + 3 : at + 4] in (["max_pool"], ["avg_pool"])
        learned = any(layer.params or layer.kind == "spiking" for layer in layers[:at])  # from its input's gradient
        weights.summed = followed and pooled and not learned
        if model.sparse == "always":
            weights.rule = Rule(name, ALWAYS)
        elif model.sparse == "auto" and channels_last:
            weights.rule = Rule(name)
        return
    if model.sparse == "never" or (model.sparse == "auto" and weights.out_features < SPARSE_FROM_OUTPUTS):
        return
    from snnexp.models.event_linear import event_driven_weight

    event_driven_weight(weights)
    weights.name = name
    weights.sparse_below = SPARSE_HIDDEN_BELOW if model.sparse == "auto" else 2.0
