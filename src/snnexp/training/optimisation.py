"""Optimizer and scheduler from the configuration, with learning rates for weights, thresholds, decays and delays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from snnexp.collector import importing
from snnexp.config import OptimizerConf, SchedulerConf
from snnexp.errors import ConfigError
from snnexp.registry import OPTIMIZERS, SCHEDULERS, Kind, load


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
    Raises: ConfigError if the optimizer does not take what it is given.
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
    options: dict[str, Any] = {}
    if conf.name == "sgd":
        options = {"momentum": conf.momentum, "nesterov": conf.nesterov}
    elif conf.name in ("adam", "adamw"):
        options = {"betas": tuple(conf.betas)}
    else:
        options = {"lr": conf.lr}
    if conf.name in ("adam", "adamw", "sgd"):
        options["fused"] = True  # one pass over memory, on the CPU too
    with importing():  # torch's optimizers import its compiler, which takes as long as torch (`without_compiler`)
        made = _made(OPTIMIZERS, conf.name, "optimizer.kwargs", param_groups, **options, **_tuples(conf.kwargs))
    if not isinstance(made, torch.optim.Optimizer):
        raise ConfigError(f"optimizer={conf.name}: this makes no torch.optim.Optimizer but {type(made).__name__}.")
    if conf.weight_decay and "weight_decay" not in made.defaults:
        raise ConfigError(f"optimizer.weight_decay={conf.weight_decay}: optimizer={conf.name} has no weight decay.")
    if conf.name in ("adam", "adamw"):
        _go_by_memory(made)
    return made


def build_scheduler(conf: SchedulerConf, optimizer: torch.optim.Optimizer, max_epochs: int) -> LRScheduler | None:
    """Build the scheduler, to be stepped once after each epoch; None keeps the learning rates constant."""
    options = _tuples(conf.kwargs)
    if conf.name == "cosine":
        options = {"T_max": conf.t_max or max(max_epochs, 1), "eta_min": conf.lr_min}
    elif conf.name == "step":
        options = {"step_size": conf.step_size, "gamma": conf.factor}
    made = _made(SCHEDULERS, conf.name, "scheduler.kwargs", optimizer, **options)
    if made is not None and not isinstance(made, LRScheduler):
        raise ConfigError(f"scheduler={conf.name}: this makes no LRScheduler but {type(made).__name__}.")
    return made


def constant(optimizer: torch.optim.Optimizer) -> None:
    """No scheduler."""


def advance(scheduler: LRScheduler | None, loss: float) -> None:
    """Go on by one epoch; `loss` is that of validation, which ReduceLROnPlateau looks at."""
    if isinstance(scheduler, ReduceLROnPlateau):
        scheduler.step(loss)
    elif scheduler is not None:
        scheduler.step()


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Take up the state of an earlier attempt."""
    optimizer.load_state_dict(state)
    _lay_out(optimizer)


def _lay_out(optimizer: torch.optim.Optimizer) -> None:
    """Give moments the memory layout of their parameters: fused optimizers go by memory and do not look at strides.

    A checkpoint may come from a version that stored a layer's weights row by row.
    """
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                state[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _go_by_memory(optimizer: torch.optim.Optimizer) -> None:
    """Spare fused Adam a copy of each gradient that lies column by column in memory.

    On the CPU it goes by memory, whatever the strides, but first makes a contiguous copy that it never reads (torch
    2.13: `grad_contiguous` in FusedAdamKernel.cpp), which takes longer than its work. So for the step such a gradient
    is named with the strides of its shape. Adam's moments are made from the parameter, and stay as they are.
    """
    renamed: list[tuple[nn.Parameter, torch.Tensor]] = []

    def rename(of: torch.optim.Optimizer, *_: Any) -> None:
        restore()  # of a step that was cut off
        for parameter in (p for group in of.param_groups if group.get("fused") for p in group["params"]):
            grad = parameter.grad
            if grad is None or grad.device.type != "cpu" or grad.dim() != 2 or grad.is_contiguous():
                continue
            if grad.stride() == parameter.stride() and grad.t().is_contiguous():
                renamed.append((parameter, grad))
                parameter.grad = grad.t().view(grad.shape)

    def restore(*_: Any) -> None:
        for parameter, grad in renamed:
            parameter.grad = grad
        renamed.clear()

    optimizer.register_step_pre_hook(rename)
    optimizer.register_step_post_hook(restore)


def _made(kind: Kind, word: str, key: str, *given: Any, **options: Any) -> Any:
    """What a class or function of torch's or the user's makes. Raises: ConfigError if it does not take the options."""
    make = load(kind, word)
    group = kind.key.removesuffix(".name")
    if not callable(make):
        raise ConfigError(f"{group}={word}: this is neither a class nor a function but {type(make).__name__}.")
    try:
        return make(*given, **options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{group}={word} with {key}: {error}.") from error


def _tuples(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """YAML has lists where torch wants pairs; lists of more are what they are."""
    return {
        key: tuple(value) if isinstance(value, list) and len(value) == 2 else value for key, value in kwargs.items()
    }
