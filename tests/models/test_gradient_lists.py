"""Input gradients that walk what is not zero in the output's: exact, the same bits for any split, and where it pays."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import make_info, make_network, make_spikes
from torch import Tensor

from snnexp.models import gradient_lists, needed
from snnexp.models.gradient_lists import listed_input_gradient
from snnexp.models.needed import Needed, dense_input_gradient
from snnexp.models.network import Network
from snnexp.models.weights import Conv2d


def draw(*shape: int, share: float = 1.0, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """Numbers, some of them not 0; if there are several frames, none of the first."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.randn(shape, generator=generator, dtype=dtype)
    found *= torch.rand(shape, generator=generator) < share
    if share < 1 and len(found) > 1:
        found[0] = 0
    return found.contiguous(memory_format=torch.channels_last)


@given(
    frames=st.sampled_from([1, 2, 3, 20]),
    channels=st.one_of(st.integers(1, 20), st.sampled_from([33, 64, 130])),
    outputs=st.sampled_from([1, 2, 7, 8, 9, 16, 17, 33, 64, 127, 128, 129, 130, 300]),
    size=st.integers(1, 6),
    stride=st.integers(1, 4),
    pad=st.integers(0, 5),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    share=st.sampled_from([0.0, 0.02, 0.1, 0.5, 1.0]),
    room=st.sampled_from([1, 1 << 13, 1 << 18]),
    seed=st.integers(0, 99),
)
@settings(max_examples=50, deadline=None)
def test_equals_the_dense_one(
    frames: int,
    channels: int,
    outputs: int,
    size: int,
    stride: int,
    pad: int,
    height: int,
    width: int,
    share: float,
    room: int,
    seed: int,
) -> None:
    height, width = (max(n, size - 2 * pad) for n in (height, width))
    high, wide = ((n + 2 * pad - size) // stride + 1 for n in (height, width))
    shape = torch.Size((frames, channels, height, width))
    grad, weight = (
        draw(frames, outputs, high, wide, share=share, seed=seed),
        draw(outputs, channels, size, size, seed=1),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradient_lists, "ROOM", room)  # bands of one row, of a few, several frames at once
        found = listed_input_gradient(grad, weight, shape, stride, pad)
    expected = torch.nn.grad.conv2d_input(shape, weight, grad, stride, pad)  # type: ignore[no-untyped-call]
    assert (found - expected).abs().max() <= 1e-10 * max(1.0, float(expected.abs().max()))
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_single_precision_and_no_frames() -> None:
    grad, weight = (draw(*s, share=0.3, dtype=torch.float32) for s in ((5, 20, 6, 7), (20, 11, 3, 3)))
    shape = torch.Size((5, 11, 6, 7))
    torch.testing.assert_close(
        listed_input_gradient(grad, weight, shape, 1, 1), dense_input_gradient(grad, weight, shape, 1, 1)
    )
    assert listed_input_gradient(grad[:0], weight, torch.Size((0, *shape[1:])), 1, 1).shape == (0, 11, 6, 7)


def test_what_is_not_finite_goes_through() -> None:
    grad, weight = draw(2, 3, 4, 4, share=0.2), draw(3, 2, 3, 3, seed=1)
    grad[1, 2, 1, 1] = torch.nan
    found = listed_input_gradient(grad, weight, torch.Size((2, 2, 4, 4)), 1, 1)
    assert found[1, :, :3, :3].isnan().all() and found[0].isfinite().all()


def test_same_bits_for_any_number_of_threads_and_any_split(threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    grad, weight, found = draw(40, 140, 8, 8, share=0.3), draw(140, 5, 5, 5, seed=1), []
    for room in (1, 1 << 16, 1 << 20):
        monkeypatch.setattr(gradient_lists, "ROOM", room)
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(listed_input_gradient(grad, weight, torch.Size((40, 5, 8, 8)), 1, 2))
    assert all(torch.equal(found[0], other) for other in found[1:])


def chosen(grad: Tensor, weight: Tensor, shape: tuple[int, ...], patch: pytest.MonkeyPatch, **asked: Any) -> str:
    """What is said of the way that the rule takes; none is run."""
    said: list[str] = []
    for name in ("listed_input_gradient", "conv_input_gradient", "dense_input_gradient"):
        patch.setattr(needed, name, lambda *_: torch.zeros(1))
    asked = {"mask": None, "zeros": True, "tell": said.append, **asked}
    Needed(**asked).input_gradient(grad, weight, torch.Size(shape), 1, 0)
    return said[0] if said else ""


def test_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    shape, weight = (48, 12, 15, 15), draw(64, 12, 5, 5, dtype=torch.float32)
    full, some = (draw(48, 64, 11, 11, share=share, dtype=torch.float32) for share in (1.0, 0.3))
    mask = torch.zeros(shape, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    assert chosen(full, weight, shape, monkeypatch).endswith(
        "100.00 % of its output's gradient is not 0 in the first batch: dense"
    )
    assert chosen(some, weight, shape, monkeypatch).endswith("in the first batch: from what is not 0")
    assert chosen(some, weight, shape, monkeypatch, zeros=False) == ""
    # almost nothing is needed: not even counted; all is needed; the masked way where it must be taken
    assert chosen(some, weight, shape, monkeypatch, mask=mask).startswith(
        "0.00 % of its input's gradient is needed in the"
    )
    assert chosen(some, weight, shape, monkeypatch, mask=mask).endswith("only there")
    assert chosen(some, weight, shape, monkeypatch, mask=mask + 1).endswith("from what is not 0")
    assert chosen(some, weight, shape, monkeypatch, mask=mask + 1, always=True).endswith(
        "only there (model.sparse=always)"
    )
    # a little one, and one of few outputs, which the lists cost more than
    assert chosen(some[:2], weight, (2, *shape[1:]), monkeypatch) == ""
    assert chosen(some[:2], weight, (2, *shape[1:]), monkeypatch, always=True).endswith(
        "from what is not 0 (model.sparse=always)"
    )
    few = draw(800, 4, 15, 15, share=0.01, dtype=torch.float32)
    assert chosen(few, draw(4, 64, 1, 1, dtype=torch.float32), (800, 64, 15, 15), monkeypatch) == ""


SPEC = "c4k3-SN-c5k3-SN-MP2-c6k3-BN-SN-c5k3-AP2-SN-+(c5k3-SN-c5k3)-SN-FC-SN"


def network(sparse: str) -> Network:
    made = make_network(SPEC, make_info((2, 10, 10), 3, 3), sparse=sparse, build={"channels_last": True})
    return made.double()


def test_which_layers_look_for_zeros() -> None:
    made = network("auto")
    looking = [name for name, module in made.named_modules() if isinstance(module, Conv2d) and module.zeros_behind]
    assert looking == ["conv1", "conv2", "conv5", "conv6"]  # not behind a norm, not behind an average


def test_a_network_learns_as_without(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    dense, ours = network("never"), network("always")
    ours.load_state_dict(dense.state_dict())
    runs: list[Any] = []

    def watched(*given: Any) -> Tensor:
        runs.append(given)
        return listed_input_gradient(*given)

    monkeypatch.setattr(needed, "listed_input_gradient", watched)
    x = make_spikes(make_info((2, 10, 10), 3, 3)).double()
    with caplog.at_level("INFO", logger="snnexp"):
        for made in (dense, ours, ours):
            made.zero_grad()
            made(x).spk.sum().backward()
    assert len(runs) == 2 * 3  # of conv2, conv5 and conv6; conv1's input needs none
    for a, b in zip(dense.parameters(), ours.parameters(), strict=True):
        assert a.grad is not None and b.grad is not None
        assert (a.grad - b.grad).abs().max() <= 1e-10 * max(1.0, float(a.grad.abs().max()))
    said = [record.message for record in caplog.records if "output's gradient" in record.message]
    assert sorted(line.split(":")[0] for line in said) == ["conv2", "conv5", "conv6"]  # once each
