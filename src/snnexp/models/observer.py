"""How an analysis looks into a forward pass without hooks: the network calls an `Observer` as it goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

from torch import Tensor, nn

from snnexp.data.base import EventFrames
from snnexp.neurons.engines.calls import Near


@dataclass(frozen=True)
class Firing:
    """What one spiking layer did in one forward pass. The membranes' memory is used again in backward.

    With `trainer.checkpoint_steps` the same samples come in segments of T time steps, of which only the last is `last`.
    """

    counts: Tensor  # spikes over the T steps [B, *shape]
    mem: Tensor | None  # membranes before the reset [T, B, *shape]; may be None unless an observer reads membranes
    spk: Tensor | None  # spikes (0 or 1) [T, B, *shape]; None unless an observer reads spikes
    last: bool = True  # these are the samples' last steps
    steps: int = 0  # T; 0: as many as mem has
    near: Near | None = None  # what the engine counted of the membranes, for the observer that asked it to (`reach`)

    def __post_init__(self) -> None:
        if not self.steps and self.mem is not None:
            object.__setattr__(self, "steps", len(self.mem))

    def membranes(self) -> Tensor:
        """`mem`, for an observer that reads membranes."""
        assert self.mem is not None
        return self.mem


class Counts(Protocol):
    """What an observer keeps of a layer's membranes in a window, which an engine may count as it runs."""

    def prepared(self, x: Tensor) -> Near | None:
        """What the engine is to count of a layer with input x [T, B, *shape]; None: the observer reads membranes."""


class Observer(Protocol):
    """What the network tells while it runs. Implementations detach what they keep and never wait for the device."""

    @property
    def reads_spikes(self) -> bool:
        """Whether it needs every step's spikes, which otherwise need not exist. Asked once before each pass."""

    @property
    def reads_membranes(self) -> bool:
        """Whether it needs the membranes, which otherwise need not exist. Asked before each batch; not there: yes."""

    def spiking(self, name: str, layer: nn.Module, firing: Firing) -> None:
        """What the spiking layer `name` did."""

    def connection(self, name: str, module: nn.Module, x: Tensor | EventFrames, repeat: int) -> None:
        """Input of the layer with weights `name`: [T*B, ...] or event lists with repeat = 1.

        An input that is the same at all T steps comes once, as [B, ...] with repeat = T.
        """


def reads_membranes(observer: Observer) -> bool:
    """Whether it needs the membranes in the batch to come; observers that do not know the question may."""
    return bool(getattr(observer, "reads_membranes", True))


def counts_of(observer: Observer, name: str, layer: nn.Module) -> Counts | None:
    """What an observer that counts membranes in a window keeps of a layer; most do not (`ActivityMeter.reach`)."""
    reach = getattr(observer, "reach", None)
    return None if reach is None else cast(Counts | None, reach(name, layer))


class _Apart:
    """Nothing that an engine counts."""

    def prepared(self, x: Tensor) -> None:
        return None


class Observers:
    """Several observers as one."""

    def __init__(self, members: Sequence[Observer]) -> None:
        self.members = tuple(members)

    @property
    def reads_spikes(self) -> bool:
        return any(member.reads_spikes for member in self.members)

    @property
    def reads_membranes(self) -> bool:
        return any(map(reads_membranes, self.members))

    def reach(self, name: str, layer: nn.Module) -> Counts | None:
        """What the one member has that counts membranes in a window. Of several, all read membranes."""
        found = [counts for counts in (counts_of(m, name, layer) for m in self.members) if counts is not None]
        return found[0] if len(found) == 1 else _Apart() if found else None

    def spiking(self, name: str, layer: nn.Module, firing: Firing) -> None:
        for member in self.members:
            member.spiking(name, layer, firing)

    def connection(self, name: str, module: nn.Module, x: Tensor | EventFrames, repeat: int) -> None:
        for member in self.members:
            member.connection(name, module, x, repeat)
