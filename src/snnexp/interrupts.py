"""Ctrl-C, SIGTERM and SIGHUP: one KeyboardInterrupt at a moment that leaves a true record.

A signal may come anywhere, also while the record of a run is being closed. So the handler raises only where nothing is
torn: not while `held` (the signal is kept for later), and not again once the end has begun (`ending`), since closing
the record on both sides, run.json and the store, is what the user needs and takes a few seconds. Whoever cannot wait
presses Ctrl-C three times more. Training that can save within an epoch lets a signal wait for the end of the batch
(`deferring`), though not for long.

In a cluster's worker submitit has handlers of its own: it passes over SIGTERM, and when the job's time is nearly up
(SIGUSR2) it puts the job into the queue again and exits at once. Ours take their place: both interrupt the run, whose
record is closed first; `hand_back` then lets submitit do its part.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import queue
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

PATIENCE = 3  # further signals that are ignored while the end is under way
AGAIN_S = 1.0  # two presses within this time are one
DEFER_S = 10.0  # what a signal waits at most for the end of a batch: Slurm kills 30 s after its SIGTERM

_held = False
_pending = False
_ending = False
_ignored = 0
_raised_at: float | None = None
_deferring: queue.SimpleQueue[int] | None = None  # a signal waits for the end of the batch, and is told to this queue
_waiting_since: float | None = None  # one does
_kept = ""  # what the same command continues from
_cause: int | None = None  # the signal that interrupted
_time_up: tuple[int, Callable[..., Any]] | None = None  # submitit's signal, and what submitit does when it comes


def install() -> None:
    """Take over the signals, in the main thread. One that the caller ignores stays ignored (nohup, a job in the
    background); one that somebody else handles stays theirs, unless it is submitit."""
    global _time_up
    for number in _taken():
        atexit.register(signal.signal, number, signal.SIG_IGN)  # among the last at exit: all is written by then
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        handler = signal.getsignal(number)
        if threading.current_thread() is threading.main_thread() and callable(handler) and _is_submitits(handler):
            _time_up = (number, handler)
            signal.signal(number, _handle)


@contextlib.contextmanager
def borrowed() -> Iterator[None]:
    """The signals are ours for a block in somebody else's process (a notebook), and then theirs as before."""
    global _held, _pending, _ending, _ignored, _raised_at
    global _time_up
    before, time_up = (_held, _pending, _ending, _ignored, _raised_at), _time_up
    handlers = {number: signal.getsignal(number) for number in _numbers()}
    reset()
    _time_up = time_up
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
    ours_to_take = (signal.SIG_DFL, signal.default_int_handler)
    free = [n for n in _numbers() if (h := signal.getsignal(n)) in ours_to_take or _is_submitits(h)]
    for number in free:
        signal.signal(number, _handle)
    return free


def _is_submitits(handler: Any) -> bool:
    return type(getattr(handler, "__self__", None)).__module__.startswith("submitit.")


def _handle(number: int, _frame: FrameType | None) -> None:
    global _pending, _raised_at, _ignored, _cause, _waiting_since
    if not _ending and not _pending:
        _cause = number
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
    elif _deferring is not None and _waiting_since is None:
        _waiting_since = time.monotonic()
        _deferring.put(number)  # the one queue that a signal handler may use
    elif _waiting_since is not None and time.monotonic() - _waiting_since <= AGAIN_S:
        pass
    elif _raised_at is None or time.monotonic() - _raised_at > AGAIN_S:
        _waiting_since, _raised_at = None, time.monotonic()
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


@contextlib.contextmanager
def deferring() -> Iterator[None]:
    """A signal waits for the next `deliver`, or the end of the block; after DEFER_S, or a second one, it interrupts."""
    global _deferring
    asked: queue.SimpleQueue[int] = queue.SimpleQueue()
    insisting = threading.Thread(target=_insist, args=(asked,), name="snnexp-signal", daemon=True)
    insisting.start()
    _deferring = asked
    try:
        yield
    finally:
        _deferring = None
        asked.put(0)
        deliver()


def _insist(asked: queue.SimpleQueue[int]) -> None:
    """In a thread of its own: give a signal that waits too long once more."""
    number = asked.get()
    if number:
        try:
            asked.get(timeout=DEFER_S)
        except queue.Empty:
            os.kill(os.getpid(), number)


def waits() -> bool:
    """Whether a signal waits for the end of the batch."""
    return _waiting_since is not None


def deliver() -> None:
    """Raises: KeyboardInterrupt if a signal waits: what it waited for is done."""
    global _waiting_since, _raised_at
    if _waiting_since is not None:
        _waiting_since, _raised_at = None, time.monotonic()
        raise KeyboardInterrupt


def keep(what: str) -> None:
    """Remember, for the words at the end, what the same command continues from; empty: the last finished epoch."""
    global _kept
    _kept = what


def kept() -> str:
    """What the same command continues from."""
    return _kept or "the last finished epoch"


def check() -> None:
    """Raise the interrupt again if somebody swallowed it (a callback from C, a destructor)."""
    if _raised_at is not None and not _ending and not _held:
        raise KeyboardInterrupt


def ending() -> None:
    """The interrupt has arrived where it belongs: the end has begun, and more signals change nothing."""
    global _ending, _held, _pending
    _ending, _held, _pending = True, False, False


def cause() -> int | None:
    """The signal that interrupted, or None."""
    return _cause


def will_be_requeued() -> bool:
    """Whether the interrupt was the cluster's word that time is up, and the job has starts left."""
    if _time_up is None or _cause != _time_up[0]:
        return False
    submitit: Any = getattr(_time_up[1], "__self__", None)
    try:
        left = submitit._delayed._timeout_countdown - submitit.has_timed_out()
        return bool(submitit.env.global_rank == 0 and left >= 0 and hasattr(submitit._delayed.function, "checkpoint"))
    except AttributeError:  # another version of submitit
        return True


def hand_back() -> None:
    """Let submitit put the job into the queue again, if that is why the run was interrupted: then it does not return.

    Raises: SystemExit once it is queued; submitit's UncompletedJobError if the job had no start left.
    """
    global _cause
    if _time_up is not None and _cause == _time_up[0]:
        _cause = None
        _time_up[1](_time_up[0], None)


def reset() -> None:
    """As at the start of the process."""
    global _held, _pending, _ending, _ignored, _raised_at, _cause, _time_up, _deferring, _waiting_since, _kept
    _held = _pending = _ending = False
    _deferring, _waiting_since, _kept = None, None, ""
    _ignored, _raised_at = 0, None
    _cause = _time_up = None
