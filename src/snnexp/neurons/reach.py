"""How far a surrogate reaches: which membranes the gradient passes, and how far they are from the threshold.

    x[t] = U[t] - theta        (U/theta - 1 with relative_surrogate; what a user's equation hands to `spike`)
    in reach: the surrogate's derivative at x[t] is at least eps times its peak

A neuron with `fire_once` is out of reach once it has fired: backward masks its later spikes.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from snnexp.errors import ConfigError
from snnexp.neurons.compiler.plan import X, replaced
from snnexp.neurons.compiler.symbols import Symbol, evaluate, in_order, leaf, value_of
from snnexp.neurons.equation import Dynamics, advance, state_names, state_of
from snnexp.neurons.layer import SpikingLayer
from snnexp.neurons.module_layer import ModuleLayer

MEM = leaf("row", "mem")


class Window(NamedTuple):
    """What is in reach: |U - center| <= radius; both broadcast to the neurons' shape."""

    center: Tensor
    radius: Tensor | float


class Reach:
    """Of one layer; `reach_of` makes it.

    Args:
        layer: a spiking layer.
        eps: share of the surrogate's peak, above 0 and at most 1.
    """

    def __init__(self, layer: SpikingLayer, eps: float) -> None:
        self.layer, self.eps = layer, eps
        self.dynamics: Dynamics = layer.dynamics
        self.radius = self.dynamics.surrogate.radius(eps)
        self._distance = None if self.dynamics.equation is None else distance_of(self.dynamics)

    @property
    def once(self) -> bool:
        """Whether a neuron that has fired is out of reach for the rest of the sample."""
        return self.dynamics.equation is None and self.dynamics.fire_once

    def window(self) -> Window | None:
        """The window of membranes in reach, at the thresholds in effect now; None: ask `within`."""
        if self.radius is None:
            return None
        threshold = self.layer.threshold.detach()
        if self._distance is None:
            if not self.dynamics.relative_surrogate:
                return Window(threshold, self.radius)
            return None if self.once else Window(threshold, self.radius * threshold.abs())
        if self._distance.op == "sub" and self._distance.args[0] is MEM:
            center = evaluate(self._distance.args[1], lambda s: self.layer.values()[s.name])
            return Window(torch.as_tensor(center, device=threshold.device).detach(), self.radius)
        return None

    @torch.no_grad()
    def distance(self, mem: Tensor) -> Tensor:
        """x for membranes [..., *shape]."""
        if self._distance is not None:
            values = self.layer.values()
            return cast(Tensor, evaluate(self._distance, lambda s: mem if s is MEM else values[s.name]))
        threshold = self.layer.threshold.detach()
        return mem / threshold - 1 if self.dynamics.relative_surrogate else mem - threshold

    @torch.no_grad()
    def within(self, distance: Tensor) -> Tensor:
        """Whether the derivative at these distances is in reach."""
        if self.radius is not None:
            return distance.abs() <= self.radius
        surrogate = self.dynamics.surrogate
        return surrogate.derivative(distance) >= self.eps * surrogate.peak


def reach_of(layer: torch.nn.Module, eps: float) -> Reach | None:
    """The reach of a layer's surrogate, or None where its membranes do not tell.

    A module keeps threshold and surrogate to itself; a user's equation may compare more than the membrane.
    """
    if not isinstance(layer, SpikingLayer) or isinstance(layer, ModuleLayer):
        return None
    if layer.dynamics.equation is not None and distance_of(layer.dynamics) is None:
        return None
    return Reach(layer, eps)


@lru_cache(256)
def distance_of(dynamics: Dynamics) -> Symbol | None:
    """What a user's equation hands to `spike`, in terms of the membrane it returns and of its values.

    None if that takes another state too (a threshold that adapts), if it calls `spike` twice or never, or if it cannot
    be read without running it.
    """
    assert dynamics.equation is not None
    names = dynamics.equation.values
    old = {state: leaf("old", state) for state in state_names(dynamics, names)}
    try:
        values = {name: leaf("value", name) for name in names}
        after = advance(X, state_of(dynamics, old), values, dynamics, leaf("flag", "last"))
    except ConfigError:
        return None
    memo: dict[int, Symbol] = {}
    made: tuple[Any, ...] = tuple(after)
    spikes = {s for s in in_order([part for part in made if isinstance(part, Symbol)]) if s.op == "spike"}
    if len(spikes) != 1 or not isinstance(after.mem, Symbol):
        return None
    given = value_of(spikes.pop().args[0], memo)
    mem = value_of(after.mem, memo)
    found = replaced(given, lambda s: MEM if s is mem else None)
    leaves = [s for s in in_order([found]) if not s.args]
    return found if all(s is MEM or s.op in ("const", "value") for s in leaves) else None
