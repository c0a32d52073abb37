"""Large tensors whose memory goes from step to step instead of back to the system; see `allocator.py`.

Blocks beyond glibc's limit come from the kernel, which zeroes each page when it is first written to, and go back to it
as soon as they are free: for the same maps in every training step that takes longer than a pass over them. A tensor
made by `empty` or `empty_like` leaves its memory, when it is freed, to the next one of just that size.

All memory that waits is let go as soon as a tensor is asked for whose size does not wait: it is at most what one step
needs, and does not add to what evaluation takes with other sizes. No number changes.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from snnexp import allocator

LEAST = 8 << 20  # bytes; up to 32 MiB glibc keeps blocks itself, but cuts them up: W10 took 130 MB more at its peak
_TYPES: dict[torch.dtype, Any] = {torch.float32: np.float32, torch.float64: np.float64, torch.uint8: np.uint8}
_waiting: defaultdict[int, list[Tensor]] = defaultdict(list)  # by their size in bytes


def empty(
    shape: Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu", channels_last: bool = False
) -> Tensor:
    """torch.empty; channels_last: maps [N, C, H, W] in that layout."""
    size = prod(shape) * dtype.itemsize
    if not allocator.prepared or size < LEAST or dtype not in _TYPES or torch.device(device).type != "cpu":
        layout = torch.channels_last if channels_last else torch.contiguous_format
        return torch.empty(tuple(shape), dtype=dtype, device=device, memory_format=layout)
    block = _block(size)
    order = (0, 2, 3, 1) if channels_last else tuple(range(len(shape)))
    array = block.numpy().view(_TYPES[dtype]).reshape([shape[d] for d in order])
    array = array.transpose([order.index(d) for d in range(len(order))])
    weakref.finalize(array, _waiting[size].append, block).atexit = False  # the tensor's storage is who holds the array
    return torch.from_numpy(array)


def empty_like(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """torch.empty_like."""
    channels_last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    if not x.is_contiguous() and not channels_last:
        return torch.empty_like(x, dtype=dtype)
    return empty(x.shape, dtype or x.dtype, x.device, channels_last and not x.is_contiguous())


def _block(size: int) -> Tensor:
    """So many bytes: some that wait, or new ones; then all others that wait are let go."""
    try:
        return _waiting[size].pop()
    except IndexError:
        for blocks in list(_waiting.values()):
            blocks.clear()
        return torch.empty(size, dtype=torch.uint8)
