"""`choice(...)` and `number(...)` put what is legal beside the default, in the field's metadata."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def choice(default: str, *options: str) -> Any:
    """A string key that takes one of `options`; the default counts as one of them."""
    return field(default=default, metadata={"choices": options if default in options else (default, *options)})


def number(
    default: Any,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    """A number with its range: low <= x <= high, above < x < below. A key typed `| None` may also be null."""
    return field(default=default, metadata={"low": low, "high": high, "above": above, "below": below})
