"""The loops over membranes that `analysis/reach.py` needs on the CPU; flat memory [T, B, N] in its own order.

Both add to near [parts, N] how often |U - center| <= radius, for the parts in a range. center and radius [1] or [N].
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from __future__ import annotations

import numpy as np

from snnexp.neurons.engines.numba_helpers import compiled, spread

WIDTH = 2048  # neurons whose counts, centers and radii stay in the first-level cache together
BLOCK = 1024  # columns that are walked through time together


def _count_near(mem, center, radius, near, start, stop):
    """In the order of memory, which is three times as fast as column by column."""
    parts, neurons = near.shape
    whole = max(WIDTH // neurons, 1) * neurons  # short rows are taken several at a time
    rows = (mem.size + whole - 1) // whole
    found = np.empty(min(whole, WIDTH), np.int32)
    c, r = np.empty(found.size, mem.dtype), np.empty(found.size, mem.dtype)
    for part in range(start, stop):
        for first in range(0, whole, WIDTH):
            width = min(WIDTH, whole - first)
            spread(center, first, c, width)
            spread(radius, first, r, width)
            found[:] = 0
            for row in range(rows * part // parts, rows * (part + 1) // parts):
                at = np.uint64(row * whole + first)
                for j in range(np.uint64(min(width, mem.size - row * whole - first))):
                    found[j] += np.int32(abs(mem[at + j] - c[j]) <= r[j])
            for j in range(width):
                near[part, (first + j) % neurons] += found[j]


def _count_near_once(mem, center, radius, near, columns, fired, strict, start, stop):
    """The same until a column has fired: U >= center (strict: >). fired [columns]: before the first step, non-zero."""
    parts, neurons = near.shape
    blocks, steps = (columns + BLOCK - 1) // BLOCK, mem.size // columns
    found, waits = np.empty(BLOCK, np.int32), np.empty(BLOCK, np.int32)
    c, r = np.empty(BLOCK, mem.dtype), np.empty(BLOCK, mem.dtype)
    for part in range(start, stop):
        for block in range(blocks * part // parts, blocks * (part + 1) // parts):
            first = block * BLOCK
            width = min(BLOCK, columns - first)
            spread(center, first, c, width)
            spread(radius, first, r, width)
            found[:] = 0
            for j in range(width):
                waits[j] = np.int32(fired[first + j] == 0)
            for t in range(steps):
                at = np.uint64(t * columns + first)
                for j in range(np.uint64(width)):
                    u = mem[at + j]
                    found[j] += waits[j] & np.int32(abs(u - c[j]) <= r[j])
                    silent = u <= c[j] if strict else u < c[j]
                    waits[j] &= np.int32(silent | (u != u))
            for j in range(width):
                near[part, (first + j) % neurons] += found[j]


count_near = compiled(_count_near)
count_near_once = compiled(_count_near_once)
