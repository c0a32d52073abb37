"""Tensors on the CPU as the arrays that compiled kernels take."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def flat_maps(x: Tensor) -> NDArray[Any]:
    """The memory of maps [N, C, H, W] in channels_last: rows (frame and pixel) x channels, flat."""
    array: NDArray[Any] = x.detach().permute(0, 2, 3, 1).reshape(-1).numpy()
    return array


def share_memory(x: Tensor) -> Tensor:
    """Return a tensor on x's memory that autograd takes for a new one."""
    alias = torch.empty(0, dtype=x.dtype, device=x.device)
    return alias.set_(x.untyped_storage(), x.storage_offset(), x.size(), x.stride())  # type: ignore[arg-type]


def number_type(dtype: torch.dtype) -> type[np.floating[Any]]:
    """In which precision kernels compute: float64 as it is, anything else as float32."""
    return np.float64 if dtype == torch.float64 else np.float32
