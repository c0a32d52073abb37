"""CIFAR10-DVS (Li et al. 2017): CIFAR-10 images moved before a DVS128; no official split.

    aedat4   the public re-release: CIFAR10DVS/<class>/*.aedat4, AEDAT 4.0, read with the package `aedat`
    aedat    the original files, AEDAT 2.0: CIFAR10DVS/<class>/cifar10_<class>_<number>.aedat

Which one it is, the first lines of the files say, not their names.

The splits in use are not comparable with each other; `dataset.split` names one:
    plif         samples 0 to 899 of each class for training, 900 to 999 for test (PLIF's code)
    spikingjelly samples 100 to 999 for training, 0 to 99 for test (SpikingJelly's TEBN split)
    random       a stratified tenth for test, drawn with dataset.split_seed
Both variants are read as their files have them; the original's axes are turned as SpikingJelly turns them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from snnexp.config import EventDatasetConf
from snnexp.data.facts import FACTS
from snnexp.data.files import Finder, damaged, missing_files, not_this
from snnexp.data.readers.aedat import Aedat4Decoder, Column, read_aedat2, version_of
from snnexp.data.readers.recordings import MICROSECONDS, Layout, Recording, order_events
from snnexp.data.splits import stratified_split
from snnexp.data.store.losses import sensor_of
from snnexp.errors import ConfigError, DataError, unknown_choice

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
VARIANTS = {"aedat4": 4, "aedat": 2}  # and the version of its files
SPLITS = ("plif", "random", "spikingjelly")
TEST_SHARE = 0.1
SHAPE = FACTS["cifar10dvs"].shape


@dataclass(frozen=True)
class CIFAR10DVSReader:
    """The files of one variant, whole or in part, sorted by class and number."""

    folder: Path
    files: tuple[Path, ...]
    variant: str | None
    split: str
    split_seed: int
    name: str = "cifar10dvs"
    shape: tuple[int, int, int] = SHAPE
    class_names: tuple[str, ...] = CLASS_NAMES
    origin: str = "https://doi.org/10.6084/m9.figshare.4724671"
    layout: Layout = MICROSECONDS
    notes: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Folder in the store; one store serves every split."""
        return f"cifar10dvs-{self.variant}"

    @property
    def official(self) -> dict[str, int]:
        """All recordings; there is no official split."""
        return {"all": FACTS["cifar10dvs"].train + FACTS["cifar10dvs"].test}

    @property
    def total(self) -> int:
        """Number of recordings."""
        return len(self.files)

    def recordings(self) -> Iterator[Recording]:
        """Yield one recording per file, its times counted from its first event."""
        if self.variant == "aedat4":
            with Aedat4Decoder() as decoder:
                yield from self._read(decoder.read)
        else:
            yield from self._read(read_original)

    def _read(self, read: Callable[[Path], tuple[Column, Column, Column, Column]]) -> Iterator[Recording]:
        for path in self.files:
            t, x, y, p = read(path)
            if len(t) == 0:
                raise DataError(damaged(path, "no events in it"))
            events = order_events(t - t.min(), x, y, p, SHAPE)
            label = CLASS_NAMES.index(path.parent.name)
            yield Recording.of(events, f"{path.parent.name}/{path.name}", "all", label)

    def explain(self, name: str) -> str:
        """Why many events of this recording were lost, if its addresses say so."""
        if self.variant != "aedat":
            return ""
        bits = read_aedat2(self.folder / name)[1].astype(np.int64)
        if (external := np.count_nonzero(bits >> 15)) <= len(bits) / 2:  # nothing else can be wrong with 15 bits
            return (
                f"{external:,} of its {len(bits):,} addresses have bits above the 15 of a DVS128. Likely cause: events"
                " from outside (the camera's synchronisation socket, say). Write the file without them."
            )
        polarity_events = bits[bits >> 31 == 0]  # as a DAVIS writes them: bit 31 frames, 22-30 y, 12-21 x, 11 polarity
        x, y = (polarity_events >> 12) & 1023, (polarity_events >> 22) & 511
        if len(x) == 0:
            return "Its addresses are frames of a DAVIS camera, not events of a DVS128."
        return (
            "Its addresses have bits above the 15 of a DVS128. Likely cause: a DAVIS camera, as which x runs to"
            f" {x.max()} and y to {y.max()}, a sensor of {sensor_of(int(x.max()), int(y.max()))}."
        )

    def divide(self, labels: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Training and test indices of the chosen split.

        By position within the class, in the order of the files' numbers: on a partial set the tenth at the end (plif)
        or at the beginning (spikingjelly), at least one sample.
        """
        if self.split == "random":
            return stratified_split(labels, TEST_SHARE, self.split_seed)
        test = np.zeros(len(labels), dtype=bool)
        for label in np.unique(labels):
            members = np.flatnonzero(labels == label)
            count = max(1, round(TEST_SHARE * len(members)))
            test[members[-count:] if self.split == "plif" else members[:count]] = True
        return np.flatnonzero(~test), np.flatnonzero(test)


def read_original(path: Path) -> tuple[Column, Column, Column, Column]:
    """Time in us, x, y, polarity of an AEDAT 2.0 file of a DVS128 (bit 0 polarity, 1-7 x, 8-14 y).

    Turned as in SpikingJelly: x = 127 - bits 8-14, y = 127 - bits 1-7, polarity = 1 - bit 0. Addresses above 15 bits
    (external events) are put outside the sensor, where they are counted and dropped.
    """
    time, word = read_aedat2(path)
    bits = word.astype(np.int64)
    external = (bits >> 15) != 0
    x = np.where(external, -1, 127 - ((bits >> 8) & 127))
    return time, x, 127 - ((bits >> 1) & 127), 1 - (bits & 1)


def number_of(path: Path) -> int:
    """The last number in a file's name."""
    numbers = re.findall(r"\d+", path.stem)
    return int(numbers[-1]) if numbers else -1


def open_reader(conf: EventDatasetConf) -> CIFAR10DVSReader:
    """Find the files below `<root>/CIFAR10DVS`; `dataset.variant` decides if both variants are there."""
    split = conf.split or "plif"
    if split not in SPLITS:
        raise ConfigError(unknown_choice("dataset.split", split, SPLITS))
    if conf.variant is not None and conf.variant not in VARIANTS:
        raise ConfigError(unknown_choice("dataset.variant", conf.variant, VARIANTS))
    folder = Path(conf.root) / "CIFAR10DVS"
    finder = Finder(folder)
    groups: dict[str, list[Path]] = {".aedat4": [], ".aedat": []}
    for name in CLASS_NAMES:
        for path in sorted(finder.files(folder / name, *groups), key=lambda path: (number_of(path), path.name)):
            groups[path.suffix.lower()].append(path)
    finder.passed_over += [path for path in finder.folders(folder) if path.name not in CLASS_NAMES]
    found: dict[str, list[Path]] = {}
    for files in groups.values():
        if files:
            found.setdefault(variant_of(files[0]), []).extend(files)
    if conf.variant is None and len(found) > 1:
        raise ConfigError(f"{folder} has both AEDAT 4.0 and AEDAT 2.0 files. Choose dataset.variant=aedat4 or aedat.")
    if found and conf.variant is not None and conf.variant not in found:
        (other,) = found
        raise ConfigError(
            f"dataset.variant={conf.variant} means AEDAT {VARIANTS[conf.variant]}.0 files, but those in {folder} are"
            f" AEDAT {VARIANTS[other]}.0. Use dataset.variant={other}, or leave the key out."
        )
    if not found:
        raise DataError(missing_files("cifar10dvs", "CIFAR10DVS/<class>/*.aedat4 or *.aedat", Path(conf.root)))
    variant = conf.variant or next(iter(found))
    order = {name: number for number, name in enumerate(CLASS_NAMES)}
    chosen = sorted(found[variant], key=lambda path: order[path.parent.name])  # stable: the numbers stay in order
    return CIFAR10DVSReader(folder, tuple(chosen), variant, split, conf.split_seed, notes=finder.notes())


def variant_of(path: Path) -> str:
    """The variant that a file is of, by its first line. Raises: DataError if it is of none."""
    version = version_of(path)
    for variant, wanted in VARIANTS.items():
        if version == wanted:
            return variant
    raise DataError(not_this(path, "an AEDAT 4.0 or AEDAT 2.0 file"))
