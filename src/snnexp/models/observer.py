"""How an analysis looks into a forward pass without hooks: the network calls an `Observer` as it goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from snnexp.data.base import EventFrames


@dataclass(frozen=True)
class Firing:
    """What one spiking layer did in one forward pass. The membranes' memory is used again in backward.

    With `trainer.checkpoint_steps` the same samples come in segments of T time steps, of which only the last is `last`.
    """

    counts: Tensor  # spikes over the T steps [B, *shape]
    mem: Tensor  # membranes before the reset [T, B, *shape]
    spk: Tensor | None  # spikes (0 or 1) [T, B, *shape]; None unless an observer reads spikes
    last: bool = True  # these are the samples' last steps


class Observer(Protocol):
    """What the network tells while it runs. Implementations detach what they keep and never wait for the device."""

    @property
    def reads_spikes(self) -> bool:
        """Whether it needs every step's spikes, which otherwise need not exist. Asked once before each pass."""

    def spiking(self, name: str, layer: nn.Module, firing: Firing) -> None:
        """What the spiking layer `name` did."""

    def connection(self, name: str, module: nn.Module, x: Tensor | EventFrames, repeat: int) -> None:
        """Input of the layer with weights `name`: [T*B, ...] or event lists with repeat = 1.

        An input that is the same at all T steps comes once, as [B, ...] with repeat = T.
        """


class Observers:
    """Several observers as one."""

    def __init__(self, members: Sequence[Observer]) -> None:
        self.members = tuple(members)

    @property
    def reads_spikes(self) -> bool:
        return any(member.reads_spikes for member in self.members)

    def spiking(self, name: str, layer: nn.Module, firing: Firing) -> None:
        for member in self.members:
            member.spiking(name, layer, firing)

    def connection(self, name: str, module: nn.Module, x: Tensor | EventFrames, repeat: int) -> None:
        for member in self.members:
            member.connection(name, module, x, repeat)
