"""What reaches a network, measured on one batch before training, for initial weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from snnexp import ranks
from snnexp.data.base import EventFrames
from snnexp.experiment import Experiment
from snnexp.models.observer import Firing
from snnexp.training.seeding import derive_seed, seed_everything


@torch.no_grad()
def input_power(experiment: Experiment) -> float:
    """Mean of x^2 over the first training batch, its time steps and inputs; of spikes it is their rate."""
    seed_everything(derive_seed(experiment.conf.seed, "rescue", "input"))
    network = experiment.network
    training, meter = network.training, _Power()
    network.eval()
    with ranks.alone():
        experiment.forward(next(experiment.source.batches("train", 1, experiment.conf.seed)), meter)
    network.train(training)
    return meter.power


def normal(shape: torch.Size, sigma: float, seed: int, *purpose: object) -> Tensor:
    """Numbers of mean 0 and standard deviation sigma from the run's seed, for one purpose."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "rescue", *purpose))
    return sigma * torch.randn(shape, generator=generator)


class _Power:
    """Observer: the mean square of the first layer's input."""

    reads_spikes = reads_membranes = False

    def __init__(self) -> None:
        self.power = 0.0
        self._name: str | None = None
        self._rows = 0

    def spiking(self, name: str, layer: nn.Module, firing: Firing) -> None:
        """Spikes do not matter."""

    def connection(self, name: str, module: nn.Module, x: Tensor | EventFrames, repeat: int) -> None:
        """See the input; in segments of time, all of them."""
        self._name = self._name or name
        if name != self._name:
            return
        if isinstance(x, EventFrames):
            values = x.indices.new_ones(x.indices.shape) if x.values is None else x.values
            total, rows = float(values.double().square().sum()), x.num_steps * x.batch_size
            each = total / (rows * torch.Size(x.shape).numel())
        else:
            each, rows = float(x.double().square().mean()), x.shape[0] * repeat
        self.power = (self.power * self._rows + each * rows) / (self._rows + rows)
        self._rows += rows
