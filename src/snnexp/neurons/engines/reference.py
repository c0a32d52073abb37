"""The reference engine: the equation step by step in plain PyTorch, gradients by autograd. Any device, any option."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from snnexp.layout import laid_as, stacked
from snnexp.neurons.equation import Dynamics, State, advance, value_dict


def run(
    x: Tensor,
    alpha: Tensor | None,
    beta: Tensor,
    threshold: Tensor,
    dynamics: Dynamics,
    state: State,
    recurrent: Tensor | None = None,
    more: Mapping[str, Tensor] | None = None,
    noise: Tensor | None = None,
) -> tuple[Tensor, Tensor, State]:
    """Run all time steps of x [T, B, *shape]; returns spikes, membranes (like x) and the last state.

    recurrent [N, N]: weights from the layer's spikes to its own input one step later.
    """
    spks, mems, values = [], [], value_dict(alpha, beta, threshold, more)
    steps = x.unbind(0)  # indexing x[t] would make the backward pass quadratic in T
    state = laid_as(state, steps[0])
    for t, x_t in enumerate(steps):
        if recurrent is not None:
            x_t = torch.addmm(x_t, state.spk, recurrent.t())
        state = advance(x_t, state, values, dynamics, t == len(steps) - 1, None if noise is None else noise[t])
        spks.append(state.spk)
        mems.append(state.mem)
    return stacked(spks), stacked(mems), state
