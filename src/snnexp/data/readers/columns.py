"""What the columns of a file of events mean: which is the time and in what unit, which the position and on what sensor.

Everything comes from the configuration or from the file's own words. What neither says is an error that names the file
and the key, with what was seen and what would fit; nothing is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snnexp.data.readers.recordings import LAST_TIME
from snnexp.data.readers.tables import ROLES, Raw, Size
from snnexp.data.store.losses import PLAUSIBLE_S, SENSORS, UNITS
from snnexp.errors import ConfigError, DataError, unknown_choice
from snnexp.schema.dataset import FolderDatasetConf

Column = NDArray[Any]
NAMES = {
    "t": ("t", "ts", "time", "times", "timestamp", "timestamps", "time_stamp", "t_event"),
    "x": ("x", "xs", "x_pos", "xpos", "x_addr", "xaddr", "col", "column", "unit", "units", "channel", "neuron"),
    "y": ("y", "ys", "y_pos", "ypos", "y_addr", "yaddr", "row"),
    "p": ("p", "ps", "pol", "pols", "polarity", "polarities", "on", "sign"),
}
UNIT_WORDS = {
    "us": ("us", "µs", "μs", "usec", "microsecond", "microseconds"),
    "ms": ("ms", "msec", "millisecond", "milliseconds"),
    "ns": ("ns", "nsec", "nanosecond", "nanoseconds"),
    "s": ("s", "sec", "second", "seconds"),
}
UNIT_PATTERN = r"(us|µs|μs|ms|ns|s|usec|msec|nsec|sec)"
LATE_US = 10_000  # a camera's events may be this much out of order; more means that the file is damaged


@dataclass(frozen=True)
class Wanted:
    """What the configuration says; None where it leaves it to the file."""

    columns: dict[str, str | int] | None
    unit: str | None
    sensor: Size | None


@dataclass(frozen=True)
class Meaning:
    """What a file's columns are. `roles` maps t, x, y, p to columns; no y: one row; no p: one polarity."""

    roles: dict[str, str]
    unit: str
    sensor: Size
    words: tuple[str, ...]  # for the user: each with where it comes from

    @property
    def shape(self) -> tuple[int, int, int]:
        """C, H, W."""
        return 2 if "p" in self.roles else 1, self.sensor[1], self.sensor[0]


# --- the configuration's words ------------------------------------------------------------------------------------


def wanted(conf: FolderDatasetConf) -> Wanted:
    """The keys columns, time_unit and sensor_size as typed values. Raises: ConfigError naming the key."""
    unit = None if conf.time_unit is None else unit_of(conf.time_unit)
    if conf.time_unit is not None and unit is None:
        raise ConfigError(unknown_choice("dataset.time_unit", conf.time_unit, UNITS))
    return Wanted(_columns(conf.columns), unit, sensor_size(conf.sensor_size))


def unit_of(word: str) -> str | None:
    """us, ms, ns or s by any of its usual names."""
    return next((unit for unit, words in UNIT_WORDS.items() if word.strip().lower() in words), None)


def sensor_size(value: Any) -> Size | None:
    """Width and height from `128x128`, [128, 128] or a number (so many in one row)."""
    if value is None:
        return None
    parts = re.split(r"\s*[x×,]\s*", value.strip()) if isinstance(value, str) else value
    numbers = [parts] if isinstance(parts, int) else list(parts) if isinstance(parts, list | tuple) else [""]
    if len(numbers) in (1, 2) and all(str(n).isdecimal() and 0 < int(n) <= 1 << 14 for n in numbers):
        return int(numbers[0]), int(numbers[-1]) if len(numbers) == 2 else 1
    raise ConfigError(
        f"dataset.sensor_size={value}: write width x height, such as dataset.sensor_size=128x128, or one number for"
        " sensors with a single row (channels of a cochlea)."
    )


def _columns(value: Any) -> dict[str, str | int] | None:
    if value is None:
        return None
    if isinstance(value, Mapping):
        chosen = {str(role): name if isinstance(name, int) else str(name) for role, name in value.items()}
    else:
        items = value if isinstance(value, list | tuple) else re.split(r"[\s,;]+", str(value).strip())
        if len(items) == 1:
            items = list(str(items[0]))
        chosen = {str(role): place for place, role in enumerate(items) if str(role) not in ("_", "-")}
        if len(chosen) < sum(str(role) not in ("_", "-") for role in items):
            chosen = {}
    if not {"t", "x"} <= set(chosen) <= set(ROLES):
        raise ConfigError(
            f"dataset.columns={value}: say what each column is, in order: dataset.columns=xytp (t time, x and y"
            " position, p polarity, _ something else), or by name: 'dataset.columns={t: ts, x: col, y: row, p: pol}'."
            " t and x must be there, each once."
        )
    return chosen


# --- a file's meaning ---------------------------------------------------------------------------------------------


def understand(raw: Raw, want: Wanted, path: Path) -> Meaning:
    """What the columns of this file are. Raises: DataError naming the file and the key if something is not clear."""
    if raw.camera and (want.columns is not None or want.unit not in (None, "us")):
        key = "columns" if want.columns is not None else f"time_unit={want.unit}"
        raise DataError(f"{path}: the format fixes its columns and their unit (us). Leave out dataset.{key}.")
    if raw.camera:
        roles, said = {role: role for role in ROLES}, "fixed by the format"
    elif want.columns is not None:
        roles, said = _chosen(raw, want.columns, path), "dataset.columns"
    elif raw.named:
        roles, said = _by_name(raw, path), "by name"
    else:
        raise DataError(
            f"{path}: its {len(raw.columns)} columns have no names. Say what they are, in order: dataset.columns=xytp"
            f" (t time, x and y position, p polarity, _ something else). The first event is {_first(raw)}.{_also(want)}"
        )
    problems: list[str] = []
    for find in (_unit, _sensor):
        try:
            find(raw, roles, want, path)
        except DataError as error:
            problems.append(str(error).removeprefix(f"{path}: ") if problems else str(error))
    if problems:
        raise DataError(" Also, it ".join(problems))
    unit, unit_said = _unit(raw, roles, want, path)
    sensor, sensor_said = _sensor(raw, roles, want, path)
    if "y" not in roles and sensor[1] != 1:
        raise DataError(
            f"{path}: has no column y, but {sensor_said} says {sensor[0]}x{sensor[1]}. Name the column in"
            " dataset.columns, or give dataset.sensor_size one number if the sensor has a single row."
        )
    order = ", ".join(f"{role} = {name if raw.named else f'column {name}'}" for role, name in roles.items())
    words = (
        f"columns: {order} ({said})" + ("" if "p" in roles else "; no polarity: one channel"),
        f"times in {unit} ({unit_said})",
        f"sensor {sensor[0]}x{sensor[1]} ({sensor_said})",
    )
    return Meaning(roles, unit, sensor, words)


def _first(raw: Raw) -> str:
    """The first row as it is in the file."""
    return ", ".join(f"{values[0]:.10g}" if len(values) else "?" for values in raw.columns.values())


def _also(want: Wanted) -> str:
    """What else nobody has said yet."""
    absent = [("dataset.time_unit=us", want.unit), ("dataset.sensor_size=128x128", want.sensor)]
    words = [key for key, value in absent if value is None]
    return f" Say as well, with your values: {' '.join(words)}." if words else ""


def _chosen(raw: Raw, chosen: dict[str, str | int], path: Path) -> dict[str, str]:
    names = list(raw.columns)
    roles = {}
    for role in (role for role in ROLES if role in chosen):
        column = chosen[role]
        if isinstance(column, int) and 0 <= column < len(names):
            roles[role] = names[column]
        elif str(column) in names:
            roles[role] = str(column)
        else:
            raise DataError(
                f"{path}: has no column {column} for {role} (dataset.columns); its {len(names)} columns are"
                f" {', '.join(names[:12])}{', ...' if len(names) > 12 else ''}."
            )
    return roles


def _plain_name(name: str) -> str:
    """`events/Timestamp [us]` -> `timestamp`."""
    word = name.rpartition("/")[2].strip().lower()
    return re.sub(r"[\s_\-]*[\[(]?\b" + UNIT_PATTERN + r"[\])]?$", "", word.replace("_", " ")).replace(" ", "_")


def _by_name(raw: Raw, path: Path) -> dict[str, str]:
    found: dict[str, list[str]] = {role: [] for role in ROLES}
    for name in raw.columns:
        word = name.rpartition("/")[2].strip().lower()
        for role, words in NAMES.items():
            if word in words or _plain_name(name) in words:
                found[role].append(name)
    groups = {name.rpartition("/")[0] for names in found.values() for name in names}
    complete = [g for g in groups if all(any(n.rpartition("/")[0] == g for n in found[role]) for role in ("t", "x"))]
    if len(complete) == 1:
        found = {role: [n for n in names if n.rpartition("/")[0] == complete[0]] for role, names in found.items()}
    if not found["t"] or not found["x"] or any(len(names) > 1 for names in found.values()):
        names = ", ".join(list(raw.columns)[:12])
        raise DataError(
            f"{path}: cannot tell from the names of its columns ({names}) which is what. Say it:"
            " dataset.columns={t: NAME, x: NAME, y: NAME, p: NAME}."
        )
    return {role: names[0] for role, names in found.items() if names}


def _unit(raw: Raw, roles: dict[str, str], want: Wanted, path: Path) -> tuple[str, str]:
    if raw.camera:
        return "us", "fixed by the format"
    if want.unit is not None:
        return want.unit, "dataset.time_unit"
    if raw.unit is not None:
        if (unit := unit_of(raw.unit)) is None:
            raise DataError(
                f"{path}: says that its times are in {raw.unit!r}. Set dataset.time_unit to us, ms, s or ns."
            )
        return unit, "the file says so"
    name = roles["t"].rpartition("/")[2].lower()
    suffix = re.search(r"[\s_\-\[(]" + UNIT_PATTERN + r"[\])]?$", name)
    if suffix and raw.named and (unit := unit_of(suffix[1])) is not None:
        return unit, f"from the name {roles['t']}"
    times = raw.columns[roles["t"]]
    finite = times[np.isfinite(times)]
    length = float(finite.max()) - float(finite.min()) if len(finite) else 0.0
    fitting = [u for u, us in UNITS.items() if PLAUSIBLE_S[0] <= length * us / 1e6 <= PLAUSIBLE_S[1]]
    lasts = ", ".join(f"{length * UNITS[u] / 1e6:.3g} s if they are in {u}" for u in fitting)
    raise DataError(
        f"{path}: does not say in what unit its times are. Set dataset.time_unit to us, ms, s or ns. The times of this"
        f" file run over {length:,.6g}" + (f": {lasts}." if lasts else ".")
    )


def _sensor(raw: Raw, roles: dict[str, str], want: Wanted, path: Path) -> tuple[Size, str]:
    if want.sensor is not None:
        differs = raw.sensor is not None and raw.sensor != want.sensor
        return want.sensor, "dataset.sensor_size" + (
            "; the file says {}x{}".format(*raw.sensor or ()) if differs else ""
        )
    if raw.sensor is not None:
        return raw.sensor, "the file says so"
    ends = []
    for role in ("x", "y"):
        values = raw.columns[roles[role]] if role in roles else np.zeros(1)
        ends.append(int(np.nanmax(values, initial=0)) if np.isfinite(values).any() else 0)
    fitting = [entry for entry in sorted(SENSORS.items()) if ends[0] < entry[0][0] and ends[1] < entry[0][1]]
    cameras = [f"{width}x{height} ({camera})" for (width, height), camera in fitting]
    fits = f" That fits {', '.join(cameras[:3])}." if cameras and "y" in roles else ""
    wanted_form = "128x128" if "y" in roles else "700 (so many in one row)"
    raise DataError(
        f"{path}: does not say how large the sensor is. Set dataset.sensor_size, such as {wanted_form}. In this file x"
        f" runs to {ends[0]:,}" + (f" and y to {ends[1]:,}." if "y" in roles else ".") + fits
    )


# --- events -------------------------------------------------------------------------------------------------------


def events_of(
    raw: Raw, meaning: Meaning, path: Path, *, sort: bool, from_zero: bool
) -> tuple[Column, Column, Column, Column]:
    """Time in us, x, y and polarity of a file, checked: nothing of what is refused here is ever dropped silently.

    Args: sort: whether events may be out of order. from_zero: times as they are; else counted from the first event.
    Raises: DataError naming the file, the row and, where there is one, the key.
    """
    values = {role: raw.columns[name] for role, name in meaning.roles.items()}
    lengths = {len(column) for column in values.values()}
    if len(lengths) > 1:
        text = ", ".join(f"{meaning.roles[role]}: {len(column):,}" for role, column in values.items())
        raise DataError(f"{path}: its columns differ in length ({text}). The file is damaged: write it anew.")
    if lengths == {0}:
        raise DataError(f"{path}: holds no event. Mend the file, or move it away.")
    t = _times(values["t"], raw, meaning, path, sort=sort, from_zero=from_zero)
    none = np.zeros(len(t), np.int64)
    x = _position("x", values["x"], meaning, path)
    y = _position("y", values["y"], meaning, path) if "y" in values else none
    return t, x, y, _polarity(values["p"], path) if "p" in values else none


def _whole(role: str, column: Column, path: Path) -> Column:
    """The column as integers; a value that is none is refused."""
    if column.dtype.kind == "f":
        bad = ~np.isfinite(column) | (column != np.trunc(column))
        if bad.any():
            row = int(np.argmax(bad))
            raise DataError(f"{path}: {role} is {column[row]:g} in event {row:,}, not a whole number. Mend the file.")
    return column.astype(np.int64)


def _position(role: str, column: Column, meaning: Meaning, path: Path) -> Column:
    values = _whole(role, column, path)
    size = meaning.sensor["xy".index(role)]
    bad = (values < 0) | (values >= size)
    if bad.any():
        row = int(np.argmax(bad))
        way = (
            "Positions count from 0: mend the file."
            if values[row] < 0
            else f"{role} runs to {values.max():,} in this file: set dataset.sensor_size if the sensor is larger"
            " (width x height), or dataset.columns if the columns are others."
        )
        raise DataError(
            f"{path}: {role} is {values[row]:,} in event {row:,}, outside the sensor of {meaning.sensor[0]}x"
            f"{meaning.sensor[1]}. {way}"
        )
    return values


def _polarity(column: Column, path: Path) -> Column:
    values = _whole("p", column, path)
    found = np.unique(values)
    if not (set(found) <= {0, 1} or set(found) <= {-1, 1}):
        some = ", ".join(str(v) for v in found[:4]) + (", ..." if len(found) > 4 else "")
        raise DataError(
            f"{path}: polarities are {some}, but 0 and 1, or -1 and 1, are wanted. Mend the file, or say in"
            " dataset.columns which column has the polarity."
        )
    return (values > 0).astype(np.int64)


def _times(column: Column, raw: Raw, meaning: Meaning, path: Path, *, sort: bool, from_zero: bool) -> Column:
    bad = ~np.isfinite(column) if column.dtype.kind == "f" else np.zeros(1, bool)
    if bad.any():
        row = int(np.argmax(bad))
        raise DataError(f"{path}: the time is {column[row]} in event {row:,}. Mend the file, or remove the event.")
    times = column.astype(np.float64 if column.dtype.kind == "f" else np.int64)
    if column.dtype == np.uint64 and int(column.max()) >= 1 << 63:
        raise DataError(f"{path}: times run to {int(column.max()):,}: an overflow. Write the file anew.")
    unit_us = UNITS[meaning.unit]
    back = np.diff(times)
    if len(back) and back.min() < 0 and not sort:
        row = int(np.argmin(back))
        step_us = float(-back[row]) * unit_us
        if not raw.camera:
            raise DataError(
                f"{path}: the time falls from {times[row]:,} to {times[row + 1]:,} after event {row:,}. Mend the file,"
                " or set dataset.sort_events=true if its events are only out of order."
            )
        if step_us > LATE_US:
            raise DataError(
                f"{path}: the time falls by {step_us / 1e6:.3g} s after event {row:,}: the file is damaged, or joined"
                " from several. Set dataset.sort_events=true if its events are only out of order."
            )
    start = 0 if from_zero else times.min()
    since: Column = np.rint((times - start) * unit_us).astype(np.int64)
    if int(since.min()) < 0:
        raise DataError(f"{path}: a time is {times.min():,}, below 0. Use dataset.time_origin=first_event.")
    if int(since.max()) > LAST_TIME:
        raise DataError(
            f"{path}: its times run over {float(since.max()) / 1e6:,.6g} s if they are in {meaning.unit}; at most"
            f" {LAST_TIME / 1e6:,.0f} s fit. Set dataset.time_unit if they are in another unit"
            + (", use dataset.time_origin=first_event" if from_zero else "")
            + ", or cut the recording into several files."
        )
    return since
