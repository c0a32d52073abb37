"""task=report: test accuracy over seeds, grouped by what varies between the experiment's runs."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import OmegaConf

from snnexp.analysis.comparison import also_differs, paired
from snnexp.analysis.seeds import (
    DATA,
    GROUPS,
    Group,
    Result,
    as_result,
    doubts,
    group_runs,
    make_result,
    mean_and_sd,
    rows,
)
from snnexp.any_run import is_chosen_for_any_run
from snnexp.errors import ConfigError
from snnexp.tracking.identity import is_bookkeeping
from snnexp.tracking.links import ui_command, without_password
from snnexp.tracking.local import flatten, with_group_names

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from snnexp.config import Config
    from snnexp.tracking.mlflow_store import Store

__all__ = ["Result", "group_runs", "mean_and_sd", "report", "rows"]


def report(conf: Config, cfg: DictConfig) -> None:
    """Print mean, standard deviation, n and run ids of every setting in tracking.experiment.

    Groups and keys that are given (dataset=digits) choose among the runs. With tracking=off the runs' own folders are
    read instead of the store.

    Raises: ConfigError if there is no store or no finished run; TrackingError if the store cannot be reached.
    """
    from snnexp.tasks.environment import environment
    from snnexp.tracking.address import resolve_experiment, resolve_uri
    from snnexp.tracking.healing import heal_all
    from snnexp.tracking.mlflow_store import connect
    from snnexp.tracking.unsent import send_unsent

    env = environment(cfg)
    wanted = filters(cfg, env.overrides)
    if conf.tracking.name == "off":
        results, others = from_folders(Path(conf.state_dir))
        name, where, command = conf.state_dir, conf.state_dir, None
        way_out = "Train first, or set state_dir to where the runs are."
    else:
        uri = resolve_uri(conf.tracking.uri, env.start_dir)
        name = resolve_experiment(conf.tracking.experiment)
        store = connect(uri, name, create=False)
        if store is not None:
            send_unsent(Path(conf.state_dir), store)
            heal_all(store)
        results, others = ([], []) if store is None else from_store(store)
        where, command = f"tracking.experiment={name} in {without_password(uri)}", ui_command(uri)
        way_out = "Train first, or set tracking.uri and tracking.experiment to where the runs are."
    chosen = [result for result in results if matches(result.params, wanted)]
    if not chosen and results and wanted:
        asked = " and ".join(f"{key}={value}" for key, value in wanted.items())
        raise ConfigError(f"task=report: no finished run in {where} has {asked}. {_there_are(results, wanted)}")
    if not chosen:
        raise ConfigError(f"task=report: no finished run of {where}. {way_out}")
    unfinished = sum(matches(params, wanted) for params in others)
    groups = group_runs(chosen)
    show(name, groups, unfinished, command)
    _draw_pareto(groups)


def _draw_pareto(groups: Sequence[Group]) -> None:
    """Accuracy against synaptic operations, beside the command's log, if there is anything to compare."""
    from hydra.core.hydra_config import HydraConfig

    from snnexp.analysis.pareto import draw_pareto, points_of

    points = points_of(groups)
    if len(points) < 2 or not HydraConfig.initialized():
        return
    seeds = sorted({len(point.accuracy) for point in points})
    number = "-".join(map(str, dict.fromkeys((seeds[0], seeds[-1]))))
    title = f"{len(points)} settings, {number} seed{'s' * (seeds[-1] > 1)} each"
    written = draw_pareto(Path(HydraConfig.get().runtime.output_dir) / "pareto", points, title)
    print(f"accuracy against synaptic operations: {written[0]}", file=sys.stderr)


def filters(cfg: DictConfig, overrides: Sequence[str]) -> dict[str, str]:
    """What was typed beside task=report, as parameters that a run must have: `dataset=nmnist`, `neuron.beta=0.9`."""
    wanted: dict[str, str] = {}
    for override in overrides:
        key = override.partition("=")[0].lstrip("+~")
        if is_bookkeeping(key) or is_chosen_for_any_run(override):
            continue
        if key == "experiment":
            raise ConfigError(f"{override}: task=report filters by groups and keys, such as dataset=digits seed=0.")
        value = OmegaConf.select(cfg, f"{key}.name" if key in GROUPS else key)
        wanted |= flatten({key: OmegaConf.to_container(value) if OmegaConf.is_config(value) else value})
    return wanted


def matches(params: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    """Whether a run has all the values asked for."""
    return all(params.get(key) == value for key, value in wanted.items())


def _there_are(results: Sequence[Result], wanted: Mapping[str, str]) -> str:
    there = {key: sorted({result.params.get(key, "-") for result in results}) for key in wanted}
    return "There are: " + "; ".join(f"{key} {', '.join(values)}" for key, values in there.items()) + "."


def from_store(store: Store) -> tuple[list[Result], list[Mapping[str, str]]]:
    """Finished runs of an experiment, newest first, and the parameters of the others."""
    from snnexp.tracking.queries import ROLE_TAG, best_value, is_whole, search_all

    found = [run for run in search_all(store) if ROLE_TAG not in run.data.tags]
    finished = [run for run in found if is_whole(run)]
    results = [as_result(run, best_value(store, run, "val/accuracy")) for run in finished]
    return results, [with_group_names(run.data.params) for run in found if not is_whole(run)]


def from_folders(state_dir: Path) -> tuple[list[Result], list[Mapping[str, str]]]:
    """The same from the runs' own folders, whether or not they are in a store: tracking=off."""
    from snnexp.tracking.local import read_local
    from snnexp.tracking.metrics_log import read_history
    from snnexp.tracking.runs import read_record, run_folders

    results: list[tuple[tuple[str, str], Result]] = []
    others: list[Mapping[str, str]] = []
    for folder in run_folders(state_dir):
        record, local = read_record(folder, quiet=True), read_local(folder)
        if record is None or local is None:
            continue
        params, tags = local
        if not record.whole:
            others.append(with_group_names(params))
            continue
        history = read_history(folder / "metrics.jsonl")
        test = [value for _, value in history.get("test/accuracy", [])]
        vals = history.get("val/accuracy", [])
        trained = [v for epoch, v in vals if epoch > 0 and math.isfinite(v)] or [v for _, v in vals if math.isfinite(v)]
        name = f"{folder.parent.name}/{folder.name}"
        synops = [value for _, value in history.get("test/synops", [])]
        ends = test[-1] if test else None, max(trained, default=None), synops[-1] if synops else None
        result = make_result(name, params, tags, *ends)
        results.append(((record.created, name), result))  # the start is known to the second only
    results.sort(key=lambda pair: pair[0], reverse=True)  # newest first
    return [result for _, result in results], others


def show(experiment: str, groups: Sequence[Group], unfinished: int, command: str | None) -> None:
    """Print the table: drawn on a terminal, tab-separated elsewhere, so that other programs can read it."""
    header, cells = rows(groups)
    if DATA in header:
        print(
            "The same configuration was run on different data (column data: the fingerprint of what the splits held). "
            "These are different experiments, so their means are kept apart.",
            file=sys.stderr,
        )
    for line in doubts(groups):
        print(line, file=sys.stderr)
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        table = Table(title=f"{experiment}: test accuracy over seeds, mean ± sample sd")
        for name in header:
            numeric = name in ("n", "test/accuracy", "best val/accuracy")
            table.add_column(name, justify="right" if numeric else "left", overflow="fold")
        for row in cells:
            table.add_row(*row)
        Console(highlight=False).print(table)
        print("\n".join([*paired(groups), *also_differs(groups)]))
        if unfinished:
            print(f"{unfinished} runs that are not finished are left out.")
        if command:
            print(f"Charts: {command}")
        return
    for row in [header, *cells]:
        print("\t".join(row))
    for line in [*paired(groups), *also_differs(groups)]:
        print(line, file=sys.stderr)
    if unfinished:
        print(f"{unfinished} runs that are not finished are left out.", file=sys.stderr)
