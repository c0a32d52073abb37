"""scikit-learn's bundled handwritten digits: 1797 images of 8x8 pixels with 17 grey levels. No download.

Alpaydin and Kaynak 1998 (UCI optdigits, its test part). The set has no official split; ours is fixed: 360 test images
(20 %), the classes in proportion, drawn once with seed 0 by `splits.limit`; the other 1437 are for training.

The table is read from the installed package without importing it: `import sklearn.datasets` brings scipy and pandas
along and takes as long as importing torch, and this is the default data set.
"""

from __future__ import annotations

import gzip
import importlib.util
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from snnexp.data.splits import limit
from snnexp.errors import DataError

SAMPLES, PIXELS, BRIGHTEST, CLASSES = 1797, 64, 16, 10
TEST_SAMPLES = 360
_REINSTALL = "Reinstall it: pip install --force-reinstall --no-deps scikit-learn"


def load_digits() -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return images uint8 [1797, 1, 8, 8] (grey levels 0..16 scaled to 0..255), labels, training and test indices.

    Raises: DataError if scikit-learn is not installed, or its file is missing or damaged.
    """
    pixels, labels = read_table(table_path())
    images = np.round(pixels * (255 / BRIGHTEST)).astype(np.uint8).reshape(-1, 1, 8, 8)
    test = limit(labels, np.arange(len(labels), dtype=np.int64), TEST_SAMPLES, seed=0)
    return images, labels, np.setdiff1d(np.arange(len(labels), dtype=np.int64), test), test


def table_path() -> Path:
    """The file of `sklearn.datasets.load_digits` in the installed scikit-learn, which is found but not imported.

    Raises: DataError if scikit-learn is not installed.
    """
    package = importlib.util.find_spec("sklearn")
    if package is None or not package.submodule_search_locations:
        raise DataError("dataset=digits comes with scikit-learn, which is not installed: pip install scikit-learn")
    return Path(package.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"


def read_table(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Grey levels 0..16, uint8 [1797, 64], and labels [1797] from lines of 64 levels and the label, gzipped.

    Raises: DataError if the file is missing, cannot be read or holds anything else.
    """
    try:
        lines = gzip.decompress(path.read_bytes()).decode("ascii").splitlines()
        table = np.loadtxt(lines, dtype=np.uint8, delimiter=",", ndmin=2) if lines else np.empty((0, 0), np.uint8)
    except FileNotFoundError:
        raise DataError(f"dataset=digits: scikit-learn is installed without {path}. {_REINSTALL}") from None
    except (OSError, EOFError, zlib.error, ValueError) as error:
        reason = str(error).rstrip(".")
        raise DataError(f"dataset=digits: cannot read {path} ({reason}). {_REINSTALL}") from error
    if table.shape != (SAMPLES, PIXELS + 1):
        found = "x".join(map(str, table.shape))
        raise DataError(f"dataset=digits: {path} holds a table of {found}, not {SAMPLES}x{PIXELS + 1}. {_REINSTALL}")
    pixels, labels = table[:, :PIXELS], table[:, PIXELS].astype(np.int64)
    if pixels.max() > BRIGHTEST or labels.max() >= CLASSES:
        raise DataError(
            f"dataset=digits: {path} holds grey levels above {BRIGHTEST} or labels above {CLASSES - 1}. {_REINSTALL}"
        )
    return pixels, labels
