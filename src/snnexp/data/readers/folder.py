"""`dataset=folder`: a user's own recordings, a folder per class, in any format of `tables.py`."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from snnexp.data.class_folders import ClassFolders, find_classes
from snnexp.data.files import check_file
from snnexp.data.readers.columns import Meaning, Wanted, events_of, understand, wanted
from snnexp.data.readers.recordings import MICROSECONDS, Layout, Recording, order_events
from snnexp.data.readers.tables import SUFFIXES, Tables
from snnexp.data.splits import stratified_split
from snnexp.errors import DataError
from snnexp.schema.dataset import FolderDatasetConf

Divide = Callable[[NDArray[np.int64]], tuple[NDArray[np.int64], NDArray[np.int64]]]
SHORT_US = 1000  # a recording below this is likely in another unit


@dataclass(frozen=True)
class FolderReader:
    """The recordings of one folder; what their columns mean was found in the first file and holds for all."""

    found: ClassFolders
    want: Wanted
    meaning: Meaning
    sort: bool
    from_zero: bool
    divide: Divide | None  # labels of all -> training and test; None: the folder has a test part
    name: str = "folder"
    variant: str | None = None
    official: dict[str, int] | None = None  # nobody says how many there should be
    layout: Layout = MICROSECONDS

    @property
    def key(self) -> str:
        """Folder in the store: of this path, read in this way."""
        how = repr([str(self.found.base), self.want, self.meaning, self.sort, self.from_zero])
        word = re.sub(r"[^A-Za-z0-9_-]+", "-", self.found.base.name)[:40] or "data"
        return f"folder-{word}-{hashlib.sha256(how.encode()).hexdigest()[:10]}"

    @property
    def shape(self) -> tuple[int, int, int]:
        """C, H, W."""
        return self.meaning.shape

    @property
    def class_names(self) -> tuple[str, ...]:
        """The class folders' names."""
        return self.found.class_names

    @property
    def origin(self) -> str:
        """Where the data comes from."""
        return self.found.base.as_uri()

    @property
    def folder(self) -> Path:
        """What the files are relative to."""
        return self.found.base

    @property
    def files(self) -> tuple[Path, ...]:
        """All recordings."""
        return tuple(path for _, _, path in self.found.files)

    @property
    def total(self) -> int:
        """Number of recordings."""
        return len(self.found.files)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was found while the files were listed."""
        return self.found.notes

    @property
    def understood(self) -> tuple[str, ...]:
        """What the columns were taken for, and why."""
        return self.meaning.words

    def recordings(self) -> Iterator[Recording]:
        """Yield one recording per file. Raises: DataError naming a file that does not mean what the first one does."""
        first = self.found.files[0][2]
        with Tables() as tables:
            for part, label, path in self.found.files:
                raw = tables.read(path, self.want.sensor)
                meaning = understand(raw, self.want, path)
                if (meaning.shape, meaning.unit) != (self.meaning.shape, self.meaning.unit):
                    raise DataError(
                        f"{path}: differs from {first.name}: {'; '.join(meaning.words)}, but there"
                        f" {'; '.join(self.meaning.words)}. A set has one sensor and one unit: convert the file, or set"
                        " dataset.sensor_size and dataset.time_unit for all."
                    )
                t, x, y, p = events_of(raw, meaning, path, sort=self.sort, from_zero=self.from_zero)
                name = self.found.name_of(path)
                notes: tuple[str, ...] = ()
                if len(t) > 1 and int(t.max() - t.min()) < SHORT_US:
                    notes = (f"{name} lasts {int(t.max() - t.min())} us: are its times in {meaning.unit}?",)
                yield Recording.of(order_events(t, x, y, p, self.shape), name, part, label, notes=notes)


def open_reader(conf: FolderDatasetConf) -> FolderReader:
    """Find the recordings below `dataset.path`, and read the first one to learn what the columns mean."""
    found = find_classes("folder", conf, SUFFIXES)
    want = wanted(conf)
    first = found.files[0][2]
    stat = check_file(first).stat()
    meaning = _meaning(first, (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns), repr(want), want)
    share, seed, named_part = conf.test_fraction, conf.split_seed, "test" in found.parts

    def divide(labels: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return stratified_split(labels, share, seed, key="dataset.test_fraction")

    return FolderReader(
        found, want, meaning, conf.sort_events, conf.time_origin == "zero", None if named_part else divide
    )


@functools.lru_cache(maxsize=64)
def _meaning_of(first: Path, stamp: tuple[int, ...], text: str) -> list[Meaning]:
    return []


def _meaning(first: Path, stamp: tuple[int, ...], text: str, want: Wanted) -> Meaning:
    """What the first file's columns mean; remembered, since validation asks first and the file may be large."""
    known = _meaning_of(first, stamp, text)
    if not known:
        with Tables() as tables:
            known.append(understand(tables.read(first, want.sensor), want, first))
    return known[0]
