"""The state of training that is neither in the network nor in the optimizer."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from snnexp.tracking.metrics_log import History
from snnexp.training.passes import PassResult


@dataclass
class Best:
    """The epoch that validation selects; 0 is the untrained network."""

    epoch: int = 0
    accuracy: float = -1.0
    loss: float = math.inf
    digest: str = ""  # of its weights; empty: no best epoch yet, or an older version's

    def beaten_by(self, result: PassResult, monitor: str) -> bool:
        """Whether `result` is better: by the monitored quantity, ties by the other one."""
        if monitor == "loss":
            return (-result.loss, result.accuracy) > (-self.loss, self.accuracy)
        return (result.accuracy, -result.loss) > (self.accuracy, -self.loss)


@dataclass
class Fit:
    """The state of training that is not in the network or optimizer; all of it is in the checkpoint."""

    epoch: int = 0
    stopped_early: bool = False
    pruned: bool = False  # a search has seen enough of it
    best: Best = field(default_factory=Best)
    seconds: float = 0.0  # spent in finished epochs, over all attempts
    history: History = field(default_factory=dict)
    # quantity -> layer -> (epoch, values): for the histograms of learned thresholds and decays over training
    distributions: dict[str, dict[str, list[tuple[int, Tensor]]]] = field(default_factory=dict)

    fates: dict[str, Any] = field(default_factory=dict)  # what became of each neuron: `analysis/fates.py`
    causes: dict[str, str] = field(default_factory=dict)  # layer -> what its tag `cause.<layer>` says

    def record(self, epoch: int, metrics: dict[str, float]) -> None:
        """Add the metrics of an epoch to the history."""
        for name, value in metrics.items():
            self.history.setdefault(name, []).append((epoch, value))

    def with_latest(self, epoch: int, metrics: dict[str, float]) -> History:
        """The history with an epoch that is not recorded yet."""
        return {
            name: [*self.history.get(name, []), *([(epoch, metrics[name])] if name in metrics else [])]
            for name in (self.history | metrics)
        }
