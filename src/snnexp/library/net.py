"""A trained network to use: feed it, look at its spikes, count its dead neurons."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snnexp.config import Config, ImageDatasetConf
from snnexp.data.base import DataInfo, EventFrames
from snnexp.decoders import build_decoder
from snnexp.encoders import ConstantInput, Encoder, Input
from snnexp.errors import ConfigError
from snnexp.library.datasets import Data
from snnexp.library.watched import Watched
from snnexp.models.network import Network, Output
from snnexp.neurons.layer import SpikingLayer


class Net(Watched):
    """A network with its encoder and decoder, as a run trained it. `snnexp.load` makes one, in evaluation mode.

    Attributes:
        network: the layers, a `torch.nn.Module`; `print(net)` shows them by the names that metrics use.
        config: the run's configuration as plain containers, without folders and addresses.
        facts: what the file says of the weights: role, epoch, identity, data_fingerprint, accuracy on validation.
        input_shape: [C, H, W] of one time step.  num_steps: T it was trained with.  class_names: of the outputs.
        path: where the weights were read from.
    """

    network: Network

    def __init__(
        self, conf: Config, network: Network, info: DataInfo, config: dict[str, Any], facts: dict[str, Any], path: Path
    ) -> None:
        super().__init__()
        self.network = network
        self.config, self.facts, self.path = config, facts, path
        self.input_shape, self.num_steps, self.class_names = info.shape, info.num_steps, info.class_names
        self._conf, self._info = conf, info
        self.seed, self.epoch = conf.seed, int(facts.get("epoch", 0))
        normalize = isinstance(conf.dataset, ImageDatasetConf) and conf.dataset.normalize
        self._encoder = Encoder(conf.encoder, info, normalize)
        self._decoder = build_decoder(conf.decoder, info.num_classes, info.num_steps)
        self.eval()

    @property
    def spiking_layers(self) -> dict[str, SpikingLayer]:
        """The layers that spike, by name from input to output."""
        return self.network.spiking_layers

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
            return self._encoder(x)
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
        return f"{self._conf.dataset.name}, {self._conf.neuron.called}, input {list(self.input_shape)}"
