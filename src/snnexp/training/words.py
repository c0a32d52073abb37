"""Durations in words."""

from __future__ import annotations


def duration(seconds: float, digits: int = 0) -> str:
    """Seconds in words: 42 s, 3 min 5 s, 2 h 10 min; `digits` decimals below a minute."""
    total = round(seconds)
    if total < 60:
        return f"{seconds:.{digits}f} s"
    if total < 3600:
        return f"{total // 60} min {total % 60} s"
    return f"{total // 3600} h {total % 3600 // 60} min"


def short_duration(seconds: float) -> str:
    """The same in at most seven characters, for columns: 9.6 s, 42 s, 1.1 min, 2.2 h, 3.5 days."""
    for most, length, unit in ((60, 1, "s"), (60, 60, "min"), (48, 3600, "h"), (10**9, 86400, "days")):
        value = seconds / length
        if round(value) < most:
            return f"{value:.{int(value < 9.95)}f} {unit}"
    return "years"
