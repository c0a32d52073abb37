"""What `task=inspect` shows of a data set: the first events, rates and lengths, classes, and a picture of samples."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from snnexp.data.base import DataSource
    from snnexp.data.events.source import EventSource

FIRST_EVENTS = 5
MOST_CLASSES = 24  # named in the table of counts


def describe(source: DataSource) -> Iterator[str]:
    """Lines for the user."""
    from snnexp.data.events.source import EventSource

    yield from source.info.understood
    if isinstance(source, EventSource):
        yield from _describe_events(source)
    yield from _class_counts(source)


def _describe_events(source: EventSource) -> Iterator[str]:
    store, (channels, height, width) = source.store, source.binning.sensor
    index = int(source.splits["train"][0])
    start, stop = int(store.starts[index]), int(store.starts[index + 1])
    some = slice(start, min(stop, start + FIRST_EVENTS))
    address = store.address[some].astype(np.int64)
    columns = (store.time[some], address % width, address // width % height, address // (width * height))
    events = "  ".join(f"({t}, {x}, {y}, {p})" for t, x, y, p in zip(*columns, strict=True))
    more = "" if stop - start <= FIRST_EVENTS else "  ..."
    yield f"first events of {store.names[index]} (t in us, x, y, p): {events or 'none'}{more}"
    counts = np.diff(store.starts)
    filled = np.flatnonzero(counts > 0)
    if not len(filled):
        return
    lengths = store.time[store.starts[filled + 1] - 1] / 1e6
    rates = counts[filled] / np.maximum(lengths, 1e-6)
    yield (
        f"samples: {_spread(counts[filled], '{:,.0f}')} events, {_spread(lengths, '{:.4g}')} s long,"
        f" {_spread(rates, '{:,.0f}')} events per second (smallest, median, largest)"
    )
    if channels > 1:
        yield f"polarity: {float((store.address >= width * height).mean()):.1%} of the events are on"


def _spread(values: Any, form: str) -> str:
    return " / ".join(form.format(float(v)) for v in (values.min(), np.median(values), values.max()))


def _class_counts(source: DataSource) -> Iterator[str]:
    info = source.info
    names = info.class_names
    rows = [
        f"{name} {'+'.join(f'{info.class_counts[split][i]:,}' for split in info.class_counts)}"
        for i, name in enumerate(names[:MOST_CLASSES])
    ]
    more = f", and {len(names) - MOST_CLASSES} more" if len(names) > MOST_CLASSES else ""
    yield f"classes ({' + '.join(info.class_counts)}): {', '.join(rows)}{more}"


def draw(source: DataSource, path: Path) -> None:
    """Write a PNG: the first validation (or test) sample of up to six classes, as the network sees it, summed over T.

    Event sets with on and off in two channels show on minus off; pictures are shown as they are.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from snnexp.data.base import EventFrames

    chosen: dict[int, Any] = {}
    for batch in source.batches("val" if source.info.counts["val"] else "test"):
        frames = batch.frames.to_dense() if isinstance(batch.frames, EventFrames) else batch.frames
        for i, label in enumerate(batch.labels.tolist()):
            if label not in chosen and len(chosen) < 6:
                chosen[label] = (frames[i] if source.info.kind == "image" else frames[:, i].sum(0)).cpu().numpy()
        if len(chosen) >= min(6, source.info.num_classes):
            break
    figure = Figure(figsize=(2.2 * max(len(chosen), 1), 2.6), layout="constrained")
    FigureCanvasAgg(figure)
    for place, (label, sample) in enumerate(sorted(chosen.items()), start=1):
        axes = figure.add_subplot(1, len(chosen), place)
        axes.set_title(source.info.class_names[label], fontsize=8)
        if source.info.kind == "image":
            picture = sample[0] if len(sample) == 1 else sample.transpose(1, 2, 0)
            axes.imshow(picture, cmap="gray", vmin=0, vmax=255)
        else:
            difference = sample[1] - sample[0] if len(sample) == 2 else sample[0]
            largest = max(float(np.abs(difference).max()), 1.0)
            axes.imshow(difference, cmap="RdBu_r", vmin=-largest, vmax=largest)
            axes.set_aspect("equal" if sample.shape[1] > 1 else "auto")
        axes.tick_params(labelsize=6)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
