"""One process at a time compiles a kernel that numba keeps on disk; the others wait, and load it.

numba's own cache is safe to read while others write, but two processes that miss the same file compile it twice.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from pathlib import Path
from typing import Any

from snnexp import waiting
from snnexp.folders import user_cache

PATIENCE_S = 30.0  # that one kernel is waited for: whoever compiles it may have been stopped
POLL_S = 0.01

_shared = False


def share_kernels() -> bool:
    """From here on, let this process wait for kernels that another one compiles, and the other way round.

    Returns: whether numba's cache is what we know, and a folder for the locks can be written.
    """
    global _shared
    if _shared:
        return True
    try:
        from numba.core.caching import FunctionCache

        load, save = FunctionCache.load_overload, FunctionCache.save_overload
        folder = user_cache() / "kernels" / "locks"
        folder.mkdir(parents=True, exist_ok=True)
    except (ImportError, AttributeError, OSError):
        return False
    locks = _Locks(folder)

    def load_overload(cache: Any, sig: Any, target: Any) -> Any:
        found = load(cache, sig, target)
        if found is None and locks.take(path := _path(cache)):
            found = load(cache, sig, target)  # somebody may have compiled it meanwhile
            if found is not None:
                locks.give(path)
        return found

    def save_overload(cache: Any, sig: Any, data: Any) -> None:
        try:
            save(cache, sig, data)
        finally:
            locks.give(_path(cache))

    FunctionCache.load_overload, FunctionCache.save_overload = load_overload, save_overload
    _shared = True
    return True


def _path(cache: Any) -> str:
    """Of a function's index: two signatures of it must not be written at once, either."""
    return f"{cache.cache_path} {cache._impl.filename_base}"


class _Locks:
    """Files in `folder`, held from a miss until the kernel is kept; kernels that a kernel calls are held with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.held: dict[str, int] = {}

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
