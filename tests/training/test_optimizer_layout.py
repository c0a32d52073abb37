"""A resumed optimizer steps as before, however the checkpoint's version had stored the weights in memory."""

import copy

import pytest
import torch
from torch import nn

from snnexp.config import OptimizerConf
from snnexp.training.optimisation import _lay_out, build_optimizer


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


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_weights_in_columns_get_the_same_step_and_keep_their_gradients(name: str) -> None:
    start, found = torch.arange(12.0).view(3, 4), []
    for columns in (False, True):
        weight = nn.Parameter(start.clone() if not columns else start.t().contiguous().t())
        optimizer = build_optimizer(OptimizerConf(name=name, weight_decay=0.1), {"weights": [weight]})
        for step in range(3):
            weight.grad = torch.empty_like(weight).copy_(start - 5 * step)
            optimizer.step()
            assert torch.equal(weight.grad, start - 5 * step) and weight.grad.stride() == weight.stride()
        moments = [m for m in optimizer.state[weight].values() if m is not None and m.shape == start.shape]
        assert all(m.stride() == weight.stride() for m in moments)
        found.append((weight.detach(), *moments))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=0)


@pytest.mark.parametrize("columns", [False, True])
def test_adam_copies_no_gradient(columns: bool) -> None:
    weight = nn.Parameter(torch.zeros(4, 3).t() if columns else torch.zeros(3, 4))
    optimizer = build_optimizer(OptimizerConf(name="adam"), {"weights": [weight]})
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        optimizer.step()
    assert not [event.name for event in profile.events() if event.name == "aten::clone"]
