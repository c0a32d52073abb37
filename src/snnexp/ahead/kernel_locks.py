"""One process at a time compiles a kernel that numba keeps on disk; the others wait, and load it.

numba's own cache is safe to read while others write, but two processes that miss the same file compile it twice.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from snnexp import waiting
from snnexp.folders import user_cache

PATIENCE_S = 30.0  # that one kernel is waited for: whoever compiles it may have been stopped
POLL_S = 0.01

_shared = False


def _at_once() -> None:
    """Compile without asking anybody."""


def share_kernels(before: Callable[[], None] = _at_once) -> bool:
    """From here on, let this process wait for kernels that another one compiles, and the other way round.

    before: called before each kernel that is compiled or loaded, except within another one.

    Returns: whether numba's cache is what we know, and a folder for the locks can be written.
    """
    global _shared
    if _shared:
        return True
    try:
        from numba.core.caching import FunctionCache
        from numba.core.compiler_lock import global_compiler_lock
        from numba.core.dispatcher import Dispatcher

        load, compile_kernel = FunctionCache.load_overload, Dispatcher.compile
        folder = user_cache() / "kernels" / "locks"
        folder.mkdir(parents=True, exist_ok=True)
    except (ImportError, AttributeError, OSError):
        return False
    locks = _Locks(folder)

    def load_overload(cache: Any, sig: Any, target: Any) -> Any:
        found = load(cache, sig, target)
        if found is None and locks.depth and locks.take(_path(cache)):
            found = load(cache, sig, target)  # somebody may have compiled it meanwhile
        return found

    def compile_or_load(dispatcher: Any, sig: Any) -> Any:
        if not locks.depth:
            before()
        with global_compiler_lock, locks.held_within():  # numba's own is taken first: one thread at a time is here
            return compile_kernel(dispatcher, sig)

    cache_kind: Any = FunctionCache
    dispatcher_kind: Any = Dispatcher
    cache_kind.load_overload, dispatcher_kind.compile = load_overload, compile_or_load
    _shared = True
    return True


def _path(cache: Any) -> str:
    """Of a function's index: two signatures of it must not be written at once, either."""
    return f"{cache.cache_path} {cache._impl.filename_base}"


class _Locks:
    """Files in `folder`, held from a miss until the kernel is kept, or cannot be compiled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.held: dict[str, int] = {}
        self.depth = 0  # of kernels that are compiled or loaded within each other

    @contextlib.contextmanager
    def held_within(self) -> Iterator[None]:
        """Around one kernel: what it has taken is given up at its end, and what was taken before it stays."""
        before = set(self.held)
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1
            for name in self.held.keys() - before:
                self.give(name)

    def take(self, name: str) -> bool:
        """Wait for the lock; False if it is held here already, or cannot be had."""
        if name in self.held:
            return False
        try:
            path = self.folder / hashlib.sha256(name.encode()).hexdigest()[:24]
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError:
            return False
        with waiting.compiling():
            if not _acquired(handle):
                os.close(handle)
                return False
        self.held[name] = handle
        return True

    def give(self, name: str) -> None:
        """Let go of it, if it is held."""
        handle = self.held.pop(name, None)
        if handle is not None:
            os.close(handle)


def _acquired(handle: int) -> bool:
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
            time.sleep(POLL_S)
        except OSError:  # no locks on this file system
            return False
