"""The one neuron equation: its options (`Dynamics`), its memory (`State`) and one pure step.

    I[t] = alpha I[t-1] + x[t]             alpha None: I[t] = x[t]; the current is never reset
    U[t] = beta U'[t-1] + g I[t] - R[t]    g = 1, or 1 - beta (tau_form)
    S[t] = 1 if U[t] >= theta else 0       strict: U[t] > theta

    reset zero            U' = U (1 - S),    R = 0
          subtract        U' = U,            R[t] = theta S[t-1]
          subtract_first  U' = U - theta S,  R = 0
          none            U' = U,            R = 0

`step` is what the word "reference" means: the engines are tested against it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

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
        spiking: false makes a leaky integrator: no spikes, no reset, threshold unused.
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
    spiking: bool = True

    @property
    def remembers_firing(self) -> bool:
        """Whether the state has to know who has fired before."""
        return self.spiking and (self.fire_once or self.force_last_spike)


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


def initial_state(like: Tensor, dynamics: Dynamics, has_current: bool) -> State:
    """Return the state at rest, all zero, of the shape, device and dtype of `like` [B, *shape]."""
    zero = torch.zeros_like(like, memory_format=torch.contiguous_format, requires_grad=False)
    return State(
        mem=zero,
        spk=zero,
        cur=zero if has_current else None,
        fired=zero if dynamics.remembers_firing else None,
    )


def step(
    x_t: Tensor,
    state: State,
    alpha: Tensor | None,
    beta: Tensor,
    threshold: Tensor,
    dynamics: Dynamics,
    last: bool = False,
) -> tuple[Tensor, Tensor, State]:
    """Run one time step of the equation above. Pure: the state goes in and a new one comes out.

    Args:
        x_t: input of this step [B, *shape].
        state: the state after the step before; `initial_state` at the start.
        alpha: share of the current kept, or None for no current; like beta and threshold it broadcasts to [*shape].
        beta: share of the membrane kept, 0 to 1.
        threshold: firing level.
        last: this is the last step of the sample (only `force_last_spike` asks).
    Returns: spikes, membrane before the reset (both [B, *shape]) and the new state.
    """
    cur = x_t
    if alpha is not None:
        assert state.cur is not None, "a neuron with alpha needs a state with a current"
        cur = alpha * state.cur + x_t
    drive = (1 - beta) * cur if dynamics.tau_form else cur
    if not dynamics.spiking:
        mem = beta * state.mem + drive
        spk = torch.zeros_like(mem)
        return spk, mem, State(mem, spk, None if alpha is None else cur)
    kept, removed = reset_terms(state.mem, state.spk, threshold, dynamics)
    mem = beta * kept + drive
    if removed is not None:
        mem = mem - removed
    x = mem / threshold - 1 if dynamics.relative_surrogate else mem - threshold
    spk = dynamics.surrogate.spike(x, dynamics.strict)
    fired = state.fired
    if fired is not None:
        if dynamics.fire_once:
            spk = spk * (1 - fired)
        if dynamics.force_last_spike and last:
            spk = with_value(torch.maximum(spk, 1 - fired), gradient_of=spk)
        fired = torch.maximum(fired, spk.detach())
    return spk, mem, State(mem, spk, None if alpha is None else cur, fired)


def reset_terms(mem: Tensor, spk: Tensor, threshold: Tensor, dynamics: Dynamics) -> tuple[Tensor, Tensor | None]:
    """Return U' of the step that left `mem` and `spk`, and R of the next step (None: zero)."""
    if not dynamics.spiking:
        return mem, None
    ignore = dynamics.ignore_reset_in_backward
    if dynamics.detach_reset or ignore:
        spk = spk.detach()
    match dynamics.reset:
        case "none":
            return mem, None
        case "subtract":
            return mem, (threshold.detach() if ignore else threshold) * spk
        case "zero":
            kept = mem * (1 - spk)
        case _:
            kept = mem - threshold * spk
    return (with_value(kept, gradient_of=mem) if ignore else kept), None
