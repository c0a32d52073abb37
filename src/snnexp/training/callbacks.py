"""A user's own code around training: `trainer.callbacks=[package.module:Class]`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from snnexp.blame import blamed
from snnexp.errors import ConfigError
from snnexp.models.network import Network
from snnexp.registry import CALLBACKS, load

MOMENTS = ("on_start", "on_epoch", "on_end")


@dataclass
class Context:
    """What a callback is given. Whatever it does to the network or the optimizer is part of the run.

    Attributes:
        epoch: the last finished epoch; 0 in `on_start` of a new run.
        max_epochs: trainer.max_epochs.
        network, optimizer: those in training.
        metrics: of this epoch, by the names of the record (`val/accuracy`, ...). In `on_epoch` a callback may add
            numbers of its own, which are logged and kept like the others.
        folder: of the run, where a callback may put files of its own.
        stop: set to True in `on_epoch`, training ends with this epoch.
    """

    epoch: int
    max_epochs: int
    network: Network
    optimizer: torch.optim.Optimizer
    folder: Path
    metrics: dict[str, float] = field(default_factory=dict)
    stop: bool = False


class Callbacks:
    """The callbacks of a run, in the order in which they are named."""

    def __init__(self, words: Sequence[str]) -> None:
        self.members = [(word, _built(word)) for word in words]

    def call(self, moment: str, context: Context) -> None:
        """Tell all of them.

        Raises: ConfigError with file and line if one fails, or if it gives a metric that is no number.
        """
        for word, member in self.members:
            method = getattr(member, moment, None)
            if method is None:
                continue
            with blamed(CALLBACKS.key, word, type(member).__module__):
                method(context)
            for name, value in context.metrics.items():
                if isinstance(value, bool) or not isinstance(value, int | float):
                    raise ConfigError(f"{CALLBACKS.key}={word}: the metric {name} is no number but {value!r}.")

    def state_dict(self) -> list[Any]:
        """The state of those that have one."""
        return [m.state_dict() if hasattr(m, "state_dict") else None for _, m in self.members]

    def load_state_dict(self, states: Sequence[Any]) -> None:
        """Take up the states of an earlier attempt."""
        for (word, member), state in zip(self.members, states, strict=True):
            if state is not None:
                with blamed(CALLBACKS.key, word, type(member).__module__):
                    member.load_state_dict(state)


def _built(word: str) -> Any:
    make = load(CALLBACKS, word)
    if not callable(make):
        raise ConfigError(f"{CALLBACKS.key}={word}: this is no class but {type(make).__name__}.")
    with blamed(CALLBACKS.key, word, make.__module__):
        member = make()
    methods: Mapping[str, Any] = {m: getattr(member, m) for m in MOMENTS if hasattr(member, m)}
    if not methods:
        raise ConfigError(f"{CALLBACKS.key}={word}: it has none of {', '.join(MOMENTS)}.")
    for moment, method in methods.items():
        try:
            inspect.signature(method).bind(None)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{CALLBACKS.key}={word}: {moment} must take one argument, context: {error}.") from error
    if hasattr(member, "state_dict") != hasattr(member, "load_state_dict"):
        raise ConfigError(f"{CALLBACKS.key}={word}: state_dict and load_state_dict go together.")
    return member
