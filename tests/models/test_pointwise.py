"""1x1 convolutions with a stride are products of rows: against torch's convolution, in float64 and without any."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from snnexp.models import pointwise
from snnexp.models.needed import conv2d
from snnexp.models.weights import Conv2d


def maps(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype)
    return x.contiguous(memory_format=torch.channels_last).requires_grad_()


@pytest.mark.parametrize(
    ("shape", "outputs", "stride", "bias"),
    [
        ((3, 4, 8, 8), 6, 2, True),
        ((2, 7, 9, 5), 3, 2, False),  # odd sides: the last pixel is read
        ((2, 1, 7, 8), 5, 3, True),
        ((1, 5, 4, 4), 1, 5, True),  # one pixel alone
        ((0, 5, 4, 4), 2, 2, True),
    ],
)
def test_equals_torchs_convolution_and_its_gradients(
    shape: tuple[int, ...], outputs: int, stride: int, bias: bool
) -> None:
    x = maps(*shape)
    weight = torch.randn(outputs, shape[1], 1, 1, dtype=torch.float64).requires_grad_()
    offset = torch.randn(outputs, dtype=torch.float64).requires_grad_() if bias else None
    assert pointwise.fits(x, weight, stride, 0)
    ours, theirs = conv2d(x, weight, offset, stride, 0, None), F.conv2d(x, weight, offset, stride)
    inputs = [x, weight, *([] if offset is None else [offset])]
    grads = [torch.autograd.grad((y * y).sum(), inputs) for y in (ours, theirs)]
    for a, b in zip((ours, *grads[0]), (theirs, *grads[1]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert ours.is_contiguous(memory_format=torch.channels_last)
    assert grads[0][0].is_contiguous(memory_format=torch.channels_last)


def test_frozen_parts() -> None:
    x, weight = maps(2, 3, 3, 3), torch.randn(2, 3, 1, 1, dtype=torch.float64).requires_grad_()
    (alone,) = torch.autograd.grad(conv2d(x.detach(), weight, None, 2, 0, None).sum(), weight)
    torch.testing.assert_close(alone, torch.autograd.grad(F.conv2d(x, weight, None, 2).sum(), weight)[0])
    (alone,) = torch.autograd.grad(conv2d(x, weight.detach(), None, 2, 0, None).sum(), x)
    torch.testing.assert_close(alone, torch.autograd.grad(F.conv2d(x, weight, None, 2).sum(), x)[0])


def test_a_layer_asks_no_convolution_of_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN's AVX2 gradient for 2 to 7 channels writes behind its memory."""
    layer, x = Conv2d(4, 6, 1, 2, 0, bias=True), maps(2, 4, 6, 6, dtype=torch.float32)
    expected = F.conv2d(x, layer.weight, layer.bias, 2)
    monkeypatch.setattr(F, "conv2d", None)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize(
    ("size", "stride", "pad", "dtype", "last"),
    [
        (1, 1, 0, torch.float32, True),  # oneDNN is faster
        (3, 2, 1, torch.float32, True),
        (1, 2, 1, torch.float32, True),
        (1, 2, 0, torch.bfloat16, True),
        (1, 2, 0, torch.float32, False),
    ],
)
def test_everything_else_is_torchs(size: int, stride: int, pad: int, dtype: torch.dtype, last: bool) -> None:
    x, weight = maps(2, 4, 6, 6, dtype=dtype), torch.randn(5, 4, size, size).to(dtype)
    x = x if last else x.contiguous()
    assert not pointwise.fits(x, weight, stride, pad)
    assert torch.equal(conv2d(x, weight, None, stride, pad, None), F.conv2d(x, weight, None, stride, pad))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert conv2d(x, weight, None, stride, pad, None).dtype == torch.bfloat16
