"""Events that could not be used, judged: how many of how many, which column lost them, and what that most likely means.

A few bad events are normal and only counted. A set that loses a good part of them was misread (times in another unit,
columns in another order, another camera), and training on what happens to be left would blame the network.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np

from snnexp.data.readers.recordings import (
    BAD_POLARITY,
    BAD_TIME,
    LAST_TIME,
    LATE_TIME,
    MARKED_INVALID,
    OFF_SENSOR,
    EventReader,
    Layout,
    Range,
    Recording,
    Seen,
)
from snnexp.errors import DataError

LOST_SHARE = 0.25  # of a part's events: a set that loses more was misread, and is refused
MISREAD = (BAD_TIME, LATE_TIME, OFF_SENSOR, BAD_POLARITY, MARKED_INVALID)  # the rest was asked for: transforms
TOO_LONG = 30  # times the usual length of a recording: the times are in another unit
TOO_SHORT = 1000
UNITS = {"s": 1e6, "ms": 1e3, "us": 1.0, "ns": 1e-3}
PLAUSIBLE_S = (0.001, 300.0)  # a recording's length
SENSORS = {  # width, height: cameras whose recordings are about
    (34, 34): "N-MNIST",
    (128, 128): "DVS128",
    (240, 180): "DAVIS240",
    (304, 240): "ATIS",
    (346, 260): "DAVIS346",
    (640, 480): "DVXplorer or Gen3",
    (1280, 720): "Gen4",
}
MOST_NOTES = 10  # of one set


@dataclass
class Tally:
    """What the recordings of one part (train, val, test or all) held and lost."""

    recordings: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    seen: Seen | None = None  # over the recordings that lost events
    lengths: list[float] = field(default_factory=list)  # us, as read
    first: str = ""  # the first recording that lost more than LOST_SHARE
    notes: list[str] = field(default_factory=list)

    def add(self, recording: Recording) -> None:
        """Count one recording."""
        self.recordings += 1
        self.kept += len(recording.time)
        self.dropped.update(recording.dropped)
        self.notes += recording.notes
        lost = sum(recording.dropped.get(reason, 0) for reason in MISREAD)
        if not self.first and lost > LOST_SHARE * (len(recording.time) + sum(recording.dropped.values())):
            self.first = recording.name
        if recording.seen is None:
            return
        begin, end = recording.seen.t
        if begin <= end:
            self.lengths.append(end - begin)
        if lost:
            self.seen = recording.seen if self.seen is None else _merge(self.seen, recording.seen)

    def include(self, other: Tally) -> None:
        """Count what another tally counted."""
        self.recordings += other.recordings
        self.kept += other.kept
        self.dropped.update(other.dropped)
        self.lengths += other.lengths
        self.notes += other.notes
        self.first = self.first or other.first
        if other.seen is not None:
            self.seen = other.seen if self.seen is None else _merge(self.seen, other.seen)

    @property
    def events(self) -> int:
        """Events in the files."""
        return self.kept + self.dropped.total()

    @property
    def lost(self) -> int:
        """Events that could not be used, without those that a transform took out."""
        return sum(self.dropped[reason] for reason in MISREAD)

    @property
    def length_s(self) -> float:
        """Median length of the recordings as read, in seconds."""
        return float(np.median(self.lengths)) / 1e6 if self.lengths else math.nan


def _merge(a: Seen, b: Seen) -> Seen:
    t, x, y, p = ((min(one[0], two[0]), max(one[1], two[1])) for one, two in zip(a[:4], b[:4], strict=True))
    return Seen(t, x, y, p, a.rising & b.rising)


def judge(reader: EventReader, tallies: dict[str, Tally]) -> list[str]:
    """Notes about a set that can be used.

    Raises: DataError if a part loses more than LOST_SHARE of its events, or its times cannot be what they are taken
    for; the message says what was lost where, and the likely cause.
    """
    notes: list[str] = []
    whole = Tally()
    for tally in tallies.values():
        whole.include(tally)
    for part, tally in {"all": whole, **tallies}.items():
        where = f"dataset={reader.name}: " + ("" if part == "all" else f"{part} part: ")
        if tally.lost > LOST_SHARE * tally.events:
            raise DataError(where + _refusal(reader, tally))
        usual, length = reader.layout.usual_s, tally.length_s
        if usual is not None and length > TOO_LONG * usual:
            raise DataError(where + _too_long(reader, tally))
        if tally is whole and usual is not None and length < usual / TOO_SHORT:
            notes.append(
                f"half of the recordings last {_seconds(length)} or less, usual is {usual:g} s:"
                f" are the times in another unit than {reader.layout.unit}?"
            )
    if whole.dropped[OFF_SENSOR] and whole.seen is not None and _counted_from_one(reader, whole.seen):
        notes.append(f"no position is 0 and some are {reader.shape[2]}: are they counted from 1?")
    notes += whole.notes
    return notes[:MOST_NOTES] + ([f"{len(notes) - MOST_NOTES:,} more of these"] if len(notes) > MOST_NOTES else [])


def total_dropped(tallies: dict[str, Tally]) -> dict[str, int]:
    """Reason -> number of events over all parts."""
    total: Counter[str] = Counter()
    for tally in tallies.values():
        total.update(tally.dropped)
    return dict(total)


def loss_note(dropped: dict[str, int], events: int) -> list[str]:
    """One line about everything that was left out, with its share; nothing if nothing was."""
    lost = sum(dropped.values())
    if not lost:
        return []
    return [f"{_of(lost, events)} events dropped: {_reasons(dropped)}"]


def _of(part: int, whole: int) -> str:
    """`4,365 of 8,800 (50 %)`; never 0 % of something, nor 100 % of less than all."""
    share = 100 * part / max(whole, 1)
    text = f"{share:.0f}" if 1 <= share <= 99 or part in (0, whole) else f"{share:.2g}" if share < 1 else f"{share:.4g}"
    return f"{part:,} of {whole:,} ({'over 99' if text == '100' and part < whole else text} %)"


def _reasons(dropped: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in dropped.items())


# --- causes -------------------------------------------------------------------------------------------------------


def _refusal(reader: EventReader, tally: Tally) -> str:
    text = f"{_of(tally.lost, tally.events)} events cannot be used: {_reasons(tally.dropped)}; at most"
    text += f" {100 * LOST_SHARE:.0f} % may be lost." + (
        f" The first such recording is {tally.first}." if tally.first else ""
    )
    explain = getattr(reader, "explain", None)  # some formats tell more than columns do
    own = explain(tally.first) if explain is not None and tally.first else ""
    if own:
        return f"{text} {own}"
    causes = " Also: ".join(_causes(reader, tally))
    last = f"Likely cause: {causes}" if causes else "Are these recordings of this data set?"
    return " ".join([text, *_findings(reader, tally), last])


def _findings(reader: EventReader, tally: Tally) -> Iterator[str]:
    """What each column that lost events held, beside what it may hold."""
    layout, seen = reader.layout, tally.seen
    if seen is None:
        return
    _, height, width = reader.shape
    if tally.dropped[BAD_TIME] or tally.dropped[LATE_TIME]:
        last = math.floor(LAST_TIME / layout.unit_us)
        yield f"{_run('Times run', _in_unit(layout, seen), f' {layout.unit}')}, wanted are 0 to {_number(last)}" + (
            f" {layout.unit} from the recording's start."
        )
    if tally.dropped[OFF_SENSOR]:
        yield _run(f"{layout.position} runs", seen.x) + (
            f" and {_run('y', seen.y)} on a sensor of {width}x{height}."
            if height > 1
            else f", wanted are 0 to {width - 1}."
        )
    if tally.dropped[BAD_POLARITY]:
        yield f"{_run('Polarity runs', seen.p)}, wanted are 0 and 1 (or -1 and 1)."


def _run(words: str, column: Range, unit: str = "") -> str:
    """What a column runs from and to; the range of one without a finite value ends before it begins."""
    low, high = column
    if low > high:
        return f"{words.partition(' ')[0]}: not one finite number"
    return f"{words} from {_number(low)} to {_number(high)}{unit}"


def _in_unit(layout: Layout, seen: Seen) -> Range:
    """The times in the unit of the files."""
    return seen.t[0] / layout.unit_us, seen.t[1] / layout.unit_us


def _causes(reader: EventReader, tally: Tally) -> Iterator[str]:
    seen, dropped = tally.seen, tally.dropped
    if dropped[MARKED_INVALID] > tally.lost / 2:
        yield "the program that wrote the files did not set the bit that marks an event as valid."
    if seen is None:
        return
    if order := _other_order(reader, seen):
        yield f"the columns are in the order {order}, not {reader.layout.columns}. Write them in the latter order."
        return
    if dropped[LATE_TIME] + dropped[BAD_TIME]:
        yield from _time_causes(reader.layout, tally, seen)
    if dropped[OFF_SENSOR]:
        yield from _sensor_causes(reader, seen)
    if dropped[BAD_POLARITY]:
        yield from _polarity_causes(seen)


def _other_order(reader: EventReader, seen: Seen) -> str:
    """The order of columns that would fit what was seen, if it is not the expected one; empty if none does for sure."""
    wanted = reader.layout.columns.split(", ") if reader.layout.columns else []
    _, height, width = reader.shape
    columns = {"t": _in_unit(reader.layout, seen), "x": seen.x, "y": seen.y, "p": seen.p}

    def fits(role: str, column: str) -> bool:
        low, high = columns[column]
        if role == "t":
            return low >= 0 and column in seen.rising and high > 1
        ends = {"x": (0, width), "y": (0, height), "p": (-1, 2)}[role]
        return ends[0] <= low and high < ends[1]

    if all(fits(role, role) for role in wanted):
        return ""
    for order in itertools.permutations(wanted):  # x before y comes first: a square sensor cannot tell them apart
        # the column where `wanted` has w holds what `order` has there
        if all(fits(role, column) for role, column in zip(order, wanted, strict=True)):
            return ", ".join(order)
    return ""


def _time_causes(layout: Layout, tally: Tally, seen: Seen) -> Iterator[str]:
    longest = max(tally.lengths, default=0.0)
    low, high = _in_unit(layout, seen)
    if low > high:
        yield "the program that wrote the files failed at the times. Write them anew."
        return
    if bits := next((bits for bits in (16, 32) if _wrapped(low, high, bits)), None):
        yield f"the times overflowed an integer of {bits} bits. Write them anew in a wider type, such as int64."
        return
    if tally.dropped[BAD_TIME] > tally.dropped[LATE_TIME]:
        yield (
            f"the times are in a finer unit than {layout.unit} and overflowed a type that is too small for it (float16"
            f" ends at 65,504). Write them in {layout.unit}."
        )
        return
    absolute = longest <= LAST_TIME and (seen.t[0] > LAST_TIME or seen.t[0] < 0 or seen.t[1] > 2 * LAST_TIME)
    if absolute:
        when = _moment(seen.t[0])
        yield f"the times count from another moment{when}. Take each recording's first time off its times."
    if (finer := _finer_unit(layout, longest)) and (not absolute or longest > 1e6 * PLAUSIBLE_S[1]):
        yield _unit_advice(layout, finer, longest)
    elif not absolute and seen.t[0] < 0:
        yield "the times count from another moment than the start. Take each recording's first time off its times."


def _wrapped(low: float, high: float, bits: int) -> bool:
    """Whether values fill a signed integer of so many bits to both of its ends, as those do that ran over."""
    end = 2.0 ** (bits - 1)
    return -end <= low < -0.9 * end and 0.9 * end < high < end


def _moment(time_us: float) -> str:
    """The date that a time may stand for, counted from 1970."""
    for per_second in (1e6, 1e9, 1e12, 1e3):  # in the unit that was assumed, in finer ones, in a coarser one
        seconds = time_us / per_second
        if 9e8 < seconds < 2.5e9:
            return f" (as Unix time, from {datetime.fromtimestamp(seconds, UTC):%Y-%m-%d})"
    return ""


def _finer_unit(layout: Layout, length_us: float) -> str:
    """The unit in which recordings of this length as read would last about as long as they should."""
    usual = layout.usual_s or 1.0
    found = []
    for unit, unit_us in UNITS.items():
        seconds = length_us / layout.unit_us * unit_us / 1e6
        if unit_us < layout.unit_us and PLAUSIBLE_S[0] <= seconds <= PLAUSIBLE_S[1]:
            found.append((abs(math.log(seconds / usual)), unit))
    return min(found)[1] if found else ""


def _unit_advice(layout: Layout, finer: str, length_us: float) -> str:
    factor = layout.unit_us / UNITS[finer]
    seconds = length_us / layout.unit_us * UNITS[finer] / 1e6
    return (
        f"the times are in {finer}, not {layout.unit} (the longest recording then lasts {_seconds(seconds)})."
        f" Divide them by {factor:,.0f}."
    )


def _too_long(reader: EventReader, tally: Tally) -> str:
    layout, longest = reader.layout, max(tally.lengths)
    finer = _finer_unit(layout, longest)
    return (
        f"half of the recordings last {_seconds(tally.length_s)} or longer if their times are in {layout.unit}, but"
        f" recordings of this set last about {layout.usual_s:g} s. "
        + (f"Likely cause: {_unit_advice(layout, finer, longest)}" if finer else "Look at the unit of the times.")
    )


def _sensor_causes(reader: EventReader, seen: Seen) -> Iterator[str]:
    _, height, width = reader.shape
    if height == 1:
        if _counted_from_one(reader, seen):
            yield f"{reader.layout.position} is counted from 1. Take 1 off."
        else:
            yield f"another set, or another number of channels than {width}."
        return
    if seen.x[0] > seen.x[1] or seen.y[0] > seen.y[1]:
        yield "the program that wrote the files failed at the positions. Write them anew."
        return
    if min(seen.x[0], seen.y[0]) < 0:
        yield "positions below 0: counted from the centre, or damaged."
        return
    size = sensor_of(int(seen.x[1]), int(seen.y[1]))
    yield (
        f"recordings of a sensor of {size}. Scale or crop the positions to {width}x{height}, or use the data set that"
        " was made with this sensor."
    )


def _counted_from_one(reader: EventReader, seen: Seen) -> bool:
    _, height, width = reader.shape
    return seen.x[0] >= 1 and seen.x[1] == width and (height == 1 or (seen.y[0] >= 1 and seen.y[1] == height))


def sensor_of(x: int, y: int) -> str:
    """The size of the smallest known sensor with this position, and its name."""
    fitting = [(w * h, f"{w}x{h} ({camera})") for (w, h), camera in SENSORS.items() if x < w and y < h]
    return min(fitting)[1] if fitting else f"{x + 1}x{y + 1} or more"


def _polarity_causes(seen: Seen) -> Iterator[str]:
    low, high = seen.p
    if (low, high) == (1, 2):
        yield "polarity is 1 and 2. Take 1 off."
    elif (low, high) == (-1, 1):
        yield "polarity is -1, 0 and 1 in one recording. Leave out or change what is 0."
    elif low in (0, 1) and high in (255, 65535, 2**32 - 1, 2**64 - 1):
        yield f"{high:,.0f} stands for on, or for -1 in an unsigned type. Write 0 and 1."
    else:
        yield "another column stands where the polarity is expected."


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) and abs(value) < 1e18 else f"{value:,.6g}"


def _seconds(value: float) -> str:
    if not math.isfinite(value):
        return "an unknown time"
    return f"{value:,.3g} s" if value >= 1 else f"{1000 * value:.3g} ms"
