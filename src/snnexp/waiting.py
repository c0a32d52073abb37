"""What the command is doing when it takes a while: a line on the terminal after a second, and none if it is quicker.

Only the command speaks (`begin`); whoever imports the package has a screen of his own.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

AFTER_S = 1.0

_speaking = False
_name = ""
_told: set[str] = set()


def begin(name: str = "") -> None:
    """From here on, say what takes long; name: of the run, before each line, where several print to one terminal."""
    global _speaking, _name
    _speaking, _name = True, f"{name} | " if name else ""
    _told.clear()


def tell(text: str) -> None:
    """Say it now, once in a run."""
    if _speaking and text not in _told:
        _told.add(text)
        with contextlib.suppress(OSError, ValueError):  # a reader that went away stops nothing
            print(f"{_name}({text} ...)", flush=True)


@contextlib.contextmanager
def telling(text: str, after_s: float = AFTER_S) -> Iterator[None]:
    """Around something that may take long. `text`: what is being done, "reading the data"."""
    if not _speaking:
        yield
        return
    timer = _later(text, after_s)
    try:
        yield
    finally:
        timer.cancel()


def _later(text: str, after_s: float) -> threading.Timer:
    timer = threading.Timer(after_s, tell, [text])
    timer.daemon = True  # nobody waits for it at the end
    timer.start()
    return timer


class _Compilation:
    """One line for all kernels together, since each of them may take less than a second."""

    TEXT = "compiling kernels for this processor; they are kept for later runs"

    def __init__(self) -> None:
        self.spent = 0.0
        self.depth = 0
        self.started = 0.0
        self.timer: threading.Timer | None = None

    def begin(self) -> None:
        """A kernel's compilation starts, perhaps within another one's."""
        self.depth += 1
        if self.depth == 1:
            self.started = time.monotonic()
            self.timer = _later(self.TEXT, max(AFTER_S - self.spent, 0.0)) if self.TEXT not in _told else None

    def end(self) -> None:
        """It is done."""
        self.depth -= 1
        if self.depth == 0:
            self.spent += time.monotonic() - self.started
            if self.timer is not None:
                self.timer.cancel()


_compilation = _Compilation()
_listening = False


@contextlib.contextmanager
def compiling() -> Iterator[None]:
    """Around what compiles a kernel, or finds it compiled: Triton's first launch. Numba's are heard by themselves."""
    if not _speaking:
        yield
        return
    _compilation.begin()
    try:
        yield
    finally:
        _compilation.end()


def watch_compilation() -> None:
    """Say so when numba compiles for more than a second in all; to be called when numba is there."""
    global _listening
    if not _speaking or _listening:
        return
    from numba.core import event

    class Listener(event.Listener):  # type: ignore[misc]
        def on_start(self, event: Any) -> None:
            _compilation.begin()

        def on_end(self, event: Any) -> None:
            _compilation.end()

    _listening = True
    event.register("numba:compile", Listener())
