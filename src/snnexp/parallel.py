"""Threads for compiled kernels: torch's own OpenMP threads, so that nobody's waiting threads take the cores.

OpenMP's threads spin for some milliseconds after torch's last parallel operation. A second pool, ours or numba's
(`parallel=True` brings a second OpenMP library), would share the cores with them just then, and in a training step
"just then" is always. So `run_parallel` asks the OpenMP library that torch is linked to for its team and lets each
thread call the compiled kernel, which releases the GIL. Where that library is not GNU's, a small pool of our own
serves.
"""

from __future__ import annotations

import ctypes
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from pathlib import Path
from threading import get_ident
from typing import Any

import torch

_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_forked = False


def run_parallel(work: Callable[[int, int], None], blocks: int, threads: int) -> None:
    """Run work(start, stop) over all blocks on up to `threads` threads, this one among them.

    Raises: what `work` raises, after all threads have ended.
    """
    if threads == 1 or blocks <= 1 or _forked:  # OpenMP's threads do not survive a fork
        if blocks:
            work(0, blocks)
        return
    pieces = min(blocks, 4 * threads)
    bounds = [blocks * i // pieces for i in range(pieces + 1)]
    queue = deque(pairwise(bounds))
    problems: list[BaseException] = []
    entered: set[int] = set()

    def drain(_: Any = None) -> None:
        try:
            entered.add(get_ident())
            while True:
                try:
                    start, stop = queue.popleft()
                except IndexError:
                    return
                work(start, stop)
        except BaseException as problem:  # it cannot leave a thread that is not Python's
            problems.append(problem)

    parallel = _openmp()
    if parallel is not None:
        parallel(_CALLBACK(drain), None, threads, 0)  # all of torch's: for a smaller team OpenMP would end threads
        if get_ident() not in entered:  # Ctrl-C on the way in, where ctypes can only print it
            raise KeyboardInterrupt
    else:
        others = [_workers(threads - 1).submit(drain) for _ in range(min(threads, pieces) - 1)]
        drain()
        for other in others:
            other.result()
    if problems:
        raise problems[0]


@cache
def _openmp() -> Callable[..., None] | None:
    """Return GOMP_parallel(function, data, threads, flags) of the library that torch uses, or None."""
    try:
        torch_library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        parallel = torch_library.GOMP_parallel  # found in what libtorch_cpu depends on
    except (OSError, AttributeError):
        return None
    parallel.argtypes = [_CALLBACK, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    parallel.restype = None
    found: Callable[..., None] = parallel
    return found


@cache
def _workers(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="snnexp-kernels")


def _after_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)
