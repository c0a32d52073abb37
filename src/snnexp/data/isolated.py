"""Run a decoder in a process of its own: libraries in C and Rust may crash or never return on malformed bytes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Self

from snnexp.data.files import damaged
from snnexp.errors import DataError

SECONDS = 60.0  # for one call, which takes milliseconds for a small file
BYTES_PER_SECOND = 5e6  # what a slow disk gives: large files get more time


class Isolated:
    """A context with one worker process, which starts with the first call and is replaced after a crash."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None

    def call(self, decode: Callable[..., Any], path: Path, *arguments: object) -> Any:
        """`decode(str(path), *arguments)` in the worker, a module-level function that returns a text if it failed.

        Raises: DataError naming the file, if it failed, crashed, or did not return in time.
        """
        seconds = SECONDS + (path.stat().st_size / BYTES_PER_SECOND if path.exists() else 0)
        if self._pool is None:
            self._pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        try:
            result = self._pool.submit(decode, str(path), *arguments).result(timeout=seconds)
        except BrokenProcessPool:
            self.__exit__()
            raise DataError(damaged(path, "its decoder crashed on it")) from None
        except TimeoutError:
            for process in list(self._pool._processes.values()):
                process.kill()
            self.__exit__()
            raise DataError(damaged(path, f"not decoded within {seconds:.3g} s")) from None
        if isinstance(result, str):
            raise DataError(damaged(path, result))
        return result

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None
