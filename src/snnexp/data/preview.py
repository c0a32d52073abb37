"""What `task=inspect` shows of a data set: the first events, rates and lengths, classes, and a picture of samples."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from snnexp.data.base import DataSource
    from snnexp.data.events.source import EventSource

FIRST_EVENTS = 5
MOST_CLASSES = 24  # named in the table of counts
MOST_SAMPLES = 6
TILE, GAP, TEXT = 192, 12, 16  # pixels of the picture


def describe(source: DataSource) -> Iterator[str]:
    """Lines for the user."""
    yield from source.info.understood
    if source.info.kind == "events":
        from snnexp.data.events.source import EventSource  # brings numba, which pictures do not need

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

    Event sets with on and off in two channels show on minus off, red and blue; pictures are shown as they are. By
    Pillow alone, which is there in a tenth of the time of a plotting library.
    """
    from PIL import Image, ImageDraw

    tiles = []
    for label, sample in sorted(_one_of_each_class(source).items()):
        pixels = _picture(sample) if source.info.kind == "image" else _difference(sample)
        tiles.append(
            (source.info.class_names[label], Image.fromarray(pixels).resize(_size(pixels), Image.Resampling.NEAREST))
        )
    width = sum(max(tile.width, TILE) for _, tile in tiles) + GAP * (len(tiles) + 1)
    canvas = Image.new("RGB", (width, max(tile.height for _, tile in tiles) + 2 * GAP + TEXT), "white")
    write, left = ImageDraw.Draw(canvas), GAP
    for name, tile in tiles:
        write.text((left, GAP // 2), name[:24], fill="black")
        canvas.paste(tile, (left, GAP + TEXT))
        left += max(tile.width, TILE) + GAP
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.save(path)


def _one_of_each_class(source: DataSource) -> dict[int, Any]:
    """Class -> sample: uint8 [C, H, W] of an image, counts over time [C, H, W] of events."""
    chosen: dict[int, Any] = {}
    for batch in source.batches("val" if source.info.counts["val"] else "test"):
        frames = batch.frames if isinstance(batch.frames, Tensor) else batch.frames.to_dense()
        for i, label in enumerate(batch.labels.tolist()):
            if label not in chosen and len(chosen) < MOST_SAMPLES:
                chosen[label] = (frames[i] if source.info.kind == "image" else frames[:, i].sum(0)).cpu().numpy()
        if len(chosen) >= min(MOST_SAMPLES, source.info.num_classes):
            break
    return chosen


def _picture(sample: Any) -> Any:
    """uint8 [H, W, 3]."""
    return np.ascontiguousarray(np.broadcast_to(sample.transpose(1, 2, 0), (*sample.shape[1:], 3)))


def _difference(sample: Any) -> Any:
    """uint8 [H, W, 3]: white where nothing is, towards red where on events outnumber off, towards blue where not."""
    difference = sample[1] - sample[0] if len(sample) == 2 else sample[0]
    share = difference / max(float(np.abs(difference).max()), 1.0)
    fade = np.uint8(255 * (1 - np.abs(share)))
    red, blue = np.where(share < 0, fade, 255), np.where(share > 0, fade, 255)
    return np.stack([red, fade, blue], -1).astype(np.uint8)


def _size(pixels: Any) -> tuple[int, int]:
    """Of a tile, (width, height): whole multiples of the sample's, long rows of channels made visible."""
    height, width = pixels.shape[:2]
    factor = max(TILE // max(height, width), 1)
    return width * factor, max(height * factor, TEXT)
