"""What a cure is: the moments of training at which it may act. Each cure has a file of its own beside this one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from snnexp.analysis.activity import LayerActivity
from snnexp.config import CureConf
from snnexp.experiment import Experiment
from snnexp.models.observer import Observer
from snnexp.models.sums import Sums


class Cure:
    """A cure that does nothing yet. It acts on the layers in `since`, which maps them to the epoch they were named in.

    A subclass overrides the moments that it needs. Whatever it changes must follow from the run's configuration, the
    network, the optimizer, and its own `state_dict`: a resumed run ends with the same bits.
    """

    observer: Observer | None = None  # sees each batch of training

    def __init__(self, conf: CureConf, experiment: Experiment, optimizer: torch.optim.Optimizer) -> None:
        self.conf: Any = conf
        self.experiment = experiment
        self.network = experiment.network
        self.optimizer = optimizer
        self.since: dict[str, int] = {}

    def begin(self, name: str, epoch: int) -> None:
        """Act on the spiking layer `name` from now on; after a resume, too. Epoch 0: before training."""
        self.since[name] = epoch

    def treat(self, name: str, epoch: int) -> None:
        """Do to a layer what is done once, right after `begin`; what it changes is in the checkpoint afterwards."""

    def before_epoch(self, epoch: int) -> None:
        """An epoch of training begins."""

    def sums(self) -> Sums | None:
        """What `term` needs of each batch."""
        return None

    def term(self, sums: Sums) -> Tensor:
        """What is added to the loss of a batch, a scalar with its gradient: a mean over the samples that are here."""
        raise NotImplementedError

    def after_step(self) -> None:
        """The optimizer has made a step."""

    def between_epochs(self, epoch: int, activity: Mapping[str, LayerActivity]) -> dict[str, float]:
        """An epoch has ended and another follows; `activity` is that of its training pass. Returns numbers to log."""
        return {}

    def after_training(self) -> None:
        """The last epoch has ended, or had ended when the run was taken up again; the test follows."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beyond network and optimizer: plain containers, numbers and tensors."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take that up."""
