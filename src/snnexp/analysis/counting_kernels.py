"""What is counted of a layer's spikes on the CPU: once through memory, where torch goes five times.

Whole numbers: sums do not hang on the number of threads.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from __future__ import annotations

import numpy as np

from snnexp.neurons.engines.numba_helpers import compiled

WIDTH = 2048  # neurons whose sums stay in the first-level cache


def _count_spikes(counts, sums, silent, loud, start, stop):
    """A batch's spikes [B, N], flat, for the parts in a range, each of which has its share of the neurons.

    Adds them to sums [N], and to silent [parts, 2] how many neurons and how many pairs of neuron and sample have none.
    loud [parts, B]: not 0 where a sample has any.
    """
    neurons, (parts, samples) = sums.size, loud.shape
    total, without = np.empty(WIDTH, np.int32), np.empty(WIDTH, np.int32)
    for part in range(start, stop):
        end = neurons * (part + 1) // parts
        for first in range(neurons * part // parts, end, WIDTH):
            width = np.uint64(min(WIDTH, end - first))
            total[:] = 0
            without[:] = 0
            for sample in range(samples):
                at, any_ = np.uint64(sample * neurons + first), np.int32(0)
                for j in range(width):
                    spikes = np.int32(counts[at + j])
                    total[j] += spikes
                    without[j] += np.int32(spikes == 0)
                    any_ |= spikes
                loud[part, sample] |= any_
            for j in range(width):
                sums[np.uint64(first) + j] += total[j]
                silent[part, 0] += total[j] == 0
                silent[part, 1] += without[j]


count_spikes = compiled(_count_spikes)
