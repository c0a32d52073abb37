"""Winograd's convolution: exact to rounding, no less so than the dense one, and only where it fits."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from snnexp.models import winograd
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
    pad=st.integers(0, 2),
    spikes=st.booleans(),
    last=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_equals_the_dense_convolution_and_its_gradients(
    way: str,
    frames: int,
    channels: int,
    outputs: int,
    height: int,
    width: int,
    pad: int,
    spikes: bool,
    last: bool,
) -> None:
    height, width = max(height, 3 - 2 * pad), max(width, 3 - 2 * pad)
    x = normal(frames, channels, height, width)
    x = (x > 0.5).double() if spikes else x
    weight = normal(outputs, channels, 3, 3, seed=1)
    weight = weight if last else weight.contiguous()
    bias = normal(outputs, seed=2)
    for t in (x, weight, bias):
        t.requires_grad_()
    dense = F.conv2d(x, weight, bias, 1, pad)
    grad = normal(*dense.shape, seed=3)
    expected = torch.autograd.grad(dense, (x, weight, bias), grad)
    with torch.no_grad(), mock.patch.multiple(winograd, **SETTINGS[way]):
        found = (
            winograd.convolve(x, weight, bias, pad),
            winograd.input_gradient(grad, weight, pad),
            *winograd.weight_gradient(grad, x, weight, pad),
        )
    for ours, theirs in zip(found, (dense.detach(), *expected), strict=True):
        assert ours.shape == theirs.shape
        assert (ours - theirs).abs().max() <= 1e-10 * max(float(theirs.abs().max()), 1)


def layer(channels: int = 32, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Input, weights and the output's gradient of a convolution that is worth it."""
    x = normal(24, channels, 17, 15, dtype=dtype)
    weight = (normal(64, channels, 3, 3, dtype=dtype, seed=1) / channels**0.5).contiguous(memory_format=LAST)
    return x, weight, normal(24, 64, 17, 15, dtype=dtype, seed=2)


def all_of(x: Tensor, weight: Tensor, grad: Tensor, way: str) -> list[Tensor]:
    """Output and gradients in float64: by `winograd`, by `dense`, or in `naive` float64."""
    x, weight, grad = (t.double() if way == "naive" else t for t in (x, weight, grad))
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    y = conv2d(x, weight, None, 1, 1, None) if way == "winograd" else F.conv2d(x, weight, None, 1, 1)
    if way == "winograd":
        assert "_Conv" in type(y.grad_fn).__name__
    return [t.detach().double() for t in (y, *torch.autograd.grad(y, (x, weight), grad))]


def test_rounding_in_float32_is_that_of_dense_sums() -> None:
    given = layer()
    exact, dense, ours = (all_of(*given, way) for way in ("naive", "dense", "winograd"))
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
    [("as it is", True), ("stride", False), ("one frame", False), ("12 channels", False), ("rows last", False)],
)
def test_only_where_it_fits(what: str, fits: bool) -> None:
    x, weight, _ = layer(12 if what == "12 channels" else 32)
    x = x[:1, :, :4] if what == "one frame" else x.contiguous() if what == "rows last" else x
    assert winograd.fits(x, weight, 2 if what == "stride" else 1, 1) is fits
    with torch.autocast("cpu", torch.bfloat16):
        assert not winograd.fits(x, weight, 1, 1)


def test_only_where_it_pays() -> None:
    few, many = (torch.empty(frames, 512, 4, 4).contiguous(memory_format=LAST) for frames in (12, 32))
    weight = torch.empty(512, 512, 3, 3)
    assert not winograd.pays(few, weight, 1) and winograd.pays(many, weight, 1)
    assert not winograd.makes_gradient(few, weight, 1, 1) and winograd.makes_gradient(many, weight, 1, 1)
    assert not winograd.weight_gradient_pays(few, weight, 1) and winograd.weight_gradient_pays(many, weight, 1)
    small = torch.empty(256, 512, 2, 2).contiguous(memory_format=LAST)  # three quarters of each tile were empty
    assert not winograd.makes_gradient(small, weight, 1, 1)
