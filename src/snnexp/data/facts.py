"""Published facts of every data set, known without touching a file: shapes, classes, official counts, sources.

Nothing here imports torch or numpy, so configuration checks and `--help` may use it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

from snnexp.config import (
    DatasetConf,
    EventDatasetConf,
    FolderDatasetConf,
    MotionDatasetConf,
    RandmanDatasetConf,
)
from snnexp.errors import unknown_choice


@dataclass(frozen=True)
class Facts:
    """`shape` is [C, H, W] of one sample at one time step before crop and down-sampling; `kind` is image or events."""

    kind: str
    shape: tuple[int, int, int]
    num_classes: int
    train: int  # samples of the official training part (0: generated, depends on the configuration)
    test: int
    variants: tuple[str, ...] = ()  # choices of dataset.variant
    splits: tuple[str, ...] = ()  # choices of dataset.split
    own_validation: bool = False  # whether the set comes with a validation part


FACTS: dict[str, Facts] = {
    "digits": Facts("image", (1, 8, 8), 10, 1437, 360),
    "mnist": Facts("image", (1, 28, 28), 10, 60_000, 10_000),
    "fashion_mnist": Facts("image", (1, 28, 28), 10, 60_000, 10_000),
    "cifar10": Facts("image", (3, 32, 32), 10, 50_000, 10_000),
    "nmnist": Facts("events", (2, 34, 34), 10, 60_000, 10_000),
    "dvs128": Facts("events", (2, 128, 128), 11, 1176, 288, variants=("tonic", "trials")),
    "shd": Facts("events", (1, 1, 700), 20, 8156, 2264),
    "ssc": Facts("events", (1, 1, 700), 35, 75_466, 20_382, own_validation=True),
    "cifar10dvs": Facts(
        "events",
        (2, 128, 128),
        10,
        9000,
        1000,
        variants=("aedat4", "aedat"),
        splits=("plif", "random", "spikingjelly"),
    ),
    "randman": Facts("events", (1, 1, 0), 0, 0, 0),  # units and classes come from the configuration
    "motion": Facts("events", (2, 0, 0), 11, 0, 0),
    # of these, the files tell shape and classes: `shapes.py`
    "folder": Facts("events", (0, 0, 0), 0, 0, 0),
    "own": Facts("events", (0, 0, 0), 0, 0, 0),
    "tonic": Facts("events", (0, 0, 0), 0, 0, 0),
    "images": Facts("image", (0, 0, 0), 0, 0, 0),
}


def unread_keys(conf: DatasetConf) -> list[str]:
    """One message for each key that was given a value, but that this data set never reads.

    A key of the schema that has its default value is not looked at: nobody can tell whether it was typed.
    """
    facts = FACTS[conf.name]
    unread = dict(_unread(conf, facts))
    errors = []
    if unread:
        never = {"name", *unread} | {
            key for key, read in (("variant", facts.variants), ("split", facts.splits)) if not read
        }
        valid = ", ".join(sorted(f.name for f in fields(conf) if f.name not in never))
        errors = [
            f"dataset.{key}={value}: dataset={conf.name} never reads this key: {why}. Leave it out; it reads {valid}."
            for key, (value, why) in unread.items()
        ]
    for key, choices in (("variant", facts.variants), ("split", facts.splits)):
        value = getattr(conf, key, None)
        if choices and value is not None and value not in choices:
            errors.append(unknown_choice(f"dataset.{key}", value, choices))
    return errors


def _unread(conf: DatasetConf, facts: Facts) -> Iterator[tuple[str, tuple[object, str]]]:
    augment = conf.augment
    if facts.own_validation and conf.val_fraction != DatasetConf.val_fraction:
        yield "val_fraction", (conf.val_fraction, "it comes with a validation part")
    if isinstance(conf, EventDatasetConf):
        generated = isinstance(conf, RandmanDatasetConf | MotionDatasetConf)
        if conf.variant is not None and not facts.variants:
            yield "variant", (conf.variant, "it has no variants")
        if conf.split is not None and not facts.splits:
            yield "split", (conf.split, "it has an official split")
        if generated and conf.window_ms is not None:
            yield "window_ms", (conf.window_ms, "it is generated; how long its samples are, dataset.duration_ms says")
        if isinstance(conf, FolderDatasetConf) and not conf.keep_archives:
            yield "keep_archives", ("false", "nothing is fetched for it")
        if generated and not conf.keep_archives:
            yield "keep_archives", ("false", "it is generated")
        if isinstance(conf, RandmanDatasetConf) and conf.store is not None:
            yield "store", (conf.store, "it is made in memory")
        if augment.crop_padding:
            yield (
                "augment.crop_padding",
                (augment.crop_padding, "it is for images; for events use dataset.augment.shift"),
            )
        if augment.flip_polarity and facts.shape[0] == 1:
            yield "augment.flip_polarity", (augment.flip_polarity, "its events have no polarity")
        return
    for key in ("drop_events", "jitter_ms", "flip_polarity"):
        if getattr(augment, key):
            yield f"augment.{key}", (getattr(augment, key), "it is for events")
