"""A helper compiles ahead: what it is told, how it ends, that no kernel is compiled twice, and when there is none."""

from __future__ import annotations

import base64
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra.types import RunMode
from omegaconf import OmegaConf

from snnexp import ahead, machine
from snnexp.ahead import compiling_ahead, kernel_locks
from snnexp.config import Config
from snnexp.quiet import quiet, resting_by
from snnexp.tasks import environment
from snnexp.validation import validate
from tests.composing import compose_words

WORDS = ("model.spec=FC4-SN-FC10-SN", "dataset.num_steps=2", "dataset.batch_size=4")
PATIENCE_S = 600.0  # that nothing here takes on any machine: for what hangs
RUN = """
import base64, pickle, sys
from numba.core import event
from snnexp.ahead.helper import _experiment, rehearse
from snnexp.experiment import Experiment
conf, described = pickle.loads(base64.b64decode(sys.argv[1]))
with event.install_recorder("numba:compile") as compiled:
    rehearse(_experiment(Experiment, conf, described))
sys.exit(len(compiled.buffer))
"""
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
    for name, value in (("granted_cores", 2), ("free_memory", None), ("may_have_gpu", False)):
        monkeypatch.setattr(ahead, name, lambda value=value: value)
    return tmp_path


def test_the_helper_takes_its_steps_and_rests_meanwhile(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends by itself, and keeps that it compiled all: with kernels of its own, since it has another cache."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(cache / "numba"))
    conf, note = composed(*WORDS), cache / "note"
    helper = ahead._started(conf, note)
    process = helper.process
    assert process is not None and process.stdout is not None
    helper._send(DESCRIBED)
    helper._send(ahead.REST)
    assert ahead._answered(process)
    assert process.poll() is None, "it ended instead: nothing was compiled, or it does not know what to"
    assert not list(cache.glob("numba/**/*.nbi")), "it rests before its first kernel"
    helper._send(ahead.GO_ON)
    assert process.wait(PATIENCE_S) == ahead.DONE
    helper.end()
    assert helper.process is None and process.stdout.closed
    until(note.exists)
    kernels = {path.name for path in cache.glob("numba/**/*.nbc")}
    assert kernels and list(cache.glob("snnexp/kernels/locks/*"))
    assert run_of(conf) == kernels, "the run's process compiled what the helper had, or other kernels"


def run_of(conf: Config) -> set[str]:
    """The kernels in the cache after another process has taken the same steps; it compiles none."""
    given = base64.b64encode(pickle.dumps((replace(conf, device="cpu"), DESCRIBED))).decode()
    subprocess.run([sys.executable, "-c", RUN, given], check=True, timeout=PATIENCE_S)
    return {path.name for path in Path(os.environ["NUMBA_CACHE_DIR"]).rglob("*.nbc")}


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not true() and time.monotonic() < end:
        time.sleep(0.01)
    assert true()


@pytest.mark.parametrize(("told", "code"), [(DESCRIBED | {"shape": None}, ahead.FAILED), (None, ahead.LEFT)])
def test_its_end_says_why(cache: Path, told: dict[str, Any] | None, code: int) -> None:
    """An error is no crash, and no note; it ends with the pipe whatever it does."""
    helper = ahead._started(composed(*WORDS), cache / "note")
    process = helper.process
    assert process is not None and process.stdin is not None
    if told is None:
        process.stdin.close()
    else:
        helper._send(told)
    until(lambda: process.returncode is not None)  # nobody has to ask for it: no zombie
    assert process.returncode == code
    helper.end()
    assert not (cache / "note").exists()


def test_one_that_does_not_rest_is_ended(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "PATIENCE_S", 0.01)
    sleeper = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    helper = ahead.Helper(sleeper)
    with resting_by(helper.resting), quiet():
        assert helper.process is None and sleeper.returncode is not None
    with resting_by(ahead.Helper().resting), quiet():
        pass


def test_event_networks_are_rehearsed() -> None:
    from snnexp.ahead.helper import _experiment, rehearse
    from snnexp.experiment import Experiment

    conf = composed("dataset=nmnist", "model.spec=c4k3-SN-MP2-FC10-SN", "dataset.num_steps=2", "dataset.batch_size=2")
    experiment = _experiment(Experiment, conf, DESCRIBED | {"kind": "events", "shape": (2, 8, 8)})
    rehearse(experiment)
    assert all(p.grad is not None for p in experiment.network.parameters())


def test_one_helper_for_kernels_that_nobody_compiled(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    monkeypatch.setattr(ahead, "_started", lambda conf, note: started.append(conf) or ahead.Helper())
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
    assert ahead._may_help(conf)
    with monkeypatch.context() as patch:
        patch.setattr(ahead, "foreign", lambda kind, word: True)
        assert not ahead._may_help(conf), "a user's code is imported once"
    for name, value in (("granted_cores", 1), ("free_memory", 1 << 30)):
        with monkeypatch.context() as patch:
            patch.setattr(ahead, name, lambda value=value: value)
            assert not ahead._may_help(conf)
    with monkeypatch.context() as patch:
        patch.setattr(ahead, "may_have_gpu", lambda: True)
        assert not ahead._may_help(conf) and ahead._may_help(composed(*WORDS, "device=cpu"))
    monkeypatch.setenv(ahead.VARIABLE, "0")
    assert not ahead._may_help(conf)


def test_none_where_nothing_can_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert ahead._note(composed(*WORDS)) is None


def test_none_where_the_notes_are_another_users(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conf = composed(*WORDS)
    assert ahead._note(conf) is not None

    def refused(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "exists", refused)
        assert ahead._note(conf) is None
    monkeypatch.setattr(os, "access", lambda *_: False)  # they could be read, but not added to
    assert ahead._note(conf) is None


def test_each_processor_has_kernels_of_its_own(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conf = composed(*WORDS)
    here = ahead._note(conf)
    monkeypatch.setattr(ahead, "processor_name", lambda: "another one")
    assert ahead._note(conf) != here


def test_a_python_that_cannot_be_started_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    helper = ahead._started(composed(*WORDS))
    helper.build(DESCRIBED)
    assert helper.process is None


class Kernels:
    """numba's cache and dispatcher, as `share_kernels` knows them; found: what the cache has each time it is asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from numba.core.caching import FunctionCache
        from numba.core.dispatcher import Dispatcher

        self.found: list[str | None] = []
        self.within: Callable[[], None] = lambda: None
        monkeypatch.setattr(FunctionCache, "load_overload", lambda *_: self.found.pop(0))
        monkeypatch.setattr(Dispatcher, "compile", self._compile)
        monkeypatch.setattr(kernel_locks, "_shared", False)
        monkeypatch.setattr(kernel_locks, "PATIENCE_S", 0.0)
        assert kernel_locks.share_kernels()
        self.load, self._shared = FunctionCache.load_overload, Dispatcher.compile

    @staticmethod
    def _compile(kernels: Kernels, name: str) -> str:  # as numba does it
        cache: Any = SimpleNamespace(cache_path="folder", _impl=SimpleNamespace(filename_base=name))
        found = kernels.load(cache, "sig", None)
        if found is None:
            kernels.within()
        return found or "compiled"

    def compile(self, name: str) -> str:
        return str(self._shared(self, name))  # type: ignore[arg-type]


def test_whoever_waited_for_a_kernel_loads_it(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = Kernels(monkeypatch)
    other = kernel_locks._Locks(cache / "snnexp" / "kernels" / "locks")  # as in another process

    kernels.found[:] = ["there"]
    assert kernels.compile("f") == "there"
    assert other.take("folder f")
    kernels.found[:] = [None]
    assert kernels.compile("f") == "compiled", "the other one is at it for too long"
    other.give("folder f")
    kernels.found[:] = [None, "theirs"]  # while we waited
    assert kernels.compile("f") == "theirs"
    assert other.take("folder f")
    other.give("folder f")


def test_a_kernel_is_held_until_it_is_compiled_or_cannot_be(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = Kernels(monkeypatch)
    other = kernel_locks._Locks(cache / "snnexp" / "kernels" / "locks")
    calls: list[str] = []

    def calls_itself_and_another() -> None:
        kernels.within = lambda: None
        for name in ("f", "g"):  # with another signature: nobody waits for himself
            kernels.found[:] = [None, None]
            calls.append(kernels.compile(name))
            assert not other.take("folder f"), "what called it is compiled still"
        assert other.take("folder g")
        other.give("folder g")

    def fails() -> None:
        assert not other.take("folder f")
        raise TypeError

    kernels.within, kernels.found[:] = calls_itself_and_another, [None, None]
    assert kernels.compile("f") == "compiled" and calls == ["compiled"] * 2
    assert other.take("folder f")
    other.give("folder f")
    kernels.within, kernels.found[:] = fails, [None, None]
    with pytest.raises(TypeError):
        kernels.compile("f")
    assert other.take("folder f"), "a lock was left behind"
    other.give("folder f")


def test_only_a_job_that_runs_alone_has_a_helper(monkeypatch: pytest.MonkeyPatch) -> None:
    targets = {
        "hydra._internal.core_plugins.basic_launcher.BasicLauncher": True,
        "hydra_plugins.snnexp_launchers.JoblibLauncher": False,
        "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher": False,
        "somebody.Launcher": False,
    }
    monkeypatch.setattr(environment, "current_sweep", lambda _: None)
    monkeypatch.setattr(environment, "current_trial", lambda *_: None)
    for mode in (RunMode.RUN, RunMode.MULTIRUN):
        for target, one_by_one in targets.items():
            hydra: Any = SimpleNamespace(
                mode=mode, launcher={"_target_": target}, runtime=SimpleNamespace(cwd="."), job=SimpleNamespace(num=0),
                overrides=SimpleNamespace(task=()), sweep=SimpleNamespace(dir="."),
            )  # fmt: skip
            known = SimpleNamespace(initialized=lambda: True, get=lambda hydra=hydra: hydra)
            monkeypatch.setattr(environment, "HydraConfig", known)
            assert environment.environment(OmegaConf.create()).alone == (mode == RunMode.RUN or one_by_one)


def test_cores_are_those_that_are_granted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cores", lambda: 8)
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    for name in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"):
        monkeypatch.delenv(name, raising=False)
    assert machine.granted_cores() == 8
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert machine.granted_cores() == 8
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert machine.granted_cores() == 1
    (tmp_path / "cpu.max").write_text("350000 100000\n")
    assert machine.granted_cores() == 3
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "2")
    assert machine.granted_cores() == 2
