"""N-MNIST: `NMNIST/{Train,Test}/<digit>/<number>.bin`, 40 bits per event (Orchard et al. 2015)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snnexp.config import EventDatasetConf
from snnexp.data.facts import FACTS
from snnexp.data.files import Finder, damaged, missing_files, read_bytes
from snnexp.data.readers.recordings import MICROSECONDS, Layout, Recording, order_events
from snnexp.errors import DataError

PARTS = {"Train": "train", "Test": "test"}
EVENT_BYTES = 5
OVERFLOW_Y = 240  # not an event: the time stamps of this and all later entries move on by 2^13 us
OVERFLOW_US = 1 << 13


def decode(raw: NDArray[np.uint8]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Decode 5-byte entries into (time in us, x, y, polarity): x, y, then 1 bit polarity and 23 bits time, big-endian.

    Equal to `tonic.io.read_mnist_file`, of which a test makes sure. `len(raw)` must be a multiple of 5.
    """
    entries = raw.reshape(-1, EVENT_BYTES)
    x, y, high = entries[:, 0], entries[:, 1], entries[:, 2]
    time = ((high & 127).astype(np.int64) << 16) | (entries[:, 3].astype(np.int64) << 8) | entries[:, 4]
    polarity = high >> 7
    overflow = y == OVERFLOW_Y
    if overflow.any():
        time += np.cumsum(overflow) * OVERFLOW_US
        keep = ~overflow
        time, x, y, polarity = time[keep], x[keep], y[keep], polarity[keep]
    return time, x, y, polarity


@dataclass(frozen=True)
class NMNISTReader:
    """The N-MNIST files of one folder, whole or in part."""

    folder: Path
    files: tuple[Path, ...]
    name: str = "nmnist"
    variant: str | None = None
    key: str = "nmnist"
    shape: tuple[int, int, int] = FACTS["nmnist"].shape
    class_names: tuple[str, ...] = tuple("0123456789")
    origin: str = "https://www.garrickorchard.com/datasets/n-mnist"
    layout: Layout = MICROSECONDS
    notes: tuple[str, ...] = ()

    @property
    def official(self) -> dict[str, int]:
        """Samples per part of the whole data set."""
        return {"train": FACTS["nmnist"].train, "test": FACTS["nmnist"].test}

    @property
    def total(self) -> int:
        """Number of recordings."""
        return len(self.files)

    def recordings(self) -> Iterator[Recording]:
        """Yield one recording per file."""
        for path in self.files:
            raw = np.frombuffer(read_bytes(path), dtype=np.uint8)
            if len(raw) == 0 or len(raw) % EVENT_BYTES:
                why = f"{len(raw):,} bytes, not a positive multiple of {EVENT_BYTES}"
                raise DataError(damaged(path, why, "an N-MNIST recording"))
            part, digit, file = path.parts[-3:]
            events = order_events(*decode(raw), self.shape)
            yield Recording.of(events, f"{part}/{digit}/{file}", PARTS[part], int(digit))


def open_reader(conf: EventDatasetConf) -> NMNISTReader:
    """Find the files below `<root>/NMNIST`."""
    folder = Path(conf.root) / "NMNIST"
    finder = Finder(folder)
    files: list[Path] = []
    for part in PARTS:
        digits = [folder / part / str(digit) for digit in range(10)]
        found = [path for digit in digits for path in finder.files(digit, ".bin")]
        if not found:
            raise DataError(missing_files("nmnist", "NMNIST/{Train,Test}/<digit>/*.bin", Path(conf.root)))
        finder.passed_over += [path for path in finder.folders(folder / part) if path not in digits]
        files += found
    return NMNISTReader(folder, tuple(files), notes=finder.notes())
