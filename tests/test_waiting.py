"""What takes long is said, once; what is quick, and what others import, says nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from snnexp import waiting
from snnexp.neurons.engines.triton_source import Kernel


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
    watch.begin()
    watch.begin()  # one compiles another
    watch.end()
    watch.end()
    assert watch.depth == 0 and capsys.readouterr().out == ""
    watch.spent = 2.0  # many small ones
    watch.begin()
    assert "compiling kernels" in heard(capsys)
    watch.end()


def test_tritons_first_launch_of_a_kind_is_noticed(
    speaking: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = pytest.importorskip("snnexp.neurons.engines.triton_engine")
    monkeypatch.setattr(waiting, "_compilation", waiting._Compilation())
    monkeypatch.setattr(waiting, "AFTER_S", 0.0)
    said: list[str] = []

    class Function:
        """Stands for a kernel whose first launch compiles."""

        def __getitem__(self, grid: tuple[int]) -> object:
            return lambda **_: said.append(capsys.readouterr().out if said else heard(capsys))

    kernel = Kernel("source of a test", ("mem_rows", "steps", "BLOCK"), Function())
    silent = SimpleNamespace(spiking=False)
    call = SimpleNamespace(mem=torch.zeros(3, 4), values={}, columns={}, time=0, last=True, dynamics=silent)
    for steps in (3, 3, 3):
        engine._launch(kernel, call, {"mem": call.mem}, steps)
    assert said == [
        "2 digits-fixed-s0 | (compiling kernels for this processor; they are kept for later runs ...)\n",
        "",
        "",
    ]
    assert waiting._compilation.depth == 0
    assert len([key for key in engine._launched if key[0] == kernel.source]) == 1
    engine._launch(kernel, call, {"mem": call.mem.double()}, 3)  # other types are another kernel
    assert len([key for key in engine._launched if key[0] == kernel.source]) == 2
