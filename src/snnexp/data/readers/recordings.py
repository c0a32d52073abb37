"""What every event reader hands to the store: one recording at a time, checked, in order of time.

A reader lists its files first (cheap) and then streams `Recording`s, so packing needs memory for one file only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

LAST_TIME = 2**31 - 1  # microseconds: times are stored as int32, 35 minutes
BAD_TIME, LATE_TIME = "with a non-finite time", "with a time out of range"
OFF_SENSOR, BAD_POLARITY = "outside the sensor", "with a polarity out of range"
MARKED_INVALID = "marked invalid by the camera"

Range = tuple[float, float]  # smallest and largest finite value; (inf, -inf) if there is none


class Seen(NamedTuple):
    """What the columns of a recording held before anything was left out; times in us. For messages about the cause."""

    t: Range
    x: Range
    y: Range
    p: Range
    rising: frozenset[str] = frozenset()  # columns that never fall; looked at only where something was left out


class Events(NamedTuple):
    """Events as they are stored, what was left out (reason -> number), and what the columns held."""

    time: NDArray[np.int32]
    address: NDArray[np.uint32]
    dropped: dict[str, int]
    seen: Seen | None = None


@dataclass(frozen=True)
class Recording:
    """One labelled sample. Event i happened `time[i]` us after the sample's start, at flat position `address[i]`.

    `address` = (polarity * H + y) * W + x in the sensor's own [C, H, W]; `time` never falls.
    """

    name: str  # identity that does not depend on where the files lie: relative path, or part and position
    part: str  # train, val or test; "all" if the data set has no official split
    label: int
    time: NDArray[np.int32]
    address: NDArray[np.uint32]
    subject: int = -1  # who was recorded; -1: the data set does not say
    dropped: dict[str, int] = field(default_factory=dict)  # reason -> number of events left out
    seen: Seen | None = None
    notes: tuple[str, ...] = ()  # what is odd about it, for the record

    @classmethod
    def of(
        cls, events: Events, name: str, part: str, label: int, subject: int = -1, notes: tuple[str, ...] = ()
    ) -> Recording:
        """The recording with these events."""
        return cls(name, part, label, events.time, events.address, subject, events.dropped, events.seen, notes)


@dataclass(frozen=True)
class Layout:
    """How the files of a reader hold events; messages about columns use these words."""

    unit: str = "us"  # of the times
    unit_us: float = 1.0
    columns: str = ""  # their order in the file, such as "x, y, p, t"; empty: fixed by the format
    position: str = "x"  # what the format calls the first position
    usual_s: float | None = None  # how long recordings of this set last, if the unit is a convention only


MICROSECONDS = Layout()


class EventReader(Protocol):
    """An event data set found on disk or ready to be generated."""

    name: str
    variant: str | None
    key: str  # name of its folder in the store: name, variant and whatever else changes the packed events
    shape: tuple[int, int, int]  # C, H, W of the sensor
    class_names: tuple[str, ...]
    official: dict[str, int] | None  # samples per part when complete; None: generated, always complete
    origin: str  # where the data comes from: an address, or "generated"
    folder: Path | None  # what `files` are relative to; None: generated
    files: tuple[Path, ...]  # all files that the recordings come from, sorted
    total: int  # number of recordings, for the progress bar
    layout: Layout
    notes: tuple[str, ...]  # what was found while the files were listed, for the record

    def recordings(self) -> Iterator[Recording]:
        """Yield every recording, sorted by part, class and number."""
        ...


def order_events(
    time: NDArray[Any],
    x: NDArray[Any],
    y: NDArray[Any],
    polarity: NDArray[Any],
    shape: tuple[int, int, int],
) -> Events:
    """Turn columns into events: those out of range counted and left out, the rest sorted by time.

    Args: time in us from the sample's start, integer or float (truncated towards zero; non-finite values are dropped);
    polarity 0 and 1, or -1 and 1. An event that is wrong in several ways is counted under the first of time, position
    and polarity. Equal times keep their order, so sorted input comes back as it is.
    """
    channels, height, width = shape
    dropped: dict[str, int] = {}
    seen = Seen(_range(time), _range(x), _range(y), _range(polarity))
    if channels > 1 and seen.p[0] == -1 and not bool((polarity == 0).any()):  # off is -1 here
        polarity, seen = np.where(polarity == -1, 0, polarity), seen._replace(p=(0.0, max(0.0, seen.p[1])))
    limits = ((seen.t, LAST_TIME + 1), (seen.x, width), (seen.y, height), (seen.p, channels))
    if not all(low >= 0 and high < end for (low, high), end in limits):
        finite = np.isfinite(time)
        in_time = finite & (time >= 0) & (time <= LAST_TIME)
        on_sensor = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        known = (polarity >= 0) & (polarity < channels)
        for reason, mask in (
            (BAD_TIME, ~finite),
            (LATE_TIME, finite & ~in_time),
            (OFF_SENSOR, in_time & ~on_sensor),
            (BAD_POLARITY, in_time & on_sensor & ~known),
        ):
            if count := int(np.count_nonzero(mask)):
                dropped[reason] = count
        columns = {"t": time, "x": x, "y": y, "p": polarity}
        t_range, x_range, y_range, p_range = (_range(column[np.isfinite(column)]) for column in columns.values())
        rising = frozenset(name for name, column in columns.items() if bool((column[1:] >= column[:-1]).all()))
        seen = Seen(t_range, x_range, y_range, p_range, rising)
        keep = in_time & on_sensor & known
        time, x, y, polarity = time[keep], x[keep], y[keep], polarity[keep]
    stored = time.astype(np.int32)
    address = (polarity.astype(np.uint32) * height + y.astype(np.uint32)) * width + x.astype(np.uint32)
    if len(stored) > 1 and bool((stored[1:] < stored[:-1]).any()):
        order = np.argsort(stored, kind="stable")
        stored, address = stored[order], address[order]
    return Events(stored, address.astype(np.uint32), dropped, seen)


def _range(column: NDArray[Any]) -> Range:
    """Smallest and largest value; nan if there is one, which fits no limit."""
    return (float(column.min()), float(column.max())) if len(column) else (math.inf, -math.inf)
