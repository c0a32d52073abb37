"""Batch-sized arrays that are used again once nobody holds them, so that no batch pays for fresh memory pages.

Touching a new page costs the system up to some microseconds, for a batch of frames as much as counting its events does.
"""

from __future__ import annotations

import sys
import threading
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

UNUSED = 2  # references to an array that only the pool knows: its list, and getrefcount's argument


class BufferPool:
    """Lends arrays. A tensor made from one (or from a part of it) keeps it lent until the tensor is gone.

    An array counts as free when nothing but the pool refers to it, so a batch that somebody still holds is never
    written to, whoever it is; the pool then takes new memory. Free arrays that are too small are let go, so the pool
    never holds more than its users did at once.
    """

    def __init__(self) -> None:
        self._arrays: list[NDArray[np.uint8]] = []
        self._lock = threading.Lock()

    def take(self, count: int, dtype: DTypeLike) -> NDArray[Any]:
        """An array of `count` values with whatever was in it before."""
        wanted = np.dtype(dtype)
        size = max(count * wanted.itemsize, 1)
        with self._lock:
            free = [i for i in range(len(self._arrays)) if sys.getrefcount(self._arrays[i]) <= UNUSED]
            fitting = [i for i in free if self._arrays[i].nbytes >= size]
            if fitting:
                chosen = min(fitting, key=lambda i: self._arrays[i].nbytes)
            else:
                kept = set(range(len(self._arrays))) - set(free)
                self._arrays = [self._arrays[i] for i in sorted(kept)] + [np.empty(size, dtype=np.uint8)]
                chosen = -1
            return self._arrays[chosen][: count * wanted.itemsize].view(wanted)

    @property
    def nbytes(self) -> int:
        """Memory held, lent or free."""
        return sum(array.nbytes for array in self._arrays)
