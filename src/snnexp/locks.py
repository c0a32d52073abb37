"""File locks that users of one folder can share."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout

POLL_S = 0.05


class ReadOnlyLock:
    """The same lock as `FileLock`'s, for a file that another user made and that we may only read.

    flock asks for no right to write on a local disk.
    """

    def __init__(self, path: str | os.PathLike[str], timeout: float = -1) -> None:
        self.path, self.timeout = os.fspath(path), timeout
        self._handle: int | None = None

    def acquire(self, timeout: float | None = None) -> Self:
        """Wait for the lock. Raises: filelock.Timeout after `timeout` seconds (below 0: never)."""
        timeout = self.timeout if timeout is None else timeout
        handle, end = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC), time.monotonic() + timeout
        try:
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if timeout >= 0 and time.monotonic() >= end:
                        raise Timeout(self.path) from None
                    time.sleep(POLL_S)
        except BaseException:
            os.close(handle)
            raise
        self._handle = handle
        return self

    def release(self) -> None:
        """Let go of it; a second call changes nothing."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def __enter__(self) -> Self:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


Lock = FileLock | ReadOnlyLock


def file_lock(path: str | os.PathLike[str], timeout: float = -1, **options: Any) -> Lock:
    """The lock at `path`; `options` are `FileLock`'s. A new file gets the mode that the umask says."""
    if Path(path).exists() and not os.access(path, os.W_OK):
        return ReadOnlyLock(path, timeout)
    return FileLock(path, timeout=timeout, **options)
