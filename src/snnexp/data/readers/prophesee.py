"""Prophesee's recordings, decoded whole with NumPy: RAW files in EVT 2.0, 2.1 and 3.0, and DAT files of version 2.

Formats as published: https://docs.prophesee.ai/stable/data/encoding_formats/ (evt2, evt21, evt3) and
https://docs.prophesee.ai/stable/data/file_formats/ (raw, dat). Why not expelliarmus, which tonic brings along: 1.1.12
reads no EVT 2.1, ends a cut-off or damaged file without a word, and in EVT 3.0 adds 4,096 us for each word that raises
the high part of the clock. Where it is right (EVT 2.0, DAT; x, y and polarity of EVT 3.0), a test compares the two.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from snnexp.data.files import damaged, not_this, read_bytes
from snnexp.data.readers.aedat import unwrap
from snnexp.errors import DataError

Column = NDArray[np.int64]
CHUNK = 1 << 16  # words expanded at a time
BLOCK = 1 << 22  # words of EVT 3.0 decoded at a time
DAT_EVENT_TYPES = (0x00, 0x0C)  # contrast detection, as older and newer programs number it
LINE_BYTES = 4096  # no header line is longer


class Stream(NamedTuple):
    """Events in the file's order: time in us, x, y, polarity; width and height if the header has them."""

    t: Column
    x: Column
    y: Column
    p: Column
    sensor: tuple[int, int] | None


class Refused(Exception):
    """What is wrong with the words of a stream."""


def read_prophesee(path: Path) -> Stream:
    """Read a RAW or DAT file; the header says which encoding it has.

    Raises: DataError naming the file if it is cut off, of another kind, or in an encoding that is not read.
    """
    content = read_bytes(path)
    header, start = _header(content)
    if not header:
        raise DataError(not_this(path, "a RAW or DAT file of a Prophesee camera"))
    fields = _fields(header)
    payload = content[start:]
    try:
        if path.suffix.lower() == ".dat":
            columns = decode_dat(payload, fields)
        else:
            columns = _decoder(fields)(payload)
        sensor = _sensor(fields)
    except Refused as error:
        raise DataError(damaged(path, str(error))) from None
    return Stream(*columns, sensor)


# --- header -------------------------------------------------------------------------------------------------------


def _header(content: bytes) -> tuple[list[str], int]:
    """The lines that begin with %, without it, and where the data starts."""
    lines: list[str] = []
    position = 0
    while content[position : position + 1] == b"%":
        end = content.find(b"\n", position, position + LINE_BYTES)
        line = content[position : end if end >= 0 else position + LINE_BYTES]
        if end < 0 or not re.fullmatch(rb"%[\t\x20-\xff]*\r?", line):
            break  # an event may begin with this byte, too
        position = end + 1
        lines.append(line[1:].decode("utf-8", "replace").strip())
        if lines[-1].lower() == "end":
            break
    return lines, position


def _fields(lines: list[str]) -> dict[str, str]:
    """`key value` and `format NAME;key=value;...` of the header, keys in lower case."""
    fields: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(" ")
        fields[key.lower()] = value.strip()
        if key.lower() == "format":
            name, *pairs = value.strip().split(";")
            fields["format"] = name.strip()
            fields.update((k.strip().lower(), v.strip()) for k, _, v in (pair.partition("=") for pair in pairs))
    return fields


def _sensor(fields: dict[str, str]) -> tuple[int, int] | None:
    width, height = fields.get("width"), fields.get("height")
    if width is None or height is None:
        width, _, height = fields.get("geometry", "").partition("x")
    if not width and not height:
        return None
    if not (width.isdecimal() and height.isdecimal() and 0 < int(width) <= 1 << 14 and 0 < int(height) <= 1 << 14):
        raise Refused(f"its header says that the sensor has {width}x{height} pixels")
    return int(width), int(height)


def _decoder(fields: dict[str, str]) -> Callable[[bytes], tuple[Column, Column, Column, Column]]:
    name = fields.get("format") or f"EVT{fields.get('evt', '')}"
    version = re.sub(r"\.0$", "", name.upper().removeprefix("EVT")).replace(".", "")
    order = fields.get("endianness", "")
    if version == "21" and order in ("", "little", "legacy"):
        return lambda payload: decode_evt21(payload, order)
    if version in ("2", "3") and order in ("", "little"):
        return decode_evt2 if version == "2" else decode_evt3
    raise Refused(
        f"its header says encoding {name}{f' with byte order {order}' if order else ''}, but EVT 2.0, 2.1 and 3.0 in"
        " little endian are read: convert it"
    )


# --- encodings ----------------------------------------------------------------------------------------------------


def _words(payload: bytes, dtype: str) -> NDArray[Any]:
    size = np.dtype(dtype).itemsize
    if len(payload) % size:
        raise Refused(f"{len(payload):,} bytes of events, not a multiple of {size}")
    return np.frombuffer(payload, dtype)


def _check_types(kinds: NDArray[Any], known: tuple[int, ...]) -> None:
    unknown = np.isin(kinds, known, invert=True)
    if unknown.any():
        first = int(np.argmax(unknown))
        raise Refused(f"word {first:,} of the events has type {int(kinds[first]):#x}, which does not exist")


def _last(marks: NDArray[np.bool_]) -> Column:
    """For each position, the latest marked one up to it; -1 before the first."""
    positions = np.where(marks, np.arange(len(marks)), -1)
    latest: Column = np.maximum.accumulate(positions) if len(positions) else positions
    return latest


def _high_time(words: NDArray[Any], marks: NDArray[np.bool_], bits: int) -> tuple[Column, Column]:
    """The time words' values so far, unwrapped, per position, and which time word it is; -1 before the first."""
    number = np.cumsum(marks) - 1
    values = unwrap((words[marks] & ((1 << bits) - 1)).astype(np.int64), bits)
    return (values[number] if len(values) else number), number


def _expand(
    mask: NDArray[Any], t: Column, x: Column, y: Column, p: Column, bits: int
) -> tuple[Column, Column, Column, Column]:
    """One event per set bit of `mask`, at x + bit; words stay in order, bits of a word rise."""
    parts: list[tuple[Column, ...]] = []
    for first in range(0, len(mask), CHUNK):
        part = slice(first, first + CHUNK)
        rows, shift = np.nonzero((mask[part, None] >> np.arange(bits, dtype=mask.dtype)) & 1)
        parts.append((t[part][rows], x[part][rows] + shift, y[part][rows], p[part][rows]))
    if not parts:
        empty = np.empty(0, np.int64)
        return empty, empty, empty, empty
    t, x, y, p = (np.concatenate(column) for column in zip(*parts, strict=True))
    return t, x, y, p


def decode_evt2(payload: bytes) -> tuple[Column, Column, Column, Column]:
    """EVT 2.0, 32-bit words: type 31-28; events: time 27-22, x 21-11, y 10-0; time words: bits 33-6 of the time."""
    words = _words(payload, "<u4")
    kinds = words >> 28
    _check_types(kinds, (0x0, 0x1, 0x8, 0xA, 0xE, 0xF))
    high, number = _high_time(words, kinds == 0x8, 28)
    chosen = (kinds <= 1) & (number >= 0)  # before the first time word nothing has a time
    word = words[chosen].astype(np.int64)
    return high[chosen] << 6 | word >> 22 & 63, word >> 11 & 2047, word & 2047, kinds[chosen].astype(np.int64)


def decode_evt21(payload: bytes, order: str = "") -> tuple[Column, Column, Column, Column]:
    """EVT 2.1, 64-bit words: as EVT 2.0 in the upper half, and in the lower half which of x to x + 31 have an event.

    `order`: little, or legacy, in which the halves are swapped (IMX636); empty: the header does not say, and the types
    of the words must, which only one of the two can make sense of.
    """
    if len(payload) % 8:
        raise Refused(f"{len(payload):,} bytes of events, not a multiple of 8")
    halves = _words(payload, "<u4").reshape(-1, 2)
    known = (0x0, 0x1, 0x8, 0xA, 0xE, 0xF)
    if not order:
        legal = [name for name, at in (("little", 1), ("legacy", 0)) if _makes_sense(halves[:, at], halves[:, 1 - at])]
        if len(legal) != 1:
            raise Refused("its header does not say in which order the halves of a word are (endianness)")
        order = legal[0]
    upper, mask = (halves[:, 1], halves[:, 0]) if order == "little" else (halves[:, 0], halves[:, 1])
    kinds = upper >> 28
    _check_types(kinds, known)
    high, number = _high_time(upper, kinds == 0x8, 28)
    chosen = (kinds <= 1) & (number >= 0)
    word = upper[chosen].astype(np.int64)
    t, x, y = high[chosen] << 6 | word >> 22 & 63, word >> 11 & 2047, word & 2047
    return _expand(mask[chosen], t, x, y, kinds[chosen].astype(np.int64), 32)


def _makes_sense(upper: NDArray[Any], mask: NDArray[Any]) -> bool:
    """Whether words read so are of known types, have times without anything else, and an event in each event word."""
    kinds = upper >> 28
    times = kinds == 0x8
    known = np.isin(kinds, (0x0, 0x1, 0x8, 0xA, 0xE, 0xF)).all()
    return bool(known and times.any() and not mask[times].any() and mask[kinds <= 1].all())


def decode_evt3(payload: bytes) -> tuple[Column, Column, Column, Column]:
    """EVT 3.0, 16-bit words that each change a state: type 15-12, value 11-0.

    0 y; 2 one event at x, polarity in bit 11; 3 base x and polarity for vectors; 4 and 5 which of the next 12 or 8 x
    have an event, after which the base moves on by as many; 6 time 11-0; 8 time 23-12, a change sets the rest to 0.
    """
    words = _words(payload, "<u2")
    state, laps = np.empty(0, np.uint16), 0
    parts = []
    for first in range(0, len(words), BLOCK):  # in blocks: a dozen numbers are kept for each word while it is decoded
        block = np.concatenate([state, words[first : first + BLOCK]])
        columns, state, laps = _decode_evt3_block(block, laps)
        parts.append(columns)
    none = np.empty(0, np.int64)
    parts = parts or [(none, none, none, none)]
    t, x, y, p = (np.concatenate(column) for column in zip(*parts, strict=True))
    return t, x, y, p


def _decode_evt3_block(
    words: NDArray[Any], laps: int
) -> tuple[tuple[Column, Column, Column, Column], NDArray[np.uint16], int]:
    """Some words of a stream. Args: laps: what the clock's high part, which has 12 bits, has run over by so far.

    Returns: the events; words that bring the next block into the state at the end of this one; laps at its end.
    """
    kinds = words >> 12
    _check_types(kinds, (0x0, 0x2, 0x3, 0x4, 0x5, 0x6, 0x7, 0x8, 0xA, 0xE, 0xF))
    values = (words & 0xFFF).astype(np.int64)
    is_high = kinds == 0x8
    high, number = _high_time(words, is_high, 12)
    changed = is_high & ((number == 0) | (np.diff(high, prepend=0) != 0))
    at_low = _last((kinds == 0x6) | changed)
    low = np.where(kinds[at_low] == 0x6, values[at_low], 0)
    at_y, at_base = _last(kinds == 0x0), _last(kinds == 0x3)
    moves = np.select([kinds == 0x4, kinds == 0x5], [12, 8], 0)
    moved = np.cumsum(moves) - moves  # by the words before this one
    single, vector = kinds == 0x2, (kinds == 0x4) | (kinds == 0x5)
    chosen = np.flatnonzero((single | (vector & (at_base >= 0))) & (number >= 0) & (at_y >= 0))
    base = at_base[chosen]
    alone = single[chosen]
    source = np.where(alone, values[chosen], values[base])
    x = (source & 2047) + np.where(alone, 0, moved[chosen] - moved[base])
    mask = np.where(alone, 1, np.where(kinds[chosen] == 0x5, values[chosen] & 0xFF, values[chosen]))
    t = ((high + laps) << 12 | low)[chosen]
    events = _expand(mask, t, x, values[at_y[chosen]] & 2047, source >> 11, 12)

    state = []
    if number[-1] >= 0:
        raw = int(values[_last(is_high)[-1]])
        laps += int(high[-1]) - raw
        state += [0x8000 | raw, 0x6000 | int(low[-1])]
    if at_y[-1] >= 0:
        state.append(int(words[at_y[-1]]))
    if at_base[-1] >= 0:
        at = int(values[at_base[-1]])
        moved_on = int(moved[-1] + moves[-1] - moved[at_base[-1]])
        state.append(0x3000 | at & 2048 | min((at & 2047) + moved_on, 2047))  # beyond any sensor it stays beyond
    return events, np.array(state, np.uint16), laps


def decode_dat(payload: bytes, fields: dict[str, str]) -> tuple[Column, Column, Column, Column]:
    """DAT, version 2: two bytes (kind and size of events), then events: time (32 bits); x 13-0, y 27-14, p 31-28."""
    if fields.get("version", "2") != "2":
        raise Refused(f"its header says version {fields['version']}, but version 2 is read: convert it")
    if len(payload) < 2:
        raise Refused("cut off in its header")
    kind, size = payload[0], payload[1]
    if kind not in DAT_EVENT_TYPES or size != 8:
        raise Refused(f"events of type {kind:#x} with {size} bytes, not of type 0x0 or 0xc with 8")
    if (len(payload) - 2) % 8:
        raise Refused(f"{len(payload) - 2:,} bytes of events, not a multiple of 8")
    pairs = np.frombuffer(payload, "<u4", offset=2).reshape(-1, 2)
    word = pairs[:, 1].astype(np.int64)
    return unwrap(pairs[:, 0].astype(np.int64), 32), word & 16383, word >> 14 & 16383, word >> 28
