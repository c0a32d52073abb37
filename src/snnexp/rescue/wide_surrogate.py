"""rescue=wide_surrogate: a surrogate that reaches further at first, so that fewer neurons lie beyond it.

    the derivative at x is the surrogate's at x / k,   1/k(i) = ((10^(i/N) - 1) + (10 - 10^(i/N)) / stretch) / 9

i counts the epochs since the cure began and N is the share `share` of those that were left then: k falls from `stretch`
to 1, where it stays. The peak does not change.

Source of the schedule: Guo et al. 2022, "IM-Loss" (NeurIPS), whose surrogate's steepness K goes from K_min to K_max in
this way; ours is 1/k.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from snnexp.rescue.cure import Cure


def stretch_at(done: int, within: float, stretch: float) -> float:
    """How many times as far the surrogate reaches after `done` of `within` epochs; 1 from then on."""
    if done >= within:
        return 1.0
    rise = 10.0 ** (done / within)
    return float(9 / ((rise - 1) + (10 - rise) / stretch))


class WideSurrogate(Cure):
    """A schedule for the surrogate's width."""

    def before_epoch(self, epoch: int) -> None:
        """Set the widths of this epoch."""
        epochs = self.experiment.conf.trainer.max_epochs
        for name, begun in self.since.items():
            factor = stretch_at(epoch - 1 - begun, self.conf.share * (epochs - begun), self.conf.stretch)
            layer: Any = self.network.spiking_layers[name]
            surrogate = replace(layer.dynamics.surrogate, stretch=factor)
            layer.dynamics = replace(layer.dynamics, surrogate=surrogate)
