"""A network from a NIR file, with what one can see of any network's spikes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from snnexp.errors import ConfigError
from snnexp.exchange.nir_reading import NirNetwork
from snnexp.library.watched import Watched
from snnexp.models.network import Output
from snnexp.neurons.layer import SpikingLayer


class NirNet(Watched):
    """What `snnexp.read_nir("net.nir")` makes: `net(x)`, `spikes`, `activity`, `dead_neurons` as of a `Net`.

    NIR says nothing of encoders, decoders and data, so x is input over time and what comes back is spikes.

    Attributes:
        network: the graph, built.  input_shape: of one time step.  facts: what snnexp wrote about the run, if it did.
    """

    network: NirNetwork

    def __init__(self, network: NirNetwork, metadata: dict[str, Any], path: Path) -> None:
        super().__init__()
        self.network, self.path, self.input_shape = network, path, network.input_shape
        said = metadata.get("snnexp")
        self.facts: dict[str, Any] = json.loads(said) if isinstance(said, str) else {}
        self.eval()

    @property
    def spiking_layers(self) -> dict[str, SpikingLayer]:
        """The layers that spike, by node name from input to output."""
        return self.network.spiking_layers

    def forward(self, x: Any, observer: Any = None) -> Output:
        """Run x, float [T, B, *input_shape], from rest; spikes and membranes of the output, [T, B, ...] each.

        Raises: ConfigError if x has another shape or type.
        """
        x = torch.as_tensor(x)
        if not (x.is_floating_point() and tuple(x.shape[2:]) == self.input_shape and x.dim() > 2):
            shape = ", ".join(map(str, self.input_shape))
            raise ConfigError(f"net(x): x is {x.dtype} {list(x.shape)}. It takes float [T, B, {shape}].")
        output: Output = self.network(x, observer)
        return output
