"""Convolutions with few outputs, event-driven: each spike adds its weights to the outputs around it.

Where `event_conv.py` collects the spikes of each window, a window of few outputs costs more than its sums. With stride
1 the outputs that a spike reaches in a row, k pixels of O numbers, lie side by side, and so do its weights: a few
vectors, the last of which ends in zeros. At the left edge they begin further on; for the right edge there are copies of
the weights with columns cut off. Spikes come in the order of windows, so each output is the same sum, bit for bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snnexp.models.event_lists import Lists
from snnexp.parallel import run_parallel
from snnexp.vectors import BYTES

ADDED = 0.5  # vectors added per four windows and row of the kernel, above which collecting the spikes is faster
ADDED_SCALED = 2.0  # the same of spikes that are not 1 each, whose values would be collected, too


def pays(lists: Lists, weight: Tensor, pad: int) -> bool:
    """Whether spikes add to outputs faster than windows of four pixels collect spikes; weight [O, C, k, k]."""
    frames, _, height, width = lists.shape
    outputs, size = weight.shape[0], weight.shape[2]
    high, wide = height + 2 * pad - size + 1, width + 2 * pad - size + 1
    vectors = -(-size * outputs * weight.element_size() // BYTES)
    most = (ADDED_SCALED if lists.values.size else ADDED) * size
    return lists.nonzero * vectors < most * frames * high * -(-wide // 4)


def convolve(lists: Lists, weight: Tensor, start: NDArray[Any], out: NDArray[Any], pad: int, tile: int) -> None:
    """Write the convolution with weight [O, C, k, k] to out [frames, out_height, out_width, O] flat.

    start: the bias [O] or more; tile: what entries are multiplied by.
    """
    from snnexp.models.event_spread_kernels import spread  # numba takes 0.2 s to import

    frames, channels, height, width = lists.shape
    outputs, size = weight.shape[0], weight.shape[2]
    out_height, out_width = height + 2 * pad - size + 1, width + 2 * pad - size + 1
    lanes = BYTES // weight.element_size()
    vectors = -(-size * outputs // lanes)
    room = vectors * lanes + (size - 1) * outputs
    shape, output = (height, width, channels, size, pad, tile), (out_height, out_width, outputs, vectors, room)
    given = (lists.first, lists.entries, lists.values, _packed(weight, room), np.tile(start[:outputs], out_width), out)
    run_parallel(lambda first, last: spread(*given, shape, output, first, last), frames, torch.get_num_threads())


def _packed(weight: Tensor, room: int) -> NDArray[Any]:
    """weight [O, C, k, k] as [C, cut, ky, room] flat: k columns from right to left, `cut` of them zero, then zeros."""
    outputs, channels, size = weight.shape[:3]
    turned = weight.detach().flip(3).permute(1, 2, 3, 0)  # C, ky, column, O
    packed = torch.zeros(channels, size, size, room, dtype=weight.dtype)
    for cut in range(size):
        held = (size - cut) * outputs
        packed[:, cut, :, :held] = turned[:, :, : size - cut].flatten(2)
    flat: NDArray[Any] = packed.reshape(-1).numpy()
    return flat
