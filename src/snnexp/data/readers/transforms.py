"""tonic transforms named in `dataset.transforms`, applied once per recording when the store is packed.

    dataset.transforms=["Denoise(filter_time=10000)","CropTime(max=500000)"]

Times are in microseconds. Only transforms of events into events that have no random part are allowed: frames are made
by our binning, random changes by dataset.augment, and what is applied once must be the same each time.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snnexp.data.readers.recordings import EventReader, Recording, order_events
from snnexp.errors import ConfigError, unknown_choice

ALLOWED = ("CropTime", "Decimation", "Denoise", "DropPixel", "RefractoryPeriod", "TimeAlignment", "TimeSkew")
EVENT_TYPE = np.dtype([("x", np.int64), ("y", np.int64), ("t", np.int64), ("p", np.int64)])

Transform = Callable[[NDArray[Any]], NDArray[Any]]


def _tonic() -> Any:
    """The package; imported here only, for it comes by itself with Python 3.11 alone (docs/installing.md)."""
    try:
        import tonic
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"dataset.transforms needs the package tonic ({error}): pip install importRosbag librosa tqdm, then pip "
            "install --no-deps tonic==1.7.0. Or leave dataset.transforms=[]; nothing else needs it."
        ) from None
    return tonic


def parse_transform(text: str, sensor: tuple[int, int, int]) -> Transform:
    """Make the transform that `Name` or `Name(key=value, ...)` describes; its sensor_size is filled in.

    Raises: ConfigError naming the transform and what is wrong with it.
    """
    key = "dataset.transforms"
    try:
        node = ast.parse(text.strip(), mode="eval").body
        call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
        if not isinstance(call.func, ast.Name) or call.args or any(word.arg is None for word in call.keywords):
            raise ValueError("only Name(key=value, ...) is understood")
        arguments = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
    except (SyntaxError, ValueError) as error:
        raise ConfigError(f"{key}: cannot read {text!r}: {error}. Write it like Denoise(filter_time=10000).") from None
    name = call.func.id
    if name not in ALLOWED:
        raise ConfigError(unknown_choice(key, name, ALLOWED))
    kind = getattr(_tonic().transforms, name)
    if "sensor_size" in {field.name for field in fields(kind)}:
        arguments.setdefault("sensor_size", (sensor[2], sensor[1], sensor[0]))
    if "delta" in arguments and isinstance(arguments["delta"], tuple):
        raise ConfigError(f"{key}: {text}: a range means a random value; give one number.")
    try:
        made: Transform = kind(**arguments)
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(f"{key}: {text}: {error}") from None
    return made


class TransformedReader:
    """Another reader's recordings after the transforms; they get a store of their own."""

    def __init__(self, reader: EventReader, texts: list[str]) -> None:
        tonic = _tonic()
        self.reader = reader
        self.transforms = [(text.split("(")[0], parse_transform(text, reader.shape)) for text in texts]
        self.name, self.variant, self.shape = reader.name, reader.variant, reader.shape
        self.class_names, self.official, self.origin = reader.class_names, reader.official, reader.origin
        self.folder, self.files, self.total = reader.folder, reader.files, reader.total
        self.layout, self.notes = reader.layout, reader.notes
        self.divide, self.explain = getattr(reader, "divide", None), getattr(reader, "explain", None)
        self.partial = getattr(reader, "partial", False)
        self.understood = getattr(reader, "understood", ())
        what = repr([tonic.__version__, *texts])
        self.key = f"{reader.key}-{hashlib.sha256(what.encode()).hexdigest()[:10]}"

    def recordings(self) -> Iterator[Recording]:
        """Yield the changed recordings; events that a transform takes out are counted under its name."""
        _, height, width = self.shape
        for recording in self.reader.recordings():
            address = recording.address.astype(np.int64)
            events = np.empty(len(address), dtype=EVENT_TYPE)
            events["t"] = recording.time
            events["x"], events["y"] = address % width, address // width % height
            events["p"] = address // (width * height)
            dropped = dict(recording.dropped)
            for name, transform in self.transforms:
                before = len(events)
                if before:  # some of them index the first event
                    events = transform(events)
                if before > len(events):
                    reason = f"by {name}"
                    dropped[reason] = dropped.get(reason, 0) + before - len(events)
            left = order_events(events["t"], events["x"], events["y"], events["p"], self.shape)
            for reason, count in left.dropped.items():
                dropped[reason] = dropped.get(reason, 0) + count
            yield replace(recording, time=left.time, address=left.address, dropped=dropped)
