"""Write tiny event files in the official layouts, for the tests: what a reader gets is what a download would give."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from snnexp.data.readers import cifar10dvs

Columns = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


def random_events(rng: np.random.Generator, count: int, height: int, width: int, duration: int) -> Columns:
    """Sorted times, x, y and polarity."""
    return (
        np.sort(rng.integers(0, duration, count)),
        rng.integers(0, width, count),
        rng.integers(0, height, count),
        rng.integers(0, 2, count),
    )


# --- N-MNIST ------------------------------------------------------------------------------------------------------


def nmnist_bytes(t: NDArray[np.int64], x: NDArray[np.int64], y: NDArray[np.int64], p: NDArray[np.int64]) -> bytes:
    """40 bits per event: x, y, polarity and 23 bits of time."""
    return b"".join(
        bytes((int(x_), int(y_), int(p_) << 7 | int(t_) >> 16, int(t_) >> 8 & 255, int(t_) & 255))
        for t_, x_, y_, p_ in zip(t, x, y, p, strict=True)
    )


def write_nmnist(root: Path, per_class: int = 4, test_per_class: int = 2, events: int = 60, seed: int = 0) -> None:
    """`NMNIST/{Train,Test}/<digit>/<number>.bin`."""
    rng = np.random.default_rng(seed)
    for part, count in (("Train", per_class), ("Test", test_per_class)):
        for digit in range(10):
            folder = root / "NMNIST" / part / str(digit)
            folder.mkdir(parents=True)
            for number in range(count):
                columns = random_events(rng, events + int(rng.integers(20)), 34, 34, 300_000)
                (folder / f"{number * 10 + digit + 1:05d}.bin").write_bytes(nmnist_bytes(*columns))


# --- DVS128 Gesture -----------------------------------------------------------------------------------------------


def write_dvs_npy(
    root: Path, users: Sequence[int] = (1, 2, 3), test_users: Sequence[int] = (24,), seed: int = 0
) -> None:
    """`DVSGesture/ibmGesture{Train,Test}/user<n>_<light>/<label>.npy` with the columns x, y, p, t in ms."""
    rng = np.random.default_rng(seed)
    for part, people in (("Train", users), ("Test", test_users)):
        for user in people:
            folder = root / "DVSGesture" / f"ibmGesture{part}" / f"user{user:02d}_led"
            folder.mkdir(parents=True)
            for label in range(11):
                t, x, y, p = random_events(rng, 200, 128, 128, 500)
                np.save(folder / f"{label}.npy", np.stack([x, y, p, t], axis=1).astype(np.int32))


def aedat31_bytes(columns: Columns, per_packet: int = 50, invalid: Sequence[int] = ()) -> bytes:
    """AEDAT 3.1: polarity packets, a special-event packet in front, the events numbered in `invalid` marked so."""
    t, x, y, p = columns
    out = [b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DVS128\r\n#!END-HEADER\r\n"]
    out.append(struct.pack("<HHIIIIII", 0, 1, 8, 4, 0, 1, 1, 1) + struct.pack("<II", 1, 0))
    for first in range(0, len(t), per_packet):
        part = range(first, min(first + per_packet, len(t)))
        out.append(struct.pack("<HHIIIIII", 1, 1, 8, 4, 0, len(part), len(part), len(part)))
        for i in part:
            word = int(x[i]) << 17 | int(y[i]) << 2 | int(p[i]) << 1 | (i not in invalid)
            out.append(struct.pack("<II", word, int(t[i])))
    return b"".join(out)


def write_dvs_trials(
    root: Path, users: Sequence[int] = (1, 2), test_users: Sequence[int] = (24,), seed: int = 0
) -> None:
    """`DvsGesture/user<n>_<light>.aedat` with labels, and the two lists. Class 1 has two trials, as user 26's has."""
    rng = np.random.default_rng(seed)
    folder = root / "DvsGesture"
    folder.mkdir(parents=True)
    for name, people in (("trials_to_train.txt", users), ("trials_to_test.txt", test_users)):
        (folder / name).write_text("".join(f"user{user:02d}_led.aedat\n" for user in people))
        for user in people:
            columns = random_events(rng, 1300, 128, 128, 13_000)
            (folder / f"user{user:02d}_led.aedat").write_bytes(aedat31_bytes(columns))
            rows = [f"{label},{1000 * k},{1000 * k + 900}" for k, label in enumerate([1, *range(1, 12)])]
            (folder / f"user{user:02d}_led_labels.csv").write_text(
                "class,startTime_usec,endTime_usec\n" + "\n".join(rows) + "\n"
            )


# --- SHD and SSC --------------------------------------------------------------------------------------------------


def write_h5(
    path: Path,
    times: Sequence[NDArray[np.float16]],
    units: Sequence[NDArray[np.uint16]],
    labels: Sequence[int],
    classes: int,
    speakers: Sequence[int] | None = None,
) -> None:
    """The layout of shd_train.h5."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, rows, dtype in (("times", times, np.float16), ("units", units, np.uint16)):
            data = file.create_dataset(f"spikes/{name}", (len(rows),), dtype=h5py.vlen_dtype(dtype))
            for i, row in enumerate(rows):
                data[i] = row
        file["labels"] = np.asarray(labels, dtype=np.uint16)
        file["extra/keys"] = np.array([f"word {k}".encode() for k in range(classes)])
        if speakers is not None:
            file["extra/speaker"] = np.asarray(speakers, dtype=np.uint16)


def write_heidelberg(root: Path, name: str, per_class: int = 4, spikes: int = 40, seed: int = 0) -> None:
    """All files of SHD or SSC, with speakers 0 to 3 in every class."""
    rng = np.random.default_rng(seed)
    classes, parts = (20, ("train", "test")) if name == "shd" else (35, ("train", "valid", "test"))
    for part in parts:
        labels = np.repeat(np.arange(classes), per_class)
        times = [np.sort(rng.random(spikes)).astype(np.float16) for _ in labels]
        units = [rng.integers(0, 700, spikes).astype(np.uint16) for _ in labels]
        speakers = np.tile(np.arange(per_class), classes)
        write_h5(root / name.upper() / f"{name}_{part}.h5", times, units, labels.tolist(), classes, speakers.tolist())


# --- CIFAR10-DVS --------------------------------------------------------------------------------------------------


def aedat2_bytes(t: NDArray[np.int64], words: NDArray[np.int64]) -> bytes:
    """AEDAT 2.0: big-endian pairs of address and time in us."""
    pairs = np.stack([words, t], axis=1).astype(">u4")
    return b"#!AER-DAT2.0\r\n# a comment\r\n" + pairs.tobytes()


def aedat4_bytes(packets: Sequence[Columns]) -> bytes:
    """AEDAT 4, uncompressed, one event stream, no index: a header and packets as hand-made FlatBuffers."""
    info = (
        b'<dv version="2.0"><node name="outInfo" path="/mainloop/output_file/outInfo/">'
        b'<node name="0" path="/mainloop/output_file/outInfo/0/">'
        b'<attr key="compression" type="string">NONE</attr><attr key="typeIdentifier" type="string">EVTS</attr>'
        b'<node name="info" path="/mainloop/output_file/outInfo/0/info/"><attr key="sizeX" type="int">128</attr>'
        b'<attr key="sizeY" type="int">128</attr></node></node></node></dv>'
    )
    # root offset, identifier, vtable (5 entries, 2 bytes of padding), table: vtable distance, -1, NONE, string offset
    header = struct.pack("<I4s5H2x", 20, b"IOHE", 10, 20, 12, 4, 16)
    header += struct.pack("<iqiI", 12, -1, 0, 4) + struct.pack("<I", len(info)) + info + b"\0"
    header += b"\0" * (-len(header) % 4)
    out = [b"#!AER-DAT4.0\r\n", struct.pack("<I", len(header)), header]
    for t, x, y, p in packets:
        events = b"".join(
            struct.pack("<qhh?3x", *(int(value) for value in row[:3]), bool(row[3]))
            for row in zip(t, x, y, p, strict=True)
        )
        # size prefix excluded: root offset, identifier, vtable (3 entries, padding), table, vector length at 4 mod 8
        body = struct.pack("<I4s3H2x", 16, b"EVTS", 6, 8, 4) + struct.pack("<iI", 8, 4) + struct.pack("<I", len(t))
        body += events
        sized = struct.pack("<I", len(body)) + body
        out.append(struct.pack("<ii", 0, len(sized)) + sized)
    return b"".join(out)


def write_cifar10dvs(root: Path, variant: str, per_class: int = 10, events: int = 50, seed: int = 0) -> None:
    """`CIFAR10DVS/<class>/cifar10_<class>_<number>.aedat` or `.aedat4`."""
    rng = np.random.default_rng(seed)
    for name in cifar10dvs.CLASS_NAMES:
        folder = root / "CIFAR10DVS" / name
        folder.mkdir(parents=True)
        for number in range(per_class):
            t, x, y, p = random_events(rng, events, 128, 128, 10_000)
            if variant == "aedat4":
                content = aedat4_bytes([(t + 5_000_000, x, y, p)])
            else:
                content = aedat2_bytes(t + 5_000_000, x << 1 | y << 8 | p)
            (folder / f"cifar10_{name}_{number}.{variant}").write_bytes(content)
