"""Files of events in any usual format, read into columns as they stand; what the columns mean, `columns.py` decides.

Nothing here is specific to a data set. What may crash on malformed bytes (HDF5, AEDAT 4) runs in a process of its own.
"""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from snnexp.data.files import damaged, not_this, read_bytes, read_head, read_lines
from snnexp.data.isolated import Isolated
from snnexp.data.readers import nmnist
from snnexp.data.readers.aedat import Aedat4Decoder, read_aedat2, read_aedat31, version_of
from snnexp.data.readers.prophesee import read_prophesee
from snnexp.errors import DataError

Size = tuple[int, int]  # width, height
ROLES = ("t", "x", "y", "p")
DVS128, DAVIS = ((128, 128),), ((240, 180), (346, 260))  # cameras of AEDAT 2.0, which does not say which one it is
MOST_COLUMNS = 16
SAYS_SENSOR = re.compile(r"(?:sensor|size|resolution)\D*(\d+)\D+(\d+)", re.I)
SAYS_WIDTH, SAYS_HEIGHT = (re.compile(rf"{word}\W*(\d+)", re.I) for word in ("width", "height"))
SAYS_UNIT = re.compile(r"time[ _]?unit\W*(\w+)", re.I)


class Raw(NamedTuple):
    """Columns of one file in its order, and what else it says.

    `columns` maps names to values; a column without a name is called by its number. `camera`: the format fixes what the
    columns t, x, y and p are, and that times are in us.
    """

    columns: dict[str, NDArray[Any]]
    named: bool
    unit: str | None = None  # as written in the file
    sensor: Size | None = None
    camera: bool = False


class Tables:
    """A context that reads files; its worker processes start when a format first needs one."""

    def __init__(self) -> None:
        self._worker = Isolated()
        self._aedat4: Aedat4Decoder | None = None

    def __enter__(self) -> Tables:
        return self

    def __exit__(self, *_: object) -> None:
        self._worker.__exit__()
        if self._aedat4 is not None:
            self._aedat4.__exit__()

    def read(self, path: Path, sensor: Size | None) -> Raw:
        """The columns of one file. Args: `sensor` is dataset.sensor_size, which AEDAT 2.0 cannot be read without.

        Raises: DataError naming the file, if it cannot be read, is of another kind than its name says, or is empty.
        """
        if not read_head(path, 1):
            raise DataError(damaged(path, "it is empty (0 bytes)"))
        suffix = path.suffix.lower()
        if suffix in (".h5", ".hdf5"):
            columns, unit, size = self._worker.call(read_hdf5, path)
            return Raw(columns, True, unit, size)
        if suffix in (".aedat", ".aedat4"):
            return self._read_aedat(path, sensor)
        return READ[suffix](path)

    def _read_aedat(self, path: Path, sensor: Size | None) -> Raw:
        version = version_of(path)
        if version == 4:
            self._aedat4 = self._aedat4 or Aedat4Decoder()
            columns = self._aedat4.read(path)
            return _camera(columns, self._aedat4.call(size_of_aedat4, path))
        if version == 3:
            return _camera(read_aedat31(path)[:4], None)
        if version != 2:
            raise DataError(not_this(path, "an AEDAT 2.0, 3.1 or 4.0 file"))
        time, word = read_aedat2(path)
        bits = word.astype(np.int64)
        if sensor in DVS128:
            return _camera((time, bits >> 1 & 127, bits >> 8 & 127, 1 - (bits & 1)), None)
        if sensor in DAVIS:
            events = bits >> 31 == 0  # the rest are frames and the like
            bits = bits[events]
            return _camera((time[events], bits >> 12 & 1023, bits >> 22 & 511, bits >> 11 & 1), None)
        raise DataError(
            f"{path}: AEDAT 2.0 does not say which camera it is from. Set dataset.sensor_size=128x128 (DVS128), 240x180"
            " or 346x260 (DAVIS)."
        )


def _camera(columns: tuple[NDArray[Any], ...], sensor: Size | None) -> Raw:
    return Raw(dict(zip(ROLES, columns, strict=True)), True, "us", sensor, camera=True)


def read_bin(path: Path) -> Raw:
    """40 bits per event, as in N-MNIST and N-Caltech101."""
    raw = np.frombuffer(read_bytes(path), dtype=np.uint8)
    if len(raw) % nmnist.EVENT_BYTES:
        why = f"{len(raw):,} bytes, not a multiple of {nmnist.EVENT_BYTES}"
        raise DataError(damaged(path, why, "a file of 40-bit events (as in N-MNIST)"))
    t, x, y, p = nmnist.decode(raw)
    return _camera((t, x.astype(np.int64), y.astype(np.int64), p.astype(np.int64)), None)


def read_camera(path: Path) -> Raw:
    """Prophesee's RAW and DAT."""
    stream = read_prophesee(path)
    return _camera((stream.t, stream.x, stream.y, stream.p), stream.sensor)


# --- NumPy --------------------------------------------------------------------------------------------------------


def read_npy(path: Path) -> Raw:
    """A structured array, or one with a column per quantity."""
    content = read_bytes(path)
    if not content.startswith(b"\x93NUMPY"):
        raise DataError(not_this(path, "a NumPy array (.npy)"))
    return _of_array(path, _load(path, content))


def read_npz(path: Path) -> Raw:
    """An archive with an array per quantity, or with one array as in a .npy file; scalars say unit and sensor."""
    content = read_bytes(path)
    if not content.startswith(b"PK"):
        raise DataError(not_this(path, "a NumPy archive (.npz)"))
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = [name for name in archive.namelist() if name.endswith(".npy")]
            if sum(archive.getinfo(name).file_size for name in names) > most_bytes(len(content)):
                raise ValueError("it unpacks to more than its size can stand for")
            packed = {name.removesuffix(".npy"): archive.read(name) for name in names}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        raise DataError(damaged(path, f"not a readable .npz file ({error})")) from None
    arrays = {name: _load(path, data) for name, data in packed.items()}
    unit, sensor = _meta({name: array.tolist() for name, array in arrays.items() if array.size <= 3})
    long = {name: array for name, array in arrays.items() if array.ndim and _about(name) is None}
    whole = [array for array in long.values() if array.dtype.names or array.ndim > 1]
    if whole and len(long) > 1:
        raise DataError(
            f"{path}: holds {', '.join(long)}: one array per column, or a single array of events, is wanted."
        )
    found = _of_array(path, whole[0]) if whole else Raw({name: _flat(path, name, a) for name, a in long.items()}, True)
    return found._replace(unit=unit, sensor=sensor)


def most_bytes(size: int) -> int:
    """What a file of this size can hold at most: zlib packs a thousand equal bytes into one."""
    return (1 << 20) + 1100 * size


def _load(path: Path, content: bytes) -> NDArray[Any]:
    try:
        array = np.load(io.BytesIO(content), allow_pickle=False)
    except Exception as error:  # NumPy parses the header as Python: ValueError, SyntaxError, TokenError, and others
        if "allow_pickle" in str(error):
            raise DataError(f"{path}: holds Python objects, which are never loaded. Save arrays of numbers.") from None
        raise DataError(damaged(path, f"not a readable NumPy array ({error})")) from None
    if not isinstance(array, np.ndarray):
        raise DataError(not_this(path, "a NumPy array"))
    return array


def _of_array(path: Path, array: NDArray[Any]) -> Raw:
    if array.dtype.names and array.ndim == 1:
        return Raw({name: _flat(path, name, array[name]) for name in array.dtype.names}, True)
    if array.ndim == 2 and not array.dtype.names:
        if array.shape[1] > MOST_COLUMNS and array.shape[0] <= MOST_COLUMNS:
            rows, columns = array.shape
            raise DataError(
                f"{path}: has {rows} rows and {columns:,} columns: one row per event is wanted. Transpose it."
            )
        return Raw({str(i): _flat(path, f"column {i}", array[:, i]) for i in range(array.shape[1])}, False)
    shape = "x".join(map(str, array.shape)) or "no dimension"
    raise DataError(
        f"{path}: holds {array.dtype} values of shape {shape}, but a structured array [N] or an array [N, columns] of"
        " numbers is wanted."
    )


def _flat(path: Path, name: str, values: NDArray[Any]) -> NDArray[Any]:
    if values.dtype.kind not in "iufb" or values.ndim != 1:
        shape = "x".join(map(str, values.shape))
        raise DataError(f"{path}: {name} holds {values.dtype} values of shape {shape}, but a row of numbers is wanted.")
    return values


# --- what a file says beside its events ---------------------------------------------------------------------------


def _about(name: str) -> str | None:
    """What an entry that is no column says: unit, width, height or size; None for everything else."""
    word = name.rpartition("/")[2].lower()
    table = {"unit": ("time_unit", "timeunit", "t_unit", "unit", "units_time"), "width": ("width",)}
    table |= {"height": ("height",), "size": ("sensor_size", "sensorsize", "resolution", "sensor", "size")}
    return next((about for about, words in table.items() if word in words), None)


def _meta(entries: dict[str, Any]) -> tuple[str | None, Size | None]:
    """Unit and sensor among small entries of a file; what cannot be one is passed over."""
    found: dict[str, Any] = {}
    for name, value in entries.items():
        if (about := _about(name)) is not None:
            found[about] = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    unit = str(found["unit"]) if "unit" in found else None
    size = found.get("size") or (found.get("width"), found.get("height"))
    if isinstance(size, list | tuple) and len(size) >= 2 and all(type(n) is int and n > 0 for n in size[:2]):
        return unit, (size[0], size[1])
    return unit, None


# --- text ---------------------------------------------------------------------------------------------------------


def read_text(path: Path) -> Raw:
    """Rows of numbers with commas, semicolons, tabs or blanks between them; names above them; comments with #."""
    lines = [(number, line.strip()) for number, line in enumerate(read_lines(path), start=1)]
    comments = [line for _, line in lines if line.startswith("#")]
    rows = [(number, line) for number, line in lines if line and not line.startswith("#")]
    if not rows:
        raise DataError(damaged(path, "it has no rows"))
    delimiter = next((mark for mark in (",", ";", "\t") if mark in rows[0][1]), None)
    first = _split(rows[0][1], delimiter)
    header = [word.strip("\"' ") for word in first] if not all(map(_is_number, first)) else None
    if header is not None:
        if len(set(header)) < len(header):
            raise DataError(f"{path}: line {rows[0][0]}: two columns have the same name ({', '.join(header)}).")
        rows = rows[1:]
    if not rows:
        raise DataError(damaged(path, "it has names of columns, but no rows"))
    names = header or [str(i) for i in range(len(first))]
    try:
        table = np.loadtxt([line for _, line in rows], delimiter=delimiter, ndmin=2, comments=None)
    except ValueError:
        raise DataError(_bad_row(path, rows, delimiter, len(names))) from None
    if table.shape[1] != len(names):
        raise DataError(_bad_row(path, rows, delimiter, len(names)))
    about = "\n".join(comments)
    unit, sensor = SAYS_UNIT.search(about), SAYS_SENSOR.search(about)
    sides = [found for side in (SAYS_WIDTH, SAYS_HEIGHT) if (found := side.search(about))]
    size = sensor.groups() if sensor else tuple(found[1] for found in sides)
    return Raw(
        {name: np.ascontiguousarray(table[:, i]) for i, name in enumerate(names)},
        header is not None,
        unit[1] if unit else None,
        (int(size[0]), int(size[1])) if len(size) == 2 else None,
    )


def _split(line: str, delimiter: str | None) -> list[str]:
    return [word.strip() for word in line.split(delimiter)]


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _bad_row(path: Path, rows: list[tuple[int, str]], delimiter: str | None, columns: int) -> str:
    for number, line in rows:
        words = _split(line, delimiter)
        if len(words) != columns:
            return f"{path}: line {number} has {len(words)} values, not {columns}. Mend or remove the line."
        if wrong := [word for word in words if not _is_number(word)]:
            return f"{path}: line {number}: {wrong[0][:40]!r} is not a number. Mend or remove the line."
    return damaged(path, "not a table of numbers")


# --- HDF5 ---------------------------------------------------------------------------------------------------------


def read_hdf5(name: str) -> tuple[dict[str, NDArray[Any]], str | None, Size | None] | str:
    """All columns of numbers in a file by their paths, its unit and sensor; what is wrong, as a text.

    Columns are one-dimensional data sets and the fields of compound ones. Runs in the decoder's process.
    """
    import h5py

    from snnexp.data.readers.heidelberg import UNREADABLE

    columns: dict[str, NDArray[Any]] = {}
    entries: dict[str, Any] = {}

    def visit(path: str, item: Any) -> None:
        entries.update({f"{path}/{key}": _plain(value) for key, value in item.attrs.items()})
        if not isinstance(item, h5py.Dataset):
            return
        if item.size is not None and item.size <= 3 and not item.dtype.names:
            entries[path] = _plain(item[()])
        if item.ndim == 1 and item.nbytes > most_bytes(Path(name).stat().st_size):
            raise ValueError(f"{path} claims {item.size:,} values, more than the file can hold")
        if item.ndim == 1 and item.dtype.names:
            values = item[()]
            columns.update({f"{path}/{n}": values[n] for n in item.dtype.names if values[n].dtype.kind in "iufb"})
        elif item.ndim == 1 and item.dtype.kind in "iufb" and _about(path) is None:
            columns[path] = item[()]

    try:
        with h5py.File(name, "r") as file:
            entries.update({key: _plain(value) for key, value in file.attrs.items()})
            file.visititems(visit)
    except UNREADABLE as error:
        return f"not a readable HDF5 file ({error})"
    if not columns:
        return "it has no column of numbers (a data set with one dimension, or with named fields)"
    return columns, *_meta(entries)


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


def size_of_aedat4(name: str) -> Size | None:
    """The sensor's size as the stream's header has it. Runs in the decoder's process."""
    import aedat

    streams = aedat.Decoder(name).id_to_stream()
    first = streams[min(number for number, stream in streams.items() if stream["type"] == "events")]
    width, height = first.get("width"), first.get("height")
    return (int(width), int(height)) if width and height else None


READ: dict[str, Callable[[Path], Raw]] = {
    ".npy": read_npy,
    ".npz": read_npz,
    ".csv": read_text,
    ".txt": read_text,
    ".bin": read_bin,
    ".raw": read_camera,
    ".dat": read_camera,
}
SUFFIXES = (*READ, ".h5", ".hdf5", ".aedat", ".aedat4")
