"""What drives a spiking layer, and what its spikes drive: found in the network's list of layers."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from math import prod
from typing import Any, cast

import torch
from torch import Tensor, nn

from snnexp.models.layers import NORMS
from snnexp.models.network import Network
from snnexp.models.spec import WEIGHT_KINDS


@dataclass(frozen=True)
class Wiring:
    """The surroundings of one spiking layer. In a residual block: those of its body.

    Attributes:
        weights: the last layer with weights before it, or None; `first`: no spiking layer comes before that.
        norm: a norm between the two, or None.
        before: the spiking layer before it, or None.
        following: the next layer with weights, or None.
    """

    weights: nn.Module | None
    first: bool
    norm: nn.Module | None
    before: str | None
    following: nn.Module | None

    @property
    def fan_in(self) -> int:
        """Inputs of one neuron."""
        assert self.weights is not None
        return prod(self.weights.get_parameter("weight").shape[1:])

    @property
    def recurrent(self) -> nn.Module | None:
        """The matrix from the neurons' own spikes, of an RFC."""
        found = getattr(self.weights, "recurrent", None)
        return found if isinstance(found, nn.Module) else None


def wiring(network: Network, name: str) -> Wiring:
    """The surroundings of the spiking layer `name`."""
    at = next(index for index, layer in enumerate(network.layers) if layer.name == name)
    weights = norm = before = None
    for layer in reversed(network.layers[:at]):
        if layer.kind == "spiking":
            before = before or layer.name
            break
        if layer.kind in NORMS and norm is None:
            norm = network.get_submodule(layer.name)
        if layer.kind in WEIGHT_KINDS and weights is None:
            weights = network.get_submodule(layer.name)
            norm_between = norm
    ahead = (layer for layer in network.layers[at + 1 :] if layer.kind in WEIGHT_KINDS)
    following = next((network.get_submodule(layer.name) for layer in ahead), None)
    return Wiring(weights, before is None, norm_between if weights is not None else None, before, following)


def fresh(weights: nn.Module) -> nn.Module:
    """A layer like `weights` as it was before training, drawn anew from torch's generator."""
    make: Any = getattr(weights, "fresh", None)
    if make is not None:
        return cast(nn.Module, make())
    another: Any = copy.deepcopy(weights).cpu()
    another.reset_parameters()
    return cast(nn.Module, another)


def forget(
    optimizer: torch.optim.Optimizer, parameter: Tensor, part: Tensor | slice = slice(None), dim: int = 0
) -> None:
    """Set the optimizer's moments of a part of a parameter (rows, or columns with dim=1) to zero.

    Its count of steps is one for the whole parameter, and stays.
    """
    for value in optimizer.state.get(parameter, {}).values():
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            (value if dim == 0 else value.transpose(0, 1))[part] = 0
