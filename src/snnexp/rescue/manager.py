"""From the training loop to the cure that `rescue` names, and the record of what it did."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from snnexp import collectives
from snnexp.analysis.activity import ActivityMeter, LayerActivity
from snnexp.experiment import Experiment
from snnexp.models.observer import Observer, Observers
from snnexp.models.sums import Sums
from snnexp.rescue.bounds import Bounds
from snnexp.rescue.cure import Cure
from snnexp.rescue.fluctuation_init import FluctuationInit
from snnexp.rescue.homeostasis import Homeostasis
from snnexp.rescue.pseudospike import Pseudospike
from snnexp.rescue.resample import Resample
from snnexp.rescue.rouser import Rouser
from snnexp.rescue.variance_init import VarianceInit
from snnexp.rescue.wide_surrogate import WideSurrogate

CURES: dict[str, type[Cure]] = {
    "rouser": Rouser,
    "bounds": Bounds,
    "homeostasis": Homeostasis,
    "fluctuation_init": FluctuationInit,
    "variance_init": VarianceInit,
    "wide_surrogate": WideSurrogate,
    "resample": Resample,
    "pseudospike": Pseudospike,
}


class Rescue:
    """The cure of a run, if it has one, and since when it acts on which layers.

    Without a cure, as here, everything stays as it is: no observer, no term, no random number.
    """

    layers: tuple[str, ...] = ()
    cure: Cure | None = None
    waits = False  # for the diagnosis

    @classmethod
    def of(cls, experiment: Experiment, optimizer: torch.optim.Optimizer) -> Rescue:
        """The cure that the configuration names."""
        conf: Any = experiment.conf.rescue
        rescue = cls()
        if conf.name != "none":
            rescue.layers = tuple(experiment.network.spiking_layers)
            rescue.cure = CURES[conf.name](conf, experiment, optimizer)
            rescue.waits = conf.when == "diagnosed"
        return rescue

    def start(self) -> None:
        """Before training, whether it is resumed or not: a restored state overwrites what is done here."""
        if self.cure is not None and not self.waits:
            self._fire(self.layers, 0)

    def before_epoch(self, epoch: int) -> None:
        """An epoch of training begins."""
        if self.cure is not None:
            self.cure.before_epoch(epoch)

    def watched(self, observer: Observer) -> Observer:
        """`observer`, and the cure's own beside it."""
        own = None if self.cure is None else self.cure.observer
        return observer if own is None else Observers([observer, own])

    def sums(self) -> Sums | None:
        """What the cure's term of the loss needs; None: it has none."""
        return None if self.cure is None else self.cure.sums()

    def term(self, sums: Sums) -> Tensor:
        """The cure's term of the loss, of the whole batch."""
        assert self.cure is not None
        return collectives.mean_over_samples(self.cure.term(sums))

    def after_step(self) -> None:
        """The optimizer has made a step."""
        if self.cure is not None:
            self.cure.after_step()

    def between_epochs(self, epoch: int, meter: ActivityMeter, findings: Iterable[tuple[str, str]]) -> dict[str, float]:
        """Epoch `epoch` has ended and another follows; returns numbers for the record.

        findings: of the diagnosis, whose keys name the layers that are dead ("sn1 dead").
        """
        if self.cure is None:
            return {}
        metrics: dict[str, float] = {}
        if self.waits:
            named = {key.partition(" ")[0] for key, _ in findings if key.partition(" ")[2].startswith("dead")}
            new = [name for name in self.layers if name in named and name not in self.cure.since]
            self._fire(new, epoch)
            metrics |= {f"rescue/fired/{name}": 1.0 for name in new}
        activity: Mapping[str, LayerActivity] = meter.last
        return metrics | self.cure.between_epochs(epoch, activity)

    def after_training(self) -> None:
        """The last epoch has ended; the test follows."""
        if self.cure is not None:
            self.cure.after_training()

    def told(self, epoch: int) -> str:
        """A line for the user if the cure began on diagnosed layers after this epoch; else empty."""
        began = [name for name, since in (self.cure.since if self.cure else {}).items() if since == epoch]
        if not self.waits or not began:
            return ""
        name = self.cure.conf.name if self.cure else ""
        return f"rescue={name} acts on {', '.join(began)} from here on: dead after epoch {epoch}."

    def tags(self) -> dict[str, str]:
        """For the record: which layers were diagnosed, and after which epoch."""
        if not self.waits or self.cure is None:
            return {}
        fired = ", ".join(f"{name} after epoch {epoch}" for name, epoch in self.cure.since.items())
        return {"rescue.fired": fired or "never"}

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint; empty without a cure."""
        return {} if self.cure is None else {"since": dict(self.cure.since), "cure": self.cure.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what an earlier attempt had begun."""
        if self.cure is not None:
            for name, epoch in state["since"].items():
                self.cure.begin(name, int(epoch))
            self.cure.load_state_dict(state["cure"])

    def _fire(self, names: Iterable[str], epoch: int) -> None:
        assert self.cure is not None
        names = tuple(names)
        for name in names:
            self.cure.begin(name, epoch)
        for name in names:
            self.cure.treat(name, epoch)
