"""Large tensors hand their memory on: never while somebody holds it, and only in the command's process."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import Tensor

from snnexp import allocator, buffers


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command's process, where everything is large."""
    monkeypatch.setattr(allocator, "prepared", True)
    monkeypatch.setattr(buffers, "LEAST", 1)
    buffers._waiting.clear()
    buffers._used.clear()
    monkeypatch.setattr(buffers, "_peak", 0)


def made() -> Tensor:
    return buffers.empty((2, 3, 4, 5), torch.float32, channels_last=True)


def test_a_freed_tensor_gives_its_memory_to_the_next_of_its_size() -> None:
    x = made()
    assert x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous() and not x._is_view()
    address = x.data_ptr()
    assert made().data_ptr() != address  # that one is freed at once, and waits
    del x
    assert {made().data_ptr() for _ in range(3)} == {address}
    like = buffers.empty_like(torch.zeros(120))
    assert like.shape == (120,) and like.data_ptr() == address
    assert buffers.empty_like(made(), torch.float64).stride() == made().stride()


def held(x: Tensor, holder: str, weight: Tensor) -> Any:
    """Something on x's memory."""
    match holder:
        case "view":
            return x[1:, 2]
        case "array":
            return x.numpy()
        case "storage":
            return x.untyped_storage()
    return weight * x


@pytest.mark.parametrize("holder", ["view", "array", "storage", "graph"])
def test_whoever_holds_it_keeps_it(holder: str) -> None:
    x = made().fill_(1)
    weight = torch.ones(1, requires_grad=True)
    kept = held(x, holder, weight)
    address = x.data_ptr()
    del x
    gc.collect()
    others = [made().fill_(2) for _ in range(3)]
    assert address not in {other.data_ptr() for other in others}
    if holder == "graph":
        kept.sum().backward()
        assert weight.grad is not None and weight.grad.item() == 120
    del kept
    gc.collect()
    assert made().data_ptr() == address


def test_no_more_is_held_than_half_as_much_again_as_was_in_use() -> None:
    for size in (480, 240, 240, 480):  # bytes, one after the other
        buffers.empty((size // 4,), torch.float32)
    assert {size: len(blocks) for size, blocks in buffers._waiting.items()} == {480: 1, 240: 1}
    both = [buffers.empty((size // 4,), torch.float32) for size in (240, 240)]  # the first one waits, and there is room
    assert len(both) == 2 and len(buffers._waiting[480]) == 0  # for 720 of 960 bytes
    del both
    buffers.empty((20,), torch.float32)
    assert {size: len(blocks) for size, blocks in buffers._waiting.items() if blocks} == {240: 2, 80: 1}


def test_scratch_memory_is_shared_between_sizes() -> None:
    address = buffers.scratch(100, torch.float32).ctypes.data
    other = buffers.scratch(51, torch.float64)
    assert other.shape == (51,) and other.dtype == "float64" and other.ctypes.data == address


def test_elsewhere_it_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    half = buffers.empty((2, 3), torch.bfloat16)
    assert half.dtype == torch.bfloat16 and buffers.empty((2, 3), torch.float32, "meta").is_meta
    turned = torch.zeros(4, 5).t()
    assert buffers.empty_like(turned).stride() == turned.stride()
    monkeypatch.setattr(allocator, "prepared", False)
    assert made().is_contiguous(memory_format=torch.channels_last)
    assert not any(buffers._waiting.values())
