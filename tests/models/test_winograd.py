"""Winograd's convolution: exact to rounding, no less so than the dense one, and only where it fits."""

from __future__ import annotations

from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from snnexp.arrays import flat_maps
from snnexp.models import winograd
from snnexp.models.batch_norm import NormGradient
from snnexp.models.needed import conv2d

LAST = torch.channels_last


def normal(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype)
    return numbers.contiguous(memory_format=LAST) if numbers.dim() == 4 else numbers


SETTINGS = {  # of `winograd`, so that small layers go by panels of their weights, and the sums through groups of tiles
    "in one": {"CACHE": 1 << 40},
    "panels": {"PANELS": 0, "PRODUCTS": 1 << 40, "PANEL": 36 * 16 * 8 * 5, "CACHE": 0, "LARGE": 0, "WIDE": 16},
    "groups": {"CACHE": 0, "LARGE": 1 << 40, "GROUP": 36 * 8 * 7 * 32},
}


@given(
    way=st.sampled_from(list(SETTINGS)),
    frames=st.integers(1, 5),
    channels=st.sampled_from([8, 16, 40]),
    outputs=st.sampled_from([8, 16, 24, 72]),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    stride_and_pad=st.sampled_from([(1, 0), (1, 1), (1, 2), (2, 1)]),
    spikes=st.booleans(),
    last=st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_equals_the_dense_convolution_and_its_gradients(
    way: str,
    frames: int,
    channels: int,
    outputs: int,
    height: int,
    width: int,
    stride_and_pad: tuple[int, int],
    spikes: bool,
    last: bool,
) -> None:
    stride, pad = stride_and_pad
    height, width = max(height, 3 - 2 * pad), max(width, 3 - 2 * pad)
    x = normal(frames, channels, height, width)
    x = (x > 0.5).double() if spikes else x
    weight = normal(outputs, channels, 3, 3, seed=1)
    weight = weight if last else weight.contiguous()
    bias = normal(outputs, seed=2)
    for t in (x, weight, bias):
        t.requires_grad_()
    dense = F.conv2d(x, weight, bias, stride, pad)
    grad, (of_norm, turned, norm) = normal(*dense.shape, seed=3), of_a_norm(dense.detach())
    expected = [*torch.autograd.grad(dense, (x, weight, bias), grad, retain_graph=True), turned]
    expected += torch.autograd.grad(dense, (weight, bias), turned)
    sums, above = list[Any](), dense.detach() - bias.detach().view(-1, 1, 1)
    with torch.no_grad(), mock.patch.multiple(winograd, **SETTINGS[way]):
        found = (
            winograd.convolve(x, weight, bias, stride, pad, sums),
            winograd.input_gradient(grad, weight, x.shape, stride, pad),
            *winograd.weight_gradient(grad, x, weight, stride, pad),
            of_norm,
            *winograd.weight_gradient(of_norm, x, weight, stride, pad, norm),
            *(torch.from_numpy(a) for a in sums),
        )
    expected += [torch.stack([above.sum((0, 2, 3)), above.square().sum((0, 2, 3))])] * len(sums)
    assert len(sums) == (way != "panels")
    for ours, theirs in zip(found, (dense.detach(), *expected), strict=True):
        assert ours.shape == theirs.shape
        assert (ours - theirs).abs().max() <= 1e-10 * max(float(theirs.abs().max()), 1)


def of_a_norm(y: Tensor) -> tuple[Tensor, Tensor, NormGradient]:
    """The gradient of a norm of y, the same turned into that of y, and what turns it."""
    grad, y = normal(*y.shape, seed=4), y.contiguous(memory_format=LAST)
    mean, scale, offset, slope = (normal(y.shape[1], seed=5 + i) for i in range(4))
    one, two, three, four = (a.view(-1, 1, 1) for a in (mean, scale, offset, slope))
    arrays = (a.numpy() for a in (mean, scale, offset, slope))
    norm = NormGradient(flat_maps(y), *arrays, total=np.zeros(y.shape[1]), rows=1, products=None)
    return grad, grad * two - three - (y - one) * four, norm


def layer(channels: int = 32, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Input, weights and the output's gradient of a convolution that is worth it."""
    x = normal(24, channels, 17, 15, dtype=dtype)
    weight = (normal(64, channels, 3, 3, dtype=dtype, seed=1) / channels**0.5).contiguous(memory_format=LAST)
    return x, weight, normal(24, 64, 17, 15, dtype=dtype, seed=2)


def all_of(x: Tensor, weight: Tensor, grad: Tensor, way: str, stride: int = 1) -> list[Tensor]:
    """Output and gradients in float64: by `winograd`, by `dense`, or in `naive` float64."""
    x, weight, grad = (t.double() if way == "naive" else t for t in (x, weight, grad))
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    y = conv2d(x, weight, None, stride, 1, None) if way == "winograd" else F.conv2d(x, weight, None, stride, 1)
    if way == "winograd":
        assert "_Conv" in type(y.grad_fn).__name__
    return [t.detach().double() for t in (y, *torch.autograd.grad(y, (x, weight), grad))]


@pytest.mark.parametrize("stride", [1, 2])
def test_rounding_in_float32_is_that_of_dense_sums(stride: int) -> None:
    x, weight, grad = layer()
    grad = grad[:, :, ::stride, ::stride].contiguous(memory_format=LAST)
    exact, dense, ours = (all_of(x, weight, grad, way, stride) for way in ("naive", "dense", "winograd"))
    for e, d, o, times in zip(exact, dense, ours, (1, 2.5, 2.5), strict=True):  # forward, its tiles are smaller
        assert (o - e).norm() <= times * (d - e).norm()


@pytest.mark.parametrize("way", SETTINGS)
def test_threads_change_no_bit(threads: object, way: str) -> None:
    given, found = layer(), []
    for count in (1, 2):
        torch.set_num_threads(count)
        with mock.patch.multiple(winograd, **SETTINGS[way]):
            found.append(all_of(*given, "winograd"))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize(
    ("what", "fits"),
    [("as it is", True), ("stride", True), ("one frame", False), ("12 channels", False), ("rows last", False)],
)
def test_only_where_it_fits(what: str, fits: bool) -> None:
    x, weight, _ = layer(12 if what == "12 channels" else 32)
    x = x[:1, :, :4] if what == "one frame" else x.contiguous() if what == "rows last" else x
    assert winograd.fits(x, weight, 2 if what == "stride" else 1, 1) is fits
    with torch.autocast("cpu", torch.bfloat16):
        assert not winograd.fits(x, weight, 1, 1)


def test_only_where_it_pays() -> None:
    weight = torch.empty(512, 512, 3, 3)

    def paying(frames: int, side: int, stride: int) -> list[bool]:
        x = torch.empty(frames, 512, side, side).contiguous(memory_format=LAST)
        grad = x[:, :, ::stride, ::stride].contiguous(memory_format=LAST)
        forward, weights = (f(x, weight, stride, 1) for f in (winograd.pays, winograd.weight_gradient_pays))
        return [forward, winograd.makes_gradient(grad, weight, x.shape, stride, 1), weights]

    assert paying(12, 4, 1) == paying(12, 4, 2) == [False] * 3
    assert paying(32, 4, 1) == paying(64, 8, 2) == [True] * 3
    assert paying(256, 2, 1) == [True, False, True]  # of the gradient's tiles three quarters would be empty
    assert paying(256, 5, 2) == [False] * 3
