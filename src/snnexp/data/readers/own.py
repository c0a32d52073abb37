"""`dataset.reader=package.module:open_reader`: event data that a user's own code reads.

    def open_reader(conf):                   # conf: the group `dataset`, with dataset.path and dataset.kwargs
        return Reader(conf.path)

    class Reader:
        shape = (2, 128, 128)                # C, H, W of the sensor
        class_names = ("left", "right")

        def recordings(self):                # name, part (train, val, test), label, times in us, x, y, polarity (0, 1)
            yield "a/001", "train", 0, t, x, y, p

Anything else of `EventReader` (files, origin, layout, notes, ...) counts where the reader has it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from snnexp.blame import blamed
from snnexp.data.readers.recordings import MICROSECONDS, Recording, order_events
from snnexp.errors import ConfigError, DataError
from snnexp.registry import READERS, load, source_file
from snnexp.schema.dataset import OwnDatasetConf

PARTS = ("train", "val", "test")
FIELDS = "(name, part, label, times in us, x, y, polarity)"


class OwnReader:
    """A user's reader with what it leaves out filled in.

    Raises: ConfigError if it cannot be made, or has no shape or class names that make sense.
    """

    def __init__(self, conf: OwnDatasetConf) -> None:
        if conf.reader is None:
            raise ConfigError("dataset=own: needs dataset.reader=package.module:open_reader, or file.py:open_reader.")
        self.word = word = conf.reader
        if conf.path is not None and not Path(conf.path).expanduser().exists():
            raise DataError(f"dataset.path={conf.path}: there is no such file or folder.")
        make = load(READERS, word)
        if not callable(make):
            raise ConfigError(f"{READERS.key}={word}: this is no function but {type(make).__name__}.")
        self.module = make.__module__
        with blamed(READERS.key, word, self.module):
            self.theirs: Any = make(conf)
        self.shape = self._shape()
        self.class_names = self._class_names()
        if not callable(getattr(self.theirs, "recordings", None)):
            raise ConfigError(f"{READERS.key}={word}: its reader has no method `recordings`, which yields {FIELDS}.")
        self.files, self.folder = self._files(conf)
        self.name, self.variant = "own", getattr(self.theirs, "variant", None)
        self.official = getattr(self.theirs, "official", None)
        self.origin = str(getattr(self.theirs, "origin", word))
        self.total = int(getattr(self.theirs, "total", 0) or len(self.files))
        self.layout = getattr(self.theirs, "layout", MICROSECONDS)
        self.notes = tuple(getattr(self.theirs, "notes", ()))
        divide = getattr(self.theirs, "divide", None)
        if divide is not None:
            self.divide = divide
        code = source_file(READERS, word)
        digest = hashlib.sha256(code.read_bytes() if code is not None else b"")
        digest.update(repr([word, conf.path, dict(conf.kwargs), self.shape, getattr(self.theirs, "key", "")]).encode())
        self.key = f"own-{digest.hexdigest()[:12]}"  # other code may make other events

    def recordings(self) -> Iterator[Recording]:
        """Yield what the user's reader yields, checked.

        Raises: ConfigError with the line of the reader that fails; DataError that names a wrong recording.
        """
        with blamed(READERS.key, self.word, self.module):
            yielded = iter(self.theirs.recordings())
        while True:
            with blamed(READERS.key, self.word, self.module):
                item = next(yielded, None)
            if item is None:
                return
            yield item if isinstance(item, Recording) else self._recording(item)

    def _recording(self, item: Any) -> Recording:
        key = f"{READERS.key}={self.word}"
        if not isinstance(item, tuple | list) or len(item) != 7:
            raise DataError(f"{key}: a recording must be {FIELDS}, not {type(item).__name__}.")
        name, part, label, *columns = item
        if part not in PARTS:
            raise DataError(f"{key}: {name}: its part is {part!r}, but must be one of {', '.join(PARTS)}.")
        if isinstance(label, bool) or not 0 <= int(label) < len(self.class_names):
            raise DataError(f"{key}: {name}: its label is {label!r}, and there are {len(self.class_names)} classes.")
        t, x, y, p = (np.asarray(column) for column in columns)
        if not t.ndim == x.ndim == y.ndim == p.ndim == 1 or not len(t) == len(x) == len(y) == len(p):
            shapes = ", ".join(str(list(column.shape)) for column in (t, x, y, p))
            raise DataError(f"{key}: {name}: times, x, y and polarity must have one length, but are {shapes}.")
        return Recording.of(order_events(t, x, y, p, self.shape), str(name), part, int(label))

    def _files(self, conf: OwnDatasetConf) -> tuple[tuple[Path, ...], Path | None]:
        """The files that the recordings come from, as far as is known, and the folder that they lie in."""
        given = getattr(self.theirs, "files", None)
        if given is None and conf.path is not None:
            base = Path(conf.path).expanduser()
            given = [base] if base.is_file() else sorted(path for path in base.rglob("*") if path.is_file())
        files = tuple(Path(file).resolve() for file in given or ())
        return files, Path(os.path.commonpath([file.parent for file in files])) if files else None

    def _shape(self) -> tuple[int, int, int]:
        shape = getattr(self.theirs, "shape", None)
        if not isinstance(shape, tuple | list) or len(shape) != 3 or not all(int(n) == n and n > 0 for n in shape):
            raise ConfigError(f"{READERS.key}={self.word}: its reader's `shape` must be (C, H, W), not {shape!r}.")
        return int(shape[0]), int(shape[1]), int(shape[2])

    def _class_names(self) -> tuple[str, ...]:
        names = getattr(self.theirs, "class_names", None)
        if isinstance(names, str) or names is None or len(names) < 2:
            raise ConfigError(
                f"{READERS.key}={self.word}: its reader's `class_names` must name two classes or more, not {names!r}."
            )
        return tuple(map(str, names))


def open_reader(conf: OwnDatasetConf) -> OwnReader:
    """Open the user's reader."""
    return OwnReader(conf)
