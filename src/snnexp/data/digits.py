"""scikit-learn's bundled handwritten digits: 1797 images of 8x8 pixels with 17 grey levels. No download.

Alpaydin and Kaynak 1998 (UCI optdigits, its test part). The set has no official split; ours is fixed: 360 test images
(20 %), the classes in proportion, drawn once with seed 0 by `splits.limit`; the other 1437 are for training.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from snnexp.data.splits import limit

TEST_SAMPLES = 360


def load_digits() -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return images uint8 [1797, 1, 8, 8] (grey levels 0..16 scaled to 0..255), labels, training and test indices."""
    from sklearn import datasets

    bunch = datasets.load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    labels = bunch.target.astype(np.int64)
    test = limit(labels, np.arange(len(labels), dtype=np.int64), TEST_SAMPLES, seed=0)
    return images, labels, np.setdiff1d(np.arange(len(labels), dtype=np.int64), test), test
