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

from snnexp.config import EventDatasetConf
from snnexp.data.facts import FACTS
from snnexp.data.recordings import Recording, damaged, missing_files, order_events
from snnexp.errors import DataError

PARTS = {"shd": {"train": "train", "test": "test"}, "ssc": {"train": "train", "valid": "val", "test": "test"}}
SSC_VALIDATION = 9981
ROWS = 256  # samples read at a time
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
        for path, (file_part, part) in zip(self.files, PARTS[self.name].items(), strict=True):
            try:
                with h5py.File(path, "r") as file:
                    yield from self._samples(path, file, file_part, part)
            except (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
                raise DataError(damaged(path, f"not a readable HDF5 file of spikes ({error})")) from None

    def _samples(self, path: Path, file: Any, file_part: str, part: str) -> Iterator[Recording]:
        times, units, labels = file["spikes/times"], file["spikes/units"], file["labels"]
        speakers = file.get("extra/speaker")
        if not len(times) == len(units) == len(labels) or (speakers is not None and len(speakers) != len(labels)):
            raise DataError(damaged(path, "times, units, labels and speakers differ in number"))
        for rows_of in (times, units):
            check_lengths(path, rows_of)
        for first in range(0, len(labels), ROWS):
            rows = slice(first, first + ROWS)
            chunk = zip(
                times[rows],
                units[rows],
                labels[rows],
                speakers[rows] if speakers is not None else np.full(len(labels[rows]), -1),
                strict=True,
            )
            for number, (time, unit, label, speaker) in enumerate(chunk, start=first):
                if time.shape != unit.shape or time.ndim != 1:
                    raise DataError(damaged(path, f"sample {number} has {time.size} times and {unit.size} units"))
                # float64 before the factor: float16 overflows at 65,504 (tonic#321)
                time_us = time.astype(np.float64) * 1e6
                x = unit.astype(np.int64)
                stored, address, dropped = order_events(time_us, x, np.zeros_like(x), np.zeros_like(x), self.shape)
                yield Recording(f"{file_part}/{number}", part, int(label), stored, address, int(speaker), dropped)


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
            raise DataError(damaged(path, f"{rows.name} lies beyond its end"))
        references = np.fromfile(path, ROW_REFERENCE, length // ROW_REFERENCE.itemsize, offset=offset)
        values += int(references["length"].astype(np.int64).sum())
    if values * h5py.check_vlen_dtype(rows.dtype).itemsize > size:
        raise DataError(damaged(path, f"{rows.name} claims {values:,} values, more than the file can hold"))


def open_reader(conf: EventDatasetConf) -> HeidelbergReader:
    """Find the files and read their sizes and class names."""
    root = Path(conf.root)
    names = [f"{conf.name}_{part}.h5" for part in PARTS[conf.name]]
    upper = conf.name.upper()
    for folder in (root / upper, root / conf.name, root):
        files = tuple(folder / name for name in names)
        if all(path.is_file() for path in files):
            break
    else:
        raise DataError(missing_files(conf.name, f"{upper}/{', '.join(names)}", root))
    total, keys = 0, None
    for path in files:
        try:
            with h5py.File(path, "r") as file:
                total += len(file["labels"])
                if keys is None and "extra/keys" in file:
                    keys = [key.decode() if isinstance(key, bytes) else str(key) for key in file["extra/keys"][()]]
        except (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
            raise DataError(damaged(path, f"not a readable HDF5 file of spikes ({error})")) from None
    classes = FACTS[conf.name].num_classes
    if keys is None or len(keys) != classes:
        keys = [str(label) for label in range(classes)]
    return HeidelbergReader(conf.name, folder, files, tuple(keys), total)
