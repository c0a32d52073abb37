"""The loop that turns maps around in memory; see `layout.py`."""
# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from __future__ import annotations

import numba
import numpy as np


@numba.njit(nogil=True, cache=True, error_model="numpy")
def turn(x, out, rows, columns, start, stop):
    """out [frames, columns, rows] flat = x [frames, rows, columns] flat, for the frames from start to stop."""
    r, c = np.uint64(rows), np.uint64(columns)
    for frame in range(np.uint64(start), np.uint64(stop)):
        first = frame * r * c
        for j in range(c):
            to, at = first + j * r, first + j
            for i in range(r):
                out[to + i] = x[at + i * c]
