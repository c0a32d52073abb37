"""What every event reader hands to the store: one recording at a time, checked, in order of time.

A reader lists its files first (cheap) and then streams `Recording`s, so packing needs memory for one file only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

LAST_TIME = 2**31 - 1  # microseconds: times are stored as int32, 35 minutes


@dataclass(frozen=True)
class Recording:
    """One labelled sample. Event i happened `time[i]` us after the sample's start, at flat position `address[i]`.

    `address` = (polarity * H + y) * W + x in the sensor's own [C, H, W]; `time` never falls.
    """

    name: str  # identity that does not depend on where the files lie: relative path, or part and position
    part: str  # train, val or test; "all" if the data set has no official split
    label: int
    time: NDArray[np.int32]
    address: NDArray[np.uint32]
    subject: int = -1  # who was recorded; -1: the data set does not say
    dropped: dict[str, int] = field(default_factory=dict)  # reason -> number of events left out


class EventReader(Protocol):
    """An event data set found on disk or ready to be generated."""

    name: str
    variant: str | None
    key: str  # name of its folder in the store: name, variant and whatever else changes the packed events
    shape: tuple[int, int, int]  # C, H, W of the sensor
    class_names: tuple[str, ...]
    official: dict[str, int] | None  # samples per part when complete; None: generated, always complete
    origin: str  # where the data comes from: an address, or "generated"
    folder: Path | None  # what `files` are relative to; None: generated
    files: tuple[Path, ...]  # all files that the recordings come from, sorted
    total: int  # number of recordings, for the progress bar

    def recordings(self) -> Iterator[Recording]:
        """Yield every recording, sorted by part, class and number."""
        ...


def order_events(
    time: NDArray[Any],
    x: NDArray[Any],
    y: NDArray[Any],
    polarity: NDArray[Any],
    shape: tuple[int, int, int],
) -> tuple[NDArray[np.int32], NDArray[np.uint32], dict[str, int]]:
    """Turn columns into (time, address, dropped): out-of-range events counted and left out, the rest sorted by time.

    Args: time in us from the sample's start, integer or float (truncated towards zero; non-finite values are dropped).
    Equal times keep their order, so sorted input comes back as it is.
    """
    channels, height, width = shape
    dropped: dict[str, int] = {}
    finite = np.isfinite(time)
    in_time = finite & (time >= 0) & (time <= LAST_TIME)
    on_sensor = (x >= 0) & (x < width) & (y >= 0) & (y < height) & (polarity >= 0) & (polarity < channels)
    keep = in_time & on_sensor
    if not keep.all():
        for reason, mask in (
            ("with a non-finite time", ~finite),
            ("with a time out of range", finite & ~in_time),
            ("outside the sensor", in_time & ~on_sensor),
        ):
            if count := int(np.count_nonzero(mask)):
                dropped[reason] = count
        time, x, y, polarity = time[keep], x[keep], y[keep], polarity[keep]
    stored = time.astype(np.int32)
    address = (polarity.astype(np.uint32) * height + y.astype(np.uint32)) * width + x.astype(np.uint32)
    if len(stored) > 1 and bool((stored[1:] < stored[:-1]).any()):
        order = np.argsort(stored, kind="stable")
        stored, address = stored[order], address[order]
    return stored, address.astype(np.uint32), dropped


def missing_files(name: str, wanted: str, root: Path) -> str:
    """The one message for raw files that are not there."""
    return (
        f"dataset={name}: found no {wanted} under {root}. Put the unpacked data set there, set dataset.root"
        f" (or SNNEXP_DATA) to the folder that holds it, or fetch it with: snnexp task=prepare dataset={name}"
    )


def damaged(path: Path, why: str) -> str:
    """The one message for a raw file that cannot be read."""
    return f"{path}: {why}. The file is damaged or incomplete: delete it and fetch or unpack it again."
