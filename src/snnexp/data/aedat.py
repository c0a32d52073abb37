"""AEDAT 2.0 and 3.1 event files, decoded whole with NumPy; malformed bytes become a DataError that names the file.

Layouts: https://docs.inivation.com/software/software-advanced-usage/file-formats (AEDAT 2.0 and 3.1).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from snnexp.data.recordings import damaged
from snnexp.errors import DataError

Column = NDArray[np.int64]
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


def _read(path: Path, version: str) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(damaged(path, f"cannot be read ({error.strerror})")) from None
    if not content.startswith(f"#!AER-DAT{version}".encode()):
        raise DataError(damaged(path, f"does not start with #!AER-DAT{version}"))
    return content


def _after_comments(content: bytes) -> int:
    """Where the data starts: after the leading lines that begin with #."""
    position = 0
    while content[position : position + 1] == b"#":
        end = content.find(b"\n", position)
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
            times.append(pairs[:, 1].astype(np.int64) + (int(header["ts_overflow"]) << 31))
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

    Time stamps that wrapped around 2^32 are unwrapped. Raises: DataError naming the file.
    """
    content = _read(path, "2.")
    position = _after_comments(content)
    if (len(content) - position) % 8 or position == len(content):
        raise DataError(damaged(path, f"{len(content) - position:,} bytes of events, not a positive multiple of 8"))
    pairs = np.frombuffer(content, ">u4", offset=position).reshape(-1, 2)
    time = pairs[:, 1].astype(np.int64)
    wraps = np.diff(time) < -(1 << 31)
    time[1:] += np.cumsum(wraps) << 32
    return time, pairs[:, 0].astype(np.uint32)
