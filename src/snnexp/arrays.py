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


def for_kernels(x: Tensor) -> bool:
    """Whether our kernels take maps x [N, C, H, W]: on the CPU, in a precision of theirs, channels last."""
    return (
        x.dim() == 4
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled("cpu")
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def gapless(weight: Tensor) -> Tensor:
    """Weights [O, C, k, k] without gaps in memory: as they are if they lie in either layout."""
    return weight if weight.is_contiguous(memory_format=torch.channels_last) else weight.contiguous()


def flat_weights(weight: Tensor) -> NDArray[Any]:
    """The memory of weights that are `gapless`, flat; their strides say what is where."""
    array: NDArray[Any] = weight.detach().as_strided((weight.numel(),), (1,)).numpy()
    return array


def share_memory(x: Tensor) -> Tensor:
    """Return a tensor on x's memory that autograd takes for a new one."""
    alias = torch.empty(0, dtype=x.dtype, device=x.device)
    return alias.set_(x.untyped_storage(), x.storage_offset(), x.size(), x.stride())  # type: ignore[arg-type]


def number_type(dtype: torch.dtype) -> type[np.floating[Any]]:
    """In which precision kernels compute: float64 as it is, anything else as float32."""
    return np.float64 if dtype == torch.float64 else np.float32
