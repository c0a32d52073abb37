"""metrics.jsonl: every metric of a run on the local disk, first written here and only then sent anywhere.

One line per call: {"step": 3, "time": 1790000000000, "metrics": {"train/loss": 0.5, ...}}, time in ms since 1970.
A (key, step) pair is written once; a resumed run that repeats an epoch keeps the first value.
"""

from __future__ import annotations

import json
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path

from snnexp import interrupts

log = logging.getLogger(__name__)

History = dict[str, list[tuple[int, float]]]  # metric name -> (step, value), by rising step


@dataclass(frozen=True)
class Entry:
    """The metrics of one call."""

    step: int
    time_ms: int
    metrics: dict[str, float]


class MetricsLog:
    """The file, with what is already in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: list[Entry] = []
        self._seen: set[tuple[str, int]] = set()
        if path.exists():
            _drop_torn_line(path)
            for entry in read_entries(path):
                self._remember(entry)

    def append(self, step: int, metrics: dict[str, float]) -> Entry:
        """Write what is new of `metrics` to the disk, and return it; nothing is written if nothing is new."""
        new = {key: float(value) for key, value in metrics.items() if (key, step) not in self._seen}
        entry = Entry(step, int(time.time() * 1000), new)
        if new:
            with interrupts.held():  # what is in the file is known to be
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"step": step, "time": entry.time_ms, "metrics": new}) + "\n")
                    file.flush()
                    os.fsync(file.fileno())  # about 1 ms per epoch: the record survives a power cut as well
                self._remember(entry)
        return entry

    def history(self) -> History:
        """All metrics by name, for plots and tables."""
        return to_history(self.entries)

    def _remember(self, entry: Entry) -> None:
        self.entries.append(entry)
        self._seen.update((key, entry.step) for key in entry.metrics)


def read_entries(path: Path) -> list[Entry]:
    """The file's entries; damaged lines are named and left out. A missing file has none."""
    entries = []
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            values = json.loads(line)
            metrics = {str(key): float(value) for key, value in values["metrics"].items()}
            entries.append(Entry(int(values["step"]), int(values["time"]), metrics))
        except (ValueError, KeyError, TypeError, AttributeError):
            log.warning("%s, line %d is damaged and left out", path, number)
    return entries


def read_history(path: Path) -> History:
    """All metrics of a run's metrics.jsonl by name."""
    return to_history(read_entries(path))


def to_history(entries: list[Entry]) -> History:
    """Entries by metric name, each by rising step."""
    history: History = {}
    for entry in entries:
        for key, value in entry.metrics.items():
            history.setdefault(key, []).append((entry.step, value))
    return {key: sorted(points) for key, points in history.items()}


def _drop_torn_line(path: Path) -> None:
    """Cut off a last line without its newline: the process was killed while it wrote."""
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(data.rfind(b"\n") + 1)
