"""Figures of docs/dead-neurons.md, from results/*.json."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING

from snnexp.analysis.drawing import (
    LAYER_COLOURS,
    TWO_COLUMNS,
    epoch_axis,
    in_style,
    new_figure,
    save_figure,
)
from snnexp.claims.bench_runs import EPOCHS, Cells, curve, read_bench, read_rouser, share
from snnexp.claims.judge import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKS = "osD^vP*Xh"


@in_style
def draw_bench(stem: Path, folder: Path) -> list[Path]:
    """For each data set and depth that has runs: accuracy by cure, and dead neurons at three epochs."""
    cells, arms = read_bench(folder)
    shown = [cell for cell in cells if cell[1] > 1]
    if not shown:
        return []
    data = list(dict.fromkeys(name for name, _ in shown))
    depths = sorted({depth for _, depth in shown})
    seeds = max(len({run.seed for run in cells[cell]}) for cell in shown)
    title = f"deep networks that start silent: accuracy and dead neurons by cure, {seeds} seed" + "s" * (seeds > 1)
    figure = new_figure(0.6 + 3.4 * len(data), title, TWO_COLUMNS if len(depths) > 1 else 3.3)
    axes = figure.subplots(2 * len(data), len(depths), squeeze=False)  # two rows of panels for each data set
    for at, name in enumerate(data):
        for column, depth in enumerate(depths):
            accuracy, dead = axes[2 * at][column], axes[2 * at + 1][column]
            if (name, depth) in cells:
                _accuracy_panel(accuracy, cells, (name, depth), arms)
                _dead_panel(dead, cells[name, depth], arms)
            else:
                accuracy.set_visible(False)
                dead.set_visible(False)
        axes[2 * at][0].set_ylabel("test accuracy")
        axes[2 * at + 1][0].set_ylabel("dead, hidden layers")
    handles, labels = axes[1][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3 if len(depths) == 1 else 5, frameon=False)
    stem.parent.mkdir(exist_ok=True)
    return save_figure(figure, stem)


def _accuracy_panel(axes: Axes, cells: Cells, cell: tuple[str, int], arms: list[str]) -> None:
    """Each seed a dot, in the order of the arms; the healthy network as a line."""
    healthy = [run.metrics["test/accuracy"] for run in cells.get((cell[0], 1), [])]
    if healthy:
        axes.axhline(statistics.fmean(healthy), color="#999999", linewidth=0.8, linestyle="--")
    for position, arm in enumerate(arms):
        values = [run.metrics["test/accuracy"] for run in cells[cell] if run.arm == arm]
        axes.plot([position] * len(values), values, linestyle="", marker="o", color=_colour(position), alpha=0.8)
    axes.set_title(f"{cell[0]}, {cell[1]} layers")
    axes.set_ylim(0, 1)
    axes.set_xticks(range(len(arms)), arms, rotation=90, fontsize=5)
    axes.grid(visible=True, axis="y", alpha=0.25)


def _dead_panel(axes: Axes, runs: list[Run], arms: list[str]) -> None:
    for position, arm in enumerate(arms):
        chosen = [run for run in runs if run.arm == arm]
        points = []
        for epoch in EPOCHS:
            values = [value for run in chosen if (value := share(run, "dead_fraction", epoch)) is not None]
            points += [(epoch, statistics.fmean(values))] if values else []
        if points:
            axes.plot(*zip(*points, strict=True), color=_colour(position), marker=MARKS[position % 9], label=arm)
    axes.set_ylim(-0.03, 1.03)
    epoch_axis(axes, "")


def _colour(position: int) -> str:
    return "#000000" if position == 0 else LAYER_COLOURS[(position - 1) % len(LAYER_COLOURS)]


@in_style
def draw_rouser(stem: Path, folder: Path) -> list[Path]:
    """Dead neurons of the output layer and accuracy for each trial on Rouser's dying network."""
    known, runs = read_rouser(folder)
    if not runs:
        return []
    arms = [arm for arm in known if any(run.arm == arm for run in runs)]
    last = max(run.epochs for run in runs)
    samples = runs[0].samples.get("train", 0)
    figure = new_figure(3.4, f"Rouser's dying network, {samples} samples, no clipping: after {last} epochs")
    top, bottom = figure.subplots(2, 1, sharex=True)
    families = list(dict.fromkeys(arm.rpartition("_")[0] or arm for arm in arms))
    for position, arm in enumerate(arms):
        colour = _colour(families.index(arm.rpartition("_")[0] or arm))
        chosen = [run for run in runs if run.arm == arm]
        style = {"linestyle": "", "marker": "o", "color": colour, "alpha": 0.8}
        top.plot([position] * len(chosen), [run.metrics["test/accuracy"] for run in chosen], **style)
        dead = [curve(run, "val/dead_fraction/sn3").get(last, float("nan")) for run in chosen]
        bottom.plot([position] * len(chosen), dead, **style)
    top.axhline(0.1, color="#999999", linewidth=0.8, linestyle="--")
    top.set_ylabel("test accuracy")
    bottom.set_ylabel("dead output neurons")
    bottom.set_ylim(-0.05, 1.05)
    bottom.set_xticks(range(len(arms)), arms, rotation=90)
    for axes in (top, bottom):
        axes.grid(visible=True, axis="y", alpha=0.25)
    stem.parent.mkdir(exist_ok=True)
    return save_figure(figure, stem)
