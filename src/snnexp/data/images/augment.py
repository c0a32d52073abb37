"""Random changes of training images, a batch at a time on the device; uint8 in, uint8 out, black beyond the border.

All random numbers of an epoch are drawn on the host at its start: they are the same on every device, and go there in
one copy instead of one per batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from snnexp.config import AugmentConf


@dataclass(frozen=True)
class Draws:
    """One epoch's random numbers, a row per position in the shuffled order."""

    offset: Tensor | None  # int64 [N, 2]: where the pixel at (0, 0) comes from, in the padded image
    padding: int
    angle: Tensor | None  # radians [N], counter-clockwise as seen
    flip: Tensor | None  # bool [N]

    def apply(self, images: Tensor, begin: int) -> Tensor:
        """Change a batch [B, C, H, W] that starts at position `begin`: flip, then rotate, then shift or crop."""
        rows = slice(begin, begin + len(images))
        if self.flip is not None:
            images = torch.where(self.flip[rows].view(-1, 1, 1, 1), images.flip(-1), images)
        if self.angle is not None:
            images = rotate(images, self.angle[rows])
        if self.offset is not None:
            images = shift(images, self.offset[rows], self.padding)
        return images


def draw(conf: AugmentConf, count: int, generator: torch.Generator, device: torch.device) -> Draws | None:
    """Draw an epoch's changes for `count` images; None if the configuration asks for none.

    shift: whole pixels, each axis uniform in -shift..shift. crop_padding: pad by that much and crop at random to the
    old size, which is another such shift; both together add up. rotate: uniform in -rotate..rotate degrees. flip:
    mirror left to right with probability 1/2.
    """
    padding = conf.shift + conf.crop_padding
    offset = angle = flip = None
    if padding:
        offset = torch.zeros(count, 2, dtype=torch.int64)
        for reach in (conf.shift, conf.crop_padding):
            offset += torch.randint(0, 2 * reach + 1, (count, 2), generator=generator)
        offset = offset.to(device)
    if conf.rotate:
        degrees = (2 * torch.rand(count, generator=generator) - 1) * conf.rotate
        angle = torch.deg2rad(degrees).to(device)
    if conf.flip:
        flip = (torch.rand(count, generator=generator) < 0.5).to(device)
    if offset is None and angle is None and flip is None:
        return None
    return Draws(offset, padding, angle, flip)


def shift(images: Tensor, offset: Tensor, padding: int) -> Tensor:
    """Pad each image by `padding` black pixels and cut the old size out at `offset` (row, column), int64 [B, 2]."""
    count, channels, height, width = images.shape
    padded = F.pad(images, (padding, padding, padding, padding))
    rows = offset[:, 0:1] + torch.arange(height, device=images.device)
    columns = offset[:, 1:2] + torch.arange(width, device=images.device)
    index = (rows.unsqueeze(2) * padded.shape[3] + columns.unsqueeze(1)).view(count, 1, height * width)
    cut = padded.flatten(2).gather(2, index.expand(-1, channels, -1))
    return cut.view(count, channels, height, width)


def rotate(images: Tensor, angle: Tensor) -> Tensor:
    """Rotate each image about its centre by `angle` [B] (radians, counter-clockwise), bilinear, rounded."""
    count, channels, height, width = images.shape
    cos, sin = angle.cos(), angle.sin()
    zero = torch.zeros_like(angle)
    # affine_grid maps output to input in units of half the image: hence the ratio for images that are not square.
    top = torch.stack((cos, -sin * height / width, zero), dim=1)
    bottom = torch.stack((sin * width / height, cos, zero), dim=1)
    grid = F.affine_grid(torch.stack((top, bottom), dim=1), [count, channels, height, width], align_corners=False)
    turned = F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return turned.round().clamp(0, 255).to(torch.uint8)
