"""The side of a job: a trial of a search tells its metric after each epoch, and what came out at the end.

Whether a run is a trial is written in Hydra's node of its configuration, so that it is known in every launcher's
worker; the run's own configuration, and so its identity, says nothing about it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from snnexp.errors import ConfigError, TrainingError, did_you_mean
from snnexp.search.conf import AT_THE_END, SearchConf, from_node, resolve_storage
from snnexp.tracking.metrics_log import History, read_history
from snnexp.tracking.runs import RunFolder

OBJECTIVES = "hydra.sweeper.objectives"  # what every ObjectiveError begins with


class ObjectiveError(ConfigError):
    """The objective is no metric of this run; the next trial would fail in the same way."""


@dataclass(frozen=True)
class Outcome:
    """What a job returns to its search. Launchers pickle it.

    values: one for each objective; None if the run was pruned.
    """

    values: tuple[float, ...] | None
    folder: str
    run_id: str | None
    threads: int  # of the run: its numbers depend on it


@dataclass(frozen=True)
class Trial:
    """One trial of a search, as its job knows it. `storage` is resolved and masked."""

    study: str
    number: int
    conf: SearchConf
    storage: str
    max_epochs: int

    @property
    def at_the_end(self) -> bool:
        """Whether an objective has to be measured with the best weights, after training."""
        return bool(set(self.conf.objectives) & set(AT_THE_END))

    def tags(self) -> dict[str, str]:
        """For the record of the run."""
        return {"search": self.study, "trial": str(self.number)}

    def prunes(self, history: Mapping[str, Sequence[tuple[int, float]]], epoch: int) -> bool:
        """Look at what was logged up to this epoch: are the objectives there, and is this trial worth going on with?

        Raises: ObjectiveError if an objective is no metric of the run.
        """
        for name in self.conf.objectives:
            if name not in history and name not in AT_THE_END and (epoch > 0 or name.startswith("val/")):
                if name.startswith("val/") and "val/accuracy" not in history:
                    raise ObjectiveError(
                        f"{OBJECTIVES}: {name}: this data set has no validation split (dataset.val_fraction)."
                    )
                known = [key for key in history if not key.startswith(("test", "time/"))]
                hint = did_you_mean(name, known)
                raise ObjectiveError(f"{OBJECTIVES}: {name} is no metric of this run.{hint}")
        if self.conf.pruner == "none" or epoch == 0:
            return False
        from snnexp.search.pruning import report_and_ask

        points = [point for point in history[self.conf.objectives[0]] if 0 < point[0] <= epoch]
        return report_and_ask(self.conf, self.storage, self.max_epochs, points)

    def outcome(self, folder: RunFolder, measured: Mapping[str, float] | None = None) -> Outcome:
        """What a finished run is worth: each objective at the epoch whose weights were kept.

        measured: what the record lacks.
        Raises: ObjectiveError if an objective was never logged; TrainingError if its value is not finite.
        """
        record = folder.record
        values = None
        if not record.pruned:
            history = read_history(folder.metrics_path)
            values = tuple(value_of(name, history, measured or {}) for name in self.conf.objectives)
        return Outcome(values, str(folder.path), record.mlflow_run_id, record.threads)

    def lacks(self, folder: RunFolder) -> bool:
        """Whether a finished run was never measured as this search needs it: it was no trial of one like it."""
        return (
            not folder.record.pruned
            and self.at_the_end
            and not set(read_history(folder.metrics_path)) >= (set(self.conf.objectives) & set(AT_THE_END))
        )


def value_of(name: str, history: History, measured: Mapping[str, float]) -> float:
    """The metric at the best epoch; one that is not logged there, its last.

    Raises: ObjectiveError if it is missing; TrainingError if it is no finite number, which the next trial's may be.
    """
    points = dict(history.get(name, ()))
    if not points and name not in measured:
        raise ObjectiveError(f"{OBJECTIVES}: {name} has no value at the end of this run.")
    best = history.get("best/epoch")
    epoch = int(best[-1][1]) if best else -1
    last = list(points.values())[-1] if points else math.nan
    value = points.get(epoch, measured.get(name, last))
    if not math.isfinite(value):
        raise TrainingError(f"{name} is {value} in this trial: no value to choose by.")
    return float(value)


def current_trial(start_dir: str, cfg: Any) -> Trial | None:
    """The trial that the current Hydra job is, or None."""
    from hydra.core.hydra_config import HydraConfig

    conf = from_node(HydraConfig.get().sweeper)
    if conf is None or conf.trial is None or conf.study is None:
        return None
    storage = resolve_storage(conf, cfg.tracking, start_dir)
    return Trial(conf.study, conf.trial, conf, storage, int(cfg.trainer.max_epochs))
