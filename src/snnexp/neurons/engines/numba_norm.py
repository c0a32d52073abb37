"""What generated numba kernels call to normalise their input by channel as they load it; batch norm's own kernel, too.

An edit here makes new kernels.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

WIDE = 128  # values of a loop, about


def repeated(values: NDArray[Any]) -> NDArray[Any]:
    """Values [C] repeated for several pixels, so that loops are long whatever the number of channels."""
    return np.tile(values, max(1, WIDE // values.size))


@numba.njit(error_model="numpy", fastmath={"contract"})
def normalised(x, out, mean, scale, bias):
    """Put (x - mean) * scale + bias, of whole pixels, into out, and return it; the values are `repeated`."""
    wide, size = np.uint64(mean.size), np.uint64(x.size)
    at = np.uint64(0)
    while at < size:
        for k in range(min(wide, size - at)):
            out[at + k] = (x[at + k] - mean[k]) * scale[k] + bias[k]
        at += wide
    return out
