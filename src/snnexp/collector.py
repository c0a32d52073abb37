"""Python's cyclic garbage collector, kept away from what lives until the end: imported packages.

Importing torch and mlflow makes a million objects. While they come in, the collector walks through all of them again
and again; afterwards it does so at every full collection, and once more when the process ends: a quarter of the
processor time of a short run. So it rests while packages come in, and then leaves out what they brought. Everything
else runs with the collector on, at Python's own thresholds: a reference cycle around a large tensor must go soon.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from snnexp import interrupts

_lent = False  # the process is somebody else's: what lives in it is theirs to collect


@contextmanager
def lent() -> Iterator[None]:
    """Within the block `freeze` has no effect."""
    global _lent
    before, _lent = _lent, True
    try:
        yield
    finally:
        _lent = before


@contextmanager
def importing(*, freeze: bool = False) -> Iterator[None]:
    """Around imports of large packages, or calls that lead to them: no collection inside, and no interrupt.

    A signal waits until the packages are there: half of one cannot be imported again in this process, and closing the
    record of an interrupted run needs them.

    freeze: if the block imported anything, the collector never looks at what exists now again. Such a block should come
    before a job has large objects of its own, because in a sweep those must go with their job. It has no effect once
    triton is there: when the process ends, its binding library complains of every object that was not collected.
    """
    running, before = gc.isenabled(), len(sys.modules)
    with interrupts.held():
        gc.disable()
        try:
            yield
        finally:
            if running:  # else the user or an outer block has it off
                if freeze and not _lent and len(sys.modules) > before and "triton" not in sys.modules:
                    gc.freeze()
                gc.enable()
