"""The data sets of the configuration, as batches to loop over."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from snnexp.config import Config
from snnexp.data import open_data as open_source
from snnexp.data.base import Batch, DataInfo, EventFrames
from snnexp.errors import ConfigError, unknown_choice
from snnexp.experiment import choose_device, fitting_batches
from snnexp.library.borrowed import borrowed_hydra
from snnexp.library.composing import as_overrides, composed

SPLITS = ("train", "val", "test")


class Data:
    """One split of a data set: `for x, labels in data`. What `open_data` and `net.open_data` return.

    x is uint8 [B, C, H, W] for images (a network's encoder makes input over time of them), and float
    [T, B, C, H, W], binned, for events; labels are int64 [B]. `len(data)` is the number of batches.

    Attributes:
        split: train, val or test.
        info: what is known about the set: `shape`, `num_steps`, `class_names`, `counts`, `data_fingerprint`, ...
    """

    def __init__(self, conf: Config, split: str, device: torch.device) -> None:
        if split not in SPLITS:
            raise ConfigError(unknown_choice("split", split, SPLITS))
        self.split = split
        self._seed = conf.seed
        self._source = open_source(fitting_batches(conf), device)
        self.info: DataInfo = self._source.info

    def __len__(self) -> int:
        return self._source.num_batches(self.split)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.epoch(0)

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch. The train split is shuffled and augmented anew in each, by (seed, number) alone."""
        for batch in self.as_stored(number):
            frames = batch.frames
            yield frames.to_dense() if isinstance(frames, EventFrames) else frames, batch.labels

    def as_stored(self, number: int = 0) -> Iterator[Batch]:
        """The same as the run's own batches, which may be lists of events instead of dense frames."""
        return self._source.batches(self.split, number, self._seed)

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.info.shape))
        samples = self.info.counts.get(self.split, 0)
        return f"Data({self.info.name}, {self.split}: {samples:,} samples of {shape}, {len(self):,} batches)"


def open_data(
    what: str | Sequence[str], split: str = "train", *, device: str = "cpu", config_dir: str | Path | None = None
) -> Data:
    """Open a data set by name, or by overrides as on the command line.

        open_data("digits")    open_data(["dataset=nmnist", "dataset.num_steps=20", "dataset.root=/data"], "test")

    Args:
        what: the option of `dataset`, or a list of overrides.
        split: train, val or test.
        device: where the batches lie: auto, cpu or cuda.
        config_dir: a folder of configuration files of your own, as --config-dir.
    Raises: ConfigError for a wrong name or key; DataError if files are missing or damaged.
    """
    with borrowed_hydra():
        conf, _ = composed(as_overrides(what, "dataset"), config_dir)
        return Data(conf, split, choose_device(device))
