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
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from snnexp import ranks
from snnexp.config import Config
from snnexp.folders import user_cache
from snnexp.machine import cores
from snnexp.own_code import foreign, own_words

log = logging.getLogger(__name__)

VARIABLE = "SNNEXP_AHEAD"
START = "import sys; sys.path[:] = {path!r}; from snnexp.ahead.helper import main; main()"
SOURCES = ("*.py", "models/*.py", "neurons/*.py", "neurons/*/*.py", "data/events/*.py", "analysis/reach*.py")
NUMBER = re.compile(r"\b\d+(\.\d+)?(e-?\d+)?|(?<=[a-zA-Z])\d+")  # values and sizes do not make other kernels
PLACE = re.compile(r"\b(root|store|path|init_from|download|limit_\w+)=[^,)]*")


class Helper:
    """The second process, or nobody. It ends with the pipe to it, so also if this process is killed."""

    def __init__(self, process: subprocess.Popen[bytes] | None = None) -> None:
        self.process = process

    def build(self, described: dict[str, Any], device: str) -> None:
        """The data are open: the helper may build the network. described: `DataInfo.as_input`."""
        if self.process is None:
            return
        if device != "cpu":
            self.end()
            return
        from snnexp.ahead.kernel_locks import share_kernels

        if share_kernels():
            self._send(described)
        else:
            self.end()

    def end(self) -> None:
        """It is not needed any more."""
        process, self.process = self.process, None
        if process is not None:
            with contextlib.suppress(OSError):
                process.kill()
            with contextlib.suppress(OSError):
                process.communicate()

    def _send(self, message: Any) -> None:
        assert self.process is not None and self.process.stdin is not None
        try:
            pickle.dump(message, self.process.stdin)
            self.process.stdin.flush()
        except OSError:  # it is gone
            self.end()


@contextlib.contextmanager
def compiling_ahead(conf: Config, wanted: bool) -> Iterator[Helper]:
    """Around a run of `conf`: a helper if it is wanted, and such kernels have not been compiled on this machine before.

    A run that ends without an error leaves a note that they are there.
    """
    note = _note(conf) if wanted and _may_help(conf) else None
    if note is None or note.exists():
        yield Helper()
        return
    helper = _started(conf)
    try:
        yield helper
        with contextlib.suppress(OSError):
            note.touch()
    finally:
        helper.end()


def _may_help(conf: Config) -> bool:
    """Where a second process has a core of its own, and imports nothing of the user's a second time."""
    wanted = os.environ.get(VARIABLE, "1") != "0" and conf.device != "cuda" and conf.neuron.engine in ("auto", "numba")
    if not wanted or cores() < 2 or ranks.several():
        return False
    return not any(foreign(kind, word) for kind, word in own_words(conf))


def _note(conf: Config) -> Path | None:
    """A file whose presence says that these kernels were compiled: its name stands for all that they hang on.

    None where nothing can be kept.
    """
    source = Path(__file__).parents[1]
    stats = [path.stat() for pattern in SOURCES for path in sorted(source.glob(pattern))]
    sources = [(stat.st_mtime_ns, stat.st_size) for stat in stats]
    kinds = (conf.dataset, conf.model, conf.neuron, conf.encoder, conf.decoder, conf.rescue, conf.trainer)
    shapes = NUMBER.sub("#", PLACE.sub("", repr(kinds)))
    variables = [os.environ.get(name) for name in ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES", "NUMBA_CACHE_DIR")]
    given = repr((shapes, sources, sys.version, _numba(), variables))
    try:
        folder = user_cache() / "kernels" / "compiled"
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # no home, or none that keeps what is compiled
        return None
    return folder / hashlib.sha256(given.encode()).hexdigest()[:24]


def _numba() -> str:
    from importlib import metadata

    return metadata.version("numba")


def _started(conf: Config) -> Helper:
    """The process, told what to build as soon as the data are known."""
    command = [sys.executable, "-c", START.format(path=sys.path)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", VARIABLE: "0"}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    try:
        helper = Helper(subprocess.Popen(command, env=environment, **pipes))
    except OSError as error:
        log.debug("kernels are not compiled ahead: %s", error)
        return Helper()
    helper._send(replace(conf, device="cpu"))
    return helper
