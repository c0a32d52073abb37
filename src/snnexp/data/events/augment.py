"""Random changes of a training batch's events, before they are binned; seeded, on the CPU.

Order: rotate and mirror about the sensor's centre, shift, swap polarities (each drawn once per sample); then drop
single events and move single times. Events that leave the sensor are lost. An axis with one pixel (SHD: one row of
channels) is never shifted. Bins are set by the events that are left.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from snnexp.config import AugmentConf

EventArrays = tuple[NDArray[np.int32], NDArray[np.unsignedinteger], NDArray[np.int64]]


def is_active(conf: AugmentConf) -> bool:
    """Whether any change of events is switched on."""
    return bool(conf.shift or conf.rotate or conf.flip or conf.drop_events or conf.jitter_ms or conf.flip_polarity)


def gather(
    time: NDArray[np.int32],
    address: NDArray[np.unsignedinteger],
    starts: NDArray[np.int64],
    stops: NDArray[np.int64],
) -> EventArrays:
    """Copy a batch's samples into arrays of their own: (time, address, offsets [B + 1])."""
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(stops - starts)])
    times = np.empty(int(offsets[-1]), np.int32)
    addresses = np.empty(int(offsets[-1]), address.dtype)
    for b, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        times[offsets[b] : offsets[b + 1]] = time[start:stop]
        addresses[offsets[b] : offsets[b + 1]] = address[start:stop]
    return times, addresses, offsets


@numba.njit(nogil=True, cache=True)
def _move(address, offsets, shape, cos, sin, mirror, shift_x, shift_y, swap, keep):  # type: ignore[no-untyped-def]
    channels, height, width = shape
    centre_x, centre_y = (width - 1) / 2, (height - 1) / 2
    for b in range(len(offsets) - 1):
        for i in range(offsets[b], offsets[b + 1]):
            position = np.int64(address[i])
            x = position % width
            y = (position // width) % height
            p = position // (width * height)
            if sin[b] != 0.0:
                dx, dy = x - centre_x, y - centre_y
                x = np.int64(np.floor(cos[b] * dx - sin[b] * dy + centre_x + 0.5))
                y = np.int64(np.floor(sin[b] * dx + cos[b] * dy + centre_y + 0.5))
            if mirror[b]:
                x = width - 1 - x
            x += shift_x[b]
            y += shift_y[b]
            if swap[b]:
                p = channels - 1 - p
            if x < 0 or x >= width or y < 0 or y >= height:
                keep[i] = False
            else:
                address[i] = (p * height + y) * width + x


@dataclass(frozen=True)
class Among:
    """Where samples and their events stand among those of the whole batch, for which the numbers are drawn."""

    samples: slice
    of_samples: int
    events: slice
    of_events: int

    @classmethod
    def of(cls, lengths: NDArray[np.int64], part: slice) -> Among:
        """The samples `part` of a batch whose samples have so many events."""
        first, stop, _ = part.indices(len(lengths))
        begin, end = int(lengths[:first].sum()), int(lengths[:stop].sum())
        return cls(slice(first, stop), len(lengths), slice(begin, end), int(lengths.sum()))


def augment(
    events: EventArrays,
    shape: tuple[int, int, int],
    conf: AugmentConf,
    rng: np.random.Generator,
    among: Among | None = None,
) -> EventArrays:
    """Change a batch of events in place where possible, and return what is left of it.

    Args:
        events: from `gather`; times in us, rising within a sample.
        shape: [C, H, W] of the sensor.
        conf: shift in pixels (uniform in -shift..shift per axis), rotate in degrees (uniform in -rotate..rotate), flip
            (left to right, probability 1/2), flip_polarity (probability per sample), drop_events (share), jitter_ms
            (standard deviation; times stay at or after 0).
        rng: all draws come from it, so the same state gives the same batch.
        among: the batch of which these samples are a part; None: they are all of it.
    """
    time, address, offsets = events
    samples = len(offsets) - 1
    keep = np.ones(len(time), np.bool_)
    if among is None:
        among = Among(slice(None), samples, slice(None), len(time))
    count, mine = among.of_samples, among.samples
    angle = np.deg2rad(rng.uniform(-conf.rotate, conf.rotate, count))[mine] if conf.rotate else np.zeros(samples)
    mirror = rng.random(count)[mine] < 0.5 if conf.flip else np.zeros(samples, np.bool_)
    shift_x = rng.integers(-conf.shift, conf.shift + 1, count)[mine] * (shape[2] > 1)
    shift_y = rng.integers(-conf.shift, conf.shift + 1, count)[mine] * (shape[1] > 1)
    swap = rng.random(count)[mine] < conf.flip_polarity
    _move(address, offsets, shape, np.cos(angle), np.sin(angle), mirror, shift_x, shift_y, swap, keep)
    if conf.drop_events:
        keep &= rng.random(among.of_events, np.float32)[among.events] >= conf.drop_events
    if conf.jitter_ms:
        noise = rng.standard_normal(among.of_events, np.float32)[among.events] * np.float32(1000 * conf.jitter_ms)
        time = np.clip(np.rint(time + noise), 0, np.iinfo(np.int32).max - 128).astype(np.int32)
    if not keep.all():
        kept_before = np.concatenate([np.zeros(1, np.int64), np.cumsum(keep)])
        offsets = kept_before[offsets]
        time, address = time[keep], address[keep]
    if conf.jitter_ms:
        for b in range(samples):
            part = slice(offsets[b], offsets[b + 1])
            order = np.argsort(time[part], kind="stable")
            time[part], address[part] = time[part][order], address[part][order]
    return time, address, offsets
