"""A network of your own: a residual block whose shortcut is scaled by a learned number.

snnexp dataset=nmnist model.module=network.py:Net model.kwargs.width=16
"""

import torch
from torch import nn


class Net(nn.Module):
    """Takes any of shape [C, H, W], num_classes, num_steps and `neurons`, and whatever model.kwargs names."""

    def __init__(self, shape, num_classes, neurons, width=8):
        super().__init__()
        channels, height, half = shape[0], shape[1] // 2, shape[2] // 2
        self.conv1, self.norm1 = nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.sn1 = neurons((width, *shape[1:]), "sn1")  # whatever `neuron=` says, with these many neurons
        self.sn2 = neurons((width, height, half), "sn2")
        self.scale = nn.Parameter(torch.ones(()))
        self.out, self.sn3 = nn.Linear(width * height * half, num_classes), neurons(num_classes, "sn3")

    def forward(self, x):
        """From [T, B, C, H, W] to spikes (or spikes and membranes) [T, B, classes]; neurons see all steps at once."""
        t, b = x.shape[:2]
        spk = self.sn1(self.norm1(self.conv1(x.flatten(0, 1))).unflatten(0, (t, b))).spk
        maps = nn.functional.max_pool2d(spk.flatten(0, 1), 2)
        more = self.sn2(self.norm2(self.conv2(maps)).unflatten(0, (t, b))).spk
        maps = more + self.scale * maps.unflatten(0, (t, b))
        return self.sn3(self.out(maps.flatten(2)))
