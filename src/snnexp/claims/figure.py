"""The published curves beside ours: a panel for each metric, a colour for each arm; dots where there is no curve.

How figures look is in `analysis.drawing`: one or two columns wide, the letters of a paper, PNG and PDF.
"""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snnexp.analysis.drawing import (
    COLUMN,
    LAYER_COLOURS,
    TWO_COLUMNS,
    epoch_axis,
    grid,
    in_style,
    joined,
    new_figure,
    nothing,
    save_figure,
)
from snnexp.claims.conf import ClaimConf
from snnexp.claims.judge import Row, Run, judge, quantity, scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKED = 15  # published points; more would hide the line
OVER_TIME = (
    "epochs_to",
    "seconds_to",
    "share_of",
)  # readings of a whole curve, which is drawn even if none was published
RUN_FACTS = ("dataset", "neuron")
NAME_LETTERS = 26  # of a line beside the axis
PUBLISHED, UNVERIFIED, OURS = "published", "published, not verified", "ours"
GREY = "#555555"


@in_style
def draw(stem: Path, claim: ClaimConf, runs: Sequence[Run]) -> list[Path]:
    """Draw <stem>.png and <stem>.pdf; published solid with marks, ours dashed with one standard deviation shaded."""
    metrics = list(dict.fromkeys(curve.metric or claim.metric for curve in claim.curves))
    if not metrics and claim.reading in OVER_TIME:
        metrics = [claim.metric]
    figure = _curves(claim, runs, metrics) if metrics else _dots(claim, runs)
    return save_figure(figure, stem)


def _title(claim: ClaimConf, runs: Sequence[Run]) -> str:
    """`Rouser (arXiv:2407.19566), Fig. 6a: nmnist, rouser, n = 719 train, 81 val, 100 test, seeds 0 1 2`."""
    known = [list(dict.fromkeys(str(run.facts[key]) for run in runs if key in run.facts)) for key in RUN_FACTS]
    about = [names[0] for names in known if len(names) == 1]  # else that is what the arms are about
    samples = sorted({", ".join(f"{count:,} {split}" for split, count in run.samples.items()) for run in runs})
    seeds = sorted({run.seed for run in runs})
    ours = joined(
        *about,
        f"n = {' or '.join(samples)}" if samples else "",
        "\xa0".join([f"seed{'s' * (len(seeds) > 1)}", *map(str, seeds)]) if seeds else "no run",  # in one piece
    )
    return f"{claim.paper}, {claim.where}: {ours}"


def _curves(claim: ClaimConf, runs: Sequence[Run], metrics: Sequence[str]) -> Figure:
    rows, columns = grid(len(metrics), most=3)
    figure = new_figure(0.5 + 1.6 * rows, _title(claim, runs), COLUMN if columns < 3 else TWO_COLUMNS)
    drawn: dict[str, dict[str, Any]] = {}  # what the legend explains -> how it looks
    for number, metric in enumerate(metrics):
        axes = figure.add_subplot(rows, columns, number + 1)
        for place, (arm, colour) in enumerate(_colours(claim).items()):
            drawn |= _published(axes, claim, arm, metric, colour)
            dashes = (4 * place, (4, 4 * max(len(claim.arms) - 1, 1)))  # of arms that run together, each shows
            drawn |= _ours(axes, claim, arm, metric, {"color": colour, "linestyle": dashes}, runs)
        unit = f", share of that at epoch {claim.whole}" if claim.reading == "share_of" else ""
        axes.set_title(_in_lines(metric + (" [%]" if claim.unit == "%" else unit), columns))
        epoch_axis(axes, "")
        if not axes.lines:
            nothing(axes, f"{metric} was not logged")
    arms = {arm: {"color": colour} for arm, colour in _colours(claim).items()}
    _legend(figure, arms if len(arms) > 1 else {}, drawn)
    return figure


def _in_lines(title: str, columns: int) -> str:
    """A metric's name, broken before its layer where the panel is narrow."""
    front, _, layer = title.rpartition("/")
    return f"{front}/\n{layer}" if columns > 1 and len(title) > 24 else title


def _colours(claim: ClaimConf) -> dict[str, str]:
    return {arm: LAYER_COLOURS[number % len(LAYER_COLOURS)] for number, arm in enumerate(claim.arms)}


def _published(axes: Axes, claim: ClaimConf, arm: str, metric: str, colour: str) -> dict[str, dict[str, Any]]:
    """The paper's curves of an arm; open marks where nobody has verified them. Returns: what to explain."""
    drawn = {}
    for curve in claim.curves:
        if curve.arm == arm and (curve.metric or claim.metric) == metric:
            known = (curve.grade or claim.grade) != "unverified"
            style: dict[str, Any] = {"marker": "o" if known else "s", "markersize": 3}
            style |= {} if known else {"markerfacecolor": "white"}
            axes.plot(curve.epochs, curve.values, color=colour, markevery=-(-len(curve.epochs) // MARKED), **style)
            drawn[PUBLISHED if known else UNVERIFIED] = {"color": GREY, **style}
    return drawn


def _ours(
    axes: Axes, claim: ClaimConf, arm: str, metric: str, style: dict[str, Any], runs: Sequence[Run]
) -> dict[str, dict[str, Any]]:
    """Mean over our seeds, and a band of one standard deviation. Returns: what to explain."""
    factor = 100.0 if claim.unit == "%" else 1.0
    ours: dict[int, list[float]] = {}
    for run in (run for run in runs if run.arm == arm):
        points = [(int(epoch), factor * value) for epoch, value in run.curves.get(metric, ())]
        within = [(e, v) for e, v in points if claim.whole is None or e <= claim.whole]
        last = within[-1][1] if within and claim.reading == "share_of" else 1.0
        for epoch, value in within:
            ours.setdefault(epoch, []).append(value / (last or 1.0))
    if not ours:
        return {}
    epochs = sorted(ours)
    means = [statistics.fmean(ours[e]) for e in epochs]
    spread = [statistics.stdev(ours[e]) if len(ours[e]) > 1 else 0.0 for e in epochs]
    n = max(len(values) for values in ours.values())
    axes.plot(epochs, means, marker="o" if len(epochs) == 1 else "", **style)
    low = [m - s for m, s in zip(means, spread, strict=True)]
    high = [m + s for m, s in zip(means, spread, strict=True)]
    axes.fill_between(epochs, low, high, color=style["color"], alpha=0.15, linewidth=0)
    return {_ours_label(n): {"color": GREY, "linestyle": "--"}}


def _ours_label(n: int) -> str:
    return f"{OURS} (mean ± sd, n = {n} seeds)" if n > 1 else f"{OURS} (n = 1 seed)"


def _legend(figure: Figure, *groups: dict[str, dict[str, Any]]) -> None:
    """One for all panels, below them: colours first, then what kinds of lines mean."""
    from matplotlib.lines import Line2D

    entries = {label: style for group in groups for label, style in group.items()}
    if entries:
        handles = [Line2D([], [], **style) for style in entries.values()]
        figure.legend(handles, list(entries), loc="outside lower center", ncols=min(len(entries), 3), frameon=False)


def _dots(claim: ClaimConf, runs: Sequence[Run]) -> Figure:
    """A line for each value of the table: what was published, and our mean with its standard deviation."""
    rows = [row for row in judge(claim, runs).rows if row.published is not None or row.ours is not None]
    names = _row_names(rows)
    lines = max((name.count("\n") for name in names), default=0) + 1
    figure = new_figure(0.75 + (0.08 + 0.1 * lines) * len(rows), _title(claim, runs))
    axes = figure.add_subplot()
    drawn: dict[str, dict[str, Any]] = {}
    for place, row in enumerate(rows):
        drawn |= _row_dots(axes, place, row)
    axes.set_yticks(range(len(rows)), names)
    axes.set_ylim(len(rows) - 0.5, -0.5)  # from top to bottom, as in the table
    axes.grid(visible=True, axis="x", alpha=0.25)
    metrics = {row.quantity.partition(",")[0].partition(" ")[0] for row in rows}
    axes.set_xlabel(f"{metrics.pop()} [{claim.unit}]" if len(metrics) == 1 else claim.unit)
    values = [v for row in rows for v in (row.published, row.ours) if v is not None]
    shares = bool(claim.values) and scale(claim, quantity(claim, claim.values[0])) == 100.0
    if shares and values and min(values) < 50:
        axes.set_xlim(0, 100)
    _legend(figure, dict(sorted(drawn.items(), reverse=True)))
    return figure


def _row_names(rows: Sequence[Row]) -> list[str]:
    """The arm, and below it what tells it from its other lines: what was read, or where it was published."""
    names = []
    metrics = {row.quantity.partition(",")[0].partition(" ")[0] for row in rows}
    for row in rows:
        others = [other for other in rows if other is not row and other.arm == row.arm]
        of = row.quantity.removeprefix(next(iter(metrics))).strip(", ") if len(metrics) == 1 else row.quantity
        parts = [row.arm]
        if of and len({other.quantity for other in rows}) > 1:
            parts.append(of)
        if any(other.quantity == row.quantity for other in others):
            parts += textwrap.wrap(row.where, NAME_LETTERS)
        names.append("\n".join(parts))
    return names


def _row_dots(axes: Axes, place: int, row: Row) -> dict[str, dict[str, Any]]:
    drawn: dict[str, dict[str, Any]] = {}
    if row.published is not None and row.grade != "unverified":
        style: dict[str, Any] = {"color": GREY, "marker": "D", "linestyle": "", "markersize": 3.5}
        axes.plot([row.published], [place], **style)
        drawn[PUBLISHED] = style
    if row.ours is not None:
        style = {"color": LAYER_COLOURS[0], "marker": "o", "linestyle": "", "markersize": 3.5}
        axes.errorbar(
            [row.ours], [place], xerr=[row.sd or 0.0], capsize=2 if row.sd else 0, **{**style, "linestyle": "-"}
        )
        drawn[_ours_label(row.n)] = style
    return drawn
