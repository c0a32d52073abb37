"""rescue=homeostasis: thresholds follow each neuron's firing rate, outside the gradient.

    theta <- max(lowest, theta + rate * (r - target))        after each step of the optimizer

r is the neuron's spikes per time step in that batch, without those of `force_last_spike`. A silent neuron's threshold
falls by rate * target at each step until it fires, whatever its membrane and whatever the surrogate's reach.

Source: Querlioz et al. 2013, doi:10.1109/TNANO.2013.2250995: dV_th/dt = gamma (A - T), A the mean activity, T the
target. The lowest level is ours: below zero a neuron would fire without input.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from snnexp import collectives
from snnexp.analysis.activity import unforced
from snnexp.config import CureConf
from snnexp.experiment import Experiment
from snnexp.models.observer import Firing
from snnexp.rescue.cure import Cure


class Homeostasis(Cure):
    """Thresholds that follow firing rates."""

    def __init__(self, conf: CureConf, experiment: Experiment, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(conf, experiment, optimizer)
        self.observer = self.rates = _Rates(self.since)

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the thresholds by what the batch showed."""
        for name, rates in self.rates.take().items():
            layer = self.network.spiking_layers[name]
            level = layer.raw_threshold
            shared = rates
            if level.dim() < rates.dim():
                shared = rates.mean()
            elif level.shape != rates.shape:  # per channel
                shared = rates.mean([d for d, n in enumerate(level.shape) if n == 1], keepdim=True)
            level += self.conf.rate * (shared - self.conf.target)
            level.clamp_(min=self.conf.lowest)


class _Rates:
    """Observer: spikes per time step of each neuron in the batch under way, of the layers named."""

    reads_spikes = reads_membranes = False

    def __init__(self, names: Collection[str]) -> None:
        self.names = names
        self._sums: dict[str, tuple[Tensor, int]] = {}

    def spiking(self, name: str, layer: nn.Module, firing: Firing) -> None:
        """Add a batch, or a segment of its time steps."""
        if name in self.names:
            so_far, steps = self._sums.get(name, (0, 0))
            counts = unforced(layer, firing)[0].counts.detach()
            total, samples = collectives.total_of_rows(counts.sum(0)), collectives.samples(counts.shape[0])
            self._sums[name] = so_far + total / samples, steps + firing.steps

    def connection(self, name: str, module: nn.Module, x: object, repeat: int) -> None:
        """Inputs do not matter."""

    def take(self) -> dict[str, Tensor]:
        """Rates [*shape] by layer, and forget them."""
        rates = {name: counts / steps for name, (counts, steps) in self._sums.items()}
        self._sums = {}
        return rates
