"""CIFAR10-DVS (Li et al. 2017): CIFAR-10 images moved before a DVS128; no official split.

    aedat4   the public re-release: CIFAR10DVS/<class>/*.aedat4, read with the package `aedat`
    aedat    the original AEDAT 2.0 files: CIFAR10DVS/<class>/cifar10_<class>_<number>.aedat

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
from snnexp.data.aedat import Aedat4Decoder, Column, read_aedat2
from snnexp.data.facts import FACTS
from snnexp.data.recordings import Recording, damaged, missing_files, order_events
from snnexp.data.splits import stratified_split
from snnexp.errors import ConfigError, DataError, unknown_choice

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
VARIANTS = ("aedat4", "aedat")
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
            time, address, dropped = order_events(t - t.min(), x, y, p, SHAPE)
            label = CLASS_NAMES.index(path.parent.name)
            yield Recording(f"{path.parent.name}/{path.name}", "all", label, time, address, dropped=dropped)

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
    found: dict[str, tuple[Path, ...]] = {}
    for variant in VARIANTS if conf.variant is None else (conf.variant,):
        files = [
            path
            for name in CLASS_NAMES
            for path in sorted((folder / name).glob(f"*.{variant}"), key=lambda path: (number_of(path), path.name))
        ]
        if files:
            found[variant] = tuple(files)
    if len(found) > 1:
        raise ConfigError(f"{folder} has both .aedat4 and .aedat files. Choose dataset.variant=aedat4 or aedat.")
    if not found:
        raise DataError(missing_files("cifar10dvs", "CIFAR10DVS/<class>/*.aedat4 or *.aedat", Path(conf.root)))
    variant, all_files = next(iter(found.items()))
    return CIFAR10DVSReader(folder, all_files, variant, split, conf.split_seed)
