"""Prophesee's encodings: vectors and clocks by hand, and all that expelliarmus reads against expelliarmus."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from own_files import dat, evt2, evt3, evt21

from snnexp.data.readers import prophesee
from snnexp.data.readers.prophesee import Refused, decode_evt3, decode_evt21, read_prophesee


def rows(columns: tuple[np.ndarray, ...]) -> list[tuple[int, ...]]:
    return [tuple(int(v) for v in row) for row in zip(*columns[:4], strict=True)]


def words3(*words: int) -> bytes:
    return struct.pack(f"<{len(words)}H", *words)


def test_evt21_vectors_by_hand() -> None:
    # time word 5: 5 * 64 = 320 us; at 320 + 3 us, y 7, x 64 + bits 0, 2, 31, on; at 320 + 4 us, y 8, x 96 + bit 1, off
    words = [8 << 60 | 5 << 32, (1 << 28 | 3 << 22 | 64 << 11 | 7) << 32 | (1 | 1 << 2 | 1 << 31)]
    words += [(4 << 22 | 96 << 11 | 8) << 32 | 1 << 1, 10 << 60, 14 << 60]  # and a trigger and another word: no events
    expected = [(323, 64, 7, 1), (323, 66, 7, 1), (323, 95, 7, 1), (324, 97, 8, 0)]
    little = struct.pack("<5Q", *words)
    legacy = b"".join(struct.pack("<II", word >> 32, word & 0xFFFFFFFF) for word in words)
    assert rows(decode_evt21(little, "little")) == rows(decode_evt21(legacy, "legacy")) == expected
    assert rows(decode_evt21(little)) == rows(decode_evt21(legacy)) == expected  # only one order makes sense
    with pytest.raises(Refused, match="endianness"):
        decode_evt21(struct.pack("<Q", 0))


def test_evt3_vectors_and_clock_by_hand() -> None:
    stream = words3(
        0x2005,  # an event before any time: nobody knows when
        0x8001,  # time high 1: 4096 us
        0x6010,  # time low 16
        0x0003,  # y 3
        0x3000 | 1 << 11 | 20,  # base x 20, on
        0x4000 | 0b1000_0000_0001,  # x 20 and 31
        0x5000 | 0b1000_0001,  # x 32 and 39
        0x2000 | 7,  # x 7, off; the base stays
        0x5000 | 0b10,  # x 41
        0x8002,  # time high 2: the low part starts at 0
        0x2000 | 1 << 11 | 9,
        0x8002,  # the same again changes nothing
        0x6001,
        0x2000 | 1 << 11 | 9,
    )
    first = [(4112, 20, 3, 1), (4112, 31, 3, 1), (4112, 32, 3, 1), (4112, 39, 3, 1), (4112, 7, 3, 0), (4112, 41, 3, 1)]
    assert rows(decode_evt3(stream)) == [*first, (8192, 9, 3, 1), (8193, 9, 3, 1)]


@pytest.mark.parametrize("block", [1, 2, 3, 5, 7])
def test_evt3_in_blocks_is_the_same(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    rng = np.random.default_rng(block)
    high, stream = 0, []
    for _ in range(400):
        kind = int(rng.choice([0x0, 0x2, 0x3, 0x4, 0x5, 0x6, 0x8, 0xA]))
        high = (high + int(rng.integers(0, 900))) % 4096 if kind == 0x8 else high
        stream.append(kind << 12 | (high if kind == 0x8 else int(rng.integers(0, 1600))))
    whole = rows(decode_evt3(words3(*stream)))
    monkeypatch.setattr(prophesee, "BLOCK", block)
    assert len(whole) > 300 and whole[-1][0] > 1 << 24 and rows(decode_evt3(words3(*stream))) == whole


def test_the_24_bits_of_the_evt3_clock_go_round() -> None:
    stream = words3(0x8FFF, 0x6FFF, 0x0000, 0x2001, 0x8000, 0x6002, 0x2001)
    assert [t for t, *_ in rows(decode_evt3(stream))] == [(1 << 24) - 1, (1 << 24) + 2]


def test_equal_to_expelliarmus(tmp_path: Path) -> None:
    wizard = pytest.importorskip("expelliarmus").Wizard
    rng = np.random.default_rng(0)
    count = 3000
    t = np.sort(rng.integers(0, 200_000, count))
    events = tuple(zip(t.tolist(), *(rng.integers(0, n, count).tolist() for n in (640, 480, 2)), strict=True))
    for encoding, content in (("evt2", evt2(events)), ("evt3", evt3(events)), ("dat", dat(events))):
        path = tmp_path / ("a.dat" if encoding == "dat" else f"{encoding}.raw")
        path.write_bytes(content)
        # its EVT 3.0 adds 4,096 us where the low part of the clock falls, though the high part has been raised by then
        whole = encoding != "evt3"
        theirs = wizard(encoding=encoding, fpath=path).read()
        ours = read_prophesee(path)
        assert ours.sensor == (32, 32)
        for name in "txyp" if whole else "xyp":
            assert np.array_equal(getattr(ours, name), theirs[name]), (encoding, name)
    (tmp_path / "evt21.raw").write_bytes(evt21(events=events))
    assert rows(read_prophesee(tmp_path / "evt21.raw")) == list(events)
