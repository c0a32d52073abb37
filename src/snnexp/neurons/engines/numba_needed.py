"""What generated numba kernels call to pool where the gradient of spikes is. An edit here makes new kernels."""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import numba
import numpy as np

from snnexp.neurons.engines.numba_helpers import compiled


@numba.njit(error_model="numpy", forceinline=True)
def marked(needed, spk):
    """1 if needed, and 2 more with a spike: bytes alone are compared 32 or 64 at a time."""
    return np.uint8(needed) | (np.uint8(2) if spk > 0 else np.uint8(0))


@numba.njit(error_model="numpy", forceinline=True)
def _corners(first, row, inner):
    """Where the four pixels of a 2x2 window begin; unsigned, so that nothing is tested for being negative."""
    a, below, right = np.uint64(first), np.uint64(row), np.uint64(inner)
    return a, a + right, a + below, a + below + right


@compiled
def pool_needed(marks, out, bands, row, inner, size, average):
    """out = whether a pooled value's gradient is needed, 0 or 1, of `marked` pixels in the windows of `pool`.

    Of a maximum it goes to the first of its spikes, else to the window's first pixel; of an average to all of them.
    """
    wide, one = row // inner // size, np.uint8(1)
    for band in range(bands):
        for w in range(wide):
            o, first = np.uint64((band * wide + w) * inner), band * size * row + w * size * inner
            if size == 2:
                a, b, c, d = _corners(first, row, inner)
                for i in range(np.uint64(inner)):
                    in_a, in_b, in_c, in_d = marks[a + i], marks[b + i], marks[c + i], marks[d + i]
                    if average:
                        out[o + i] = (in_a | in_b | in_c | in_d) & one
                    else:
                        found = in_d if in_d > one else in_a
                        found = in_c if in_c > one else found
                        found = in_b if in_b > one else found
                        out[o + i] = (in_a if in_a > one else found) & one
                continue
            for i in range(np.uint64(inner)):
                out[o + i] = marks[np.uint64(first) + i] & one
            for last in range(size * size - 1, -1, -1):  # an earlier spike takes it from a later one
                s = np.uint64(first + last // size * row + last % size * inner)
                for i in range(np.uint64(inner)):
                    mark = marks[s + i]
                    out[o + i] = (out[o + i] | mark) & one if average else (mark & one if mark > one else out[o + i])
