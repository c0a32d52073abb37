"""`dataset.window_ms` and `dataset.stride_ms`: long recordings as windows, each a sample with its recording's label.

Windows of one recording must never land on both sides of a split: their names say which recording they are of
(`recording_of`), and `events/source.py` splits recordings, not windows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from snnexp.data.readers.recordings import EventReader, Recording

MARK = "@"
OUTSIDE = "outside all windows"


class WindowedReader:
    """Another reader's recordings in windows; they get a store of their own.

    Window k holds the events with k * stride <= t < k * stride + window, its times counted from its own start. Only
    whole windows are taken, but one from each recording, however short. A window without an event is left out.
    """

    def __init__(self, reader: EventReader, window_us: int, stride_us: int) -> None:
        self.reader, self.window_us, self.stride_us = reader, window_us, stride_us
        self.name, self.variant, self.shape = reader.name, reader.variant, reader.shape
        self.class_names, self.official, self.origin = reader.class_names, reader.official, reader.origin
        self.folder, self.files, self.total = reader.folder, reader.files, reader.total
        self.layout, self.notes = reader.layout, reader.notes
        self.divide = getattr(reader, "divide", None)
        length, step = window_us / 1000, stride_us / 1000
        words = (*getattr(reader, "understood", ()), f"windows of {length:g} ms, one every {step:g} ms")
        self.windowed = True
        self.partial = getattr(reader, "partial", False)
        self.understood: tuple[str, ...] = words
        self.key = f"{reader.key}-w{hashlib.sha256(repr([window_us, stride_us]).encode()).hexdigest()[:8]}"

    def explain(self, name: str) -> str:
        """Why many events of the recording that this window is of were lost, if its reader can tell."""
        explain = getattr(self.reader, "explain", None)
        return "" if explain is None else explain(recording_of(name))

    def recordings(self) -> Iterator[Recording]:
        """Yield the windows of each recording in order of time."""
        for recording in self.reader.recordings():
            yield from self._cut(recording)

    def _cut(self, recording: Recording) -> Iterator[Recording]:
        time = recording.time
        last = int(time[-1]) if len(time) else 0
        # the last event is in the last microsecond of the recording
        count = max(1, (last + 1 - self.window_us) // self.stride_us + 1)
        begins = np.arange(count, dtype=np.int64) * self.stride_us
        starts, stops = (np.searchsorted(time, begins + shift) for shift in (0, self.window_us))
        covered = _covered(starts, stops)
        dropped = dict(recording.dropped)
        if covered < len(time):
            dropped[OUTSIDE] = len(time) - covered
        first = True
        for begin, start, stop in zip(begins, starts, stops, strict=True):
            if start == stop and not (first and begin == begins[-1]):
                continue  # nothing happened: one such sample is kept only if the recording would vanish
            yield replace(
                recording,
                name=f"{recording.name}{MARK}{begin / 1000:g}ms",
                time=(time[start:stop] - begin).astype(np.int32),
                address=recording.address[start:stop],
                dropped=dropped if first else {},
                seen=recording.seen if first else None,
                notes=recording.notes if first else (),
            )
            first = False


def _covered(starts: np.ndarray, stops: np.ndarray) -> int:
    """Events in at least one of the windows, which are in order."""
    ends = np.maximum.accumulate(np.concatenate([[0], stops[:-1]]))
    return int(np.maximum(stops - np.maximum(starts, ends), 0).sum())


def recording_of(name: str) -> str:
    """The recording that a window is of."""
    return name.rpartition(MARK)[0] or name
