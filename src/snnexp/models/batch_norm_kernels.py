"""The three loops of batch norm over rows x channels in flat memory; see `batch_norm.py`.

A kernel takes a range of pieces of `piece` rows. Positions are unsigned and arrays flat: a view of each row would count
references in all threads, see `event_linear.py`.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from __future__ import annotations

import numba
import numpy as np

from snnexp.neurons.engines.numba_norm import normalise as normalise_all

SHORT = 32  # rows that are added up in the input's precision

_compile = numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})


@_compile
def sums_of(x, g, shift, sums, channels, rows, piece, start, stop):
    """Sums of g and of g (x - shift); g None: of x - shift and of its square."""
    a, b, width = np.empty(channels, x.dtype), np.empty(channels, x.dtype), np.uint64(channels)
    for p in range(start, stop):
        end = min((p + 1) * piece, rows)
        for short in range(p * piece, end, SHORT):
            a[:] = 0
            b[:] = 0
            for r in range(short, min(short + SHORT, end)):
                at = np.uint64(r) * width
                for c in range(width):
                    d = x[at + c] - shift[c]
                    v = d if g is None else g[at + c]
                    a[c] += v
                    b[c] += v * d
            for c in range(width):
                sums[p, 0, c] += a[c]
                sums[p, 1, c] += b[c]


@_compile
def normalise(x, y, mean, scale, bias, sums, channels, rows, piece, start, stop):
    first, end = start * piece * channels, min(stop * piece, rows) * channels
    normalise_all(x[first:end], y[first:end], mean, scale, bias)


@_compile
def input_gradient(x, g, mean, scale, offset, slope, sums, channels, rows, piece, start, stop):
    """Turn g, the gradient of y, into that of x."""
    width = np.uint64(channels)
    for r in range(start * piece, min(stop * piece, rows)):
        at = np.uint64(r) * width
        for c in range(width):
            g[at + c] = g[at + c] * scale[c] - offset[c] - (x[at + c] - mean[c]) * slope[c]
