"""Optimizer and scheduler from the configuration, with learning rates for weights, thresholds, decays and delays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, StepLR

from snnexp.collector import importing
from snnexp.config import OptimizerConf, SchedulerConf

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
}


def learning_rates(conf: OptimizerConf) -> dict[str, float]:
    """Learning rate of each kind of parameter; an unset one follows that of the weights."""
    return {
        "weights": conf.lr,
        "thresholds": conf.lr if conf.lr_threshold is None else conf.lr_threshold,
        "decays": conf.lr if conf.lr_decay is None else conf.lr_decay,
        # DCLS-Delays' ratio: Adam moves a parameter by about the rate, and delays have to cross whole time steps
        "delays": 100 * conf.lr if conf.lr_delay is None else conf.lr_delay,
    }


def build_optimizer(conf: OptimizerConf, groups: Mapping[str, Sequence[nn.Parameter]]) -> torch.optim.Optimizer:
    """Build the optimizer over the parameter groups of `Network.parameter_groups()`.

    Weight decay acts on weights only: pulling a threshold, a time constant or a delay to zero is never what is meant.
    """
    rates = learning_rates(conf)
    param_groups: list[dict[str, Any]] = [
        {
            "params": list(parameters),
            "lr": rates[kind],
            "weight_decay": conf.weight_decay if kind == "weights" else 0.0,
            "name": kind,
        }
        for kind, parameters in groups.items()
        if parameters
    ]
    options: dict[str, Any] = (
        {"momentum": conf.momentum, "nesterov": conf.nesterov} if conf.name == "sgd" else {"betas": tuple(conf.betas)}
    )
    with importing():  # torch's optimizers import its compiler, which takes as long as torch itself
        return OPTIMIZERS[conf.name](param_groups, fused=True, **options)  # one pass over memory, on the CPU too


def build_scheduler(conf: SchedulerConf, optimizer: torch.optim.Optimizer, max_epochs: int) -> LRScheduler | None:
    """Build the scheduler, to be stepped once after each epoch; None keeps the learning rates constant."""
    if conf.name == "cosine":
        return CosineAnnealingLR(optimizer, T_max=conf.t_max or max(max_epochs, 1), eta_min=conf.lr_min)
    if conf.name == "step":
        return StepLR(optimizer, step_size=conf.step_size, gamma=conf.factor)
    return None
