"""Lists of what is not zero in maps, for convolutions that follow the spikes.

Frames are [H, W, C] in memory (channels_last). Row (n, y) has W + 1 numbers in `first`: where the entries of its pixels
begin, and where the last one's end. Entries rise, so the entries of any columns x to x' are one piece of memory:
first[row, x] to first[row, x']. An entry is (x C + c) times the width of a row of packed weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snnexp.arrays import flat_maps, number_type
from snnexp.data.base import EventFrames
from snnexp.models.event_conv_kernels import ROOM
from snnexp.parallel import run_parallel

SAMPLED = 7  # one frame of so many tells the density; a prime, so that it is not always the same samples'


class Lists(NamedTuple):
    """What is not zero in maps [frames, C, H, W]."""

    first: NDArray[np.int32]  # [frames * H * (W + 1)]
    entries: NDArray[np.int32]  # [nnz + ROOM]
    values: NDArray[Any]  # [nnz], or empty: 1 each
    shape: tuple[int, int, int, int]  # frames, C, H, W

    @property
    def nonzero(self) -> int:
        """How much is not zero."""
        return len(self.entries) - ROOM


def density(x: Tensor | EventFrames) -> float:
    """Share of the input that is not zero; of maps [N, C, H, W] by a sample of the frames."""
    if isinstance(x, EventFrames):
        return x.density
    frames, size = x.shape[0], x.shape[1:].numel()
    if frames * size == 0:
        return 0.0
    counts, every = np.zeros((-(-frames // SAMPLED), 2), np.int64), SAMPLED
    if not x.is_contiguous(memory_format=torch.channels_last):
        x, every = x[::SAMPLED].contiguous(memory_format=torch.channels_last), 1
    flat = flat_maps(x)
    _over(len(counts), lambda start, stop: _count(flat, size, every, counts, start, stop))
    return float(counts[:, 0].sum() / (len(counts) * size))


def list_maps(x: Tensor, tile: int) -> Lists:
    """Lists of maps x [N, C, H, W] in channels_last; tile: the width of a row of packed weights."""
    frames, channels, height, width = x.shape
    flat, size = flat_maps(x), channels * height * width
    counts = np.zeros((frames, 2), np.int64)
    _over(frames, lambda start, stop: _count(flat, size, 1, counts, start, stop))
    offsets = np.concatenate([[0], np.cumsum(counts[:, 0])])
    first, entries = _room(frames * height * (width + 1), int(offsets[-1]))
    values = np.empty(int(offsets[-1]) if counts[:, 1].any() else 0, flat.dtype)
    _over(
        frames,
        lambda start, stop: _list(flat, offsets, first, entries, values, height, width, channels, tile, start, stop),
    )
    return Lists(first, entries, values, (frames, channels, height, width))


def list_events(x: EventFrames, tile: int, dtype: torch.dtype) -> Lists:
    """Lists of event lists, whose rows are in the order [C, H, W]."""
    frames, (channels, height, width) = x.num_steps * x.batch_size, x.shape
    first, entries = _room(frames * height * (width + 1), x.indices.numel())
    number = number_type(dtype)
    given = np.empty(0, number) if x.values is None else x.values.detach().numpy().astype(number, copy=False)
    indices, offsets, values = x.indices.numpy(), x.offsets.numpy(), np.empty_like(given)
    _over(
        frames,
        lambda start, stop: _relist(
            indices, offsets, given, first, entries, values, height, width, channels, tile, start, stop
        ),
    )
    return Lists(first, entries, values, (frames, channels, height, width))


def dense_maps(x: EventFrames, dtype: torch.dtype) -> Tensor:
    """Event lists as maps [N, C, H, W] in channels_last, as dense convolutions want them, in float32 or float64."""
    (channels, height, width), frames = x.shape, x.num_steps * x.batch_size
    maps = torch.empty((frames, *x.shape), dtype=dtype, memory_format=torch.channels_last)
    given = np.empty(0, number_type(dtype)) if x.values is None else x.values.detach().to(dtype).numpy()
    lists, flat = (x.indices.numpy(), x.offsets.numpy(), given), flat_maps(maps)
    _over(frames, lambda start, stop: _scatter(*lists, flat, height * width, channels, start, stop))
    return maps


def _room(pixels: int, count: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    entries = np.empty(count + ROOM, np.int32)
    entries[count:] = 0
    return np.empty(pixels, np.int32), entries


def _over(blocks: int, work: Callable[[int, int], None]) -> None:
    run_parallel(work, blocks, torch.get_num_threads())


# Positions are unsigned, so that nothing is tested for being negative. Counts may be added in any order.


@numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc"})
def _count(x, size, every, counts, start, stop):  # type: ignore[no-untyped-def]
    """counts[i]: what is not 0, and whether all else is 1 (0), in frame i * every of x [frames * size] flat."""
    zero, one, short = x.dtype.type(0), x.dtype.type(1), np.uint64(4096)
    for i in range(start, stop):
        at = np.uint64(i * every) * np.uint64(size)
        end = at + np.uint64(size)
        while at < end:  # in pieces, within which a sum of ones is exact
            some, others = zero, zero
            for j in range(at, min(at + short, end)):
                v = x[j]
                some += one if v != zero else zero
                others += abs(v * (one - v))
            counts[i, 0] += np.int64(some)
            counts[i, 1] += np.int64(others != zero)
            at += short


@numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc"})
def _list(x, offsets, first, entries, values, height, width, channels, tile, start, stop):  # type: ignore[no-untyped-def]
    """Write the lists of frames start..stop.

    Sixteen inputs of a pixel (or of neighbours, if it has few) are skipped if all are 0. Else each is written and stays
    if it is not 0: a wrong guess of the processor costs more. Not where a frame's list ends: behind it is another's.
    """
    zero, many, wide, one = x.dtype.type(0), np.uint64(channels), np.uint64(width * channels), np.uint64(1)
    sixteen, pixel = np.uint64(16), np.uint64(channels if channels >= 8 else width * channels)
    for frame in range(start, stop):
        j, last = np.uint64(offsets[frame]), np.uint64(offsets[frame + 1])
        for y in range(height):
            row = np.uint64(frame * height + y)
            at, begins = row * wide, row * np.uint64(width + 1)
            column = begins  # the next one whose beginning is not known yet
            for left in range(np.uint64(0), wide, pixel):
                if pixel == many:
                    first[column] = j
                    column += one
                for group in range(left, left + pixel, sixteen):
                    end, total = min(group + sixteen, left + pixel), zero
                    for k in range(group, end):
                        total += abs(x[at + k])
                    if total == zero:
                        continue
                    if pixel == many and j + sixteen <= last:
                        for k in range(group, end):
                            v = x[at + k]
                            entries[j] = k * np.uint64(tile)
                            if values.size > 0:
                                values[j] = v
                            j += np.uint64(v != zero)
                        continue
                    for k in range(group, end):
                        if x[at + k] != zero:
                            here = begins + np.uint64(np.uint32(k) // np.uint32(channels))
                            while column <= here:
                                first[column] = j
                                column += one
                            entries[j] = k * np.uint64(tile)
                            if values.size > 0:
                                values[j] = x[at + k]
                            j += one
            while column <= begins + np.uint64(width):
                first[column] = j
                column += one


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _relist(indices, offsets, given, first, entries, values, height, width, channels, tile, start, stop):  # type: ignore[no-untyped-def]
    """The lists of event lists: counted per pixel, then put in their places; channels rise as they came."""
    pixels = np.uint32(height * width)
    places = np.empty(height * width, np.int32)
    for frame in range(start, stop):
        places[:] = 0
        for i in range(offsets[frame], offsets[frame + 1]):
            places[np.uint32(indices[i]) % pixels] += 1
        j, pixel = np.int32(offsets[frame]), 0
        for y in range(height):
            begins = (frame * height + y) * (width + 1)
            for column in range(width):
                first[begins + column] = j
                here, places[pixel] = places[pixel], j
                j += here
                pixel += 1
            first[begins + width] = j
        for i in range(offsets[frame], offsets[frame + 1]):
            at, channel = np.uint32(indices[i]) % pixels, np.uint32(indices[i]) // pixels
            place = places[at]
            places[at] = place + 1
            entries[place] = (at % np.uint32(width) * np.uint32(channels) + channel) * np.uint32(tile)
            if values.size > 0:
                values[place] = given[i]


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _scatter(indices, offsets, given, out, pixels, channels, start, stop):  # type: ignore[no-untyped-def]
    """Write event lists' frames start..stop to out [frames, pixels, channels] flat; indices are [channels, pixels]."""
    size, one, zero = np.uint64(pixels * channels), out.dtype.type(1), out.dtype.type(0)
    plane, many, weighted = np.uint32(pixels), np.uint64(channels), given.size > 0
    for frame in range(start, stop):
        begin = np.uint64(frame) * size
        for i in range(begin, begin + size):
            out[i] = zero
        for j in range(np.uint64(offsets[frame]), np.uint64(offsets[frame + 1])):
            channel, pixel = np.uint32(indices[j]) // plane, np.uint32(indices[j]) % plane
            out[begin + np.uint64(pixel) * many + np.uint64(channel)] = given[j] if weighted else one
