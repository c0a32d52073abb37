"""A resumed optimizer steps as before, however the checkpoint's version had stored the weights in memory."""

import copy

import torch
from torch import nn

from snnexp.training.optimisation import _lay_out


def trained(weight: torch.Tensor, steps: int) -> tuple[nn.Parameter, torch.optim.Adam]:
    parameter = nn.Parameter(weight)
    optimizer = torch.optim.Adam([parameter], lr=0.1, fused=True)
    for step in range(steps):
        parameter.grad = torch.empty_like(parameter).copy_(torch.arange(12.0).view(3, 4) + step)
        optimizer.step()
    return parameter, optimizer


def test_moments_get_the_layout_of_their_parameters() -> None:
    start = torch.arange(12.0).view(3, 4)
    rows, row_optimizer = trained(start.clone(), 2)
    columns = nn.Parameter(rows.detach().clone().t().contiguous().t())  # the same values, stored column by column
    optimizer = torch.optim.Adam([columns], lr=0.1, fused=True)
    optimizer.load_state_dict(copy.deepcopy(row_optimizer.state_dict()))
    _lay_out(optimizer)
    for parameter, step in ((rows, row_optimizer), (columns, optimizer)):
        parameter.grad = torch.empty_like(parameter).copy_(start * -3)
        step.step()
    assert columns.stride() == (1, 3)
    torch.testing.assert_close(columns, rows, rtol=0, atol=0)
