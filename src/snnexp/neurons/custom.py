"""A user's own equation: one step function, its states and values read from its signature.

    def step(x, mem, spk, w, *, spike, beta, rho=Param(0.9, learn=True, per="neuron"), a=0.1):
        w = rho * w + a * mem + spk              # states: what stands between x and the star; mem and spk among them
        mem = beta * mem * (1 - spk) + x - w     # values: beta, threshold and alpha are the configuration's,
        spk = spike(mem - 1)                     # others start at their default or at neuron.params.<name>.init
        return mem, spk, w                       # the states of this step, in the order of the signature

All states start at zero. `spike` is the configured surrogate's. The engines run it as they run ours.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections import namedtuple
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from snnexp.blame import line_of, place, said
from snnexp.errors import ConfigError, did_you_mean
from snnexp.neurons.compiler.symbols import Symbol
from snnexp.registry import EQUATIONS, load

OURS = ("threshold", "beta", "alpha")  # values with keys of their own in the configuration
KERNELS_OWN = ("grad_", "first_", "kept", "last_", "later", "value", "derived")  # how names in kernels begin
_ARRAYS = "before counts input near_center near_radius needed noise pooled tap x"
ARRAYS_OWN = frozenset(_ARRAYS.split())  # whose arrays would be called as some of the kernels' own


def kernels_own(name: str) -> bool:
    """Whether no state or value may have this name."""
    return name.startswith(KERNELS_OWN) or name in ARRAYS_OWN


@dataclass(frozen=True)
class Param:
    """A value of a user's equation.

    Args:
        init: where it starts, or (low, high): drawn evenly from there for each of its places, the same for each seed.
        learn: whether it is trained, at the rate optimizer.lr_decay.
        per: layer, channel or neuron: what has one of its own.
        low, high: a learned value is clamped to them; its gradient passes through, so that it can come back.
    """

    init: float | tuple[float, float]
    learn: bool = False
    per: str = "layer"
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Equation:
    """A step function with its states in the order of its signature, and its values."""

    reference: str  # as the configuration names it
    function: Callable[..., Any]
    states: tuple[str, ...]
    values: tuple[str, ...]  # all keyword-only arguments but `spike`
    params: tuple[tuple[str, Param], ...]  # those of them that are not ours
    takes_spike: bool

    @functools.cached_property
    def state_type(self) -> Any:
        """The state's type: mem and spk, then the others."""
        rest = [s for s in self.states if s not in ("mem", "spk")]
        return namedtuple("State", ["mem", "spk", *rest])  # type: ignore[misc]

    def __call__(self, x: Any, state: Any, values: Mapping[str, Any], spike: Callable[[Any], Any]) -> Any:
        """Run one step, on tensors or symbols. Raises: ConfigError that names the line of the equation at fault."""
        given = {name: values[name] for name in self.values} | ({"spike": spike} if self.takes_spike else {})
        try:
            after = self.function(x, *(getattr(state, s) for s in self.states), **given)
            after = after if isinstance(after, tuple) else (after,)
            if len(after) != len(self.states):
                raise TypeError(f"it must return its {len(self.states)} states ({', '.join(self.states)})")
            after = [value if isinstance(value, Symbol) else _like(value, x) for value in after]
        except Exception as error:
            raise ConfigError(self._blame(error)) from error
        return self.state_type(**dict(zip(self.states, after, strict=True)))

    def _blame(self, error: Exception) -> str:
        """The message for an error within the function: with the last of its lines on the way."""
        code = self.function.__code__
        where = line_of(error, lambda file: file == code.co_filename) or place(code.co_filename, code.co_firstlineno)
        return f"neuron.equation={self.reference}: {where}{said(error)}"


def _like(value: Any, x: Any) -> Any:
    """A state of x's shape, also if it is one number for all."""
    if isinstance(x, Symbol):
        return x * 0 + value
    value = value if isinstance(value, torch.Tensor) else torch.as_tensor(value, dtype=x.dtype, device=x.device)
    return value if value.shape == x.shape else value.expand(x.shape)


def load_equation(reference: str, params: Mapping[str, Any], spiking: bool = True) -> Equation:
    """Load `package.module:function` or `file.py:function`, with what the configuration says of its values.

    A readout, which does not spike, runs the same function, or `<function>_readout` if there is one beside it.

    Raises: ConfigError if there is no such function, its signature does not fit, or a value has no start.
    """
    function = load(EQUATIONS, reference)
    key = f"neuron.equation={reference}"
    if not inspect.isfunction(function):
        raise ConfigError(f"{key}: this is no function but {type(function).__name__}.")
    equation = _described(reference, key, function, params)
    readout = None if spiking else function.__globals__.get(f"{function.__name__}_readout")
    if readout is None:
        return equation
    named = inspect.signature(readout).parameters
    return _described(f"{reference}_readout", key, readout, {n: given for n, given in params.items() if n in named})


def _described(reference: str, key: str, function: Callable[..., Any], params: Mapping[str, Any]) -> Equation:
    """The function with its states and values, from its signature."""
    kinds: dict[Any, list[inspect.Parameter]] = {}
    for parameter in inspect.signature(function).parameters.values():
        kinds.setdefault(parameter.kind, []).append(parameter)
    if {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD} & set(kinds):
        raise ConfigError(f"{key}: its signature has * or ** arguments; name each state and value.")
    states = [p.name for p in kinds.get(inspect.Parameter.POSITIONAL_OR_KEYWORD, [])][1:]
    if not {"mem", "spk"} <= set(states):
        raise ConfigError(f"{key}: it must take (x, its states, *, its values), with `mem` and `spk` among the states.")
    named = {p.name: p for p in kinds.get(inspect.Parameter.KEYWORD_ONLY, [])}
    takes_spike = named.pop("spike", None) is not None
    has = sorted(set(named) - set(OURS))
    if unknown := sorted(set(params) - set(has)):
        words = f"the values {', '.join(has)}" if has else "no values of its own"
        raise ConfigError(f"neuron.params.{unknown[0]}: the equation {reference} has {words}.")
    if taken := [n for n in (*states, *named) if kernels_own(n)]:
        raise ConfigError(f"{key}: kernels have a `{taken[0]}` of their own; give it another name.")
    own = {name: _param(key, named[name], params.get(name, {})) for name in named if name not in OURS}
    return Equation(reference, function, tuple(states), tuple(named), tuple(own.items()), takes_spike)


def _param(key: str, parameter: inspect.Parameter, given: Any) -> Param:
    """A value: its default in the signature, and what the configuration says instead."""
    default, here = parameter.default, f"neuron.params.{parameter.name}"
    given = given if isinstance(given, Mapping) else {"init": given}
    for name in given:
        if name not in (valid := [f.name for f in fields(Param)]):
            raise ConfigError(
                f"{here}.{name}: no such key.{did_you_mean(str(name), valid)} Valid keys: {', '.join(valid)}."
            )
    if isinstance(default, int | float):
        default = Param(float(default))
    if not isinstance(default, Param):
        if "init" not in given:
            raise ConfigError(f"{key}: the value `{parameter.name}` has no start. Set {here}.init.")
        default = Param(0.0)
    if isinstance(given.get("init"), list):
        given = {**given, "init": tuple(given["init"])}
    param = replace(default, **given)
    starts = param.init if isinstance(param.init, tuple) else (param.init,)
    low = -math.inf if param.low is None else param.low
    high = math.inf if param.high is None else param.high
    if len(starts) > 2 or not all(isinstance(v, int | float) and low <= v <= high for v in starts):
        raise ConfigError(
            f"{here}.init={param.init}: must be a number, or two to draw between, from {low:g} to {high:g}."
        )
    return param
