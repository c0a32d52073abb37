"""What generated numba kernels call to count membranes in a window besides spikes, and to copy some (`calls.Near`).

One number per column carries both counts through the steps: the spikes, and MANY for each membrane in the window. So
that costs a comparison and no memory. An edit here makes new kernels.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from __future__ import annotations

import numpy as np

from snnexp.neurons.engines.numba_helpers import compiled

BITS = 12
MANY = 1 << BITS  # more than there are steps: float32 holds the sum exactly


@compiled
def take_apart(counts, spikes, near, first):
    """Put the spikes of columns `first` and so on into spikes, and add the rest to near, which repeats over them.

    Where there is no room for it, there is no rest, and the spikes are added.
    """
    if near.size == 0:
        for j in range(counts.size):
            spikes[j] += counts[j]
        return
    width, done, k = counts.size, 0, first % near.size
    while done < width:
        run = min(near.size - k, width - done)
        for j in range(np.uint64(run)):
            both = np.int32(counts[np.uint64(done) + j])
            near[np.uint64(k) + j] += both >> BITS
            spikes[np.uint64(done) + j] = both & (MANY - 1)
        done, k = done + run, 0


@compiled
def find_place(places, start):
    """The number of the first place at `start` or behind; places ascend, and the last one lies behind everything."""
    low, high = 0, places.size - 1
    while low < high:
        middle = (low + high) // 2
        if places[middle] < start:
            low = middle + 1
        else:
            high = middle
    return low


@compiled
def pick(row, start, places, picked, place):
    """Copy what lies at the places from number `place` on, as far as row goes, which begins at `start`.

    Returns the number of the first place behind it.
    """
    while places[place] < start + row.size:
        picked[place] = row[places[place] - start]
        place += 1
    return place
