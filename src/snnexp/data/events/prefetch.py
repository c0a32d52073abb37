"""Prepare the next batch in a background thread while the current one is in use."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class _Failure:
    error: BaseException


class _End:
    """Nothing comes any more."""


class Prefetch(Generic[Item]):
    """Iterate over `items` in a thread that works one item ahead; order and content are those of `items`.

    One thread makes all items one after the other, so a seeded generator gives the same items as without it. An error
    in the thread is raised where the item would have come. Leaving the loop early, or `close()`, ends the thread.
    The thread must not run numba code with parallel=True: numba's workqueue layer aborts the process when two threads
    enter it at once, and the neuron engine uses it from the main thread.
    """

    def __init__(self, items: Iterator[Item]) -> None:
        self._queue: queue.Queue[Item | _Failure | _End] = queue.Queue(maxsize=1)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(items,), name="snnexp-prefetch", daemon=True)
        self._thread.start()

    def _put(self, item: Item | _Failure | _End) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def _work(self, items: Iterator[Item]) -> None:
        try:
            for item in items:
                if not self._put(item):
                    return
            self._put(_End())
        except BaseException as error:  # handed over to the thread that waits for the item
            self._put(_Failure(error))

    def __iter__(self) -> Iterator[Item]:
        try:
            while True:
                item = self._queue.get()
                if isinstance(item, _End):
                    return
                if isinstance(item, _Failure):
                    raise item.error
                yield item
        finally:
            self.close()

    def close(self) -> None:
        """End the thread; idempotent."""
        self._stop.set()
        while True:  # let go of a batch that nobody will take
            try:
                self._queue.get_nowait()
            except queue.Empty:
                break
        self._thread.join()
