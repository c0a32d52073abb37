"""Surrogate gradients: a step forward, the derivative of something smoother backward.

Every derivative is a function of x = U - theta (or U/theta - 1, see `Dynamics.relative_surrogate`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from snnexp.config import SurrogateConf
from snnexp.errors import ConfigError, unknown_choice
from snnexp.neurons.compiler.symbols import Symbol, make
from snnexp.neurons.names import FUSED_SURROGATES, SNNTORCH_PREFIX, SNNTORCH_SURROGATES, SURROGATES


@dataclass(frozen=True)
class Surrogate:
    """One surrogate with its numbers.

        atan          (alpha/2) / (1 + (pi alpha x/2)^2)      peak alpha/2     PLIF (alpha = 2), snntorch.surrogate.atan
        fast_sigmoid  1 / (1 + slope |x|)^2                   peak 1           Zenke and Ganguli 2018
        sigmoid       slope s (1 - s), s = sigmoid(slope x)   peak slope/4
        triangular    scale max(0, 1 - |x|/width)             peak scale       DIET-SNN (0.3, 1)
        rectangular   scale if |x| < width, else 0            peak scale       STBP, LTMD (1, 0.5)
        exponential   (scale/width) exp(-|x|/width)           peak scale/width SLAYER, Rouser Eq. 2 (1.5, 3.75)

    `function` is set for surrogates taken from snnTorch only: x -> spikes, with its own backward.
    """

    name: str
    alpha: float = 2.0
    slope: float = 25.0
    scale: float = 1.0
    width: float = 0.5
    function: Callable[[Tensor], Tensor] | None = None

    @property
    def fused(self) -> bool:
        """Whether the fused engines know this surrogate."""
        return self.name in FUSED_SURROGATES

    @property
    def code(self) -> int:
        """Position of this surrogate among `FUSED_SURROGATES`."""
        return FUSED_SURROGATES.index(self.name)

    @property
    def constants(self) -> tuple[float, float]:
        """The two numbers (a, b) of `formula`."""
        return {
            "atan": (self.alpha / 2, math.pi * self.alpha / 2),
            "fast_sigmoid": (1.0, self.slope),
            "sigmoid": (self.slope, self.slope),
            "triangular": (self.scale, 1 / self.width),
            "rectangular": (self.scale, 1 / self.width),
            "exponential": (self.scale / self.width, 1 / self.width),
        }[self.name]

    def formula(self, x: Any, a: Any, b: Any) -> Any:
        """The derivative at x, on tensors or on the compiler's symbols; a and b: `constants`."""
        if self.name == "atan":
            return a / (1 + (b * x) ** 2)
        z = b * abs(x)
        match self.name:
            case "fast_sigmoid":
                return a / (1 + z) ** 2
            case "triangular":  # this way round nan stays nan
                return torch.where(1 - z <= 0, 0.0, a * (1 - z))
            case "rectangular":
                return torch.where(z < 1, a, 0.0 * x)
        e = exp_of_negative(-z)
        return a * e / (1 + e) ** 2 if self.name == "sigmoid" else a * e

    def derivative(self, x: Tensor) -> Tensor:
        """Return the stand-in for dS/dx at x, same shape."""
        return cast(Tensor, self.formula(x, *self.constants))

    def spike(self, x: Any, strict: bool) -> Any:
        """Return 1.0 where x >= 0 (strict: x > 0), else 0.0; backward multiplies by `derivative(x)`."""
        if isinstance(x, Symbol):
            return make("spike", x, name=strict)
        if self.function is None:
            return _Step.apply(x, self, strict)  # type: ignore[no-untyped-call]
        # snnTorch's own forward is always x > 0; ours decides, its backward stays.
        return with_value(_step(x, strict), gradient_of=self.function(x))


def _step(x: Tensor, strict: bool) -> Tensor:
    return (x > 0 if strict else x >= 0).to(x.dtype)


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, surrogate: Surrogate, strict: bool) -> Tensor:
        ctx.save_for_backward(x)
        ctx.surrogate = surrogate
        return _step(x, strict)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        return grads[0] * ctx.surrogate.derivative(x), None, None


class _WithValue(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, gradient_of: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        return None, grads[0]


def with_value(value: Tensor, gradient_of: Tensor) -> Tensor:
    """Return `value`, but send its gradient to `gradient_of` (same shape), as if it were that tensor.

    `a + (value - a).detach()` would do the same up to rounding, and turn infinities into nan.
    """
    if isinstance(value, Symbol):  # the compiler's stand for tensors wherever an equation is run
        return make("with_value", value, gradient_of)
    return cast(Tensor, _WithValue.apply(value.detach(), gradient_of))  # type: ignore[no-untyped-call]


def exp_of_negative(y: Any) -> Any:
    """e^y for y <= 0: kernels have a faster one than for any y."""
    return make("exp_of_negative", y) if isinstance(y, Symbol) else torch.exp(y)


def build_surrogate(conf: SurrogateConf) -> Surrogate:
    """Build the surrogate that `neuron.surrogate` describes.

    Raises: ConfigError if the name is none of `names.SURROGATES`, or width or alpha is not positive.
    """
    name = str(conf.name)
    if name not in SURROGATES:
        raise ConfigError(unknown_choice("neuron.surrogate.name", name, SURROGATES))
    if name.startswith(SNNTORCH_PREFIX):
        return Surrogate(name, function=_snntorch_function(name.removeprefix(SNNTORCH_PREFIX)))
    numbers = {key: float(getattr(conf, key)) for key in ("alpha", "slope", "scale", "width")}
    for key, value in numbers.items():
        if not value > 0:
            raise ConfigError(f"neuron.surrogate.{key}={value}: must be above 0, or the surrogate has no gradient.")
    return Surrogate(name, function=None, **numbers)


def _snntorch_function(name: str) -> Callable[[Tensor], Tensor]:
    from snntorch import surrogate as snntorch_surrogate

    assert name in SNNTORCH_SURROGATES
    return cast(Callable[[Tensor], Tensor], getattr(snntorch_surrogate, name)())
