"""What a search is asked for: `hydra.sweeper.*`, checked before anything is made. Optuna is not imported here."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from typing import Any

from omegaconf import OmegaConf

from snnexp.errors import ConfigError, unknown_choice
from snnexp.schema.fields import choice, number
from snnexp.tracking.address import resolve_uri, sqlite_path

TARGET = "hydra_plugins.snnexp_optuna.OptunaSearch"
DEFAULT_TRIALS = 20
# What does not make it another search: how long, how many at once, where it is kept, and which trial a job is.
FREE = {"_target_", "n_trials", "n_jobs", "storage", "params", "study", "trial"}
AT_THE_END = ("val/synops", "val/macs", "val/activation_sparsity")  # measured once, with the best weights
KNOWN = ("val/accuracy", "val/loss", "val/dead_neurons", *AT_THE_END)
SMALLER_IS_BETTER = re.compile(
    r"loss|dead|silent|saturated|firing_rate|synops|macs|seconds|energy|(?<!_per)_s$|^time/(?!.*_per_s$)"
)


@dataclass
class SearchConf:
    """The group `hydra/sweeper=optuna`."""

    _target_: str = TARGET
    # auto: tpe for one objective, nsga2 for several
    sampler: str = choice("auto", "auto", "tpe", "cmaes", "grid", "random", "nsga2")
    n_trials: int | None = number(
        None, low=1
    )  # in all, those of earlier attempts included; null: 20, grid: all there are
    n_jobs: int | None = number(
        None, low=1
    )  # trials that are asked for and launched together; null: what the launcher runs
    objectives: list[str] = field(default_factory=lambda: ["val/accuracy"])
    directions: list[str] | None = None  # maximize or minimize, for each objective; null: by its name
    pruner: str = choice("none", "none", "median", "hyperband")
    seed: int = number(0, low=0)  # of the sampler
    storage: str | None = None  # null: sqlite:///optuna.db beside mlflow.db
    sampler_kwargs: dict[str, Any] = field(default_factory=dict)  # of Optuna's class
    pruner_kwargs: dict[str, Any] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)  # what is searched, in a file: KEY: interval(...)
    study: str | None = None  # set for a job, not by you: its study
    trial: int | None = None  # and its trial


def search_of(config: Any) -> SearchConf | None:
    """The search that a composed configuration (with its hydra node) asks for; None for any other sweeper."""
    node = OmegaConf.select(config, "hydra.sweeper")
    return from_node(node) if OmegaConf.is_dict(node) else None


def from_node(node: Any) -> SearchConf | None:
    """The same from `hydra.sweeper` itself."""
    if node.get("_target_") != TARGET:
        return None
    values: Any = OmegaConf.to_container(node, resolve=True)
    return SearchConf(**values)


def check(conf: SearchConf, task: str) -> None:
    """Raises: ConfigError for everything about the settings that cannot work, whatever is searched."""
    if task != "train":
        raise ConfigError(f"hydra/sweeper=optuna searches with task=train, not with task={task}.")
    missing = [name for name in ("optuna", "cmaes") if find_spec(name) is None]
    if "optuna" in missing or (missing and conf.sampler == "cmaes"):
        raise ConfigError(f"hydra/sweeper=optuna needs the package {missing[0]}: pip install 'snnexp[hpo]'")
    for f in fields(conf):
        value, about = getattr(conf, f.name), f.metadata
        if "choices" in about and value not in about["choices"]:
            raise ConfigError(unknown_choice(f"hydra.sweeper.{f.name}", value, about["choices"]))
        if about.get("low") is not None and value is not None and value < about["low"]:
            raise ConfigError(f"hydra.sweeper.{f.name}={value}: must be {about['low']} or more.")
    _check_objectives(conf)


def _check_objectives(conf: SearchConf) -> None:
    key = "hydra.sweeper.objectives"
    if not conf.objectives or len(set(conf.objectives)) < len(conf.objectives):
        raise ConfigError(f"{key}={conf.objectives}: name one metric or more, each once.")
    for name in conf.objectives:
        kind = name.partition("/")[0]
        if kind in ("test", "test_curve"):
            instead = name.replace(kind, "val", 1)
            raise ConfigError(
                f"{key}: {name}: a search must not look at the test split: what it selects on is no test any more. "
                f"Use {instead if instead in KNOWN else 'val/accuracy'}; the test split is run once for each trial."
            )
        if kind == "epochs_to":
            raise ConfigError(f"{key}: {name}: has no value where it is not reached. Use val/accuracy.")
        if "/" not in name:
            close = difflib.get_close_matches(f"val/{name}", KNOWN, n=1, cutoff=0.5)
            raise ConfigError(
                f"{key}: {name}: is no metric.{f' Did you mean {close[0]}?' if close else ''} For example: "
                f"{', '.join(KNOWN)}."
            )
    if conf.directions is not None:
        if len(conf.directions) != len(conf.objectives):
            raise ConfigError(
                f"hydra.sweeper.directions={conf.directions}: one is needed for each of {', '.join(conf.objectives)}."
            )
        for word in conf.directions:
            if word not in ("maximize", "minimize"):
                raise ConfigError(unknown_choice("hydra.sweeper.directions", word, ("maximize", "minimize")))
    if len(conf.objectives) > 1 and conf.sampler == "cmaes":
        raise ConfigError("hydra.sweeper.sampler=cmaes: has one objective. For several: nsga2, tpe, random or grid.")
    if conf.pruner != "none":
        if len(conf.objectives) > 1:
            raise ConfigError(f"hydra.sweeper.pruner={conf.pruner}: works with one objective. Use pruner=none.")
        if conf.objectives[0] in AT_THE_END:
            raise ConfigError(
                f"hydra.sweeper.pruner={conf.pruner}: {conf.objectives[0]} is measured at the end of a run: there is "
                "nothing to prune by. Use pruner=none."
            )


def directions(conf: SearchConf) -> list[str]:
    """maximize or minimize, for each objective."""
    if conf.directions is not None:
        return list(conf.directions)
    return ["minimize" if SMALLER_IS_BETTER.search(name) else "maximize" for name in conf.objectives]


def sampler_name(conf: SearchConf) -> str:
    """The sampler with `auto` made definite."""
    if conf.sampler != "auto":
        return conf.sampler
    return "tpe" if len(conf.objectives) == 1 else "nsga2"


def search_identity(conf: SearchConf) -> dict[str, Any]:
    """What makes it this search and no other, beside the overrides: for the sweep's id."""
    values = {f.name: getattr(conf, f.name) for f in fields(conf) if f.name not in FREE}
    return values | {"sampler": sampler_name(conf), "directions": directions(conf)}


def resolve_storage(conf: SearchConf, tracking: Any, start_dir: str) -> str:
    """Where the study is kept: an address, masked, SQLite paths absolute; by default beside a local mlflow.db."""
    if conf.storage is not None:
        return resolve_uri(conf.storage, start_dir)
    store = None if tracking.name == "off" else sqlite_path(resolve_uri(tracking.uri, start_dir))
    return resolve_uri("sqlite:///optuna.db", start_dir if store is None else store.parent)
