"""`motion`: a generated event-camera set of DVS128 Gesture's size, where the order in time decides the class.

    0-7   a bright bar sweeps the field in direction 0, 45, ... 315 degrees (counter-clockwise from right)
    8, 9  an arm turns clockwise, counter-clockwise
    10    a bar swings to and fro in one of the eight directions

The bar's leading edge gives on events, its trailing edge off events, and `noise` of the events lie anywhere. A bar
crosses the field a whole number of times from a random start, so that opposite directions have the same picture when
summed over time: only the order tells them apart. Speed, start, width and the arm's centre differ between samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from snnexp.config import EventDatasetConf, MotionDatasetConf
from snnexp.data.readers.recordings import MICROSECONDS, Layout, Recording, order_events
from snnexp.errors import ConfigError

DIRECTIONS = 8
CLASS_NAMES = (
    *(f"bar {45 * k} degrees" for k in range(DIRECTIONS)),
    "arm clockwise",
    "arm counter-clockwise",
    "bar to and fro",
)
GENERATOR_KEYS = ("size", "duration_ms", "event_rate", "noise", "train_per_class", "test_per_class", "generator_seed")
GENERATOR_VERSION = 1  # part of the store's name: change it when the same parameters give other events

ARMS = (DIRECTIONS, DIRECTIONS + 1)
Column = NDArray[np.float64]
Columns = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


def generate(label: int, size: int, duration_us: int, events: int, noise: float, rng: np.random.Generator) -> Columns:
    """Time, x, y and polarity of one sample with exactly so many events; y grows downwards, so angles are mirrored."""
    # half of a bar's events lie in the field, nearly all of an arm's; the first `events` that do are taken
    phase = rng.random(int(events * (1.2 if label in ARMS else 2.2)) + 64)
    on = rng.random(len(phase)) < 0.5
    x, y = _arm(label, size, phase, on, rng) if label in ARMS else _bar(label, size, phase, on, rng)
    stray = rng.random(len(phase)) < noise
    x = np.where(stray, rng.uniform(0, size, len(phase)), x)
    y = np.where(stray, rng.uniform(0, size, len(phase)), y)
    visible = np.flatnonzero((x >= 0) & (x < size) & (y >= 0) & (y < size))[:events]
    chosen = visible[np.argsort(phase[visible], kind="stable")]
    t = (phase[chosen] * duration_us).astype(np.int64)
    return t, x[chosen].astype(np.int64), y[chosen].astype(np.int64), on[chosen].astype(np.int64)


def _arm(
    label: int, size: int, phase: Column, on: NDArray[np.bool_], rng: np.random.Generator
) -> tuple[Column, Column]:
    """Where events lie on an arm that turns about a point near the centre, 1 to 3 times."""
    turn = -1 if label == ARMS[0] else 1
    width = rng.uniform(0.1, 0.4)  # radians between the arm's edges
    turns, start = rng.integers(1, 4), rng.random()
    angle = 2 * np.pi * (start + turn * turns * phase) + np.where(on, turn * width / 2, -turn * width / 2)
    radius = size * rng.uniform(0.3, 0.45) * np.sqrt(rng.random(len(phase)))
    centre_x, centre_y = size / 2 + rng.uniform(-0.08, 0.08, 2) * size
    return centre_x + radius * np.cos(angle), centre_y - radius * np.sin(angle)


def _bar(
    label: int, size: int, phase: Column, on: NDArray[np.bool_], rng: np.random.Generator
) -> tuple[Column, Column]:
    """Where events lie on a bar that crosses the field 1 to 3 times, one way or to and fro."""
    swings = label >= DIRECTIONS
    direction = int(rng.integers(DIRECTIONS)) if swings else label
    travelled = rng.random() + rng.integers(1, 4) * phase
    forward = np.ones(len(phase))
    if swings:  # a triangle wave
        forward = np.where(travelled % 1.0 < 0.5, 1.0, -1.0)
        travelled = 1.0 - np.abs(2.0 * (travelled % 1.0) - 1.0)
    width = rng.uniform(0.03, 0.1)  # of the way, between the bar's edges
    edge = travelled + forward * np.where(on, width / 2, -width / 2)
    half = size * np.sqrt(0.5)  # half of the field's diagonal
    along = (2 * (edge if swings else edge % 1.0) - 1) * half
    across = rng.uniform(-half, half, len(phase))
    angle = np.pi / 4 * direction
    x = size / 2 + along * np.cos(angle) - across * np.sin(angle)
    y = size / 2 - along * np.sin(angle) - across * np.cos(angle)
    return x, y


@dataclass(frozen=True)
class MotionReader:
    """Generated from the configuration alone; packed once, like recorded data, because it may be large."""

    conf: MotionDatasetConf
    name: str = "motion"
    variant: str | None = None
    class_names: tuple[str, ...] = CLASS_NAMES
    origin: str = "generated"
    official: dict[str, int] | None = None
    folder: Path | None = None
    files: tuple[Path, ...] = ()
    layout: Layout = MICROSECONDS
    notes: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Folder in the store: one for each choice of the generator's parameters."""
        values = asdict(self.conf)
        text = repr([GENERATOR_VERSION, *(values[key] for key in GENERATOR_KEYS)])
        return f"motion-{hashlib.sha256(text.encode()).hexdigest()[:10]}"

    @property
    def shape(self) -> tuple[int, int, int]:
        """A square sensor with both polarities."""
        return 2, self.conf.size, self.conf.size

    @property
    def total(self) -> int:
        """Number of samples."""
        return len(CLASS_NAMES) * (self.conf.train_per_class + self.conf.test_per_class)

    def recordings(self) -> Iterator[Recording]:
        """Yield the samples; each depends on (generator_seed, part, class, number) alone."""
        conf = self.conf
        duration_us = round(1000 * conf.duration_ms)
        events = max(1, round(conf.event_rate * conf.duration_ms))  # thousand per second times milliseconds
        for code, (part, count) in enumerate((("train", conf.train_per_class), ("test", conf.test_per_class))):
            for label in range(len(CLASS_NAMES)):
                for number in range(count):
                    rng = np.random.default_rng([conf.generator_seed, code, label, number])
                    columns = generate(label, conf.size, duration_us, events, conf.noise, rng)
                    made = order_events(*columns, self.shape)
                    yield Recording.of(made, f"{part}/{label}/{number}", part, label)


def open_reader(conf: EventDatasetConf) -> MotionReader:
    """Take the generator's parameters from the configuration."""
    if not isinstance(conf, MotionDatasetConf):
        raise ConfigError("dataset=motion needs the keys of its own schema: start from conf/dataset/motion.yaml.")
    return MotionReader(conf)
