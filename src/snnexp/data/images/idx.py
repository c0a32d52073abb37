"""MNIST's file format IDX, as it is or packed with gzip; MNIST and Fashion-MNIST are four such files each.

A header of big-endian numbers: 0, 0, type (8 = uint8), number of dimensions, then one size of four bytes for each
dimension, then the values, last dimension fastest.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import zlib
from pathlib import Path
from typing import IO, cast

import numpy as np
from numpy.typing import NDArray

from snnexp.data.fetching.sources import SOURCES
from snnexp.data.files import find_file, kind_of, not_this, read_bytes
from snnexp.errors import DataError

MAX_BYTES = 1 << 30  # a damaged header must not make us reserve the whole memory

# MD5 of the unpacked official files (worked out from the .gz files of the MD5s in sources.py): an unpacked file has no
# checksum of its own, and a packed one might be another data set's of the same size.
CONTENT_MD5: dict[str, dict[str, str]] = {
    "mnist": {
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    },
    "fashion_mnist": {
        "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
        "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
    },
}
OFFICIAL_SIZES = {"train": 60_000, "t10k": 10_000}


def load_part(name: str, directory: Path, part: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Read images [N, 1, H, W] and labels [N] of one part (train or t10k) of mnist or fashion_mnist.

    Raises: DataError if a file is damaged, the two files do not fit together, or a file of the official length is not
    the official one.
    """
    images = _load(name, directory, f"{part}-images-idx3-ubyte", dims=3)
    labels = _load(name, directory, f"{part}-labels-idx1-ubyte", dims=1)
    if len(images) != len(labels):
        raise DataError(
            f"dataset={name}: {len(images)} {part} images but {len(labels)} labels in {directory}:"
            " the two files do not belong together. Put two that do there, or move both away: the official ones are"
            " fetched on the next start (unless dataset.download=false)."
        )
    if images.shape[1:] != (28, 28):
        raise DataError(
            f"dataset={name}: the {part} images in {directory} are {images.shape[1]}x{images.shape[2]}, not 28x28:"
            " these are files of another data set. Move them away; the right ones are fetched on the next start."
        )
    if len(labels) and labels.max() > 9:
        raise DataError(
            f"dataset={name}: label {labels.max()} in {part}-labels-idx1-ubyte in {directory}, but there are only"
            " classes 0 to 9. The file is damaged or of another data set; move it away and the official one is fetched."
        )
    return images[:, None], labels.astype(np.int64)


def _load(name: str, directory: Path, stem: str, dims: int) -> NDArray[np.uint8]:
    archive = next(archive for archive in SOURCES[name].archives if archive.name == f"{stem}.gz")
    candidates = [directory / product for product in archive.products]
    path = next((candidate for candidate in candidates if find_file(candidate) is not None), None)
    way_out = f"Move it away to have it fetched, or put the official {archive.name} (MD5 {archive.md5}) there."
    if path is None:
        raise DataError(f"dataset={name}: {archive.name} (MD5 {archive.md5}) is missing in {directory}.")
    try:
        values = read_idx(path, dims)
    except DataError as error:
        raise DataError(f"dataset={name}: {error} {way_out}") from error
    official = CONTENT_MD5[name][stem]
    if len(values) == OFFICIAL_SIZES[stem.split("-")[0]]:
        header = np.array([0x0800 + dims, *values.shape], dtype=">u4").tobytes()
        digest = hashlib.md5(header + values.tobytes(), usedforsecurity=False).hexdigest()
        if digest != official:
            raise DataError(
                f"dataset={name}: {path} has the official length but other content (MD5 {digest} unpacked instead of"
                f" {official}): damaged, or another data set. {way_out}"
            )
    return values


def read_idx(path: Path, dims: int) -> NDArray[np.uint8]:
    """Read one IDX file of unsigned bytes with `dims` dimensions; whether it is packed, its first bytes say.

    Raises: DataError naming the file and what is wrong: header, length, or the checksum inside the .gz.
    """
    content = read_bytes(path)
    packed = content.startswith(b"\x1f\x8b")
    if not packed and not content.startswith(b"\0\0\x08") and kind_of(path) is not None:
        raise DataError(not_this(path, f"an IDX file of {dims} dimensions"))
    try:
        with cast("IO[bytes]", gzip.open(io.BytesIO(content)) if packed else io.BytesIO(content)) as file:
            return _parse(file, path, dims)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is damaged ({str(error) or 'it ends too early'}).") from error


def _parse(file: IO[bytes], path: Path, dims: int) -> NDArray[np.uint8]:
    header = file.read(4 + 4 * dims)
    if len(header) < 4 + 4 * dims:
        raise DataError(f"{path} is damaged (it ends inside its header).")
    magic, *shape = np.frombuffer(header, dtype=">u4").tolist()
    if magic != 0x0800 + dims:
        raise DataError(f"{path} is not an IDX file of {dims} dimensions (magic number {magic:#010x}).")
    length = math.prod(shape)
    if length > MAX_BYTES:
        raise DataError(f"{path} is damaged (its header claims {length:,} values).")
    values = file.read(length)
    if len(values) < length:
        raise DataError(f"{path} is damaged (it ends after {len(values):,} of {length:,} values).")
    if file.read(1):  # also makes gzip compare its checksum
        raise DataError(f"{path} is damaged (there is more after the {length:,} values of its header).")
    return np.frombuffer(values, dtype=np.uint8).reshape(shape)
