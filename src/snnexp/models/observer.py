"""How an analysis looks into a forward pass without hooks: the network calls an `Observer` as it goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn

from snnexp.data.base import EventFrames


class Observer(Protocol):
    """What the network tells while it runs. Implementations detach what they keep and never wait for the device."""

    def spiking(self, name: str, layer: nn.Module, spk: Tensor, mem: Tensor) -> None:
        """Spikes (0 or 1) and membranes before the reset of the spiking layer `name`, both [T, B, *shape]."""

    def connection(self, name: str, module: nn.Module, x: Tensor | EventFrames, repeat: int) -> None:
        """Input of the layer with weights `name`: [T*B, ...] or event lists with repeat = 1.

        An input that is the same at all T steps comes once, as [B, ...] with repeat = T.
        """


class Observers:
    """Several observers as one."""

    def __init__(self, members: Sequence[Observer]) -> None:
        self.members = tuple(members)

    def spiking(self, name: str, layer: nn.Module, spk: Tensor, mem: Tensor) -> None:
        for member in self.members:
            member.spiking(name, layer, spk, mem)

    def connection(self, name: str, module: nn.Module, x: Tensor | EventFrames, repeat: int) -> None:
        for member in self.members:
            member.connection(name, module, x, repeat)
