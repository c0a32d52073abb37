"""What the data path hands to the rest of the program: batches, their sizes, and what is known about the splits.

Time comes first: an event batch is [T, B, C, H, W], or the same thing as event lists (`EventFrames`). An image batch is
[B, C, H, W] uint8 and becomes [T, B, C, H, W] in `encoders.py`, on the device.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from snnexp.ranks import Rows


@dataclass(frozen=True)
class EventFrames:
    """Binned events of a batch as lists instead of a dense tensor: rows are (t, b), t-major, as in [T*B, C*H*W].

    Row r = t*B + b holds `indices[offsets[r]:offsets[r+1]]`, flat positions in [C, H, W], each once, in rising order,
    with `values` (events in that bin; None means 1 each). `offsets` has T*B + 1 entries.
    """

    indices: Tensor  # int32 [nnz]
    offsets: Tensor  # int64 [T*B + 1]
    values: Tensor | None  # float32 [nnz]
    num_steps: int
    batch_size: int
    shape: tuple[int, int, int]  # C, H, W

    @property
    def density(self) -> float:
        """Share of non-zero entries of the dense tensor, 0 to 1."""
        positions = self.num_steps * self.batch_size * self.shape[0] * self.shape[1] * self.shape[2]
        return self.indices.numel() / max(positions, 1)

    def to(self, device: torch.device) -> EventFrames:
        """The same lists on `device`."""
        values = None if self.values is None else self.values.to(device, non_blocking=True)
        indices = self.indices.to(device, non_blocking=True)
        offsets = self.offsets.to(device, non_blocking=True)
        return EventFrames(indices, offsets, values, self.num_steps, self.batch_size, self.shape)

    def to_dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The dense tensor, [T, B, C, H, W]."""
        rows, features = self.num_steps * self.batch_size, self.shape[0] * self.shape[1] * self.shape[2]
        dense = torch.zeros(rows * features, dtype=dtype, device=self.indices.device)
        row = torch.repeat_interleave(torch.arange(rows, device=dense.device), self.offsets.diff())
        values = torch.ones_like(self.indices, dtype=dtype) if self.values is None else self.values.to(dtype)
        dense[row * features + self.indices.long()] = values
        return dense.view(self.num_steps, self.batch_size, *self.shape)


@dataclass(frozen=True)
class Batch:
    """One batch on the device: `frames` is uint8 [B, C, H, W] for images, else [T, B, C, H, W] or `EventFrames`.

    Where several processes share it, frames are of this one's rows, and labels of all.
    """

    frames: Tensor | EventFrames
    labels: Tensor  # int64 [B]
    rows: Rows | None = None  # which frames these are; None: all


# What a network is built from and fed with; see `DataInfo.as_input`.
INPUT = ("name", "kind", "shape", "num_steps", "class_names", "channel_mean", "channel_std")


@dataclass(frozen=True)
class DataInfo:
    """What is known about the loaded data; all of it goes into the run's record."""

    name: str
    kind: str  # image or events
    shape: tuple[int, int, int]  # C, H, W as the network sees them, after crop and down-sampling
    num_steps: int
    class_names: tuple[str, ...]
    counts: dict[str, int]  # samples per split: train, val, test
    class_counts: dict[str, list[int]]  # samples per split and class
    complete: bool  # whether the official training and test parts are there in full
    split_hash: str  # of the sample identities of the three splits, in order
    variant: str | None = None
    source: str = ""  # where the data comes from: an address, or "generated"
    channel_mean: tuple[float, ...] | None = None  # images: of the training split, 0..1 scale
    channel_std: tuple[float, ...] | None = None
    max_batch_bytes: int = 0  # estimated host memory that the loader needs for one batch
    notes: tuple[str, ...] = field(default_factory=tuple)  # e.g. "3 events with non-finite times dropped"
    data_fingerprint: str = ""  # of the contents and labels of the three splits, in order; empty: not known
    empty_samples: dict[str, int] = field(default_factory=dict)  # per split: samples that give no input at all
    events: int = 0  # event sets: events in the raw files, in all parts
    dropped_events: dict[str, int] = field(default_factory=dict)  # reason -> how many of them could not be used
    understood: tuple[str, ...] = ()  # a user's own files: what their columns were taken for, and why
    reach: float = 1.0  # event sets: share of the packed events that lies in the time window and the crop (train)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def as_input(self) -> dict[str, Any]:
        """What a network has to know of its data to be built and fed, in plain values: it travels with the weights."""
        return {key: getattr(self, key) for key in INPUT}

    @classmethod
    def from_input(cls, described: Mapping[str, Any]) -> DataInfo:
        """Data that are not here, from what `as_input` said.

        Raises: KeyError, TypeError, ValueError if it is damaged.
        """
        values = {key: described[key] for key in INPUT}
        values["shape"] = tuple(int(n) for n in values["shape"])
        if len(values["shape"]) != 3 or values["kind"] not in ("image", "events"):
            raise ValueError(f"shape {described['shape']}, kind {described['kind']}")
        values["num_steps"] = int(values["num_steps"])
        values["class_names"] = tuple(map(str, values["class_names"]))
        for key in ("channel_mean", "channel_std"):
            values[key] = None if values[key] is None else tuple(map(float, values[key]))
        return cls(**values, counts={}, class_counts={}, complete=False, split_hash="")


class DataSource(Protocol):
    """A data set, split and ready: what `open_data(conf, device)` returns."""

    info: DataInfo

    def batches(self, split: str, epoch: int = 0, seed: int = 0, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of `split` (train, val, test) on the device, without the first `start`.

        Training batches are shuffled and augmented by a generator that depends on (seed, epoch) alone, so any epoch can
        be repeated exactly, from any batch on; the last, smaller batch is kept. Other splits come in fixed order
        without augmentation.
        """
        ...

    def num_batches(self, split: str) -> int:
        """Number of batches that `batches(split)` yields."""
        ...
