"""Event data of your own: one .npz file per recording, named <part>_<class>_<number>.npz, with arrays t, x, y, p.

snnexp dataset.reader=reader.py:open_reader dataset.path=recordings
"""

from pathlib import Path

import numpy as np


class Reader:
    """What snnexp asks for: the sensor's shape, the classes' names, and the recordings."""

    def __init__(self, folder, size=16):
        self.paths = sorted(Path(folder).glob("*.npz"))
        self.shape = (2, size, size)  # polarities, height, width
        self.class_names = tuple(sorted({path.stem.split("_")[1] for path in self.paths}))

    def recordings(self):
        """Yield name, part (train, val or test), label, times in microseconds, x, y, polarity (0 or 1)."""
        for path in self.paths:
            part, name, _ = path.stem.split("_")
            with np.load(path) as events:
                yield path.name, part, self.class_names.index(name), events["t"], events["x"], events["y"], events["p"]


def open_reader(conf):
    """Open the recordings; `conf` is the group `dataset`: dataset.path, dataset.kwargs, ..."""
    return Reader(conf.path, **conf.kwargs)
