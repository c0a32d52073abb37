"""An encoder of your own: bright pixels spike in every step, grey ones in every other step.

snnexp dataset=mnist encoder=encoder.py:two_levels encoder.kwargs.bright=0.7
"""

import torch


def two_levels(x, num_steps, dark=0.2, bright=0.6):
    """From images [B, C, H, W] with values from 0 to 1 to input over time [num_steps, B, C, H, W]."""
    return torch.stack([x > (bright if step % 2 else dark) for step in range(num_steps)]).float()
