"""task=report: test accuracy over seeds, grouped by what varies between the experiment's runs."""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from snnexp.any_run import is_chosen_for_any_run
from snnexp.errors import ConfigError
from snnexp.tasks.comparison import also_differs, paired
from snnexp.tracking.identity import is_bookkeeping
from snnexp.tracking.links import ui_command, without_password
from snnexp.tracking.local import flatten

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from snnexp.config import Config
    from snnexp.tracking.mlflow_store import Store

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
    code: str = ""  # commit, and whether its files had been changed; empty: not from a checkout


@dataclass
class Group:
    """Runs that differ in nothing but the seed."""

    values: dict[str, str]  # what tells it from the other groups
    runs: dict[str, Result] = field(default_factory=dict)  # seed -> its newest run


def report(conf: Config, cfg: DictConfig) -> None:
    """Print mean, standard deviation, n and run ids of every setting in tracking.experiment.

    Groups and keys that are given (dataset=digits) choose among the runs. With tracking=off the runs' own folders are
    read instead of the store.

    Raises: ConfigError if there is no store or no finished run; TrackingError if the store cannot be reached.
    """
    from snnexp.tasks.environment import environment
    from snnexp.tracking.address import resolve_experiment, resolve_uri
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
    show(name, group_runs(chosen), unfinished, command)


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
    from snnexp.tracking.queries import best_value, search_all
    from snnexp.tracking.sweep import ROLE_TAG

    found = [run for run in search_all(store) if ROLE_TAG not in run.data.tags]
    finished = [run for run in found if run.info.status == "FINISHED"]
    results = [as_result(run, best_value(store, run, "val/accuracy")) for run in finished]
    return results, [run.data.params for run in found if run.info.status != "FINISHED"]


def from_folders(state_dir: Path) -> tuple[list[Result], list[Mapping[str, str]]]:
    """The same from the runs' own folders, whether or not they are in a store: tracking=off."""
    from snnexp.tracking.local import read_local
    from snnexp.tracking.metrics_log import read_history
    from snnexp.tracking.runs import read_record, run_folders

    results: list[tuple[str, Result]] = []
    others: list[Mapping[str, str]] = []
    for folder in run_folders(state_dir):
        record, local = read_record(folder, quiet=True), read_local(folder)
        if record is None or local is None:
            continue
        params, tags = local
        if record.status != "FINISHED":
            others.append(params)
            continue
        history = read_history(folder / "metrics.jsonl")
        test = [value for _, value in history.get("test/accuracy", [])]
        vals = history.get("val/accuracy", [])
        trained = [v for epoch, v in vals if epoch > 0 and math.isfinite(v)] or [v for _, v in vals if math.isfinite(v)]
        name = f"{folder.parent.name}/{folder.name}"
        result = _result(name, params, tags, test[-1] if test else None, max(trained, default=None))
        results.append((record.created, result))
    results.sort(key=lambda pair: pair[0], reverse=True)  # newest first
    return [result for _, result in results], others


def as_result(run: Any, best: float | None) -> Result:
    """A finished run of the store; best: its best validation accuracy."""
    return _result(run.info.run_id, run.data.params, run.data.tags, run.data.metrics.get("test/accuracy"), best)


def _result(
    run_id: str, params: Mapping[str, str], tags: Mapping[str, str], test: float | None, val: float | None
) -> Result:
    code = tags.get("git.commit", "") + (" with changes" if tags.get("git.dirty") == "true" else "")
    return Result(run_id, params, test, val, tags.get("data_fingerprint", ""), code)


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
        ids = " ".join(_short(group.runs[seed].run_id) for seed in seeds)
        numbers = [str(len(_tests(group))), mean_and_sd(_tests(group)), mean_and_sd(vals)]
        cells.append([*group.values.values(), *numbers, ",".join(seeds), ids])
    return header, cells


def _short(run_id: str) -> str:
    """The beginning of an MLflow id is enough; a folder is named in full."""
    return run_id if "/" in run_id else run_id[:8]


def doubts(groups: Sequence[Group]) -> list[str]:
    """What a reader must know before trusting a mean: runs made by different code."""
    lines = []
    for group in groups:
        codes = sorted({result.code for result in group.runs.values()})
        setting = ", ".join(f"{key}={value}" for key, value in group.values.items())
        where = f" ({setting})" if setting else ""
        if len(codes) > 1:
            named = ", ".join(_code(code) for code in codes)
            lines.append(f"The runs of one mean{where} were made by different code: {named}.")
    return lines


def _code(code: str) -> str:
    commit, _, changes = code.partition(" ")
    return f"{commit[:10]} {changes}".strip() if code else "an unknown commit"


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


def _tests(group: Group) -> list[float]:
    return [result.test for result in group.runs.values() if result.test is not None]


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None
