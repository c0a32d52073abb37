"""CIFAR-10 in its official binary layout: cifar-10-batches-bin/data_batch_{1..5}.bin and test_batch.bin.

A record has 3073 bytes: the label, then 1024 red, 1024 green and 1024 blue values, row by row. Krizhevsky 2009. The
files carry no checksum: only length and labels can be checked here; the archive's MD5 is checked when it is unpacked.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from snnexp.data.fetching.sources import SOURCES
from snnexp.data.files import find_file, kind_of, not_this, read_bytes
from snnexp.errors import DataError

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FOLDER = "cifar-10-batches-bin"
TRAIN_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST_FILES = ("test_batch.bin",)
RECORD = 1 + 3 * 32 * 32


def load_part(directory: Path, files: tuple[str, ...]) -> tuple[NDArray[np.uint8], NDArray[np.int64], list[str]]:
    """Read those of `files` that are in `directory`; a partial set loads as what it is.

    Returns: images uint8 [N, 3, 32, 32], labels [N] and identities file:record.
    Raises: DataError if none of the files is there, or one is damaged.
    """
    archive = SOURCES["cifar10"].archives[0]
    found = [path for file in files if (path := find_file(directory / file)) is not None]
    if not found:
        raise DataError(
            f"dataset=cifar10: none of {', '.join(files)} is in {directory}. Unpack {archive.name} (MD5 {archive.md5})"
            " there, or move that folder away to have it fetched."
        )
    parts = [_read(path) for path in found]
    identities = [
        f"{path.name}:{record}" for path, part in zip(found, parts, strict=True) for record in range(len(part))
    ]
    records = np.concatenate(parts)
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].astype(np.int64), identities


def _read(path: Path) -> NDArray[np.uint8]:
    archive = SOURCES["cifar10"].archives[0]
    way_out = f"Unpack {archive.name} (MD5 {archive.md5}) again, or move {path.parent} away to have it fetched."
    values = np.frombuffer(read_bytes(path), dtype=np.uint8)
    if len(values) % RECORD and kind_of(path) is not None:
        raise DataError(f"dataset=cifar10: {not_this(path, 'a file of CIFAR-10 (binary version)')}")
    if len(values) == 0 or len(values) % RECORD:
        raise DataError(
            f"dataset=cifar10: {path} has {len(values):,} bytes, which is not a number of whole images ({RECORD} bytes"
            f" each): it is cut off or not a CIFAR-10 file. {way_out}"
        )
    records = values.reshape(-1, RECORD)
    if records[:, 0].max() > 9:
        bad = int(np.argmax(records[:, 0] > 9))
        raise DataError(
            f"dataset=cifar10: image {bad} of {path} has label {records[bad, 0]}, but there are only classes 0 to 9:"
            f" the file is damaged. {way_out}"
        )
    return records
