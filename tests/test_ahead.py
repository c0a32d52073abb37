"""A helper compiles ahead: what it is told, how it ends, that no kernel is compiled twice, and when there is none."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from snnexp import ahead
from snnexp.ahead import compiling_ahead, kernel_locks
from snnexp.config import Config
from snnexp.validation import validate
from tests.composing import compose_words

WORDS = ("model.spec=FC4-SN-FC10-SN", "dataset.num_steps=2", "dataset.batch_size=4")
DESCRIBED: dict[str, Any] = {
    "name": "digits", "kind": "image", "shape": (1, 8, 8), "num_steps": 2, "class_names": tuple("0123456789"),
    "channel_mean": None, "channel_std": None,
}  # fmt: skip


def composed(*words: str) -> Config:
    return validate(compose_words(*words))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(ahead.VARIABLE, "1")
    monkeypatch.setattr(ahead, "cores", lambda: 2)
    return tmp_path


def test_the_helper_takes_its_steps_and_ends_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    helper = ahead._started(composed(*WORDS))
    process = helper.process
    assert process is not None
    helper._send(DESCRIBED)
    assert process.wait() == 0, "with 1: an error"
    helper.end()
    assert helper.process is None


def test_it_ends_with_the_pipe_whatever_it_does() -> None:
    process = ahead._started(composed(*WORDS)).process  # and is never told what the data are
    assert process is not None and process.stdin is not None
    process.stdin.close()
    assert process.wait() == 0


def test_event_networks_are_rehearsed() -> None:
    from snnexp.ahead.helper import _experiment, rehearse
    from snnexp.experiment import Experiment

    conf = composed("dataset=nmnist", "model.spec=c4k3-SN-MP2-FC10-SN", "dataset.num_steps=2", "dataset.batch_size=2")
    experiment = _experiment(Experiment, conf, DESCRIBED | {"kind": "events", "shape": (2, 8, 8)})
    rehearse(experiment)
    assert all(p.grad is not None for p in experiment.network.parameters())


def test_one_helper_for_kernels_that_nobody_compiled(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    monkeypatch.setattr(ahead, "_started", lambda conf: started.append(conf) or ahead.Helper())
    first = composed(*WORDS)
    with pytest.raises(RuntimeError), compiling_ahead(first, True):
        raise RuntimeError  # kernels may be missing still
    with compiling_ahead(first, True):
        pass
    for more in (("seed=3", "neuron.beta=0.7"), ("dataset.limit_train=10", "dataset.root=/elsewhere")):
        with compiling_ahead(composed(*WORDS, *more), True):  # the same kernels
            pass
    assert len(started) == 2
    with compiling_ahead(composed(*WORDS, "neuron.reset=subtract"), True):
        pass
    assert len(started) == 3


@pytest.mark.parametrize("words", [["device=cuda"], ["neuron.engine=reference"]])
def test_none_where_it_has_nothing_to_do(cache: Path, words: list[str]) -> None:
    conf = composed(*WORDS)
    assert ahead._may_help(conf)
    assert not ahead._may_help(composed(*WORDS, *words))


def test_none_where_it_would_be_in_the_way(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conf = composed(*WORDS)
    monkeypatch.setattr(ahead, "foreign", lambda kind, word: True)
    assert not ahead._may_help(conf), "a user's code is imported once"
    monkeypatch.undo()
    monkeypatch.setattr(ahead, "cores", lambda: 1)
    assert not ahead._may_help(conf)
    monkeypatch.undo()
    monkeypatch.setenv(ahead.VARIABLE, "0")
    assert not ahead._may_help(conf)


def test_none_where_nothing_can_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert ahead._note(composed(*WORDS)) is None


def test_a_python_that_cannot_be_started_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    helper = ahead._started(composed(*WORDS))
    helper.build(DESCRIBED, "cpu")
    assert helper.process is None


def test_whoever_waited_for_a_kernel_loads_it(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from numba.core.caching import FunctionCache

    function: Any = SimpleNamespace(cache_path="folder", _impl=SimpleNamespace(filename_base="f"))
    found: list[str | None] = []  # what numba's cache has, each time that it is asked
    monkeypatch.setattr(FunctionCache, "load_overload", lambda *_: found.pop(0))
    monkeypatch.setattr(FunctionCache, "save_overload", lambda *_: None)
    monkeypatch.setattr(kernel_locks, "_shared", False)
    monkeypatch.setattr(kernel_locks, "PATIENCE_S", 0.0)
    assert kernel_locks.share_kernels()
    other = kernel_locks._Locks(cache / "snnexp" / "kernels" / "locks")  # as in another process
    load, save = FunctionCache.load_overload, FunctionCache.save_overload

    found[:] = ["there"]
    assert load(function, "sig", None) == "there"
    assert other.take("folder f")
    found[:] = [None]
    assert load(function, "sig", None) is None  # the other one is at it for too long: compiled here, too
    other.give("folder f")
    found[:] = [None, "theirs"]  # while we waited
    assert load(function, "sig", None) == "theirs"
    found[:] = [None, None, None]
    assert load(function, "sig", None) is None  # ours to compile
    assert not other.take("folder f")
    assert load(function, "sig", None) is None  # once more within it: nobody waits for himself
    save(function, "sig", "compiled")
    assert other.take("folder f")
    other.give("folder f")
