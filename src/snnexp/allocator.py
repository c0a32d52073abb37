"""Memory for large tensors without page faults: set before torch is imported, by the command, never by the library.

A training step frees and asks for the same large buffers again and again. glibc returns each to the kernel, which then
hands out zeroed pages one fault at a time; that costs about as much as the arithmetic. This helps:

    mallopt           blocks up to 32 MiB (glibc's limit) come from the heap, which is kept instead of trimmed
    THP_MEM_ALLOC_ENABLE=1   torch asks for huge pages (2 MiB at a fault instead of 4 KiB) for larger blocks

    buffers.py      blocks beyond that, of our own kernels, go from one step to the next

The process keeps its peak memory until it ends; no result changes. SNNEXP_ALLOC=0 turns all of it off.
"""

from __future__ import annotations

import os
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
LARGEST_HEAP_BLOCK = 32 << 20  # bytes; glibc refuses more
_NEVER = (1 << 31) - 1
prepared = False  # whether this process is the command's


def prepare_allocator() -> bool:
    """Set the allocator up for training; returns whether it did. Without glibc only torch's own setting is made."""
    global prepared
    if os.environ.get("SNNEXP_ALLOC") == "0":
        return False
    prepared = True
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if sys.platform == "linux":
        import ctypes

        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if mallopt is not None and not any(
            key.startswith("MALLOC_") for key in os.environ
        ):  # the user's own come first
            mallopt(_M_MMAP_THRESHOLD, LARGEST_HEAP_BLOCK)
            mallopt(_M_TRIM_THRESHOLD, _NEVER)
    return True
