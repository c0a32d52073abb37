"""Kernels compiled ahead: where none are in the cache, a second process compiles those of later while a run begins.

numba compiles under one lock, so threads would wait for each other. The helper is a process that builds the same
network and takes one training and one evaluating step of random input: it compiles what these call, and numba's files
hand it over (`kernel_locks.py`: no kernel is compiled twice). Meanwhile the run imports, reads its data, and compiles
what its first batch needs. Nothing of the helper reaches the run but those files; without it the same kernels are
compiled one after the other.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import pickle
import re
import selectors
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from snnexp import ranks
from snnexp.config import Config
from snnexp.folders import user_cache
from snnexp.machine import free_memory, granted_cores, may_have_gpu, processor_name
from snnexp.own_code import foreign, own_words
from snnexp.quiet import resting_by
from snnexp.variables import switched_on

log = logging.getLogger(__name__)

VARIABLE = "SNNEXP_AHEAD"
ENGINES = ("auto", "numba")
LEAST = 2 << 30  # bytes of free memory: a helper takes up to half a GiB, and the run begins meanwhile
DONE, FAILED, LEFT = 0, 1, 3  # how a helper ends: left is one whose run has ended, or where nothing can be shared
REST, GO_ON = "rest", "go on"
PATIENCE_S = 30.0  # until a helper rests: the longest kernel takes a few seconds
START = "import sys; sys.path[:] = {path!r}; from snnexp.ahead.helper import main; main()"
SOURCES = ("*.py", "models/*.py", "neurons/*.py", "neurons/*/*.py", "data/events/*.py", "analysis/reach*.py")
NUMBER = re.compile(r"\b\d+(\.\d+)?(e-?\d+)?|(?<=[a-zA-Z])\d+")  # values and sizes do not make other kernels
PLACE = re.compile(r"\b(root|store|path|init_from|download|limit_\w+)=[^,)]*")


class Helper:
    """The second process, or nobody. It ends with the pipe to it, so also if this process is killed.

    note: the file that says that such kernels are there, written once it has compiled all that it was told to.
    """

    def __init__(self, process: subprocess.Popen[bytes] | None = None, note: Path | None = None) -> None:
        self.process = process
        if process is not None:
            threading.Thread(target=_await, args=(process, note), daemon=True, name="snnexp-ahead").start()

    def build(self, described: dict[str, Any]) -> None:
        """The data are open: the helper may build the network. described: `DataInfo.as_input`."""
        if self.process is None:
            return
        from snnexp.ahead.kernel_locks import share_kernels

        if share_kernels():
            self._send(described)
        else:
            self.end()

    @contextlib.contextmanager
    def resting(self) -> Iterator[None]:
        """Around what is timed: it rests between two kernels, or is over. One that does not answer is ended."""
        self._send(REST)
        if self.process is not None and not _answered(self.process):
            self.end()
        try:
            yield
        finally:
            self._send(GO_ON)

    def end(self) -> None:
        """It is not needed any more."""
        process, self.process = self.process, None
        if process is None:
            return
        with contextlib.suppress(OSError):
            process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]

    def _send(self, message: Any) -> None:
        if self.process is None or self.process.stdin is None:
            return
        try:
            pickle.dump(message, self.process.stdin)
            self.process.stdin.flush()
        except OSError:  # it is gone
            self.end()


def _await(process: subprocess.Popen[bytes], note: Path | None) -> None:
    """Take its end from the system, so that it does not stay as a zombie, and keep that it has compiled everything."""
    if process.wait() == DONE and note is not None:
        _write(note)


def _write(note: Path) -> None:
    with contextlib.suppress(OSError):
        note.touch()


def _answered(process: subprocess.Popen[bytes]) -> bool:
    """Wait until it rests, or has ended."""
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        if not selector.select(PATIENCE_S):
            return False
    os.read(process.stdout.fileno(), 1)  # nothing, if it has ended
    return True


@contextlib.contextmanager
def compiling_ahead(conf: Config, wanted: bool) -> Iterator[Helper]:
    """Around a run of `conf`: a helper if it is wanted, and such kernels have not been compiled on this machine before.

    A note that they are there is left by a helper that has done its work, and by a run that ends without an error.
    """
    note = _note(conf) if wanted and _may_help(conf) else None
    if note is None:
        yield Helper()
        return
    helper = _started(conf, note)
    try:
        with resting_by(helper.resting):
            yield helper
        _write(note)
    finally:
        helper.end()


def _may_help(conf: Config) -> bool:
    """Where a second process has a core and memory of its own, and imports nothing of the user's a second time."""
    if conf.device == "cuda" or (conf.device == "auto" and may_have_gpu()) or conf.neuron.engine not in ENGINES:
        return False
    free = free_memory()
    if not switched_on(VARIABLE) or ranks.several() or granted_cores() < 2 or (free is not None and free < LEAST):
        return False
    return not any(foreign(kind, word) for kind, word in own_words(conf))


def _note(conf: Config) -> Path | None:
    """A file whose presence says that these kernels were compiled: its name stands for all that they hang on.

    None where nothing can be kept, and where it is there.
    """
    source = Path(__file__).parents[1]
    stats = [path.stat() for pattern in SOURCES for path in sorted(source.glob(pattern))]
    sources = [(stat.st_mtime_ns, stat.st_size) for stat in stats]
    kinds = (conf.dataset, conf.model, conf.neuron, conf.encoder, conf.decoder, conf.rescue, conf.trainer)
    shapes = NUMBER.sub("#", PLACE.sub("", repr(kinds)))
    variables = [os.environ.get(name) for name in ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES", "NUMBA_CACHE_DIR")]
    given = repr((shapes, sources, sys.version, _numba(), processor_name(), variables))
    try:
        folder = user_cache() / "kernels" / "compiled"
        folder.mkdir(parents=True, exist_ok=True)
        note = folder / hashlib.sha256(given.encode()).hexdigest()[:24]
        return None if note.exists() or not os.access(folder, os.W_OK | os.X_OK) else note
    except OSError:  # no home, or a folder that is not ours
        return None


def _numba() -> str:
    from importlib import metadata

    return metadata.version("numba")


def _started(conf: Config, note: Path | None = None) -> Helper:
    """The process, told what to build as soon as the data are known."""
    command = [sys.executable, "-c", START.format(path=sys.path)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", VARIABLE: "0"}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    try:
        helper = Helper(subprocess.Popen(command, env=environment, **pipes), note)
    except OSError as error:
        log.debug("kernels are not compiled ahead: %s", error)
        return Helper()
    helper._send(replace(conf, device="cpu"))
    return helper
