"""A trained network to use: feed it, look at its spikes, count its dead neurons."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from snnexp.analysis.activity import ActivityMeter, LayerActivity
from snnexp.config import Config, ImageDatasetConf
from snnexp.data.base import Batch, DataInfo, EventFrames
from snnexp.decoders import build_decoder
from snnexp.encoders import ConstantInput, Input, encode
from snnexp.errors import ConfigError
from snnexp.library.borrowed import borrowed_randomness
from snnexp.library.datasets import Data
from snnexp.models.network import Network, Output
from snnexp.models.observer import Firing
from snnexp.training.seeding import derive_seed, seed_everything


class Net(nn.Module):
    """A network with its encoder and decoder, as a run trained it. `snnexp.load` makes one, in evaluation mode.

    Attributes:
        network: the layers, a `torch.nn.Module`; `print(net)` shows them by the names that metrics use.
        config: the run's configuration as plain containers, without folders and addresses.
        facts: what the file says of the weights: role, epoch, identity, data_fingerprint, accuracy on validation.
        input_shape: [C, H, W] of one time step.  num_steps: T it was trained with.  class_names: of the outputs.
        path: where the weights were read from.
    """

    def __init__(
        self, conf: Config, network: Network, info: DataInfo, config: dict[str, Any], facts: dict[str, Any], path: Path
    ) -> None:
        super().__init__()
        self.network = network
        self.config, self.facts, self.path = config, facts, path
        self.input_shape, self.num_steps, self.class_names = info.shape, info.num_steps, info.class_names
        self._conf, self._info = conf, info
        self._decoder = build_decoder(conf.decoder, info.num_classes, info.num_steps)
        self.eval()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.network.parameters()).device

    def forward(self, x: Any, observer: Any = None) -> Output:
        """Run the network from rest.

        Args:
            x: one of
                images, uint8 [B, C, H, W] with values 0 to 255: they go through the run's encoder;
                input over time, float [T, B, C, H, W], or [T, B, N] with N = C H W; any T, any B;
                what `open_data` yields.
            observer: is told what each layer does (`snnexp.models.observer.Observer`).
        Returns: spikes and membranes (before the reset) of the output layer, `spk` and `mem`, each [T, B, classes].
        Raises: ConfigError if x has another shape or type.
        """
        output: Output = self.network(self._input(x), observer)
        return output

    @torch.no_grad()
    def scores(self, x: Any) -> Tensor:
        """Class scores [B, classes] of the run's decoder; larger is likelier. x as for `net(x)`."""
        output = self(x)
        return self._decoder.scores(output.spk, output.mem)

    @torch.no_grad()
    def predict(self, x: Any) -> Tensor:
        """Predicted classes, int64 [B]. x as for `net(x)`."""
        return self._decoder.predict(self.scores(x))

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
                seed_everything(derive_seed(self._conf.seed, split, int(self.facts.get("epoch", 0))))
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
        shapes = {name: layer.shape for name, layer in self.network.spiking_layers.items()}
        return {name: layer.dead.view(shapes[name]) for name, layer in self.activity(data).items()}

    def open_data(self, split: str = "test", root: str | Path | None = None) -> Data:
        """The run's own data, as it was split, encoded and batched there. See `snnexp.open_data`.

        Args:
            root: folder that holds the data sets' own folders; None: $SNNEXP_DATA, else ./data.
        """
        dataset = self._conf.dataset if root is None else replace(self._conf.dataset, root=str(root))
        return Data(replace(self._conf, dataset=dataset), split, self.device)

    def _input(self, given: Any) -> Input:
        if isinstance(given, ConstantInput | EventFrames):
            return given
        x: Tensor = torch.as_tensor(given).to(self.device)
        shape, kind = list(self.input_shape), self._info.kind
        if kind == "image" and x.dtype == torch.uint8 and list(x.shape[1:]) == shape:
            normalize = isinstance(self._conf.dataset, ImageDatasetConf) and self._conf.dataset.normalize
            return encode(x, self._conf.encoder, self._info, normalize)
        if x.is_floating_point() and x.dim() == 5 and list(x.shape[2:]) == shape:
            return x
        if x.is_floating_point() and x.dim() == 3 and x.shape[2] == prod(shape):
            return x.view(*x.shape[:2], *shape)
        images = f"images, uint8 [B, {', '.join(map(str, shape))}], or " if kind == "image" else ""
        raise ConfigError(
            f"net(x): x is {str(x.dtype).removeprefix('torch.')} {list(x.shape)}. It takes {images}input over time, "
            f"float [T, B, {', '.join(map(str, shape))}] or [T, B, {prod(shape)}]."
        )

    def extra_repr(self) -> str:
        return f"{self._conf.dataset.name}, {self._conf.neuron.name}, input {list(self.input_shape)}"


class _Recorder:
    """Observer that keeps every layer's spikes."""

    reads_spikes = True

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
