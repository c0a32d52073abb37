"""The reference engine: the equation step by step in plain PyTorch, gradients by autograd. Any device, any option."""

from __future__ import annotations

import torch
from torch import Tensor

from snnexp.neurons.equation import Dynamics, State, step


def run(
    x: Tensor, alpha: Tensor | None, beta: Tensor, threshold: Tensor, dynamics: Dynamics, state: State
) -> tuple[Tensor, Tensor, State]:
    """Run all time steps of x [T, B, *shape]; returns spikes, membranes (like x) and the last state."""
    spks, mems = [], []
    steps = x.unbind(0)  # indexing x[t] would make the backward pass quadratic in T
    for t, x_t in enumerate(steps):
        spk, mem, state = step(x_t, state, alpha, beta, threshold, dynamics, last=t == len(steps) - 1)
        spks.append(spk)
        mems.append(mem)
    return torch.stack(spks), torch.stack(mems), state
