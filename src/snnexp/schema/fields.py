"""`choice(...)` and `number(...)` put what is legal beside the default, in the field's metadata."""

from __future__ import annotations

from dataclasses import MISSING, field, fields
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


def spread(default: float | None, *, low: float | None = None, high: float | None = None) -> Any:
    """A number, or two to draw between, [0.82, 0.96]: evenly, for each place of its own, the same for each seed."""
    return field(default=default, metadata={"low": low, "high": high, "above": None, "below": None, "spread": True})


def ends(value: Any) -> tuple[float, ...]:
    """The numbers that a `spread` key was given: none, one, or the two that it is drawn between."""
    return () if value is None else tuple(map(float, value)) if isinstance(value, list | tuple) else (float(value),)


class AnyNames:
    """The methods of a dataclass whose keys may be words that Python reserves, such as `class`.

    `dataclass` writes them as source text, in which such a name is a syntax error: use it with init, repr and eq off.
    """

    def __init__(self, **values: Any) -> None:
        for f in fields(self):  # type: ignore[arg-type]
            default = f.default if f.default_factory is MISSING else f.default_factory()
            setattr(self, f.name, values.pop(f.name, default))
        if values:
            raise TypeError(f"unexpected arguments: {', '.join(values)}")

    def __repr__(self) -> str:
        values = ", ".join(f"{f.name}={getattr(self, f.name)!r}" for f in fields(self))  # type: ignore[arg-type]
        return f"{type(self).__name__}({values})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]
