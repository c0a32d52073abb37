"""Smooth random manifolds as spike times (Zenke and Vogels 2021, doi:10.1162/neco_a_01367): a generated data set.

Every class is a random surface of `manifold_dim` dimensions in the space of the units' firing times; a sample is a
point on it. Unit j fires at

    f_j(x) = prod_d sum_i i^-alpha a_dji sin(2 pi (i b_dji x_d + c_dji)),   x uniform in [0, 1)^manifold_dim

scaled per class and unit to the sample's duration, with a, b, c uniform in [0, 1) and i = 1 to ceil(1000^(1/alpha)), at
most 1000. `spikes_per_unit` independent surfaces give so many spikes. Every unit fires in every sample equally often:
only the times tell the classes apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from snnexp.config import EventDatasetConf, RandmanDatasetConf
from snnexp.data.readers.recordings import MICROSECONDS, Layout, Recording, order_events
from snnexp.errors import ConfigError

SMALLEST_AMPLITUDE = 1e-3  # of the highest frequency, as in the authors' code
MOST_FREQUENCIES = 1000


def manifold(
    points: NDArray[np.float64], num_units: int, alpha: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Firing times in [0, 1] of all units at the points [N, d] of one random surface: [N, num_units]."""
    frequencies = min(math.ceil(SMALLEST_AMPLITUDE ** (-1 / alpha)), MOST_FREQUENCIES)
    order = np.arange(1, frequencies + 1)
    times = np.ones((len(points), num_units))
    for dimension in range(points.shape[1]):
        amplitude, stretch, phase = rng.random((3, num_units, frequencies))
        for unit in range(num_units):
            angle = 2 * np.pi * (points[:, dimension, None] * (order * stretch[unit]) + phase[unit])
            times[:, unit] *= np.sin(angle) @ (amplitude[unit] * order**-alpha)
    low, high = times.min(axis=0), times.max(axis=0)
    scaled: NDArray[np.float64] = (times - low) / np.maximum(high - low, 1e-12)
    return scaled


@dataclass(frozen=True)
class RandmanReader:
    """Generated from the configuration alone."""

    conf: RandmanDatasetConf
    name: str = "randman"
    variant: str | None = None
    key: str = "randman"
    origin: str = "generated"
    official: dict[str, int] | None = None
    folder: Path | None = None
    files: tuple[Path, ...] = ()
    layout: Layout = MICROSECONDS
    notes: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        """One row of units."""
        return 1, 1, self.conf.num_units

    @property
    def class_names(self) -> tuple[str, ...]:
        """Numbers."""
        return tuple(str(label) for label in range(self.conf.num_classes))

    @property
    def total(self) -> int:
        """Number of samples."""
        return self.conf.num_classes * (self.conf.samples_per_class + self.conf.test_per_class)

    def recordings(self) -> Iterator[Recording]:
        """Yield the samples, class by class: `samples_per_class` for training, then `test_per_class` for test."""
        conf = self.conf
        duration_us = round(1000 * conf.duration_ms)
        per_class = conf.samples_per_class + conf.test_per_class
        units = np.tile(np.arange(conf.num_units), conf.spikes_per_unit)
        zeros = np.zeros_like(units)
        for label in range(conf.num_classes):
            rng = np.random.default_rng([conf.generator_seed, label])
            points = rng.random((per_class, conf.manifold_dim))
            surfaces = [manifold(points, conf.num_units, conf.alpha, rng) for _ in range(conf.spikes_per_unit)]
            times = np.floor(np.concatenate(surfaces, axis=1) * (duration_us - 1)).astype(np.int64)
            for number in range(per_class):
                part = "train" if number < conf.samples_per_class else "test"
                events = order_events(times[number], units, zeros, zeros, self.shape)
                yield Recording.of(events, f"{label}/{number}", part, label)


def open_reader(conf: EventDatasetConf) -> RandmanReader:
    """Take the generator's parameters from the configuration."""
    if not isinstance(conf, RandmanDatasetConf):
        raise ConfigError("dataset=randman needs the keys of its own schema: start from conf/dataset/randman.yaml.")
    return RandmanReader(conf)
