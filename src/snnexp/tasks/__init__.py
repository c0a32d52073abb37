"""What one command can do; each task is a module of this package with a function of its own name."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from snnexp.config import Config
    from snnexp.search.trial import Outcome


def run_task(conf: Config, cfg: DictConfig) -> float | Outcome | None:
    """Run the task that `task=` names; returns what a sweeper would maximise, or what a search's trial tells."""
    from snnexp.tasks.environment import absolute_paths
    from snnexp.tasks.out_of_memory import memory_errors_in_words

    absolute_paths(conf, cfg)
    module = import_module(f"snnexp.tasks.{conf.task}")
    with memory_errors_in_words(conf):
        result = getattr(module, conf.task)(conf, cfg)
    return result if isinstance(result, float) or conf.task == "train" else None
