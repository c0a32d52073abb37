"""Time bins: the events of a whole batch counted into [T, B, C, H, W], or listed as `EventFrames`, in one call.

Because a sample's events are in order of time, its bins are T consecutive pieces of its event list. `bin_edges` finds
the T + 1 cuts (a binary search, no pass over the events), and counting then reads positions only. A look-up table from
stored position to network input does crop, down-sampling and polarity at no further cost per event.

With t_0 and t_N-1 the sample's first and last time, D = t_N-1 - t_0, event k of N falls into bin
    time    min(floor((t - t_0) T / D), T - 1)        equal durations; bin 0 if D = 0
    count   min(floor(k / floor(N / T)), T - 1)       SpikingJelly's split_by="number"; T - 1 if N < T
    width   floor(t / bin)                            from the sample's start; later than T bins: cut
so that with `time` and `count` no event is lost. Bins are set by all events of the sample, before the crop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snnexp.data.base import EventFrames
from snnexp.data.events.buffers import BufferPool

BIN_BY = {"time": 0, "count": 1, "width": 2}


@dataclass(frozen=True)
class Binning:
    """How stored events become the network's input; the fields are the keys of the data set's configuration.

    `sensor` is [C, H, W] as stored, `shape` what the network sees. `table[address]` is the flat position in `shape`,
    or -1 outside the crop; `signs[address]` is -1 for an off event if polarity=difference, else 1.
    """

    num_steps: int
    bin_by: str
    bin_us: float  # used by bin_by=width
    binary: bool
    signed: bool  # polarity=difference
    sensor: tuple[int, int, int]
    shape: tuple[int, int, int]
    table: NDArray[np.int32]
    signs: NDArray[np.float32]

    @property
    def features(self) -> int:
        """Inputs per time step, C * H * W."""
        return self.shape[0] * self.shape[1] * self.shape[2]

    @property
    def lookup(self) -> NDArray[np.uint32] | None:
        """The table for the kernels, -1 turned into more than any position; None if it changes nothing."""
        return None if self.shape == self.sensor else self.table.view(np.uint32)

    @property
    def lookup_signs(self) -> NDArray[np.float32] | None:
        """The signs for the kernels; None unless polarity=difference."""
        return self.signs if self.signed else None


def build_binning(
    sensor: tuple[int, int, int],
    num_steps: int,
    bin_by: str,
    bin_ms: float | None = None,
    value: str = "count",
    polarity: str = "both",
    crop: int | None = None,
    downsample: int = 1,
) -> Binning:
    """Work out the look-up table: centre crop first, then coordinates divided by `downsample` (rounded down).

    The crop's first row is (H - crop) // 2, its first column likewise; a last, incomplete cell keeps its events.
    `polarity`: both keeps the sensor's channels, merge adds them up, difference is on minus off. A sensor with one
    polarity has on events only. `value=binary` gives the sign of the sum: 1 if any event, -1, 0, 1 for a difference.
    """
    channels, height, width = sensor
    rows = min(height, crop or height)
    columns = min(width, crop or width)
    p, y, x = np.meshgrid(np.arange(channels), np.arange(height), np.arange(width), indexing="ij")
    y, x = y - (height - rows) // 2, x - (width - columns) // 2
    inside = (y >= 0) & (y < rows) & (x >= 0) & (x < columns)
    shape = (channels if polarity == "both" else 1, -(-rows // downsample), -(-columns // downsample))
    channel = p if polarity == "both" else np.zeros_like(p)
    position = (channel * shape[1] + y // downsample) * shape[2] + x // downsample
    table = np.where(inside, position, -1).astype(np.int32).ravel()
    signed = polarity == "difference"
    signs = np.where((p == 0) & (channels > 1) & signed, -1, 1).astype(np.float32).ravel()
    bin_us = 1000.0 * bin_ms if bin_ms is not None else 0.0
    return Binning(num_steps, bin_by, bin_us, value == "binary", signed, sensor, shape, table, signs)


def _only_read(array: NDArray[Any]) -> NDArray[Any]:
    """A view, so that arrays of a store and of an augmented batch are of one type: a kernel is compiled for each."""
    view = array.view()
    view.flags.writeable = False
    return view


@numba.njit(nogil=True, cache=True)
def _first_at_least(time, low, stop, wanted):  # type: ignore[no-untyped-def]
    """First index in low..stop whose time is at least `wanted`: doubling steps, since the next edge is mostly near."""
    step = 1
    high = low
    while high < stop and time[high] < wanted:
        low = high + 1
        high += step
        step *= 2
    high = min(high, stop)
    while low < high:
        middle = (low + high) // 2
        if time[middle] < wanted:
            low = middle + 1
        else:
            high = middle
    return low


@numba.njit(nogil=True, cache=True)
def _bin_edges(time, starts, stops, num_steps, bin_by, bin_us, edges):  # type: ignore[no-untyped-def]
    for b in range(len(starts)):
        start, stop = starts[b], stops[b]
        edges[b, 0] = start
        edges[b, num_steps] = stop
        if stop == start:
            edges[b, 1:num_steps] = start
            continue
        if bin_by == 0:
            first = np.int64(time[start])
            duration = np.int64(time[stop - 1]) - first
            low = start
            for k in range(1, num_steps):
                if duration == 0:
                    low = stop
                else:  # (t - t_0) T / D >= k  <=>  t >= t_0 + ceil(k D / T)
                    low = _first_at_least(time, low, stop, first + (k * duration + num_steps - 1) // num_steps)
                edges[b, k] = low
        elif bin_by == 1:
            per_bin = (stop - start) // num_steps
            for k in range(1, num_steps):
                edges[b, k] = start + k * per_bin
        else:
            low = start
            for k in range(1, num_steps + 1):
                low = _first_at_least(time, low, stop, np.int64(np.ceil(k * bin_us)))
                edges[b, k] = low


def bin_edges(
    time: NDArray[np.int32], starts: NDArray[np.int64], stops: NDArray[np.int64], binning: Binning
) -> NDArray[np.int64]:
    """Where each sample's bins begin and end, [B, T + 1]: bin t of sample b is events edges[b, t] to edges[b, t + 1].

    Args: times of all events, rising within each sample; sample b is `time[starts[b]:stops[b]]`.
    """
    edges = np.empty((len(starts), binning.num_steps + 1), dtype=np.int64)
    _bin_edges(_only_read(time), starts, stops, binning.num_steps, BIN_BY[binning.bin_by], binning.bin_us, edges)
    return edges


# In the kernels, `table` is None if stored positions are the network's (no crop, down-sampling or merging), `signs` is
# None unless polarity=difference: numba compiles each case by itself and leaves out what it does not need.


@numba.njit(nogil=True, cache=True)
def _fill_frames(address, edges, table, signs, binary, frames):  # type: ignore[no-untyped-def]
    samples, num_steps = edges.shape[0], edges.shape[1] - 1
    one = np.float32(1)  # a Python 1 would make each addition a float64 one
    for t in range(num_steps):
        for b in range(samples):
            row = frames[t * samples + b]
            row[:] = 0  # here, where it stays in the cache for the counting
            for stored in address[edges[b, t] : edges[b, t + 1]]:
                position = np.uint32(stored)
                if table is not None:
                    position = table[stored]
                    if position >= row.size:
                        continue
                if signs is not None:
                    row[position] += signs[stored]
                elif binary:
                    row[position] = one
                else:
                    row[position] += one
            if signs is not None and binary:
                for i in range(row.size):
                    row[i] = np.sign(row[i])


def bin_dense(
    address: NDArray[np.unsignedinteger],
    edges: NDArray[np.int64],
    binning: Binning,
    dtype: torch.dtype = torch.float32,
    pool: BufferPool | None = None,
) -> Tensor:
    """Count a batch's events into [T, B, C, H, W]; `edges` from `bin_edges`. Exact in float32 up to 2^24 events a cell.

    Other types are counted in float32 and rounded once (bf16 is exact up to 256 events a cell). Memory comes from the
    pool if there is one. One thread does it all, because it may run beside a training step that uses the others.
    """
    rows = binning.num_steps * len(edges)
    pool = pool or BufferPool()
    frames = pool.take(rows * binning.features, np.float32).reshape(rows, binning.features)
    _fill_frames(_only_read(address), edges, binning.lookup, binning.lookup_signs, binning.binary, frames)
    return torch.from_numpy(frames).to(dtype).view(binning.num_steps, len(edges), *binning.shape)


# bit k of a word with a single bit set: LOWEST[(word * DE_BRUIJN) >> 58] == k (Leiserson, Prokop, Randall 1998)
DE_BRUIJN = np.uint64(0x03F79D71B4CB0A89)
LOWEST = np.empty(64, dtype=np.uint32)
LOWEST[[((int(DE_BRUIJN) << k) & (2**64 - 1)) >> 58 for k in range(64)]] = np.arange(64)


@numba.njit(nogil=True, cache=True)
def _fill_lists(address, edges, table, signs, features, indices, values, offsets):  # type: ignore[no-untyped-def]
    # A bit per position, and a bit per word of those: reading them back from the lowest is sorting.
    samples, num_steps = edges.shape[0], edges.shape[1] - 1
    total = np.zeros(features, dtype=np.float32)  # unused if values is None: all are 1
    seen = np.zeros((features + 63) // 64, dtype=np.uint64)
    words = np.zeros((seen.size + 63) // 64, dtype=np.uint64)
    one, six, mask = np.uint64(1), np.uint32(6), np.uint32(63)
    used = 0
    offsets[0] = 0
    for t in range(num_steps):
        for b in range(samples):
            for stored in address[edges[b, t] : edges[b, t + 1]]:
                position = np.uint32(stored)
                if table is not None:
                    position = table[stored]
                    if position >= features:
                        continue
                if signs is not None:
                    total[position] += signs[stored]
                elif values is not None:
                    total[position] += np.float32(1)
                word = position >> six
                seen[word] |= one << np.uint64(position & mask)
                words[word >> six] |= one << np.uint64(word & mask)
            for group in range(words.size):
                marked = words[group]
                words[group] = 0
                while marked != 0:
                    lowest = marked & (~marked + one)
                    marked ^= lowest
                    word = np.uint32(group * 64 + LOWEST[(lowest * DE_BRUIJN) >> np.uint64(58)])
                    bits = seen[word]
                    seen[word] = 0
                    while bits != 0:
                        lowest = bits & (~bits + one)
                        bits ^= lowest
                        position = np.uint32(word * 64 + LOWEST[(lowest * DE_BRUIJN) >> np.uint64(58)])
                        indices[used] = position
                        if values is None:
                            used += 1
                        else:
                            count = total[position]
                            total[position] = 0
                            values[used] = count
                            used += count != 0  # on and off events may cancel: written over by the next one
            offsets[t * samples + b + 1] = used
    return used


def bin_lists(
    address: NDArray[np.unsignedinteger],
    edges: NDArray[np.int64],
    binning: Binning,
    pool: BufferPool | None = None,
) -> EventFrames:
    """The same counts as `bin_dense`, as sorted lists of the non-zero positions; needs no dense tensor."""
    upper = int((edges[:, -1] - edges[:, 0]).sum())
    pool = pool or BufferPool()
    indices = pool.take(upper, np.int32)
    values = None if binning.binary and not binning.signed else pool.take(upper, np.float32)
    offsets = np.empty(binning.num_steps * len(edges) + 1, dtype=np.int64)
    features = np.uint32(binning.features)
    tables = binning.lookup, binning.lookup_signs
    used = _fill_lists(_only_read(address), edges, *tables, features, indices, values, offsets)
    if values is not None:
        values = values[:used]
        if binning.binary:
            np.sign(values, out=values)
    return EventFrames(
        torch.from_numpy(indices[:used]),
        torch.from_numpy(offsets),
        None if values is None else torch.from_numpy(values),
        binning.num_steps,
        len(edges),
        binning.shape,
    )


class DeviceBinning:
    """The same on an accelerator: the stored positions stay there, only the bin edges go over for each batch.

    `address` is int16 or int32 holding the unsigned positions (torch has few operations on unsigned types).
    """

    def __init__(self, address: NDArray[np.unsignedinteger], binning: Binning, device: torch.device) -> None:
        self.binning = binning
        self.device = device
        self.address = self.upload(address)
        self.table = torch.from_numpy(binning.table.astype(np.int64)).to(device)
        self.signs = torch.from_numpy(binning.signs).to(device)

    def upload(self, address: NDArray[np.unsignedinteger]) -> Tensor:
        """Copy positions to the device, bit for bit, as the signed type of the same size."""
        signed = np.ascontiguousarray(address).view(np.int16 if address.dtype == np.uint16 else np.int32)
        return torch.from_numpy(signed.copy()).to(self.device)

    def _flat(self, edges: NDArray[np.int64], address: Tensor) -> tuple[Tensor, Tensor]:
        begin = torch.from_numpy(edges[:, :-1].T.ravel().copy()).to(self.device)  # rows t-major
        counts = torch.from_numpy((edges[:, 1:] - edges[:, :-1]).T.ravel().copy()).to(self.device)
        total = int((edges[:, -1] - edges[:, 0]).sum())  # known on the host: nothing waits for the device
        first = counts.cumsum(0) - counts
        row = torch.repeat_interleave(torch.arange(len(counts), device=self.device), counts, output_size=total)
        which = torch.arange(total, device=self.device) - first[row] + begin[row]
        mask = 0xFFFF if address.dtype == torch.int16 else 0xFFFFFFFF
        stored = address[which].long() & mask
        position = self.table[stored]
        # events outside the crop go to one cell past the end, which is cut off: no data-dependent shape
        outside = len(counts) * self.binning.features
        return torch.where(position < 0, outside, row * self.binning.features + position), self.signs[stored]

    def dense(
        self, edges: NDArray[np.int64], dtype: torch.dtype = torch.float32, address: Tensor | None = None
    ) -> Tensor:
        """As `bin_dense`; `address` replaces the stored positions (augmented batches)."""
        flat, signs = self._flat(edges, self.address if address is None else address)
        size = self.binning.num_steps * len(edges) * self.binning.features
        # small whole numbers: the order in which the device adds does not change the sums
        frames = torch.zeros(size + 1, dtype=torch.float32, device=self.device).scatter_add_(0, flat, signs)[:size]
        if self.binning.binary:
            frames = frames.sign()
        return frames.to(dtype).view(self.binning.num_steps, len(edges), *self.binning.shape)

    def lists(self, edges: NDArray[np.int64], address: Tensor | None = None) -> EventFrames:
        """As `bin_lists`; waits for the device once, because the number of non-zero positions is not known before."""
        flat, signs = self._flat(edges, self.address if address is None else address)
        rows = self.binning.num_steps * len(edges)
        cells, inverse = torch.unique(flat, return_inverse=True)
        values = torch.zeros(len(cells), device=self.device).scatter_add_(0, inverse, signs)
        keep = (values != 0) & (cells < rows * self.binning.features)
        cells, values = cells[keep], values[keep]
        bounds = torch.arange(rows + 1, device=self.device) * self.binning.features
        kept = None if self.binning.binary and not self.binning.signed else values
        return EventFrames(
            (cells % self.binning.features).int(),
            torch.searchsorted(cells, bounds),
            kept.sign() if kept is not None and self.binning.binary else kept,
            self.binning.num_steps,
            len(edges),
            self.binning.shape,
        )
