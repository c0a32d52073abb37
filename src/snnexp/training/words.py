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
