"""What takes long is said, once; what is quick, and what others import, says nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from snnexp import waiting


@pytest.fixture
def speaking() -> Iterator[None]:
    waiting.begin("2 digits-fixed-s0")
    yield
    waiting._speaking = False


def heard(capsys: pytest.CaptureFixture[str]) -> str:
    """What is said next, by another thread, however long that takes."""
    text = ""
    while not text.endswith("\n"):
        time.sleep(0.01)
        text += capsys.readouterr().out
    return text


def test_what_takes_long_is_said_once(speaking: None, capsys: pytest.CaptureFixture[str]) -> None:
    with waiting.telling("packing nmnist", after_s=0.0):
        assert heard(capsys) == "2 digits-fixed-s0 | (packing nmnist ...)\n"
    waiting.tell("packing nmnist")
    assert capsys.readouterr().out == ""


def test_what_is_quick_is_not_said(speaking: None, capsys: pytest.CaptureFixture[str]) -> None:
    with waiting.telling("reading the data", after_s=3600.0):
        pass
    assert capsys.readouterr().out == ""


def test_only_the_command_speaks(capsys: pytest.CaptureFixture[str]) -> None:
    waiting.tell("compiling kernels")
    with waiting.telling("reading the data", after_s=0.0):
        pass
    assert capsys.readouterr().out == ""


def test_the_compilation_of_kernels_is_noticed(speaking: None, capsys: pytest.CaptureFixture[str]) -> None:
    watch = waiting._Compilation()
    start, end = (type("Event", (), {"is_start": value})() for value in (True, False))
    watch.notify(start)
    watch.notify(start)  # one compiles another
    watch.notify(end)
    watch.notify(end)
    assert watch.depth == 0 and capsys.readouterr().out == ""
    watch.spent = 2.0  # many small ones
    watch.notify(start)
    assert "compiling kernels" in heard(capsys)
    watch.notify(end)
