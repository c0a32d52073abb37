"""The page of a search: how it went, what mattered, and which values went with what came out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from snnexp.analysis.drawing import (
    LAYER_COLOURS,
    TWO_COLUMNS,
    Array,
    in_style,
    legend,
    new_figure,
    nothing,
    whole_numbers,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"maximize": "viridis_r", "minimize": "viridis"}  # even to the eye, also in grey; what is good is dark
MOST_KEYS = 12
MOST_LETTERS = 24


@dataclass(frozen=True)
class Point:
    """A trial: `state` COMPLETE, PRUNED, FAIL or RUNNING; a pruned one has its last value."""

    number: int
    state: str
    values: tuple[float, ...] | None
    params: Mapping[str, Any]


@in_style
def search_figure(
    points: Sequence[Point],
    objectives: Sequence[str],
    directions: Sequence[str],
    importances: Mapping[str, Mapping[str, float]],
    logs: Collection[str],
    best: Collection[int],
) -> Figure:
    """History (two objectives: one against the other), importance, parallel coordinates.

    Args:
        importances: objective -> key -> share.
        logs: keys whose axis is logarithmic.
        best: numbers of the best trial, or of those on the Pareto front.
    """
    complete = [point for point in points if point.state == "COMPLETE" and point.values]
    pruned = sum(point.state == "PRUNED" for point in points)
    failed = sum(point.state == "FAIL" for point in points)
    title = f"{len(complete) + pruned} trials, {pruned} pruned, {failed} failed"
    figure = new_figure(3.9, title, TWO_COLUMNS)
    grid = figure.add_gridspec(2, 2, height_ratios=(1, 1.1), width_ratios=(1.25, 1))
    left, right = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])
    if len(objectives) == 1:
        _history(left, points, objectives[0], directions[0], best)
    else:
        _front(left, complete, objectives, best)
    _importance(right, importances)
    _coordinates(figure.add_subplot(grid[1, :]), complete, objectives[0], directions[0], logs, best)
    return figure


def _history(axes: Axes, points: Sequence[Point], objective: str, direction: str, best: Collection[int]) -> None:
    for state, marker in (("COMPLETE", "o"), ("PRUNED", "x")):
        there = [point for point in points if point.state == state and point.values]
        if there:
            colour = LAYER_COLOURS[0] if state == "COMPLETE" else LAYER_COLOURS[6]
            numbers, values = [p.number for p in there], [p.values[0] for p in there if p.values]
            axes.plot(numbers, values, linestyle="", color=colour, label=state.lower(), marker=marker)
    complete = [point for point in points if point.state == "COMPLETE" and point.values]
    if complete:
        run = np.maximum.accumulate if direction == "maximize" else np.minimum.accumulate
        so_far = run([point.values[0] for point in complete if point.values])
        axes.step(
            [point.number for point in complete],
            so_far,
            where="post",
            color=LAYER_COLOURS[1],
            label="best so far",
            zorder=1,
        )
    for point in complete:
        if point.number in best and point.values:
            axes.plot(
                [point.number],
                [point.values[0]],
                "*",
                markersize=6,
                color=LAYER_COLOURS[3],
                label=f"best: {point.number}",
            )
    axes.set_xlabel("trial")
    axes.set_ylabel(objective)
    axes.grid(visible=True, alpha=0.25)
    whole_numbers(axes.xaxis)
    legend(axes)


def _front(axes: Axes, complete: Sequence[Point], objectives: Sequence[str], best: Collection[int]) -> None:
    """The first objective against the second: trials, and those that no other one beats in all objectives."""
    front = sorted((p for p in complete if p.number in best), key=lambda p: p.values or ())
    for chosen, label, style in (
        ([p for p in complete if p.number not in best], "trials", {"color": LAYER_COLOURS[0], "marker": "o"}),
        (front, "Pareto front", {"color": LAYER_COLOURS[3], "marker": "*", "markersize": 5}),
    ):
        pairs = [point.values for point in chosen if point.values]
        if pairs:
            line: dict[str, Any] = {"linestyle": "-" if label != "trials" and len(objectives) == 2 else ""}
            axes.plot([v[0] for v in pairs], [v[1] for v in pairs], label=label, linewidth=0.6, **style, **line)
    axes.set_xlabel(objectives[0])
    axes.set_ylabel(objectives[1])
    axes.grid(visible=True, alpha=0.25)
    legend(axes)


def _importance(axes: Axes, importances: Mapping[str, Mapping[str, float]]) -> None:
    if not importances:
        nothing(axes, "importance: too few different trials")
        return
    mean = {
        key: sum(shares.get(key, 0.0) for shares in importances.values())
        for shares in importances.values()
        for key in shares
    }
    keys = sorted(mean, key=lambda key: mean[key])[-MOST_KEYS:]
    height = 0.8 / len(importances)
    for index, (objective, shares) in enumerate(importances.items()):
        places = np.arange(len(keys)) + 0.4 - height * (index + 0.5)
        axes.barh(places, [shares.get(key, 0.0) for key in keys], height, color=LAYER_COLOURS[index], label=objective)
    axes.set_yticks(range(len(keys)), [_short(key) for key in keys])
    axes.set_xlim(0, 1)
    axes.set_xlabel("importance (fANOVA: share of the variance)")
    if len(importances) > 1:
        legend(axes)
    else:
        axes.set_title(f"for {next(iter(importances))}")


def _short(text: str) -> str:
    return text if len(text) <= MOST_LETTERS else "..." + text[3 - MOST_LETTERS :]


def _coordinates(
    axes: Axes, complete: Sequence[Point], objective: str, direction: str, logs: Collection[str], best: Collection[int]
) -> None:
    """One line per trial through its values, each axis from its least to its greatest; the colour is the objective."""
    if not complete:
        nothing(axes, "parallel coordinates: no complete trial")
        return
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    keys = [key for key in complete[0].params if all(key in point.params for point in complete)][:MOST_KEYS]
    columns = [_scaled([point.params[key] for point in complete], key in logs) for key in keys]
    results = np.array([point.values[0] for point in complete if point.values])
    columns.append(_scaled(list(results), False))
    places = np.arange(len(columns))
    norm = Normalize(float(results.min()), float(results.max()) + (results.max() == results.min()))
    colours = colormaps[COLOURS[direction]]
    worst_first = np.argsort(results if direction == "maximize" else -results, kind="stable")
    for index in worst_first:
        is_best = complete[index].number in best
        style: dict[str, Any] = {"linewidth": 1.8, "zorder": 3} if is_best else {"linewidth": 0.7, "alpha": 0.8}
        axes.plot(places, [column[0][index] for column in columns], color=colours(norm(results[index])), **style)
    for place, (_, ticks) in zip(places, columns, strict=True):
        axes.axvline(float(place), color="#333333", linewidth=0.6, zorder=2)
        for height, text in ticks:
            last = place == places[-1]
            axes.annotate(
                text, (place, height), xytext=(-2 if last else 2, 0), textcoords="offset points", fontsize=5,
                va="center", ha="right" if last else "left", zorder=4,
                bbox={"facecolor": "white", "alpha": 0.6, "edgecolor": "none", "pad": 0.3},
            )  # fmt: skip
    axes.set_xticks(places, [*map(_short, keys), objective])
    axes.set_yticks([])
    axes.set_xlim(-0.1, places[-1] + 0.1)
    axes.spines[["left", "right", "top", "bottom"]].set_visible(False)
    axes.figure.colorbar(ScalarMappable(norm, colours), ax=axes, label=objective, pad=0.01, aspect=30)


def _scaled(values: Sequence[Any], log: bool) -> tuple[Array, list[tuple[float, str]]]:
    """Heights from 0 to 1, and what stands beside the axis; words get evenly spaced places."""
    if not all(isinstance(value, int | float) for value in values):
        names = sorted({str(value) for value in values})
        heights = np.linspace(0, 1, len(names)) if len(names) > 1 else np.array([0.5])
        place = dict(zip(names, heights, strict=True))
        return np.array([place[str(v)] for v in values]), [(float(place[name]), _short(name)) for name in names]
    numbers = np.array(values, dtype=np.float64)
    span = np.log(numbers) if log else numbers
    low, high = float(span.min()), float(span.max())
    if high == low:
        return np.full(len(numbers), 0.5), [(0.5, f"{numbers[0]:.4g}")]
    marks = np.linspace(low, high, 5)
    texts = [f"{np.exp(mark) if log else mark:.3g}" for mark in marks]
    return (span - low) / (high - low), [
        (float((m - low) / (high - low)), t) for m, t in zip(marks, texts, strict=True)
    ]
