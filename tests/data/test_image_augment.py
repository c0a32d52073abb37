"""Augmentations by hand, against slow NumPy, and their ranges."""

from __future__ import annotations

import numpy as np
import torch

from snnexp.config import AugmentConf
from snnexp.data.images.augment import draw, rotate, shift

CPU = torch.device("cpu")


def numbers(*shape: int) -> torch.Tensor:
    return torch.randint(1, 256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_shift_by_hand() -> None:
    image = torch.tensor([[[[1, 2], [3, 4]]]], dtype=torch.uint8)
    # Offset (0, 2) in an image padded by 1: what was at row -1, column 1 comes to the corner.
    moved = shift(image, torch.tensor([[0, 2]]), padding=1)
    assert moved.tolist() == [[[[0, 0], [2, 0]]]]


def test_shift_equals_numpy_for_each_image_and_channel() -> None:
    images = numbers(5, 3, 6, 4)
    offset = torch.randint(0, 7, (5, 2), generator=torch.Generator().manual_seed(1))
    moved = shift(images, offset, padding=3)
    for number in range(5):
        padded = np.pad(images[number].numpy(), ((0, 0), (3, 3), (3, 3)))
        row, column = offset[number].tolist()
        assert np.array_equal(moved[number].numpy(), padded[:, row : row + 6, column : column + 4])


def test_rotate_by_quarter_turns() -> None:
    images = numbers(3, 2, 8, 8)
    for quarters in range(4):
        turned = rotate(images, torch.full((3,), quarters * torch.pi / 2))
        assert torch.equal(turned, torch.rot90(images, quarters, (2, 3)))


def test_rotate_keeps_shapes_that_are_not_square() -> None:
    images = numbers(2, 1, 4, 10)
    assert torch.equal(rotate(images, torch.full((2,), torch.pi)), images.flip(2, 3))
    assert torch.equal(rotate(images, torch.zeros(2)), images)
    # A quarter turn of the middle: a pixel right of the centre goes above it, not further away.
    dot = torch.zeros(1, 1, 5, 9, dtype=torch.uint8)
    dot[0, 0, 2, 6] = 200
    turned = rotate(dot, torch.tensor([torch.pi / 2]))
    assert turned[0, 0, 0, 4] == 200 and turned.sum() == 200


def test_nothing_asked_for_is_nothing_done() -> None:
    assert draw(AugmentConf(), 10, torch.Generator(), CPU) is None


def test_flip_mirrors_about_half() -> None:
    images = numbers(400, 1, 2, 3)
    draws = draw(AugmentConf(flip=True), 400, torch.Generator().manual_seed(0), CPU)
    assert draws is not None
    flipped = draws.apply(images, 0)
    same = (flipped == images).flatten(1).all(1)
    mirrored = (flipped == images.flip(-1)).flatten(1).all(1)
    assert (same | mirrored).all() and 150 < mirrored.sum() < 250


def test_shift_and_crop_reach_their_bounds_and_no_further() -> None:
    dots = torch.zeros(2000, 1, 15, 15, dtype=torch.uint8)
    dots[:, :, 7, 7] = 9
    for conf, reach in (
        (AugmentConf(shift=2), 2),
        (AugmentConf(crop_padding=3), 3),
        (AugmentConf(2, 0.0, crop_padding=1), 3),
    ):
        draws = draw(conf, 2000, torch.Generator().manual_seed(0), CPU)
        assert draws is not None
        moved = draws.apply(dots, 0)
        assert (moved.flatten(1).sum(1) == 9).all()
        _, _, rows, columns = torch.nonzero(moved, as_tuple=True)
        for found in (rows - 7, columns - 7):
            assert set(found.tolist()) == set(range(-reach, reach + 1))


def test_rotation_is_within_its_range() -> None:
    draws = draw(AugmentConf(rotate=15.0), 5000, torch.Generator().manual_seed(0), CPU)
    assert draws is not None and draws.angle is not None
    degrees = torch.rad2deg(draws.angle)
    assert degrees.abs().max() <= 15 and degrees.min() < -14.9 and degrees.max() > 14.9 and degrees.mean().abs() < 0.5


def test_no_augmentation_waits_for_the_device() -> None:
    """Meta tensors have no values: whatever would copy one to the host raises."""
    conf = AugmentConf(shift=2, rotate=30.0, flip=True)
    draws = draw(conf, 8, torch.Generator().manual_seed(0), torch.device("meta"))
    assert draws is not None
    assert draws.apply(torch.empty(4, 3, 6, 5, dtype=torch.uint8, device="meta"), 4).shape == (4, 3, 6, 5)


def test_a_batch_takes_its_own_rows() -> None:
    images = numbers(20, 1, 8, 8)
    conf = AugmentConf(shift=2, rotate=30.0, flip=True)
    draws = draw(conf, 20, torch.Generator().manual_seed(0), CPU)
    assert draws is not None
    whole = draws.apply(images, 0)
    parts = torch.cat([draws.apply(images[begin : begin + 6], begin) for begin in range(0, 20, 6)])
    assert torch.equal(whole, parts) and whole.dtype == torch.uint8
    assert not torch.equal(whole, images)
