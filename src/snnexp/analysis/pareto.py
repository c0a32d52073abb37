"""Accuracy against synaptic operations over a sweep, and the settings that no other one beats in both."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from snnexp.analysis.drawing import LAYER_COLOURS, in_style, new_figure, save_figure
from snnexp.analysis.seeds import Group

MOST_NAMES = 12  # in a figure of a column's width


@dataclass(frozen=True)
class Point:
    """One setting: its name, and of each of its seeds synaptic operations per sample and accuracy."""

    name: str
    synops: tuple[float, ...]
    accuracy: tuple[float, ...]

    @property
    def at(self) -> tuple[float, float]:
        """Both means."""
        return statistics.fmean(self.synops), statistics.fmean(self.accuracy)


def points_of(groups: Sequence[Group]) -> list[Point]:
    """The settings whose runs have both numbers."""
    points = []
    for group in groups:
        runs = [run for run in group.runs.values() if run.synops is not None and run.test is not None]
        if runs:
            values = [f"{key.rpartition('.')[2]} {value.removesuffix('.0')}" for key, value in group.values.items()]
            name = ", ".join(values) or "all runs"
            points.append(Point(name, tuple(r.synops or 0.0 for r in runs), tuple(r.test or 0.0 for r in runs)))
    return points


def front(points: Sequence[Point]) -> list[Point]:
    """Those that no other one equals or beats in both means and beats in one, the cheapest first."""

    def beaten(point: Point) -> bool:
        cost, accuracy = point.at
        return any(o.at != point.at and o.at[0] <= cost and o.at[1] >= accuracy for o in points)

    return sorted((point for point in points if not beaten(point)), key=lambda point: point.at)


@in_style
def draw_pareto(stem: Path, points: Sequence[Point], title: str = "") -> list[Path]:
    """Write <stem>.png and .pdf: means and standard deviations over seeds; the front is a line, its points filled."""
    figure = new_figure(2.6, title)
    axes = figure.add_subplot()
    best = front(points)
    axes.plot(*zip(*(p.at for p in best), strict=True), color="#999999", zorder=1, drawstyle="steps-post")
    for number, point in enumerate(points):
        colour = LAYER_COLOURS[number % len(LAYER_COLOURS)]
        spread = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in (point.synops, point.accuracy)]
        axes.errorbar(
            *point.at,
            xerr=spread[0],
            yerr=spread[1],
            color=colour,
            marker="o" if number < len(LAYER_COLOURS) else "s",
            markersize=3.5,
            markerfacecolor=colour if point in best else "white",
            elinewidth=0.6,
            linestyle="",
            label=point.name if len(points) <= MOST_NAMES or point in best else None,
        )
    axes.set_xlabel("synaptic operations per sample")
    axes.set_ylabel("test accuracy")
    if all(point.at[0] > 0 for point in points) and max(p.at[0] for p in points) > 10 * min(p.at[0] for p in points):
        axes.set_xscale("log")
    else:
        axes.locator_params(axis="x", nbins=5)  # numbers of six digits are wide
    axes.grid(visible=True, alpha=0.25)
    axes.legend(framealpha=0.7, ncols=1 + (len(points) > 5), loc="best")
    return save_figure(figure, stem)
