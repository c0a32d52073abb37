"""Around what is timed and kept for good: processes of ours that work beside this one rest meanwhile."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

Rest = Callable[[], AbstractContextManager[None]]

_resting: list[Rest] = []


@contextlib.contextmanager
def resting_by(rest: Rest) -> Iterator[None]:
    """While a process works beside this one: `rest()` is entered around each measurement."""
    _resting.append(rest)
    try:
        yield
    finally:
        _resting.remove(rest)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Around a measurement."""
    with contextlib.ExitStack() as stack:
        for rest in _resting:
            stack.enter_context(rest())
        yield
