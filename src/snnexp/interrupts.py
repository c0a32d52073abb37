"""Ctrl-C, SIGTERM and SIGHUP: one KeyboardInterrupt at a moment that leaves a true record.

A signal may come anywhere, also while the record of a run is being closed. So the handler raises only where nothing is
torn: not while `held` (the signal is kept for later), and not again once the end has begun (`ending`), since closing
the record on both sides, run.json and the store, is what the user needs and takes a few seconds. Whoever cannot wait
presses Ctrl-C three times more.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import stat
import threading
import time
from collections.abc import Iterator
from types import FrameType

PATIENCE = 3  # further signals that are ignored while the end is under way
AGAIN_S = 1.0  # two presses within this time are one

_held = False
_pending = False
_ending = False
_ignored = 0
_raised_at: float | None = None


def install() -> None:
    """Take over the signals, in the main thread. One that the caller ignores stays ignored (nohup, a job in the
    background); one that somebody else handles stays theirs (submitit)."""
    for number in _taken():
        atexit.register(signal.signal, number, signal.SIG_IGN)  # among the last at exit: all is written by then


@contextlib.contextmanager
def borrowed() -> Iterator[None]:
    """The signals are ours for a block in somebody else's process (a notebook), and then theirs as before."""
    global _held, _pending, _ending, _ignored, _raised_at
    before = (_held, _pending, _ending, _ignored, _raised_at)
    handlers = {number: signal.getsignal(number) for number in _numbers()}
    reset()
    taken = _taken()
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, handlers[number])
        _held, _pending, _ending, _ignored, _raised_at = before


def _numbers() -> list[signal.Signals]:
    return [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


def _taken() -> list[signal.Signals]:
    """Take over those signals that nobody handles or ignores; returns them."""
    if threading.current_thread() is not threading.main_thread():
        return []
    free = [n for n in _numbers() if signal.getsignal(n) in (signal.SIG_DFL, signal.default_int_handler)]
    for number in free:
        signal.signal(number, _handle)
    return free


def _handle(number: int, _frame: FrameType | None) -> None:
    global _pending, _raised_at, _ignored
    if number == getattr(signal, "SIGHUP", None):
        _let_go_of_terminal()
    if _ending:  # also inside a block that holds: a signal kept there would tear the end after it
        _ignored += 1
        if _ignored > PATIENCE:
            raise KeyboardInterrupt
        with contextlib.suppress(OSError):
            os.write(2, b"snnexp: the record is being closed; one moment.\n" if _ignored == 1 else b"")
    elif _held:
        _pending = True
    elif _raised_at is None or time.monotonic() - _raised_at > AGAIN_S:
        _raised_at = time.monotonic()
        raise KeyboardInterrupt


def _let_go_of_terminal() -> None:
    """A terminal that was closed answers every print with an error, which would hide the interrupt."""
    with contextlib.suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for number in (1, 2):
            if stat.S_ISCHR(os.fstat(number).st_mode):
                os.dup2(nowhere, number)
        os.close(nowhere)


def hold() -> None:
    """From here on a signal is kept, until `release`. Safe to call twice."""
    global _held
    _held = True


def release() -> None:
    """Signals interrupt again. Raises: KeyboardInterrupt if one was kept."""
    global _held, _pending, _raised_at
    _held = False
    if _pending:
        _pending = False
        _raised_at = time.monotonic()
        raise KeyboardInterrupt


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Keep signals for the length of a block that must not be torn."""
    before = _held
    hold()
    try:
        yield
    finally:
        if not before:
            release()


def check() -> None:
    """Raise the interrupt again if somebody swallowed it (a callback from C, a destructor)."""
    if _raised_at is not None and not _ending and not _held:
        raise KeyboardInterrupt


def ending() -> None:
    """The interrupt has arrived where it belongs: the end has begun, and more signals change nothing."""
    global _ending, _held, _pending
    _ending, _held, _pending = True, False, False


def reset() -> None:
    """As at the start of the process."""
    global _held, _pending, _ending, _ignored, _raised_at
    _held = _pending = _ending = False
    _ignored, _raised_at = 0, None
