"""What travels through a network from layer to layer."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor

from snnexp.data.base import EventFrames
from snnexp.encoders import Input
from snnexp.layout import flattened, repeated
from snnexp.models.joins import added, forked, large
from snnexp.models.needed import Needed
from snnexp.models.observer import Firing, Observer, counts_of, reads_membranes
from snnexp.models.segments import Memory
from snnexp.models.sums import Sums
from snnexp.neurons.engines import LayerRun
from snnexp.neurons.engines.calls import InputNorm, Near
from snnexp.neurons.layer import SpikingLayer


class Flow:
    """What travels from layer to layer: event lists, or a tensor.

    `x` is folded over time, [T*B, ...], or [B, ...] while all steps are the same; `steps_x` is [T, B, ...]. What was
    set last counts, and the other is a view of it: output spikes that are never folded have a gradient that is the same
    at all steps, which folding would write out T times. `needed` says where x needs a gradient, and `norm` what the
    spiking layer that comes next has to normalise it by, until x is set anew.
    """

    def __init__(
        self,
        x: Tensor | EventFrames,
        steps: int,
        batch: int,
        constant: bool,
        observer: Observer | None,
        sums: Sums | None = None,
    ) -> None:
        self.steps = steps
        self.batch = batch
        self.constant = constant
        self.observer = observer
        self.sums = sums
        self.reads_spikes = observer is not None and observer.reads_spikes
        self.reads_membranes = observer is not None and reads_membranes(observer)
        self._kept: list[tuple[Tensor | None, Any, bool, Needed | None]] = []  # of residual blocks that are open
        self.x = x
        self.memory = Memory()  # of the layers: before these steps, and after them once they have run
        self.last = True  # these steps are the sample's last ones
        self.whole = True  # and its first ones: they are all

    _steps_x: Tensor | None
    needed: Needed | None
    norm: InputNorm | None

    @property
    def x(self) -> Tensor | EventFrames:
        if self._steps_x is not None:
            self._folded: Tensor | EventFrames = self._steps_x.flatten(0, 1)
            self._steps_x = None
        return self._folded

    @x.setter
    def x(self, folded: Tensor | EventFrames) -> None:
        self._folded = folded
        self._steps_x = None
        self.needed = self.norm = None

    @property
    def steps_x(self) -> Tensor:
        return self.over_time()

    @steps_x.setter
    def steps_x(self, x: Tensor) -> None:
        self._steps_x = x
        self.constant = False
        self.needed = self.norm = None

    def folded(self) -> Tensor:
        """[T*B, ...], or [B, ...] while constant."""
        x = self.x
        assert isinstance(x, Tensor)  # only the first layer sees event lists
        return x

    def flatten(self) -> None:
        """Maps become vectors; event lists are flat already."""
        if isinstance(self.x, Tensor):
            needed, self.x = self.needed, flattened(self.x)
            self.needed = None if needed is None else needed.flattened()

    def branch(self, kind: str) -> None:
        """Do what a mark of a residual block says: keep the input, change to the shortcut, or add."""
        if kind == "fork":
            self._kept.append(self._fork())
            return
        here = self._here()
        kept = self._kept.pop()  # the block's input; what the body made, once its shortcut has begun
        if kind == "shortcut":
            self._kept.append(here)
            self._steps_x, self._folded, self.constant, self.needed = kept
        elif self.constant and kept[2]:
            assert isinstance(kept[1], Tensor)
            self.x = kept[1] + self.folded()
        else:
            one_frame = self.constant or kept[2]
            now = self.over_time()
            self._steps_x, self._folded, self.constant, _ = kept
            before = self.over_time()
            if one_frame:
                self.steps_x = before + now
            else:  # in four dimensions: torch adds five of them, channels last, at a third of the speed
                self.x = added(before.flatten(0, 1), now.flatten(0, 1))

    def _here(self) -> tuple[Tensor | None, Any, bool, Needed | None]:
        """All that travels."""
        return self._steps_x, None if self._steps_x is not None else self._folded, self.constant, self.needed

    def _fork(self) -> tuple[Tensor | None, Any, bool, Needed | None]:
        """What the other way through the block goes on from."""
        steps_x = self._steps_x
        x = self._folded if steps_x is None else steps_x.flatten(0, 1)
        if not large(x):
            return self._here()
        self._steps_x = None
        self._folded, other = forked(cast(Tensor, x))
        return None, other, self.constant, self.needed

    def looked_at(self, name: str, neuron: SpikingLayer, x: Tensor, recurrent: bool) -> tuple[bool, Near | None]:
        """Whether somebody looks at the membranes of a layer with input x, and what its engine counts of them instead.

        Forced spikes are told from others by membranes.
        """
        if self.observer is None or not neuron.dynamics.spiking:
            return False, None
        counts, near = counts_of(self.observer, name, neuron), None
        if counts is not None and neuron.can_count_near(x, recurrent):
            near = counts.prepared(x)
        forces = neuron.training and neuron.dynamics.force_last_spike
        return self.reads_membranes or forces or (counts is not None and near is None), near

    def tell(self, name: str, neuron: SpikingLayer, out: LayerRun, pooled: bool, near: Near | None) -> None:
        """Let the observer know what a spiking layer did."""
        if self.observer is not None and neuron.dynamics.spiking and out.counts is not None:
            mem, spk = out.mem if len(out.mem) else None, None if pooled else out.spk
            self.observer.spiking(name, neuron, Firing(out.counts, mem, spk, self.last, self.steps, near))

    def over_time(self) -> Tensor:
        """[T, B, ...]; from here on the steps differ."""
        if self._steps_x is not None:
            return self._steps_x
        x = self.folded()
        if self.constant:
            self.constant = False  # every caller goes on with what it makes of the expanded view
            return repeated(x, self.steps)
        return x.view(self.steps, self.batch, *x.shape[1:])


def count_steps(x: Input) -> int:
    """T of a network's input."""
    return x.shape[0] if isinstance(x, Tensor) else x.num_steps
