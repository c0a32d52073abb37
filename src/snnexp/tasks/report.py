"""task=report: test accuracy over seeds, grouped by what varies between the experiment's runs."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from snnexp.errors import ConfigError
from snnexp.tracking.identity import is_bookkeeping
from snnexp.tracking.links import ui_command, without_password

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from snnexp.config import Config

# The groups' own words explain most differences: `neuron` stands for all the keys that a preset sets.
GROUPS = ("dataset", "neuron", "encoder", "decoder", "model", "optimizer", "scheduler", "trainer")

DATA = "data"  # the column that tells runs on different data apart


@dataclass(frozen=True)
class Result:
    """One finished run."""

    run_id: str
    params: Mapping[str, str]
    test: float | None
    val: float | None  # the best epoch's
    data: str = ""  # fingerprint of its data; empty: made by a version that had none


@dataclass
class Group:
    """Runs that differ in nothing but the seed."""

    values: dict[str, str]  # what tells it from the other groups
    runs: dict[str, Result] = field(default_factory=dict)  # seed -> its newest run


def report(conf: Config, cfg: DictConfig) -> None:
    """Print mean, standard deviation, n and run ids of every setting in tracking.experiment.

    Raises: ConfigError if there is no store or no finished run; TrackingError if the store cannot be reached.
    """
    from snnexp.tasks.environment import environment
    from snnexp.tracking.address import resolve_experiment, resolve_uri
    from snnexp.tracking.mlflow_store import connect
    from snnexp.tracking.queries import best_value, search_all
    from snnexp.tracking.sweep import ROLE_TAG
    from snnexp.tracking.unsent import send_unsent

    if conf.tracking.name == "off":
        raise ConfigError("task=report reads the MLflow store: leave out tracking=off.")
    uri = resolve_uri(conf.tracking.uri, environment(cfg).start_dir)
    name = resolve_experiment(conf.tracking.experiment)
    store = connect(uri, name, create=False)
    if store is not None:
        send_unsent(Path(conf.state_dir), store)
    found = [] if store is None else [run for run in search_all(store) if ROLE_TAG not in run.data.tags]
    results = [
        Result(
            run.info.run_id,
            run.data.params,
            run.data.metrics.get("test/accuracy"),
            best_value(store, run, "val/accuracy"),
            run.data.tags.get("data_fingerprint", ""),
        )
        for run in found
        if store is not None and run.info.status == "FINISHED"
    ]
    if not results:
        raise ConfigError(
            f"task=report: no finished run of tracking.experiment={name} in "
            f"{without_password(uri)}. Train first, or set tracking.uri and tracking.experiment to where the runs are."
        )
    unfinished = len(found) - len(results)
    show(name, group_runs(results), unfinished, ui_command(uri))


def group_runs(results: Sequence[Result]) -> list[Group]:
    """Group runs by everything but the seed; results come newest first, and of a repeated seed the newest counts.

    The data are a part of everything: the same words on a partial download, or on other files, are another experiment.
    Of the keys that vary only those are shown that tell groups apart: one that follows from those shown before it
    (`neuron.threshold` from `neuron`, say) adds nothing.
    """
    results = [replace(result, params={**result.params, DATA: result.data or "unknown"}) for result in results]
    keys = {key for result in results for key in result.params if key != "seed" and not is_bookkeeping(key)}
    varying = [key for key in keys if len({result.params.get(key) for result in results}) > 1]
    # the data last, so that they are shown only where nothing else tells them apart
    varying.sort(key=lambda key: (GROUPS.index(key) if key in GROUPS else len(GROUPS), key == DATA, key))
    shown: list[str] = []
    for key in varying:
        before = {tuple(r.params.get(k) for k in shown) for r in results}
        after = {tuple(r.params.get(k) for k in (*shown, key)) for r in results}
        if len(after) > len(before):
            shown.append(key)
    groups: dict[tuple[str, ...], Group] = {}
    for result in results:
        values = tuple(result.params.get(key, "-") for key in shown)
        group = groups.setdefault(values, Group(dict(zip(shown, values, strict=True))))
        group.runs.setdefault(result.params.get("seed", "-"), result)
    return sorted(groups.values(), key=lambda group: -(_mean(_tests(group)) or 0.0))


def mean_and_sd(values: Sequence[float]) -> str:
    """Mean ± sample standard deviation (n - 1); no deviation for a single value, a dash for none."""
    if not values:
        return "-"
    mean = f"{statistics.fmean(values):.4f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.4f}"


def rows(groups: Sequence[Group]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the table."""
    shown = list(groups[0].values)
    header = [*shown, "n", "test/accuracy", "best val/accuracy", "seeds", "run ids"]
    cells = []
    for group in groups:
        seeds = sorted(group.runs, key=lambda seed: (len(seed), seed))
        vals = [result.val for result in group.runs.values() if result.val is not None]
        ids = " ".join(group.runs[seed].run_id[:8] for seed in seeds)
        numbers = [str(len(_tests(group))), mean_and_sd(_tests(group)), mean_and_sd(vals)]
        cells.append([*group.values.values(), *numbers, ",".join(seeds), ids])
    return header, cells


def show(experiment: str, groups: Sequence[Group], unfinished: int, command: str | None) -> None:
    """Print the table: drawn on a terminal, tab-separated elsewhere, so that other programs can read it."""
    header, cells = rows(groups)
    if DATA in header:
        print(
            "The same configuration was run on different data (column data: the fingerprint of what the splits held). "
            "These are different experiments, so their means are kept apart.",
            file=sys.stderr,
        )
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
        if unfinished:
            print(f"{unfinished} runs that are not finished are left out.")
        if command:
            print(f"Charts: {command}")
        return
    for row in [header, *cells]:
        print("\t".join(row))
    if unfinished:
        print(f"{unfinished} runs that are not finished are left out.", file=sys.stderr)


def _tests(group: Group) -> list[float]:
    return [result.test for result in group.runs.values() if result.test is not None]


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None
