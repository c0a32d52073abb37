"""AEDAT 2.0 and 3.1 event files, decoded whole with NumPy; malformed bytes become a DataError that names the file.

Layouts: https://docs.inivation.com/software/software-advanced-usage/file-formats (AEDAT 2.0 and 3.1).
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from snnexp.data.files import damaged, not_this, read_bytes, read_head
from snnexp.data.isolated import Isolated
from snnexp.errors import DataError

Column = NDArray[np.int64]
SIGNATURE = b"#!AER-DAT"
CONTROL = re.compile(rb"[\0-\x08\x0b\x0c\x0e-\x1f]")  # bytes that no line of text has
PACKET_HEADER = np.dtype(
    [
        ("type", "<u2"),
        ("source", "<u2"),
        ("size", "<u4"),
        ("ts_offset", "<u4"),
        ("ts_overflow", "<u4"),
        ("capacity", "<u4"),
        ("number", "<u4"),
        ("valid", "<u4"),
    ]
)
POLARITY_TYPE = 1
POLARITY_BYTES = 8


def version_of(path: Path) -> int | None:
    """The major version in the first line of an AEDAT file, whatever its name ends in; None if it is no AEDAT file."""
    head = read_head(path)
    return int(head[9:10]) if head.startswith(SIGNATURE) and head[9:10].isdigit() else None


def _read(path: Path, version: str) -> bytes:
    content = read_bytes(path)
    if not content.startswith(SIGNATURE + version.encode()):
        raise DataError(not_this(path, f"an AEDAT {version}{'1' if version == '3.' else '0'} file"))
    return content


def _after_comments(content: bytes) -> int:
    """Where the data starts: after the leading lines of text that begin with #, since an event may begin so, too."""
    position = 0
    while content[position : position + 1] == b"#":
        end = content.find(b"\n", position)
        line = content[position : end if end >= 0 else len(content)]
        if CONTROL.search(line):
            break
        if end < 0:
            return len(content)
        position = end + 1
    return position


def read_aedat31(path: Path) -> tuple[Column, Column, Column, Column, int]:
    """Read the polarity events of an AEDAT 3.1 file.

    Returns: time in us, x, y, polarity (0 off, 1 on), and the number of events that the camera marked invalid.
    Raises: DataError naming the file if a packet is cut off or impossible.
    """
    content = _read(path, "3.")
    marker = content.find(b"#!END-HEADER")
    position = content.find(b"\n", marker) + 1 if marker >= 0 else _after_comments(content)
    if position == 0:
        raise DataError(damaged(path, "its header does not end"))
    words: list[NDArray[np.uint32]] = []
    times: list[Column] = []
    while position < len(content):
        if position + PACKET_HEADER.itemsize > len(content):
            raise DataError(damaged(path, f"cut off in a packet header at byte {position:,}"))
        header = np.frombuffer(content, PACKET_HEADER, 1, position)[0]
        position += PACKET_HEADER.itemsize
        length = int(header["capacity"]) * int(header["size"])
        if int(header["number"]) > int(header["capacity"]) or position + length > len(content):
            raise DataError(damaged(path, f"cut off or impossible packet at byte {position:,}"))
        if header["type"] == POLARITY_TYPE:
            if header["size"] != POLARITY_BYTES:
                raise DataError(damaged(path, f"polarity events of {header['size']} bytes at byte {position:,}"))
            pairs = np.frombuffer(content, "<u4", 2 * int(header["number"]), position).reshape(-1, 2)
            words.append(pairs[:, 0])
            times.append(unwrap(pairs[:, 1].astype(np.int64), 31) + (int(header["ts_overflow"]) << 31))
        position += length
    if not words:
        raise DataError(damaged(path, "no polarity events in it"))
    word, time = np.concatenate(words), np.concatenate(times)
    valid = (word & 1) == 1
    invalid = int(len(word) - np.count_nonzero(valid))
    word, time = word[valid], time[valid]
    x = ((word >> 17) & 0x7FFF).astype(np.int64)
    y = ((word >> 2) & 0x7FFF).astype(np.int64)
    return time, x, y, ((word >> 1) & 1).astype(np.int64), invalid


def read_aedat2(path: Path) -> tuple[Column, NDArray[np.uint32]]:
    """Read an AEDAT 2.0 file: (time in us, 32-bit addresses); what the bits of an address mean depends on the camera.

    Time stamps that wrapped around 2^32 are unwrapped, from the first one on. Raises: DataError naming the file.
    """
    content = _read(path, "2.")
    position = _after_comments(content)
    if (len(content) - position) % 8 or position == len(content):
        raise DataError(damaged(path, f"{len(content) - position:,} bytes of events, not a positive multiple of 8"))
    pairs = np.frombuffer(content, ">u4", offset=position).reshape(-1, 2)
    return unwrap(pairs[:, 1].astype(np.int64), 32), pairs[:, 0].astype(np.uint32)


def unwrap(time: Column, bits: int) -> Column:
    """Undo the overflow of time stamps that have so many bits, counted from the first of them.

    A step back by more than half of the range is an overflow, and a step forward by more than half is an event that
    comes late, from before the overflow; so an event that is late by a little never counts as another one.
    """
    half = 1 << (bits - 1)
    step = np.diff(time)
    time[1:] += np.cumsum((step < -half).astype(np.int64) - (step > half)) << bits
    return time


class Aedat4Decoder(Isolated):
    """Reads AEDAT 4 files with the package `aedat`, in a process of its own: some malformed bytes make it abort."""

    def __init__(self) -> None:
        super().__init__()
        if importlib.util.find_spec("aedat") is None:
            raise DataError(
                "reading .aedat4 files needs the package aedat. Install it with: pip install 'snnexp[cifar10dvs]'"
            )

    def read(self, path: Path) -> tuple[Column, Column, Column, Column]:
        """All events of the first event stream: time in us, x, y, polarity. Raises: DataError naming the file."""
        _check_aedat4(path)
        columns: tuple[Column, Column, Column, Column] = self.call(_decode_aedat4, path)
        return columns


def _decode_aedat4(path: str) -> tuple[Column, Column, Column, Column] | str:
    """Runs in the decoder's process; returns the columns, or what is wrong."""
    import aedat

    try:
        decoder = aedat.Decoder(path)
        streams = [number for number, stream in decoder.id_to_stream().items() if stream["type"] == "events"]
        if not streams:
            return "no event stream in it"
        packets = [packet["events"] for packet in decoder if packet["stream_id"] == min(streams)]
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the Rust decoder is not an Exception
        return f"not a readable AEDAT 4 file ({error})"
    if not packets:
        return "no events in it"
    events = np.concatenate(packets)
    polarity = events["on"] if "on" in (events.dtype.names or ()) else events["p"]
    time = events["t"].astype(np.int64)  # unsigned in the file's array: differences would wrap
    return time, events["x"].astype(np.int64), events["y"].astype(np.int64), polarity.astype(np.int64)


def _check_aedat4(path: Path) -> None:
    """Walk over the packet headers, so that a cut-off file is named as such before the decoder sees it."""
    content = _read(path, "4.")
    position = content.find(b"\n") + 1
    if position == 0 or position + 4 > len(content):
        raise DataError(damaged(path, "cut off in its header"))
    length = int.from_bytes(content[position : position + 4], "little")
    table = _data_table_position(content, position + 4, length)
    position += 4 + length
    if position > len(content):
        raise DataError(damaged(path, "cut off in its header"))
    end = table if position <= table <= len(content) else len(content)
    while position < end:
        size = int.from_bytes(content[position + 4 : position + 8], "little", signed=True)
        if position + 8 > end or size < 0 or position + 8 + size > end:
            raise DataError(damaged(path, f"cut off or impossible packet at byte {position:,}"))
        position += 8 + size


def _data_table_position(content: bytes, start: int, length: int) -> int:
    """Where the packets end and the index begins: field 1 (int64) of the IOHeader FlatBuffer; -1 if it has none."""
    header = content[start : start + length]

    def number(at: int, size: int) -> int:
        return int.from_bytes(header[at : at + size], "little", signed=True) if 0 <= at <= len(header) - size else -1

    table = number(0, 4)
    vtable = table - number(table, 4)
    if table < 0 or vtable < 0 or number(vtable, 2) < 8:
        return -1
    field = number(vtable + 6, 2)
    return number(table + field, 8) if field > 0 else -1
