"""What the test pass gives; `training/outcome.py` fills it, `plots.py` draws it."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from snnexp.analysis.causes import Verdict
from snnexp.analysis.synops import Synops


@dataclass(frozen=True)
class Outcome:
    """What the test pass gives."""

    metrics: dict[str, float]
    synops: Synops
    confusion: Tensor  # int64 [true, predicted]
    raster: dict[str, Tensor]  # layer -> spikes [T, N] of the first test sample
    raster_label: int
    raster_prediction: int
    rates: dict[str, Tensor]  # layer -> firing rate of every neuron
    findings: list[tuple[str, str]]  # what is wrong with which layer, in words
    causes: dict[str, Verdict] = field(default_factory=dict)  # and why, by layer
