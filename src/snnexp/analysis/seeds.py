"""Runs that differ in nothing but the seed: grouped, averaged, and told apart from those that only look alike."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from snnexp.tracking.identity import is_bookkeeping
from snnexp.tracking.local import with_group_names

# The groups' own words explain most differences: `neuron` stands for all the keys that a preset sets.
GROUPS = ("dataset", "neuron", "rescue", "encoder", "decoder", "model", "optimizer", "scheduler", "trainer")

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
    synops: float | None = None  # of the test pass, per sample


@dataclass
class Group:
    """Runs that differ in nothing but the seed."""

    values: dict[str, str]  # what tells it from the other groups
    runs: dict[str, Result] = field(default_factory=dict)  # seed -> its newest run


def as_result(run: Any, best: float | None) -> Result:
    """A finished run of the store; best: its best validation accuracy."""
    metrics = run.data.metrics
    numbers = metrics.get("test/accuracy"), best, metrics.get("test/synops")
    return make_result(run.info.run_id, run.data.params, run.data.tags, *numbers)


def make_result(
    run_id: str,
    params: Mapping[str, str],
    tags: Mapping[str, str],
    test: float | None,
    val: float | None,
    synops: float | None = None,
) -> Result:
    """A finished run from its record."""
    code = tags.get("git.commit", "") + (" with changes" if tags.get("git.dirty") == "true" else "")
    return Result(run_id, with_group_names(params), test, val, tags.get("data_fingerprint", ""), code, synops)


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


def _tests(group: Group) -> list[float]:
    return [result.test for result in group.runs.values() if result.test is not None]


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None
