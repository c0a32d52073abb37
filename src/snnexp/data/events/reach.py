"""How much of the recorded events reaches the network: the time window and the crop may leave most of them out.

Choosing a short window or a small crop is legitimate, so it is said and not refused, until most samples of a split are
left with nothing at all.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from snnexp.data.events.binning import Binning, bin_edges
from snnexp.data.store.store import EventStore
from snnexp.errors import ConfigError, DataError

log = logging.getLogger(__name__)

EMPTY_SHARE = 0.1  # of a split: more samples without a single event than this, and the set is refused
UNSEEN_SHARE = 0.5  # of a split: the same for samples whose events all lie outside the window or the crop
MOST = 0.5  # of the events: losing more than this is worth a warning
CROP_SAMPLES = 64  # training samples that the crop's share is measured on
CHUNK = 1024

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Reach:
    """`empty[split]`: samples without input; `share`: of the training split's packed events, those that arrive."""

    empty: dict[str, int]
    share: float
    notes: tuple[str, ...]


@numba.njit(nogil=True, cache=True)
def _inside(address, starts, stops, table, enough, counts):  # type: ignore[no-untyped-def]
    for b in range(len(starts)):
        count = 0
        for i in range(starts[b], stops[b]):
            if table[address[i]] >= 0:
                count += 1
                if count == enough:
                    break
        counts[b] = count


def measure_reach(name: str, store: EventStore, splits: dict[str, Indices], binning: Binning) -> Reach:
    """Count the samples that give no input, and the events outside the window (exact) and the crop (on some samples).

    Raises: DataError if too many samples of a split were recorded empty; ConfigError if window and crop leave most
    samples of one with nothing.
    """
    notes: list[str] = []
    empty: dict[str, int] = {}
    share = 1.0
    for split, indices in splits.items():
        if len(indices) == 0:
            empty[split] = 0
            continue
        starts, stops = store.starts[indices], store.starts[indices + 1]
        _refuse_empty(name, split, store, indices, stops == starts)
        ends = _window_ends(store, starts, stops, binning)
        cut = int((stops - ends).sum())
        total = int((stops - starts).sum())
        seen = 1 - cut / max(total, 1)
        if cut:
            notes.append(_cut_note(name, split, stops, starts, ends, binning))
        silent = ends == starts
        if _cropped(binning):
            silent |= _count_inside(store, starts, ends, binning, 1) == 0
        if split == "train":
            share = seen * _crop_share(name, store, starts, ends, binning, notes)
        empty[split] = int(np.count_nonzero(silent))
        _refuse_unseen(name, split, store, starts, stops, empty[split], binning)
        if empty[split]:
            notes.append(
                f"{split}: {empty[split]:,} of {len(indices):,} samples are empty: no event reaches the network"
            )
            log.warning("%s: %s", name, notes[-1])
    return Reach(empty, share, tuple(notes))


def _window_ends(store: EventStore, starts: Indices, stops: Indices, binning: Binning) -> Indices:
    """One past the last event of each sample that falls into a bin; only bin_by=width cuts any."""
    if binning.bin_by != "width":
        return stops
    ends = np.empty(len(starts), np.int64)
    for first in range(0, len(starts), CHUNK):
        part = slice(first, first + CHUNK)
        ends[part] = bin_edges(store.time, starts[part], stops[part], binning)[:, -1]
    return ends


def _cropped(binning: Binning) -> bool:
    return bool((binning.table < 0).any())


def _count_inside(store: EventStore, starts: Indices, ends: Indices, binning: Binning, enough: int) -> Indices:
    """Events of each sample inside the crop; counting stops at `enough` of them (0: never)."""
    counts = np.empty(len(starts), np.int64)
    for first in range(0, len(starts), CHUNK):
        part = slice(first, first + CHUNK)
        _inside(store.address, starts[part], ends[part], binning.table, enough, counts[part])
        store.touched(int(counts[part].sum()))
    return counts


def _crop_share(
    name: str, store: EventStore, starts: Indices, ends: Indices, binning: Binning, notes: list[str]
) -> float:
    """Share of the events in the window that the crop keeps, on evenly spaced samples."""
    if not _cropped(binning):
        return 1.0
    some = np.unique(np.linspace(0, len(starts) - 1, min(len(starts), CROP_SAMPLES)).astype(np.int64))
    kept = int(_count_inside(store, starts[some], ends[some], binning, 0).sum())
    share = kept / max(int((ends[some] - starts[some]).sum()), 1)
    notes.append(f"dataset.crop keeps {share:.0%} of the events (of {len(some)} training samples)")
    log.log(logging.WARNING if share < 1 - MOST else logging.INFO, "%s: %s", name, notes[-1])
    return share


def _cut_note(name: str, split: str, stops: Indices, starts: Indices, ends: Indices, binning: Binning) -> str:
    """bin_by=width: how many samples and events of a split lie beyond the last bin."""
    cut = stops - ends
    lost, total = int(cut.sum()), int((stops - starts).sum())
    note = (
        f"{split}: {np.count_nonzero(cut):,} of {len(cut):,} samples are longer than {_window_ms(binning):g} ms,"
        f" {lost:,} of {total:,} events cut ({lost / total:.0%})"
    )
    log.log(logging.WARNING if lost > MOST * total else logging.INFO, "%s: %s", name, note)
    return note


def _window_ms(binning: Binning) -> float:
    return binning.num_steps * binning.bin_us / 1000


def _refuse_empty(name: str, split: str, store: EventStore, indices: Indices, empty: NDArray[np.bool_]) -> None:
    count = int(np.count_nonzero(empty))
    if count <= EMPTY_SHARE * len(indices):
        return
    which = [store.names[i] for i in indices[empty][:3]]
    reasons = "; ".join(f"{n:,} events {reason}" for reason, n in store.dropped.items())
    raise DataError(
        f"dataset={name}: {count:,} of {len(indices):,} {split} samples hold no event ({', '.join(which)}"
        f"{', ...' if count > len(which) else ''}). At most {100 * EMPTY_SHARE:.0f} % of a split may be empty."
        + (f" Left out of the whole set while it was read: {reasons}." if reasons else "")
        + (f" {store.notes[0].rstrip('?')}." if store.notes else "")
        + " Mend what is empty (files, or rows of label files), or move it away."
    )


def _refuse_unseen(
    name: str, split: str, store: EventStore, starts: Indices, stops: Indices, empty: int, binning: Binning
) -> None:
    if empty <= UNSEEN_SHARE * len(starts):
        return
    filled = starts[stops > starts]
    ways = []
    text = f"dataset={name}: no event of {empty:,} of the {len(starts):,} {split} samples reaches the network."
    if binning.bin_by == "width":
        begin = float(np.median(store.time[filled])) / 1000
        length = float(np.median(store.time[stops[stops > starts] - 1] - store.time[filled])) / 1000
        text += (
            f" The window is {_window_ms(binning):g} ms long (dataset.num_steps={binning.num_steps} bins of"
            f" dataset.bin_ms={binning.bin_us / 1000:g}); half of the samples have their first event at {begin:g} ms or"
            f" later and last {length:g} ms or longer."
        )
        ways.append("dataset.bin_by=time (bins that fit each sample)")
        ways.append("larger bins")
    if _cropped(binning):
        _, rows, columns = (len(np.unique(of)) for of in np.nonzero(binning.table.reshape(binning.sensor) >= 0))
        text += f" dataset.crop keeps the centre of {columns}x{rows} pixels only."
        ways.append("a larger dataset.crop (or null)")
    raise ConfigError(f"{text} Use {', or '.join(ways)}.")
