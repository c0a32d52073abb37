"""Surrogate gradients: a step forward, the derivative of something smoother backward.

Every derivative is a function of x = U - theta (or U/theta - 1, see `Dynamics.relative_surrogate`).
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from snnexp.blame import blamed
from snnexp.config import SurrogateConf
from snnexp.errors import ConfigError
from snnexp.neurons.compiler.symbols import Symbol, leaf, make
from snnexp.neurons.names import FUSED_SURROGATES, SNNTORCH_PREFIX
from snnexp.registry import SURROGATES, load


@dataclass(frozen=True)
class Formula:
    """A surrogate of ours: its two constants (a, b), worked out once, and its derivative at x from them.

    radius: of |x| in units of 1/b, within which the derivative is at least a share of its peak, which is at 0.
    compact: whether it is exactly 0 from some |x| on.
    """

    constants: Callable[[Surrogate], tuple[float, float]]
    derivative: Callable[[Any, Any, Any], Any]
    radius: Callable[[float], float]
    compact: bool = False


@dataclass(frozen=True)
class Surrogate:
    """One surrogate with its numbers.

        atan          (alpha/2) / (1 + (pi alpha x/2)^2)      peak alpha/2     PLIF (alpha = 2), snntorch.surrogate.atan
        fast_sigmoid  1 / (1 + slope |x|)^2                   peak 1           Zenke and Ganguli 2018
        sigmoid       slope s (1 - s), s = sigmoid(slope x)   peak slope/4
        triangular    scale max(0, 1 - |x|/width)             peak scale       DIET-SNN (0.3, 1)
        rectangular   scale if |x| < width, else 0            peak scale       STBP, LTMD (1, 0.5)
        exponential   (scale/width) exp(-|x|/width)           peak scale/width SLAYER, Rouser Eq. 2 (1.5, 3.75)

    `function` is set for surrogates taken from snnTorch only: x -> spikes, with its own backward. `own` is a user's:
    x -> derivative. With `stretch` k the derivative at x is that at x/k: it reaches k times as far at the same peak.
    With `cutoff` a derivative of less than this share of the peak is 0.
    """

    name: str
    alpha: float = 2.0
    slope: float = 25.0
    scale: float = 1.0
    width: float = 0.5
    function: Callable[[Tensor], Tensor] | None = None
    own: OwnDerivative | None = None
    stretch: float = 1.0
    cutoff: float | None = None

    @property
    def fused(self) -> bool:
        """Whether the fused engines know this surrogate."""
        return self.why_not_fused is None

    @property
    def why_not_fused(self) -> str | None:
        """Say why the fused engines have no kernel for it, or return None."""
        if self.own is not None:
            return self.own.why_not_compiled
        return None if self.name in FUSED_SURROGATES else f"it is not one of {', '.join(FUSED_SURROGATES)}"

    @property
    def constants(self) -> tuple[float, ...]:
        """The numbers (a, b) of `formula`, and its limit if there is a cutoff; a user's derivative takes no (a, b)."""
        a, b = (1.0, 1.0) if self.own is not None else _formula(self.name).constants(self)
        return (a, b / self.stretch, *(() if self.cutoff is None else (self.cutoff * self.peak,)))

    def formula(self, x: Any, a: Any, b: Any, limit: Any = None) -> Any:
        """The derivative at x, on tensors or on the compiler's symbols; a, b and limit: `constants`."""
        found = self.own(x) if self.own is not None else _formula(self.name).derivative(x, a, b)
        return found if limit is None else torch.where(abs(found) < limit, 0.0, found)  # nan stays nan

    def derivative(self, x: Tensor) -> Tensor:
        """Return the stand-in for dS/dx at x, same shape. snnTorch's random ones leave torch's random numbers alone."""
        if self.function is None:
            return cast(Tensor, self.formula(x, *self.constants))
        with torch.enable_grad(), torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
            at = x.detach().requires_grad_()
            return torch.autograd.grad(self.function(at).sum(), at)[0]

    @functools.cached_property
    def compact(self) -> bool:
        """Whether the derivative is exactly 0 away from 0; a user's is tried at +-10."""
        if self.own is not None and self.cutoff is None:
            return not bool(self.own(torch.tensor([-10.0, 10.0], dtype=torch.float64)).any())
        return self.cutoff is not None or (self.function is None and _formula(self.name).compact)

    def radius(self, share: float) -> float | None:
        """The |x| up to which the derivative is at least `share` of its peak; None: it is not said by one number."""
        if self.own is not None or self.function is not None:
            return None
        return _formula(self.name).radius(max(share, self.cutoff or 0.0)) / self.constants[1]

    @functools.cached_property
    def peak(self) -> float:
        """The largest derivative; of a user's or snnTorch's, that on a grid from -100 to 100, finest around 0."""
        if self.cutoff is not None:
            return replace(self, cutoff=None).peak
        if self.radius(1.0) is not None:
            return float(self.derivative(torch.zeros(1)))
        positive = torch.logspace(-4, 2, 1201)
        derivatives = self.derivative(torch.cat([-positive, torch.zeros(1), positive]))
        return float(derivatives.nan_to_num(0.0).max())  # snnTorch's sigmoid is inf/inf far away

    def spike(self, x: Any, strict: bool) -> Any:
        """Return 1.0 where x >= 0 (strict: x > 0), else 0.0; backward multiplies by `derivative(x)`."""
        if isinstance(x, Symbol):
            return make("spike", x, name=strict)
        if self.function is None:
            return _Step.apply(x, self, strict)  # type: ignore[no-untyped-call]
        # snnTorch's own forward is always x > 0; ours decides, its backward stays.
        return with_value(_step(x, strict), gradient_of=self.function(x))


class SpikeGrad:
    """A surrogate as snnTorch calls it: membrane less threshold in, spikes out. A class: lambdas cannot be pickled."""

    def __init__(self, surrogate: Surrogate, strict: bool) -> None:
        self.surrogate, self.strict = surrogate, strict

    def __call__(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.surrogate.spike(x, self.strict))


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


def _sigmoid(x: Any, a: Any, b: Any) -> Any:
    e = exp_of_negative(-(b * abs(x)))
    return a * e / (1 + e) ** 2


def _triangular(x: Any, a: Any, b: Any) -> Any:
    z = b * abs(x)
    return torch.where(1 - z <= 0, 0.0, a * (1 - z))  # this way round nan stays nan


atan = Formula(
    lambda s: (s.alpha / 2, math.pi * s.alpha / 2),
    lambda x, a, b: a / (1 + (b * x) ** 2),
    lambda share: math.sqrt(1 / share - 1),
)
fast_sigmoid = Formula(
    lambda s: (1.0, s.slope), lambda x, a, b: a / (1 + b * abs(x)) ** 2, lambda share: 1 / math.sqrt(share) - 1
)
sigmoid = Formula(lambda s: (s.slope, s.slope), _sigmoid, lambda share: 2 * math.acosh(1 / math.sqrt(share)))
triangular = Formula(lambda s: (s.scale, 1 / s.width), _triangular, lambda share: 1 - share, compact=True)
rectangular = Formula(
    lambda s: (s.scale, 1 / s.width),
    lambda x, a, b: torch.where(b * abs(x) < 1, a, 0.0 * x),
    lambda share: 1 - 2.0**-23,  # at 1 it is 0 already
    compact=True,
)
exponential = Formula(
    lambda s: (s.scale / s.width, 1 / s.width),
    lambda x, a, b: a * exp_of_negative(-(b * abs(x))),
    lambda share: -math.log(share),
)


@functools.cache
def _formula(name: str) -> Formula:
    return cast(Formula, load(SURROGATES, name))


NUMBERS = ("alpha", "slope", "scale", "width")


class OwnDerivative:
    """A user's derivative: a function of x, and by keyword of those of `NUMBERS` that it names.

    Two are equal if they are the same function with the same numbers.
    """

    def __init__(self, word: str, function: Callable[..., Any], numbers: dict[str, float]) -> None:
        self.word, self.function, self.numbers = word, function, numbers

    def __call__(self, x: Any) -> Any:
        with blamed(SURROGATES.key, self.word, self.function.__module__):
            return self.function(x, **self.numbers)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OwnDerivative) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    @property
    def _identity(self) -> tuple[Any, ...]:
        return self.word, self.function, tuple(self.numbers.items())

    @functools.cached_property
    def why_not_compiled(self) -> str | None:
        """Say what of it cannot be compiled, and where, or return None."""
        try:
            made = self(leaf("input", "x"))
        except ConfigError as error:
            return str(error).partition(": ")[2]
        return None if isinstance(made, Symbol | float | int) else f"it returns {type(made).__name__}"

    def check(self) -> None:
        """Try it. Raises: ConfigError if it fails, or does not return a finite number for each x."""
        x = torch.linspace(-2, 2, 5)
        made = self(x)
        if not isinstance(made, Tensor) or made.shape != x.shape or not bool(made.isfinite().all()):
            shown = list(made.shape) if isinstance(made, Tensor) else type(made).__name__
            raise ConfigError(
                f"{SURROGATES.key}={self.word}: for x of shape [5] it must return a tensor of that shape, the finite "
                f"derivative at each x; it returned {shown if shown != [5] else made.tolist()}."
            )


def build_surrogate(conf: SurrogateConf) -> Surrogate:
    """Build the surrogate that `neuron.surrogate` describes.

    Raises: ConfigError if there is none of that name, a user's fails, or width or alpha is not positive.
    """
    name = str(conf.name)
    if name.startswith(SNNTORCH_PREFIX):
        return Surrogate(name, function=load(SURROGATES, name)())
    numbers: dict[str, Any] = {key: float(getattr(conf, key)) for key in NUMBERS}
    for key, value in numbers.items():
        if not value > 0:
            raise ConfigError(f"neuron.surrogate.{key}={value}: must be above 0, or the surrogate has no gradient.")
    if name in FUSED_SURROGATES:
        return replace(Surrogate(name), **numbers)
    own = OwnDerivative(name, *_taken(name, load(SURROGATES, name), numbers))
    own.check()
    return replace(Surrogate(name, own=own), **numbers)


def _taken(word: str, function: Any, numbers: dict[str, float]) -> tuple[Callable[..., Any], dict[str, float]]:
    """A user's function, and the numbers that it takes by name."""
    if not inspect.isfunction(function):
        raise ConfigError(f"{SURROGATES.key}={word}: this is no function but {type(function).__name__}.")
    first, *rest = inspect.signature(function).parameters.values() or (None,)
    unknown = [p.name for p in rest if p is not None and p.name not in numbers and p.default is p.empty]
    if first is None or unknown:
        raise ConfigError(
            f"{SURROGATES.key}={word}: it must take x, and by keyword any of {', '.join(numbers)}"
            f"{f'; nothing is known of its {unknown[0]}' if unknown else ''}."
        )
    return function, {p.name: numbers[p.name] for p in rest if p is not None and p.name in numbers}
