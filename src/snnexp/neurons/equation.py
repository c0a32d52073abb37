"""The one neuron equation: its options (`Dynamics`), its memory (`State`) and one pure step.

    I[t] = alpha I[t-1] + x[t]             alpha None: I[t] = x[t]; the current is never reset
    U[t] = beta U'[t-1] + g I[t] - R[t]    g = 1, or 1 - beta (tau_form)
    S[t] = 1 if U[t] >= theta else 0       strict: U[t] > theta

    reset zero            U' = U (1 - S),    R = 0
          subtract        U' = U,            R[t] = theta S[t-1]
          subtract_first  U' = U - theta S,  R = 0
          none            U' = U,            R = 0

With options, noise is added to U, and a spike is as high as theta. `advance` is the single source: the reference engine
runs it on tensors, and every kernel is compiled from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from snnexp.neurons.custom import Equation
from snnexp.neurons.surrogates import Surrogate, with_value


@dataclass(frozen=True)
class Dynamics:
    """Everything about a neuron that is not a tensor.

    Args:
        surrogate: the derivative that stands in for that of the spike.
        reset: none, zero, subtract or subtract_first, as above.
        strict: a spike needs U > theta (snnTorch, STBP) instead of U >= theta.
        tau_form: the input is multiplied by 1 - beta = 1/tau (PLIF, SpikingJelly).
        detach_reset: S is a constant in the reset; theta and U in it still get their gradient (as in snn.Leaky).
        ignore_reset_in_backward: backward runs as if there were no reset at all (SLAYER).
        fire_once: S is kept only if the neuron has not fired before; no gradient through that mask.
        force_last_spike: a neuron that stayed silent fires at the last step, with the surrogate's gradient there.
        relative_surrogate: x = U/theta - 1 instead of U - theta decides on the spike and enters the surrogate.
        spike_height: threshold: a spike sends on theta, not 1; a soft reset, if detached, takes it off as a constant.
        noisy: each step gets a number from outside that is added to U.
        spiking: false makes a leaky integrator: no spikes, no reset, threshold unused.
        equation: a user's own, instead of the one above; only surrogate, strict and spiking count then.
    """

    surrogate: Surrogate
    reset: str = "zero"
    strict: bool = False
    tau_form: bool = False
    detach_reset: bool = True
    ignore_reset_in_backward: bool = False
    fire_once: bool = False
    force_last_spike: bool = False
    relative_surrogate: bool = False
    spike_height: str = "one"
    noisy: bool = False
    spiking: bool = True
    equation: Equation | None = None

    def spike(self, distance: Any) -> Any:
        """1 where the distance to the threshold says so, with the surrogate's gradient; 0 if not spiking."""
        return self.surrogate.spike(distance, self.strict) if self.spiking else torch.zeros_like(distance)

    @property
    def high_spikes(self) -> bool:
        """Whether spikes are as high as theta."""
        return self.equation is None and self.spike_height == "threshold"

    @property
    def remembers_firing(self) -> bool:
        """Whether the state has to know who has fired before."""
        return self.equation is None and self.spiking and (self.fire_once or self.force_last_spike)


class Pool(NamedTuple):
    """A pooling layer right behind the spikes: windows of size x size pixels side by side, incomplete ones left out."""

    kind: str  # max or avg
    size: int


class State(NamedTuple):
    """What a neuron carries from step to step, each [B, *shape], in the precision the neuron computes in.

    mem is U before the reset, as in the output; the reset by `spk` is part of the next step.
    """

    mem: Tensor
    spk: Tensor
    cur: Tensor | None = None  # only with alpha
    fired: Tensor | None = None  # 0 or 1; only with fire_once or force_last_spike


def value_dict(
    alpha: Tensor | None, beta: Tensor, threshold: Tensor, more: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """The equation's values by name; alpha is there only if neurons have a current, `more` are a user's own."""
    return {"beta": beta, "threshold": threshold} | ({} if alpha is None else {"alpha": alpha}) | dict(more or {})


def state_names(dynamics: Dynamics, values: Iterable[str]) -> tuple[str, ...]:
    """Names of the states of neurons that have values of these names."""
    if dynamics.equation is not None:
        fields: tuple[str, ...] = dynamics.equation.state_type._fields
        return fields
    more = (("cur", "alpha" in values), ("fired", dynamics.remembers_firing))
    return ("mem", "spk", *(name for name, there in more if there))


def state_of(dynamics: Dynamics, states: Mapping[str, Any]) -> State:
    """Return the state with these parts: a State, or a tuple with the names of a user's equation."""
    kind = State if dynamics.equation is None else dynamics.equation.state_type
    return cast(State, kind(**states))


def initial_state(like: Tensor, dynamics: Dynamics, has_current: bool) -> State:
    """Return the state at rest, all zero, of the shape, device and dtype of `like` [B, *shape]."""
    zero = torch.zeros_like(like, memory_format=torch.contiguous_format, requires_grad=False)
    return state_of(dynamics, dict.fromkeys(state_names(dynamics, ("alpha",) if has_current else ()), zero))


def advance(x: Any, state: Any, values: Mapping[str, Any], dynamics: Dynamics, last: Any, noise: Any = None) -> State:
    """The equation above, or a user's: one step, on tensors or on the compiler's symbols. Every engine comes from here.

    The order of operations is that of the bits of the results.
    """
    if dynamics.equation is not None:
        return cast(State, dynamics.equation(x, state, values, dynamics.spike))
    beta, cur, fired = values["beta"], state.cur, state.fired
    if "alpha" in values:
        cur = values["alpha"] * cur + x
    drive = x if cur is None else cur
    if dynamics.tau_form:
        drive = (1 - beta) * drive
    if not dynamics.spiking:
        mem = beta * state.mem + drive
        return State(mem, torch.zeros_like(mem), cur)
    kept, removed = reset(state.mem, state.spk, values["threshold"], dynamics)
    mem = beta * kept + drive
    if removed is not None:
        mem = mem - removed
    if dynamics.noisy:
        mem = mem + noise
    distance = mem / values["threshold"] - 1 if dynamics.relative_surrogate else mem - values["threshold"]
    spk = dynamics.spike(distance)
    if dynamics.remembers_firing:
        if dynamics.fire_once:
            spk = spk * (1 - fired)
        if dynamics.force_last_spike:
            spk = with_value(where(last, torch.maximum(spk, 1 - fired), spk), gradient_of=spk)
        fired = torch.maximum(fired, spk.detach())
    if dynamics.high_spikes:
        spk = values["threshold"] * spk
    return State(mem, spk, cur, fired)


def reset(mem: Any, spk: Any, threshold: Any, dynamics: Dynamics) -> tuple[Any, Any]:
    """Return U' of the step that left `mem` and `spk`, and R of the next step (None: zero)."""
    ignore = dynamics.ignore_reset_in_backward
    if dynamics.detach_reset or ignore:
        spk = spk.detach()
    high = dynamics.high_spikes  # spk is theta S
    match dynamics.reset:
        case "none":
            return mem, None
        case "subtract":
            return mem, spk if high else (threshold.detach() if ignore else threshold) * spk
        case "zero":
            kept = mem * (1 - (1.0 * (spk > 0) if high else spk))
        case _:
            kept = mem - (spk if high else threshold * spk)
    return (with_value(kept, gradient_of=mem) if ignore else kept), None


def where(condition: Any, a: Any, b: Any) -> Any:
    """`a` or `b`, for a condition that is one for all neurons (a bool) or the compiler's."""
    return (a if condition else b) if isinstance(condition, bool) else torch.where(condition, a, b)
