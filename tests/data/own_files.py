"""Write a user's own small data sets for the tests: class folders in every format."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from fake_files import aedat2_bytes, aedat4_bytes, aedat31_bytes, nmnist_bytes

from snnexp.schema.dataset import FolderDatasetConf

# four events: t in us, x, y, p; the first one is not at 0, two are at once
EVENTS = ((1000, 3, 4, 1), (1500, 31, 0, 0), (1500, 0, 31, 1), (9000, 7, 8, 0))
COLUMNS = tuple(np.array(column, np.int64) for column in zip(*EVENTS, strict=True))
NPY = np.array(EVENTS, np.int64)
NAMED = np.array(list(EVENTS), [("t", "<i8"), ("x", "<i2"), ("y", "<i2"), ("p", "u1")])


def evt_header(version: str, *more: str) -> bytes:
    """A RAW header of a sensor of 32 x 32."""
    return "".join(f"% {line}\n" for line in (f"evt {version}", "geometry 32x32", *more, "end")).encode()


def evt2(events: tuple[tuple[int, int, int, int], ...] = EVENTS) -> bytes:
    """EVT 2.0: a time word in front of each event."""
    words = []
    for t, x, y, p in events:
        words += [8 << 28 | t >> 6, p << 28 | (t & 63) << 22 | x << 11 | y]
    return evt_header("2.0") + struct.pack(f"<{len(words)}I", *words)


def evt21(order: str = "little", events: tuple[tuple[int, int, int, int], ...] = EVENTS) -> bytes:
    """EVT 2.1: one event per vector, at base x and bit x % 32."""
    body = b""
    for t, x, y, p in events:
        upper = p << 28 | (t & 63) << 22 | (x & ~31) << 11 | y
        for high, low in ((8 << 28 | t >> 6, 0), (upper, 1 << (x & 31))):
            body += struct.pack("<II", low, high) if order == "little" else struct.pack("<II", high, low)
    return evt_header("2.1", f"endianness {order}") + body


def evt3(events: tuple[tuple[int, int, int, int], ...] = EVENTS) -> bytes:
    """EVT 3.0: every state in front of every event."""
    words = []
    for t, x, y, p in events:
        words += [8 << 12 | t >> 12 & 4095, 6 << 12 | t & 4095, y, 2 << 12 | p << 11 | x]
    return evt_header("3.0") + struct.pack(f"<{len(words)}H", *words)


def dat(events: tuple[tuple[int, int, int, int], ...] = EVENTS) -> bytes:
    """DAT, version 2."""
    body = b"".join(struct.pack("<II", t, p << 28 | y << 14 | x) for t, x, y, p in events)
    return b"% Version 2\n% Height 32\n% Width 32\n" + bytes((12, 8)) + body


def h5_bytes(path: Path, prefix: str = "events/") -> bytes:
    """A column per data set, with the unit and the sensor as attributes."""
    with h5py.File(path, "w") as file:
        for name, column in zip("txyp", COLUMNS, strict=True):
            file[prefix + name] = column
        file.attrs["time_unit"] = "us"
        file.attrs["sensor_size"] = [32, 32]
    return path.read_bytes()


def npz_bytes(path: Path, **more: Any) -> bytes:
    """A column per array."""
    np.savez(path, **dict(zip("txyp", COLUMNS, strict=True)), **more)  # type: ignore[arg-type]
    return path.read_bytes()


def csv_text(header: str = "t_us,x,y,p\n") -> bytes:
    """Rows of text."""
    return (header + "".join(f"{t},{x},{y},{p}\n" for t, x, y, p in EVENTS)).encode()


def aedat2_dvs128() -> bytes:
    """A DVS128's addresses: polarity in bit 0 (0 is on), x in 1-7, y in 8-14."""
    t, x, y, p = COLUMNS
    return aedat2_bytes(t, y << 8 | x << 1 | (1 - p))


def every_format(scratch: Path) -> dict[str, tuple[bytes, dict[str, Any]]]:
    """Name of a file -> its bytes and the keys that it cannot do without; each holds EVENTS."""
    size: dict[str, Any] = {"sensor_size": "32x32"}
    np.save(scratch / "n.npy", NPY)
    np.save(scratch / "s.npy", NAMED)
    return {
        "plain.npy": ((scratch / "n.npy").read_bytes(), {"columns": "txyp", "time_unit": "us", **size}),
        "fields.npy": ((scratch / "s.npy").read_bytes(), {"time_unit": "us", **size}),
        "a.npz": (npz_bytes(scratch / "a.npz", time_unit="us", width=32, height=32), {}),
        "a.csv": (csv_text(), size),
        "a.txt": (csv_text("# sensor 32x32, time unit: us\n").replace(b",", b" "), {"columns": "txyp"}),
        "a.h5": (h5_bytes(scratch / "a.h5"), {}),
        "a.hdf5": (h5_bytes(scratch / "b.h5", ""), {}),
        "a.bin": (nmnist_bytes(*COLUMNS), size),
        "v2.aedat": (aedat2_dvs128(), {"sensor_size": "128x128"}),
        "v3.aedat": (aedat31_bytes(COLUMNS), size),
        "a.aedat4": (aedat4_bytes([COLUMNS]), {}),
        "evt2.raw": (evt2(), {}),
        "evt21.raw": (evt21(), {}),
        "evt21l.raw": (evt21("legacy"), {}),
        "evt3.raw": (evt3(), {}),
        "a.dat": (dat(), {}),
    }


def write_folder(base: Path, name: str, content: bytes, per_class: int = 1) -> Path:
    """`base/{left,right}/<n>-<name>` with the same content."""
    for label in ("left", "right"):
        (base / label).mkdir(parents=True, exist_ok=True)
        for number in range(per_class):
            (base / label / f"{number}-{name}").write_bytes(content)
    return base


def folder_conf(base: Path, **keys: Any) -> FolderDatasetConf:
    """The configuration of `dataset=folder dataset.path=base`, with a root beside it."""
    return FolderDatasetConf(name="folder", path=str(base), root=str(base.parent / "root"), **keys)
