"""How figures look: the width of a paper's column, type that can be read in it, colours for every kind of sight.

A figure is 3.3 inches wide (one column; 6.9 for what needs two), its letters are 6 to 7 points high, and it is written
as PNG, for a screen, and as PDF, whose lines stay lines and whose letters stay letters (TrueType, embedded).

No pyplot: its global state would collect the figures of every job of a sweep.
"""

from __future__ import annotations

import functools
import logging
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from snnexp.collector import importing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[np.float64]
P = ParamSpec("P")
R = TypeVar("R")

COLUMN, TWO_COLUMNS = 3.3, 6.9  # inches
SUFFIXES = (".png", ".pdf")
DPI = 300
TITLE_LETTERS = 19  # per inch, of the title's size
STYLE: dict[str, Any] = {
    "font.size": 7,
    "axes.titlesize": 7,
    "axes.labelsize": 7,
    "figure.titlesize": 7,
    "xtick.labelsize": 6,
    "ytick.labelsize": 6,
    "legend.fontsize": 6,
    "legend.handlelength": 1.6,
    "legend.borderaxespad": 0.3,
    "lines.linewidth": 1.1,
    "lines.markersize": 2.2,
    "axes.linewidth": 0.6,
    "grid.linewidth": 0.4,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "axes.labelpad": 2.0,
    "axes.titlepad": 3.0,
    "pdf.fonttype": 42,  # TrueType: letters that a publisher's check and a drawing program take
    "figure.constrained_layout.h_pad": 0.02,
    "figure.constrained_layout.w_pad": 0.02,
}
SPLIT_COLOURS = {"train": "#0077bb", "val": "#ee7733", "test": "#009988"}  # Paul Tol's vibrant set, as below
LAYER_COLOURS = ("#0077bb", "#ee7733", "#009988", "#cc3311", "#33bbee", "#ee3377", "#777777", "#aa9900")
LAYER_STYLES = ("-", "--", ":")


def in_style(draw: Callable[P, R]) -> Callable[P, R]:
    """A function that draws, with our type and lines, whatever the user's matplotlibrc says."""

    @functools.wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> R:
        with importing():
            import matplotlib
        style: Any = dict(matplotlib.rcParamsDefault)
        del style["backend"]  # reading which one is in use would import pyplot
        style.update(STYLE)
        with matplotlib.rc_context(style):
            return draw(*args, **kwargs)

    return styled


def new_figure(height: float, title: str = "", width: float = COLUMN) -> Figure:
    """An empty figure, sizes in inches; a long title takes several lines."""
    with importing():
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

    lines = textwrap.wrap(title, int(TITLE_LETTERS * width), break_long_words=True)
    figure = Figure(figsize=(width, height + 0.13 * max(len(lines) - 1, 0)), layout="constrained")
    if lines:
        figure.suptitle("\n".join(lines))
    FigureCanvasAgg(figure)
    return figure


@in_style
def save_figure(figure: Figure, stem: Path) -> list[Path]:
    """Write <stem>.png and <stem>.pdf; the same figure gives the same bytes."""
    logging.getLogger("fontTools").setLevel(logging.WARNING)  # fifty lines for each PDF
    paths = [stem.with_name(stem.name + suffix) for suffix in SUFFIXES]
    for path in paths:
        figure.savefig(path, dpi=DPI, metadata={"CreationDate": None} if path.suffix == ".pdf" else None)
        figure.set_layout_engine("none")  # found for the first, and the same for both
    return paths


def grid(panels: int, most: int = 2) -> tuple[int, int]:
    """Rows and columns for so many panels."""
    columns = min(max(panels, 1), most)
    return max(-(-panels // columns), 1), columns


def as_array(values: Any) -> Array:
    """A float64 array of a tensor, an array or a list."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64)


def natural(names: Any) -> list[str]:
    """Names in the order of the network: sn2 before sn10."""
    return sorted(names, key=lambda name: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", name)])


def in_samples(samples: Mapping[str, int] | None, splits: Sequence[str]) -> str:
    """`n = 1,292 train, 145 val`: how many samples a figure is made of; empty if nobody said."""
    counts = [f"{samples[split]:,} {split}" for split in splits if samples and split in samples]
    return f"n = {', '.join(counts)}" if counts else ""


def joined(*parts: str) -> str:
    """What is known, with commas."""
    return ", ".join(part for part in parts if part)


def layer_style(number: int) -> dict[str, Any]:
    """A layer's colour and line, the same in every figure."""
    style = LAYER_STYLES[number // len(LAYER_COLOURS) % len(LAYER_STYLES)]
    return {"color": LAYER_COLOURS[number % len(LAYER_COLOURS)], "linestyle": style}


def line(axes: Axes, points: Sequence[tuple[int, float]], **style: Any) -> None:
    """A curve with a mark per epoch while there are few, so that a single epoch shows."""
    steps, values = zip(*points, strict=True)
    axes.plot(steps, values, marker="o" if len(points) <= 30 else "", **style)


def epoch_axis(axes: Axes, label: str, show_grid: bool = True) -> None:
    """Whole epochs along x, and what y is."""
    axes.set_xlabel("epoch (0: untrained)")
    axes.set_ylabel(label)
    if show_grid:
        axes.grid(visible=True, alpha=0.25)
    whole_numbers(axes.xaxis)
    low, high = axes.get_xlim()
    if high - low < 1:  # a single epoch: no fractions of it on the axis
        axes.set_xlim(round(low) - 1, round(high) + 1)


def whole_numbers(axis: Any) -> None:
    """Ticks at integers, few enough for a narrow panel."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=5, integer=True, min_n_ticks=1))


def legend(axes: Axes) -> None:
    """If there is anything to explain."""
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        axes.legend(handles, labels, framealpha=0.7, ncols=1 + (len(labels) > 6))


def nothing(axes: Axes, text: str, ticks: bool = False) -> None:
    """Say in words why a panel is empty."""
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, color="#555555")
    if not ticks:
        axes.set_axis_off()
