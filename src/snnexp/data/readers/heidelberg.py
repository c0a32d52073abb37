"""Spiking Heidelberg Digits and Spiking Speech Commands: HDF5 files of cochlea spikes (Cramer et al. 2022).

`<root>/SHD/shd_{train,test}.h5`, `<root>/SSC/ssc_{train,valid,test}.h5`, each with `spikes/times` (float16 seconds,
one variable-length row per sample), `spikes/units` (0 to 699), `labels`, `extra/keys` (class names), `extra/speaker`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from snnexp.config import EventDatasetConf
from snnexp.data.facts import FACTS
from snnexp.data.files import damaged, find_file, missing_files, read_head
from snnexp.data.isolated import Isolated
from snnexp.data.readers.recordings import Layout, Recording, order_events
from snnexp.errors import DataError

PARTS = {"shd": {"train": "train", "test": "test"}, "ssc": {"train": "train", "valid": "val", "test": "test"}}
SSC_VALIDATION = 9981
UNREADABLE = (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError, MemoryError, OverflowError)
ROWS = 256  # samples read at a time
LAYOUT = Layout(unit="s", unit_us=1e6, position="unit", usual_s=1.0)
HDF5 = b"\x89HDF"
WANTED = "an HDF5 file of spikes"
ROW_REFERENCE = np.dtype([("length", "<u4"), ("address", "<u8"), ("index", "<u4")])  # HDF5 file format, III.A.1 and IV


@dataclass(frozen=True)
class HeidelbergReader:
    """The HDF5 files of SHD or SSC. Files of either set may hold fewer samples than the official ones."""

    name: str
    folder: Path
    files: tuple[Path, ...]  # one per part, in the order of PARTS
    class_names: tuple[str, ...]
    total: int
    variant: str | None = None
    origin: str = "https://zenkelab.org/resources/spiking-heidelberg-datasets-shd/"
    layout: Layout = LAYOUT
    notes: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Folder in the store."""
        return self.name

    @property
    def shape(self) -> tuple[int, int, int]:
        """One row of 700 channels."""
        return FACTS[self.name].shape

    @property
    def official(self) -> dict[str, int]:
        """Samples per part of the whole data set."""
        facts = FACTS[self.name]
        own = {"val": SSC_VALIDATION} if self.name == "ssc" else {}
        return {"train": facts.train, **own, "test": facts.test}

    def recordings(self) -> Iterator[Recording]:
        """Yield the samples of each file in its own order."""
        with Isolated() as worker:
            for path, (file_part, part) in zip(self.files, PARTS[self.name].items(), strict=True):
                count = worker.call(count_samples, path)
                for first in range(0, count, ROWS):
                    rows = worker.call(read_rows, path, first, first + ROWS)
                    for number, (time, unit, label, speaker) in enumerate(rows, start=first):
                        if time.shape != unit.shape or time.ndim != 1:
                            why = f"sample {number} has {time.size} times and {unit.size} units"
                            raise DataError(damaged(path, why))
                        # float64 before the factor: float16 overflows at 65,504 (tonic#321)
                        time_us, none = time.astype(np.float64) * LAYOUT.unit_us, np.zeros(len(unit), np.uint8)
                        events = order_events(time_us, unit, none, none, self.shape)
                        yield Recording.of(events, f"{file_part}/{number}", part, label, speaker)


def count_samples(name: str) -> int | str:
    """Number of samples after a check of the layout; what is wrong, as a text. Runs in the decoder's process."""
    try:
        with h5py.File(name, "r") as file:
            times, units, labels = file["spikes/times"], file["spikes/units"], file["labels"]
            speakers = file.get("extra/speaker")
            if not len(times) == len(units) == len(labels) == (len(labels) if speakers is None else len(speakers)):
                return "times, units, labels and speakers differ in number"
            for rows in (times, units):
                check_lengths(Path(name), rows)
            return len(labels)
    except UNREADABLE as error:
        return f"not a readable HDF5 file of spikes ({error})"


def read_rows(name: str, first: int, stop: int) -> list[tuple[NDArray[Any], NDArray[Any], int, int]] | str:
    """Times, units, label and speaker of some samples, or what is wrong. Runs in the decoder's process."""
    rows = slice(first, stop)
    try:
        with h5py.File(name, "r") as file:
            labels = file["labels"][rows]
            speakers = file["extra/speaker"][rows] if "extra/speaker" in file else np.full(len(labels), -1)
            times, units = file["spikes/times"][rows], file["spikes/units"][rows]
        return [(t, u, int(k), int(s)) for t, u, k, s in zip(times, units, labels, speakers, strict=True)]
    except UNREADABLE as error:
        return f"not a readable HDF5 file of spikes ({error})"


def check_lengths(path: Path, rows: Any) -> None:
    """Refuse rows that claim more values than the file can hold: HDF5 would ask for gigabytes, and take half a minute.

    A row is stored as its length and where its values are. Compressed data sets are left to HDF5's own checks.
    """
    if rows.id.get_create_plist().get_nfilters() or h5py.check_vlen_dtype(rows.dtype) is None:
        return
    size = path.stat().st_size
    if rows.chunks is None:
        offset = rows.id.get_offset()  # None: nothing was ever written
        pieces = [] if offset is None else [(offset, len(rows) * ROW_REFERENCE.itemsize)]
    else:
        found = [rows.id.get_chunk_info(i) for i in range(rows.id.get_num_chunks())]
        pieces = [(chunk.byte_offset, chunk.size) for chunk in found]
    values = 0
    for offset, length in pieces:
        if offset + length > size:
            raise ValueError(f"{rows.name} lies beyond its end")
        references = np.fromfile(path, ROW_REFERENCE, length // ROW_REFERENCE.itemsize, offset=offset)
        values += int(references["length"].astype(np.int64).sum())
    if values * h5py.check_vlen_dtype(rows.dtype).itemsize > size:
        raise ValueError(f"{rows.name} claims {values:,} values, more than the file can hold")


def open_reader(conf: EventDatasetConf) -> HeidelbergReader:
    """Find the files and read their sizes and class names."""
    root = Path(conf.root)
    names = [f"{conf.name}_{part}.h5" for part in PARTS[conf.name]]
    upper = conf.name.upper()
    partial: list[Path] = []
    for folder in (root / upper, root / conf.name, root):
        files = [path for name in names if (path := find_file(folder / name)) is not None]
        if len(files) == len(names):
            break
        partial = partial or files
    else:
        wanted = ", ".join(sorted(set(names) - {path.name for path in partial}))
        beside = f" beside {partial[0].name}" if partial else ""
        raise DataError(missing_files(conf.name, f"{upper}/{wanted}{beside}", root))
    total, keys = 0, None
    for path in files:
        try:
            with h5py.File(path, "r") as file:
                if absent := [key for key in ("labels", "spikes/times", "spikes/units") if key not in file]:
                    raise DataError(
                        f"{path}: is an HDF5 file without {', '.join(absent)}: none of {upper}. Put {path.name} of that"
                        " data set there."
                    )
                total += len(file["labels"])
                if keys is None and "extra/keys" in file:
                    keys = [key.decode() if isinstance(key, bytes) else str(key) for key in file["extra/keys"][()]]
        except UNREADABLE as error:
            kind = "" if read_head(path).startswith(HDF5) else WANTED
            raise DataError(damaged(path, f"not a readable HDF5 file of spikes ({error})", kind)) from None
    classes = FACTS[conf.name].num_classes
    if keys is None or len(keys) != classes:
        keys = [str(label) for label in range(classes)]
    return HeidelbergReader(conf.name, folder, tuple(files), tuple(keys), total)
