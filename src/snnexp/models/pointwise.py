"""Dense 1x1 convolutions with a stride, as in shortcuts of residual blocks, as products of rows, on the CPU.

A 1x1 convolution with stride s is a fully connected layer over every s-th pixel. Over maps in channels_last these are
rows of a matrix: forward and both gradients are one product each, and the input's gradient is 0 everywhere else. From
128 channels on that takes 0.8 to 1 of oneDNN's time, and threads change no bit.

It is also the only way that is safe: the gradient of such weights in oneDNN's AVX2 kernels writes behind its memory for
2 to 7 channels in channels_last (torch 2.13.0 with ONEDNN_MAX_CPU_ISA=AVX2: the process dies in free()).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from snnexp import buffers
from snnexp.arrays import for_kernels


def fits(x: Tensor, weight: Tensor, stride: int, pad: int) -> bool:
    """Whether a convolution is one for this file: by its shapes alone, of float maps in channels_last on the CPU."""
    right = weight.shape[2:] == (1, 1) and stride > 1 and pad == 0
    return right and x.dtype == weight.dtype and for_kernels(x)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """F.conv2d(x, weight, bias, stride) in channels_last, for what `fits`; without a gradient of its own."""
    pixels = _read(x, stride)
    y = F.linear(pixels.reshape(-1, x.shape[1]), weight.flatten(1), bias)
    return y.view(*pixels.shape[:3], len(weight)).permute(0, 3, 1, 2)


def input_gradient(grad: Tensor, weight: Tensor, shape: torch.Size, stride: int) -> Tensor:
    """The gradient of x [N, C, H, W] from that of the output, both in channels_last."""
    grad_x = buffers.empty(shape, grad.dtype, channels_last=True).zero_()
    pixels = _read(grad_x, stride)
    pixels.copy_((_rows(grad) @ weight.flatten(1)).view(pixels.shape))
    return grad_x


def weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """The gradients of weight and bias from that of the output, in channels_last."""
    rows = _rows(grad)
    return (rows.t() @ _read(x, stride).reshape(-1, x.shape[1])).view_as(weight), rows.sum(0)


def _read(x: Tensor, stride: int) -> Tensor:
    """The pixels that are read, a view [N, H', W', C]."""
    return x.permute(0, 2, 3, 1)[:, ::stride, ::stride]


def _rows(grad: Tensor) -> Tensor:
    return grad.permute(0, 2, 3, 1).reshape(-1, grad.shape[1])
