"""Small networks and inputs for these tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from snnexp.config import DecoderConf, ModelConf, NeuronConf
from snnexp.data.base import DataInfo, EventFrames
from snnexp.models.network import Network, build_network


def make_info(
    shape: tuple[int, int, int] = (2, 8, 8), classes: int = 10, steps: int = 4, kind: str = "events"
) -> DataInfo:
    names = tuple(str(n) for n in range(classes))
    return DataInfo("made", kind, shape, steps, names, {}, {}, complete=True, split_hash="")


def make_network(
    spec: str, info: DataInfo, *, decoder: DecoderConf | None = None, build: dict[str, Any] | None = None, **model: Any
) -> Network:
    """Neurons with beta 0.5 and threshold 0.2 on the reference engine, seed 0."""
    torch.manual_seed(0)
    neuron = model.pop("neuron", None) or NeuronConf(name="fixed", beta=0.5, threshold=0.2, engine="reference")
    conf = ModelConf(name="made", spec=spec, **model)
    return build_network(conf, neuron, decoder or DecoderConf(name="rate"), info, **(build or {}))


def make_spikes(info: DataInfo, batch: int = 3, share: float = 0.3, seed: int = 1) -> Tensor:
    """Random 0/1 input [T, B, C, H, W]."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(info.num_steps, batch, *info.shape, generator=generator) < share).float()


def as_events(frames: Tensor, *, values: bool = True) -> EventFrames:
    """The event lists of a dense input [T, B, C, H, W]."""
    steps, batch = frames.shape[:2]
    flat = frames.flatten(2).flatten(0, 1)
    where = flat.nonzero()
    offsets = torch.zeros(steps * batch + 1, dtype=torch.int64)
    offsets[1:] = torch.bincount(where[:, 0], minlength=steps * batch).cumsum(0)
    counts = flat[where[:, 0], where[:, 1]] if values else None
    channels, height, width = frames.shape[2:]
    return EventFrames(where[:, 1].int(), offsets, counts, steps, batch, (channels, height, width))
