"""What one can see of any network's spikes: all of them, rates, dead neurons."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from snnexp.analysis.activity import ActivityMeter, LayerActivity
from snnexp.data.base import Batch
from snnexp.errors import ConfigError
from snnexp.library.borrowed import borrowed_randomness
from snnexp.library.datasets import Data
from snnexp.models.observer import Firing
from snnexp.neurons.layer import SpikingLayer
from snnexp.training.seeding import derive_seed, seed_everything


class Watched(nn.Module):
    """A network whose forward takes (x, observer)."""

    network: nn.Module
    seed: int = 0  # of random encoders, together with `epoch`
    epoch: int = 0

    @property
    def spiking_layers(self) -> dict[str, SpikingLayer]:
        """The layers that spike, by name from input to output."""
        raise NotImplementedError

    @torch.no_grad()
    def spikes(self, x: Any) -> dict[str, Tensor]:
        """Spikes of every spiking layer, by name from input to output: 0 or 1, [T, B, *shape]. x as for `net(x)`."""
        recorder = _Recorder()
        self(x, recorder)
        return {name: torch.cat(parts) for name, parts in recorder.spikes.items()}

    @torch.no_grad()
    def activity(self, data: Iterable[Any]) -> dict[str, LayerActivity]:
        """What every spiking layer did over all of `data`, in evaluation mode.

        Args:
            data: `open_data(...)`, a DataLoader, or any iterable of batches: (x, labels) or x, each as for `net(x)`.
        Returns: by layer, rates per neuron (flat), `dead`, `saturated`, `dead_fraction`, `firing_rate`, ...
        """
        meter, was_training = ActivityMeter(self.network), self.training
        batches = data.as_stored() if isinstance(data, Data) else data
        split = data.split if isinstance(data, Data) else "test"
        self.eval()
        try:
            with borrowed_randomness():  # a random encoder draws what it drew when the run was tested
                seed_everything(derive_seed(self.seed, split, self.epoch))
                for batch in batches:
                    self(_frames(batch), meter)
        finally:
            self.train(was_training)
        meter.metrics("test")
        if not meter.last:
            raise ConfigError("data: it has no batches, so nothing can be said about neurons.")
        return meter.last

    def dead_neurons(self, data: Iterable[Any]) -> dict[str, Tensor]:
        """Which neurons emit no spike over all of `data`.

        Args:
            data: as for `activity`. Dead says something about neurons and samples together.
        Returns: by layer a bool tensor of the layer's shape, [C, H, W] or [N].
        """
        shapes = {name: layer.shape for name, layer in self.spiking_layers.items()}
        return {name: layer.dead.view(shapes[name]) for name, layer in self.activity(data).items()}


class _Recorder:
    """Observer that keeps every layer's spikes."""

    reads_spikes, reads_membranes = True, False

    def __init__(self) -> None:
        self.spikes: dict[str, list[Tensor]] = {}

    def spiking(self, name: str, layer: nn.Module, firing: Firing) -> None:
        assert firing.spk is not None  # asked for
        self.spikes.setdefault(name, []).append(firing.spk.detach().clone())

    def connection(self, name: str, module: nn.Module, x: Any, repeat: int) -> None:
        pass


def _frames(batch: Any) -> Any:
    if isinstance(batch, Batch):
        return batch.frames
    return batch[0] if isinstance(batch, tuple | list) else batch
