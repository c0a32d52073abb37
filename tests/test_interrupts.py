"""Signals: one interrupt, never in a torn place, and no second one while the record is being closed."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator

import pytest

from snnexp import interrupts
from snnexp.collector import importing


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(interrupts, "_let_go_of_terminal", lambda: None)  # pytest's own output may be one
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    interrupts.reset()
    for number in numbers:  # under nohup SIGHUP is ignored, and what is ignored stays so
        signal.signal(number, signal.SIG_DFL)
    interrupts.install()
    yield
    interrupts.reset()
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_interrupts(number: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)


def test_a_signal_that_comes_while_held_comes_afterwards() -> None:
    torn = True
    with pytest.raises(KeyboardInterrupt), interrupts.held():
        os.kill(os.getpid(), signal.SIGTERM)
        torn = False
    assert not torn


def test_held_inside_held_stays_held() -> None:
    interrupts.hold()
    with interrupts.held():
        os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        interrupts.release()


def test_no_second_interrupt_while_the_record_is_closed_but_whoever_insists_gets_out() -> None:
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    interrupts.ending()
    for _ in range(interrupts.PATIENCE):
        os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_an_import_is_not_torn() -> None:
    """Half a package cannot be imported again, and closing the record needs it."""
    arrived = False
    with pytest.raises(KeyboardInterrupt), importing():
        os.kill(os.getpid(), signal.SIGTERM)
        arrived = True
    assert arrived


def test_a_signal_during_an_import_at_the_end_is_ignored_too() -> None:
    interrupts.ending()
    with importing():
        os.kill(os.getpid(), signal.SIGTERM)


def test_an_interrupt_that_somebody_swallowed_comes_back() -> None:
    with contextlib.suppress(KeyboardInterrupt):  # a callback from C can only print it
        os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        interrupts.check()
    interrupts.ending()
    interrupts.check()


def test_what_the_caller_ignores_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    interrupts.install()
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_a_signal_waits_for_the_end_of_a_batch() -> None:
    reached = False
    with pytest.raises(KeyboardInterrupt), interrupts.deferring():
        os.kill(os.getpid(), signal.SIGTERM)
        reached = interrupts.waits()
        os.kill(os.getpid(), signal.SIGTERM)  # two presses at once are one
        interrupts.deliver()
        reached = False
    assert reached and not interrupts.waits()


@pytest.mark.parametrize("again", [True, False], ids=["a second signal", "too long a batch"])
def test_but_not_for_ever(monkeypatch: pytest.MonkeyPatch, again: bool) -> None:
    monkeypatch.setattr(interrupts, "AGAIN_S", -1.0)
    monkeypatch.setattr(interrupts, "DEFER_S", 60.0 if again else 0.01)
    with pytest.raises(KeyboardInterrupt), interrupts.deferring():
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupts.waits()
        if again:
            os.kill(os.getpid(), signal.SIGTERM)
        while True:
            time.sleep(0.01)
    assert not interrupts.waits()


def test_a_signal_that_waits_is_not_lost_at_the_end_of_the_block() -> None:
    with pytest.raises(KeyboardInterrupt), interrupts.deferring():
        os.kill(os.getpid(), signal.SIGHUP)
    interrupts.deliver()  # once is enough
