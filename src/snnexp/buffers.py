"""Large tensors whose memory goes from step to step instead of back to the system; see `allocator.py`.

Blocks beyond glibc's limit come from the kernel, which zeroes each page when it is first written to, and go back to it
as soon as they are free: for the same maps in every training step that takes longer than a pass over them. A tensor
made by `empty` or `empty_like` leaves its memory, when it is freed, to the next one of just that size.

When a tensor is asked for whose size does not wait, so much of what waits is let go, the longest first, that no more is
held than half as much again as was ever in use at once. (Letting go of all of it, a step that lacks one size may lack
others because of that, and the next step again that one, and so on for good.) No number changes.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from itertools import count
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snnexp import allocator

LEAST = 8 << 20  # bytes; up to 32 MiB glibc keeps blocks itself, but cuts them up: W10 took 130 MB more at its peak
_TYPES: dict[torch.dtype, Any] = {torch.float32: np.float32, torch.float64: np.float64, torch.uint8: np.uint8}
MOST = 1.5  # times what was ever in use at once
_waiting: defaultdict[int, list[tuple[int, Tensor]]] = defaultdict(list)  # by their size in bytes: since when, which
_used: dict[int, int] = {}  # where those begin that are in use, and their sizes
_peak = 0  # bytes that were in use at once
_clock = count()


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
    weakref.finalize(array, _return, block).atexit = False  # the tensor's storage is who holds the array
    return torch.from_numpy(array)


def scratch(numbers: int, dtype: torch.dtype) -> NDArray[Any]:
    """So many numbers for a kernel's own use, flat; what is large is cut from powers of two, which many sizes share."""
    size = numbers * dtype.itemsize
    if size >= LEAST:
        numbers = (1 << (size - 1).bit_length()) // dtype.itemsize
    array: NDArray[Any] = empty([numbers], dtype).numpy()
    return array[: size // dtype.itemsize]


def empty_like(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """torch.empty_like."""
    channels_last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    if not x.is_contiguous() and not channels_last:
        return torch.empty_like(x, dtype=dtype)
    return empty(x.shape, dtype or x.dtype, x.device, channels_last and not x.is_contiguous())


def _block(size: int) -> Tensor:
    """So many bytes: some that wait, or new ones."""
    global _peak
    used = sum([*_used.values()]) + size
    _peak = max(_peak, used)
    try:
        _, block = _waiting[size].pop()
    except IndexError:
        _let_go(int(MOST * _peak) - used)
        block = torch.empty(size, dtype=torch.uint8)
    _used[block.data_ptr()] = size
    return block


def _return(block: Tensor) -> None:
    """Let memory wait that nobody uses any more."""
    _used.pop(block.data_ptr(), None)
    _waiting[block.numel()].append((next(_clock), block))


def _let_go(most: int) -> None:
    """Of what waits, keep at most so many bytes."""
    while (found := [blocks for blocks in list(_waiting.values()) if blocks]) and most < sum(
        block.numel() for blocks in found for _, block in blocks
    ):
        with suppress(IndexError):  # another thread took the last one
            min(found, key=lambda blocks: blocks[0][0]).pop(0)
