"""What drives a spiking layer, and what its spikes drive: found in the network's list of layers."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from math import prod
from typing import Any, cast

import torch
from torch import Tensor, nn

from snnexp.models.network import Network
from snnexp.models.ways import surroundings


@dataclass(frozen=True)
class Driver:
    """A layer with weights that drives a spiking layer.

    Attributes:
        purpose: names its random numbers: the spiking layer's name, with its own behind it where there are two.
        norm: a norm between the two, or None.
        before: the spiking layer before it, or None.
    """

    purpose: str
    weights: nn.Module
    norm: nn.Module | None
    before: str | None

    @property
    def fan_in(self) -> int:
        """Inputs of one neuron."""
        return prod(self.weights.get_parameter("weight").shape[1:])

    @property
    def recurrent(self) -> nn.Module | None:
        """The matrix from the neurons' own spikes, of an RFC."""
        found = getattr(self.weights, "recurrent", None)
        return found if isinstance(found, nn.Module) else None


@dataclass(frozen=True)
class Wiring:
    """The surroundings of one spiking layer.

    Attributes:
        drivers: one, or behind the sum of a residual block those of body and shortcut; none: spikes drive it directly.
        readers: the layers with weights that read its channels, and nothing that is added to them.
    """

    drivers: tuple[Driver, ...]
    readers: tuple[nn.Module, ...]

    @property
    def terms(self) -> int:
        """How many independent sums make the neurons' input: a norm behind a block's sum is one."""
        return len({id(driver.norm or driver.weights) for driver in self.drivers})


def wiring(network: Network, name: str) -> Wiring:
    """The surroundings of the spiking layer `name`."""
    around = surroundings(network.layers)[name]
    drivers = []
    for number, way in enumerate(around.ways):
        norm = None if way.norm is None else network.get_submodule(way.norm)
        purpose = name if number == 0 else f"{name}.{way.weights}"
        drivers.append(Driver(purpose, network.get_submodule(way.weights), norm, way.before))
    return Wiring(tuple(drivers), tuple(network.get_submodule(reader) for reader in around.readers))


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
