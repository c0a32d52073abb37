"""Keys of the group `dataset`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from snnexp.schema.fields import AnyNames, choice, number


@dataclass
class AugmentConf:
    """Random changes of training batches only; seeded by (seed, epoch). Zero or false is off."""

    shift: int = number(0, low=0)  # pixels, each axis, uniform in -shift..shift
    rotate: float = number(0.0, low=0)  # degrees, uniform in -rotate..rotate
    flip: bool = False  # mirror left to right, with probability 1/2
    drop_events: float = number(0.0, low=0, below=1)  # events only: share of events dropped
    jitter_ms: float = number(0.0, low=0)  # events only: standard deviation of a Gaussian added to the times
    flip_polarity: float = number(0.0, low=0, high=1)  # events only: probability that a sample's polarities are swapped
    crop_padding: int = number(0, low=0)  # images only: pad by this much, then crop at random to the old size


@dataclass
class DatasetConf:
    """What every data set has."""

    name: str = MISSING
    root: str = "${oc.env:SNNEXP_DATA,./data}"  # folder that holds the data sets' own folders
    num_steps: int = number(10, low=1)  # T, time steps the network sees
    batch_size: int = number(32, low=1)
    eval_batch_size: int | None = number(None, low=1)  # null: batch_size
    val_fraction: float = number(0.1, low=0, below=1)  # share of the official training part held out for validation
    split_seed: int = number(0, low=0)  # the split does not depend on `seed`, so that seeds stay comparable
    limit_train: int | None = number(None, low=1)
    limit_val: int | None = number(None, low=1)
    limit_test: int | None = number(None, low=1)
    download: bool = True  # fetch missing files on first use
    augment: AugmentConf = field(default_factory=AugmentConf)


@dataclass
class ImageDatasetConf(DatasetConf):
    """Static images, kept as uint8 in memory and encoded on the device."""

    normalize: bool = False  # subtract the mean and divide by the standard deviation of the training set, per channel


@dataclass
class EventDatasetConf(DatasetConf):
    """Event recordings, read from the packed store and binned a batch at a time."""

    bin_by: str = choice("time", "time", "count", "width")  # equal durations, equal event counts, fixed width bin_ms
    bin_ms: float | None = number(None, above=0)  # bin width for bin_by=width
    value: str = choice("count", "count", "binary")  # events per bin, or 1 if any
    polarity: str = choice("both", "both", "merge", "difference")  # channels: on and off, their sum, on minus off
    downsample: int = number(1, low=1)  # space: divide coordinates by this
    crop: int | None = number(None, low=1)  # centre crop to crop x crop pixels, before down-sampling
    sparse: str = choice("auto", "auto", "always", "never")  # hand event lists to an event-driven first layer
    store: str | None = None  # folder of the packed event store; null: <root>/event-store
    variant: str | None = None  # which public variant of the data set; null: whichever is found
    split: str | None = None  # which published split, for sets without an official one (cifar10dvs)
    keep_archives: bool = True  # false: delete downloaded archives once they are extracted
    transforms: list[str] = field(default_factory=list)  # names of tonic transforms, applied once when packing
    window_ms: float | None = number(None, above=0)  # cut recordings into windows of this length; null: whole ones
    stride_ms: float | None = number(None, above=0)  # from the start of one window to that of the next; null: window_ms


@dataclass
class FolderDatasetConf(EventDatasetConf):
    """Recordings of your own: a folder per class, in train/, val/ and test/ or in one folder that is split."""

    path: str | None = None  # the folder
    columns: Any = None  # what the columns are: xytp, or {t: NAME, x: NAME, ...}; null: by their names
    time_unit: str | None = None  # us, ms, s or ns; null: as the file says
    sensor_size: Any = None  # width x height, as 128x128, or the number of channels of one row; null: as the file says
    time_origin: str = choice("first_event", "first_event", "zero")  # what times count from: the first event, or 0
    sort_events: bool = False  # true: events may be out of order in the files
    test_fraction: float = number(0.2, above=0, below=1)  # where there is no test/: share of each class for test


class TonicDatasetConf(AnyNames, EventDatasetConf):
    """A data set of tonic's by the name of its class, read by tonic's own loader.

    Its key `class` is a word that Python reserves, so the field cannot be written like the others.
    """

    path: str | None = None  # folder that holds the class's own folder; null: dataset.root
    kwargs: dict[str, Any] = field(default_factory=dict)  # further arguments of the class
    sensor_size: Any = None  # width x height, for sets whose recordings differ in size; null: as the class says
    test_fraction: float = number(0.2, above=0, below=1)  # where the set has no test part: share of each class for test


TonicDatasetConf.__annotations__["class"] = "str | None"
setattr(TonicDatasetConf, "class", None)
dataclass(init=False, repr=False, eq=False)(TonicDatasetConf)


@dataclass
class FolderImagesConf(ImageDatasetConf):
    """Pictures of your own: a folder per class, in train/, val/ and test/ or in one folder that is split."""

    path: str | None = None  # the folder
    size: Any = None  # width x height, or one number for squares: scaled to cover it, then cut; null: all have one size
    colour: str | None = None  # grey or rgb; null: as the pictures are
    test_fraction: float = number(0.2, above=0, below=1)  # where there is no test/: share of each class for test


@dataclass
class OwnDatasetConf(EventDatasetConf):
    """Events that a user's own code reads."""

    reader: str | None = None  # package.module:open_reader or file.py:open_reader; or a name that a package registers
    path: str | None = None  # file or folder that it reads, if it asks for one
    kwargs: dict[str, Any] = field(default_factory=dict)  # whatever else it asks for


@dataclass
class RandmanDatasetConf(EventDatasetConf):
    """Zenke and Vogels 2021: smooth random manifolds; the class is in the spike times only."""

    num_classes: int = number(10, low=2)
    num_units: int = number(100, low=1)
    manifold_dim: int = number(1, low=1)
    alpha: float = number(2.0, above=0)  # smoothness: larger is smoother
    duration_ms: float = number(100.0, above=0)
    spikes_per_unit: int = number(1, low=1)
    samples_per_class: int = number(250, low=10)
    test_per_class: int = number(50, low=1)
    generator_seed: int = number(0, low=0)


@dataclass
class MotionDatasetConf(EventDatasetConf):
    """A generated event-camera set: moving edges and rotating arms; the order in time decides the class."""

    size: int = number(128, low=16)
    duration_ms: float = number(1000.0, above=0)
    event_rate: float = number(100.0, above=0)  # thousand events per second
    noise: float = number(0.05, low=0, below=1)  # share of events that are noise
    train_per_class: int = number(20, low=2)
    test_per_class: int = number(5, low=1)
    generator_seed: int = number(0, low=0)
