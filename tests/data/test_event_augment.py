"""Augmentation: one change at a time, computed by hand, and the same draws for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
from fake_files import random_events

from snnexp.config import AugmentConf
from snnexp.data.events.augment import EventArrays, augment, gather, is_active

SHAPE = (2, 5, 7)


def pack(t: list[int], x: list[int], y: list[int], p: list[int], cuts: list[int]) -> EventArrays:
    """Events of a batch; sample b is cuts[b] to cuts[b + 1]."""
    address = (np.array(p) * SHAPE[1] + np.array(y)) * SHAPE[2] + np.array(x)
    return np.array(t, np.int32), address.astype(np.uint16), np.array(cuts, np.int64)


def unpack(events: EventArrays) -> list[tuple[int, int, int, int]]:
    """(t, x, y, p) of every event."""
    time, address, _ = events
    a = address.astype(int)
    return list(zip(time.tolist(), (a % 7).tolist(), (a // 7 % 5).tolist(), (a // 35).tolist(), strict=True))


def test_off_by_default() -> None:
    assert not is_active(AugmentConf())
    events = pack([1, 2], [0, 6], [0, 4], [0, 1], [0, 2])
    assert unpack(augment(events, SHAPE, AugmentConf(), np.random.default_rng(0))) == [(1, 0, 0, 0), (2, 6, 4, 1)]


def test_gather_copies_the_samples() -> None:
    time, address = np.arange(10, dtype=np.int32), np.arange(10, 20, dtype=np.uint16)
    t, a, offsets = gather(time, address, np.array([6, 2]), np.array([8, 5]))
    assert (t.tolist(), a.tolist(), offsets.tolist()) == ([6, 7, 2, 3, 4], [16, 17, 12, 13, 14], [0, 2, 5])
    t[:] = 0
    assert time[6] == 6


def test_shift_is_one_step_per_sample_and_loses_what_leaves() -> None:
    """Per sample, all events move by the same (dx, dy) in -2..2, and each of the 25 steps comes up."""
    seen = set()
    for seed in range(200):
        events = pack([0, 1, 2], [3, 4, 3], [2, 2, 2], [0, 1, 0], [0, 2, 3])
        t, a, offsets = augment(events, SHAPE, AugmentConf(shift=2), np.random.default_rng(seed))
        moved = unpack((t, a, offsets))
        dx, dy = moved[0][1] - 3, moved[0][2] - 2
        assert moved[1] == (1, 4 + dx, 2 + dy, 1) and offsets.tolist() == [0, 2, 3]  # nothing leaves from there
        seen.add((dx, dy))
    assert seen == {(dx, dy) for dx in range(-2, 3) for dy in range(-2, 3)}
    corner = [
        augment(pack([0], [0], [0], [0], [0, 1]), SHAPE, AugmentConf(shift=1), np.random.default_rng(s))
        for s in range(60)
    ]
    assert {len(events[0]) for events in corner} == {0, 1}
    assert all(events[2].tolist() == [0, len(events[0])] for events in corner)


def test_one_row_of_channels_is_shifted_along_only() -> None:
    address = np.array([350], np.uint16)
    moved = {
        int(
            augment(
                (np.zeros(1, np.int32), address.copy(), np.array([0, 1])),
                (1, 1, 700),
                AugmentConf(shift=3),
                np.random.default_rng(s),
            )[1][0]
        )
        for s in range(100)
    }
    assert moved == set(range(347, 354))


def test_flip_mirrors_half_of_the_samples() -> None:
    flipped = 0
    for seed in range(200):
        events = pack([5, 6], [1, 6], [3, 0], [1, 0], [0, 2])
        out = unpack(augment(events, SHAPE, AugmentConf(flip=True), np.random.default_rng(seed)))
        assert out in ([(5, 1, 3, 1), (6, 6, 0, 0)], [(5, 5, 3, 1), (6, 0, 0, 0)])
        flipped += out[0][1] == 5
    assert 70 < flipped < 130  # 4 standard deviations


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_flip_polarity(probability: float) -> None:
    events = pack([0, 1], [2, 3], [1, 1], [0, 1], [0, 2])
    out = unpack(augment(events, SHAPE, AugmentConf(flip_polarity=probability, flip=False), np.random.default_rng(0)))
    assert [event[3] for event in out] == ([1, 0] if probability else [0, 1])
    assert [event[:3] for event in out] == [(0, 2, 1), (1, 3, 1)]


def test_rotation_is_about_the_centre() -> None:
    """The centre pixel stays; a full-range rotation keeps distances to half a pixel's rounding."""
    for seed in range(50):
        events = pack([0, 1], [3, 5], [2, 2], [0, 0], [0, 2])
        out = unpack(augment(events, SHAPE, AugmentConf(rotate=180.0), np.random.default_rng(seed)))
        assert out[0] == (0, 3, 2, 0)
        assert len(out) == 2 and abs(np.hypot(out[1][1] - 3, out[1][2] - 2) - 2) <= np.sqrt(0.5)

    class Turn:
        """A generator whose uniform draw is the upper bound: exactly 90 degrees."""

        def uniform(self, low: float, high: float, size: int) -> np.ndarray:
            return np.full(size, high)

        def __getattr__(self, name: str) -> object:
            return getattr(np.random.default_rng(0), name)

    events = pack([0, 1], [5, 3], [2, 0], [0, 0], [0, 2])
    out = unpack(augment(events, SHAPE, AugmentConf(rotate=90.0), Turn()))  # type: ignore[arg-type]
    assert [event[1:3] for event in out] == [(3, 4), (5, 2)]


def test_drop_events_drops_its_share() -> None:
    t, x, y, p = random_events(np.random.default_rng(0), 20_000, 5, 7, 1000)
    events = pack(t.tolist(), x.tolist(), y.tolist(), p.tolist(), [0, 5000, 20_000])
    before = unpack(events)
    out = augment(events, SHAPE, AugmentConf(drop_events=0.25), np.random.default_rng(1))
    assert abs(len(out[0]) - 15_000) < 250  # 4 standard deviations
    assert abs(out[2][1] - 3750) < 130 and out[2][-1] == len(out[0])
    assert set(unpack(out)) <= set(before) and (np.diff(out[0][: out[2][1]]) >= 0).all()


def test_jitter_moves_times_only_and_keeps_them_sorted() -> None:
    t, _, y, p = random_events(np.random.default_rng(0), 10_000, 5, 7, 1_000_000)
    t[0] = 0
    events = pack(t.tolist(), list(range(7)) * 1428 + [0] * 4, y.tolist(), p.tolist(), [0, 4000, 10_000])
    out = augment(
        (events[0].copy(), events[1].copy(), events[2]), SHAPE, AugmentConf(jitter_ms=2.0), np.random.default_rng(1)
    )
    for b in range(2):
        part = slice(out[2][b], out[2][b + 1])
        assert (np.diff(out[0][part]) >= 0).all() and out[0][part].min() >= 0
        assert sorted(out[1][part].tolist()) == sorted(events[1][part].tolist())
    single = pack([500_000] * 4000, [0] * 4000, [0] * 4000, [0] * 4000, [0, 4000])
    moved = augment(single, SHAPE, AugmentConf(jitter_ms=2.0), np.random.default_rng(2))[0]
    assert abs(moved.std() - 2000) < 100 and abs(moved.mean() - 500_000) < 130


def test_same_seed_same_events() -> None:
    conf = AugmentConf(shift=2, rotate=10.0, flip=True, drop_events=0.1, jitter_ms=1.0, flip_polarity=0.5)
    assert is_active(conf)
    runs = []
    for seed in (7, 7, 8):
        t, x, y, p = random_events(np.random.default_rng(0), 500, 5, 7, 1000)
        runs.append(
            augment(
                pack(t.tolist(), x.tolist(), y.tolist(), p.tolist(), [0, 200, 500]),
                SHAPE,
                conf,
                np.random.default_rng(seed),
            )
        )
    assert all(np.array_equal(a, b) for a, b in zip(runs[0], runs[1], strict=True))
    assert not np.array_equal(runs[0][1], runs[2][1])
