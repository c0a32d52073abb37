"""How much memory a training step takes, estimated before anything runs."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Protocol

import torch

from snnexp.models.segments import segment_lengths
from snnexp.models.spec import LayerPlan
from snnexp.neurons.equation import Pool
from snnexp.neurons.layer import SpikingLayer

UNCOPIED = ("flatten", "fork", "shortcut")  # layers that hand on what is there


class Estimated(Protocol):
    """What the estimate reads of a network."""

    layers: tuple[LayerPlan, ...]
    neurons: dict[str, SpikingLayer]
    input_shape: tuple[int, ...]
    num_steps: int
    checkpoint_steps: int | None
    channels_last: bool

    @property
    def wants_events(self) -> bool:
        """Whether the first layer takes event lists."""
        ...

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """All parameters."""
        ...

    def pool_after(self, index: int) -> Pool | None:
        """The pooling that the engine does as layer `index` fires."""
        ...


def step_memory_bytes(network: Estimated, batch_size: int) -> int:
    """Estimated memory of one training step in bytes, float32: what backward needs, parameters, Adam's state.

    Each layer keeps its output for all T steps, a spiking layer its membranes as well (but its spikes only after
    the pooling behind it where the engine pools as they fire); on top come the gradients of the two largest
    neighbours. Parameters count four times: value, gradient and two moments. In segments of time all this is there
    for the longest one; with it the states between segments, and a segment's gradient of the parameters besides
    their sum.
    """
    lengths = segment_lengths(network.num_steps, network.checkpoint_steps or network.num_steps)
    rows = max(lengths) * batch_size
    kept = [_values_kept(network, index, whole=len(lengths) == 1) for index in range(len(network.layers))]
    gradients = 2 * max(prod(layer.out_shape) for layer in network.layers if layer.kind not in UNCOPIED)
    lists = network.wants_events and network.layers[0].kind != "conv"  # which makes maps of lists that are long
    inputs = 0 if lists else prod(network.input_shape)
    parameters = sum(p.numel() for p in network.parameters())
    states = sum(neuron.states * prod(neuron.shape) for neuron in network.neurons.values())
    states += sum(_values_held_back(network, index) for index in range(len(network.layers)))
    between = (len(lengths) - 1) * batch_size * states
    copies = 4 if len(lengths) == 1 else 5
    input_rows = network.num_steps * batch_size
    return 4 * (rows * (sum(kept) + gradients) + input_rows * inputs + between + copies * parameters)


def _values_kept(network: Estimated, index: int, whole: bool) -> int:
    """Values that layer `index` keeps of a sample's time step until backward; whole: without segments of time."""
    layer = network.layers[index]
    if layer.kind != "spiking":
        return 0 if layer.kind in UNCOPIED else prod(layer.out_shape)
    pooled = False
    if whole and network.pool_after(index) is not None:
        maps = next(network.parameters()).new_empty(1, *layer.out_shape)
        maps = maps.contiguous(memory_format=torch.channels_last) if network.channels_last else maps
        pooled = network.neurons[layer.name].can_pool(maps.unsqueeze(0))
    return prod(layer.out_shape) * (1 if pooled else 2)


def _values_held_back(network: Estimated, index: int) -> int:
    """Values that layer `index` carries from one segment of time to the next, because they are still on their way."""
    layer = network.layers[index]
    if layer.kind == "recurrent" and "max" in layer.args:
        return (int(layer.args["max"]) + 1) * prod(layer.out_shape)
    return int(layer.args["max"]) * prod(layer.out_shape) if layer.kind == "delay" else 0
