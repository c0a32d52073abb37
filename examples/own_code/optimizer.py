"""An optimizer of your own (torch's need no file: optimizer=RAdam): sign descent, and a schedule of its own.

snnexp optimizer=optimizer.py:SignDescent optimizer.lr=0.002 scheduler=optimizer.py:halving scheduler.kwargs.every=5
"""

import torch


class SignDescent(torch.optim.Optimizer):
    """Made as Optimizer(groups, lr=..., **optimizer.kwargs); the groups have learning rates of their own."""

    def __init__(self, groups, lr, floor=0.0):
        super().__init__(groups, {"lr": lr, "floor": floor})

    @torch.no_grad()
    def step(self, closure=None):
        """Move each parameter by its learning rate against the sign of its gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(p.grad.sign() * (p.grad.abs() > group["floor"]), alpha=group["lr"])


def halving(optimizer, every=10):
    """Made as make(optimizer, **scheduler.kwargs); stepped once per epoch."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.5 ** (epoch // every))
