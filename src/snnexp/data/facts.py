"""Published facts of every data set, known without touching a file: shapes, classes, official counts, sources.

Nothing here imports torch or numpy, so configuration checks and `--help` may use it.
"""

from __future__ import annotations

from dataclasses import dataclass

from snnexp.config import DatasetConf, EventDatasetConf, MotionDatasetConf, RandmanDatasetConf


@dataclass(frozen=True)
class Facts:
    """`shape` is [C, H, W] of one sample at one time step before crop and down-sampling; `kind` is image or events."""

    kind: str
    shape: tuple[int, int, int]
    num_classes: int
    train: int  # samples of the official training part (0: generated, depends on the configuration)
    test: int


FACTS: dict[str, Facts] = {
    "digits": Facts("image", (1, 8, 8), 10, 1437, 360),
    "mnist": Facts("image", (1, 28, 28), 10, 60_000, 10_000),
    "fashion_mnist": Facts("image", (1, 28, 28), 10, 60_000, 10_000),
    "cifar10": Facts("image", (3, 32, 32), 10, 50_000, 10_000),
    "nmnist": Facts("events", (2, 34, 34), 10, 60_000, 10_000),
    "dvs128": Facts("events", (2, 128, 128), 11, 1176, 288),  # variants: registry of data/dvs128.py
    "shd": Facts("events", (1, 1, 700), 20, 8156, 2264),
    "ssc": Facts("events", (1, 1, 700), 35, 75_466, 20_382),
    "cifar10dvs": Facts("events", (2, 128, 128), 10, 9000, 1000),
    "randman": Facts("events", (1, 1, 0), 0, 0, 0),  # units and classes come from the configuration
    "motion": Facts("events", (2, 0, 0), 11, 0, 0),
}


def num_classes(conf: DatasetConf) -> int:
    """Number of classes that the data set of this configuration has."""
    return conf.num_classes if isinstance(conf, RandmanDatasetConf) else FACTS[conf.name].num_classes


def frame_shape(conf: DatasetConf) -> tuple[int, int, int]:
    """[C, H, W] of one time step as the network sees it: after polarity merging, crop and down-sampling."""
    channels, height, width = FACTS[conf.name].shape
    if isinstance(conf, RandmanDatasetConf):
        width = conf.num_units
    elif isinstance(conf, MotionDatasetConf):
        height = width = conf.size
    if isinstance(conf, EventDatasetConf):
        if conf.polarity != "both":
            channels = 1
        if conf.crop is not None:
            height, width = min(height, conf.crop), min(width, conf.crop)
        # ceil: the last, incomplete cell keeps its events
        height, width = -(-height // conf.downsample), -(-width // conf.downsample)
    return channels, height, width
