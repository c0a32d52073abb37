"""Figures of what became of neurons: the map of a layer, how long dead ones stay dead, the page of a diagnosis."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from snnexp.analysis.drawing import (
    COLUMN,
    TWO_COLUMNS,
    as_array,
    epoch_axis,
    grid,
    in_style,
    joined,
    layer_style,
    legend,
    line,
    natural,
    new_figure,
    nothing,
    whole_numbers,
)
from snnexp.analysis.fates import Fates, History, spells, survival
from snnexp.analysis.reach import EDGES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STATES = {"dead_fraction": ("dead", "black", "-"), "gradient_dead": ("gradient-dead", "#cc3311", "--")}
MOST_EPOCHS = 4  # of a map


@in_style
def layer_maps(fates: Fates, about: str = "") -> Figure:
    """Firing rate against gradient reach, a dot per neuron, a row per layer and a panel per epoch.

    Left edge: dead. Lower edge: gradient-dead. The lower left corner cannot come back by itself.
    """
    maps = fates.get("maps", {})
    names = natural(maps)
    epochs = [epoch for epoch, _ in maps[names[0]]] if names else []
    shown = [epochs[i] for i in np.unique(np.linspace(0, len(epochs) - 1, min(len(epochs), MOST_EPOCHS)).astype(int))]
    width = COLUMN if len(shown) < 3 else TWO_COLUMNS
    figure = new_figure(1.35 * max(len(names), 1), joined(about, "rate and gradient reach of each neuron"), width)
    for row, name in enumerate(names):
        points = dict(maps[name])
        for column, epoch in enumerate(shown):
            axes = figure.add_subplot(len(names), len(shown), row * len(shown) + column + 1)
            _map(axes, as_array(points[epoch]) if epoch in points else None, row)
            axes.set_title(f"{name}, epoch {epoch}")
            axes.set_xlabel("spikes per step" if row == len(names) - 1 else "")
            axes.set_ylabel("gradient reach" if column == 0 else "")
    if not names:
        nothing(figure.add_subplot(), "what the gradient reaches was not counted")
    return figure


@in_style
def survival_curves(fates: Fates, about: str = "") -> Figure:
    """Of the neurons that were dead after some epoch, the share still dead t epochs later (Kaplan and Meier).

    Solid: a gradient still reached them when they died. Dashed: none did.
    """
    names = natural(fates.get("dead", {}))
    rows, columns = grid(len(names), 3)
    width = COLUMN if columns == 1 else TWO_COLUMNS
    figure = new_figure(1.75 if len(names) < 2 else 1.6 * rows, joined(about, "how long dead neurons stay dead"), width)
    for number, name in enumerate(names):
        axes = figure.add_subplot(rows, columns, number + 1)
        found, drawn = spells(fates, name), 0
        colour = layer_style(number)["color"]
        for blind, style, word in ((False, "-", "in reach"), (True, "--", "gradient-dead")):
            some = found.chosen(found.blind == blind)
            if len(some.lengths):
                times, share = survival(some)
                label = f"{word}, {int(some.ended.sum()):,} of {len(some.lengths):,} back"
                axes.step(times, share, where="post", color=colour, linestyle=style, label=label)
                axes.plot(times[:1], share[:1], "o", color=colour)
                drawn += 1
        axes.set_ylim(-0.02, 1.02)
        axes.set_title(name)
        axes.set_xlabel("epochs since it died")
        axes.set_ylabel("share still dead" if number % columns == 0 else "")
        axes.grid(visible=True, alpha=0.25)
        whole_numbers(axes.xaxis)
        legend(axes)
        if not drawn:
            nothing(axes, "no neuron was dead")
    if not names:
        nothing(figure.add_subplot(), "dead neurons were not counted")
    return figure


@in_style
def diagnosis_page(history: History, split: str, fates: Fates, words: Mapping[str, str], about: str = "") -> Figure:
    """One page: a row per layer with its states over epochs, its map, where its membranes lie, and the cause in words.

    Args:
        split: whose dead neurons are shown. words: of each layer; the rows are these, from input to output.
    """
    names = list(words)
    figure = new_figure(1.5 * max(len(names), 1) + 0.3, about, TWO_COLUMNS)
    for row, name in enumerate(names):
        panels = [figure.add_subplot(max(len(names), 1), 4, 4 * row + column + 1) for column in range(4)]
        for key, (label, colour, style) in STATES.items():
            points = history.get(f"{split}/{key}/{name}", ())
            if points:
                line(panels[0], points, label=label, color=colour, linestyle=style)
        panels[0].set_ylim(-0.02, 1.02)
        panels[0].set_title(f"{name}, {split}", loc="left")
        epoch_axis(panels[0], "share of the layer")
        legend(panels[0])
        points = fates.get("maps", {}).get(name, [])
        _map(panels[1], as_array(points[-1][1]) if points else None, row)
        panels[1].set_title(f"epoch {points[-1][0]}" if points else "")
        panels[1].set_xlabel("spikes per step")
        panels[1].set_ylabel("gradient reach")
        _distances(panels[2], fates.get("distances", {}).get(name, []))
        panels[3].set_axis_off()
        text = "\n".join(textwrap.wrap(words[name], 34)[:13])
        panels[3].text(0, 1, text, va="top", ha="left", transform=panels[3].transAxes, fontsize=6)
    if not names:
        nothing(figure.add_subplot(), "no spiking layer")
    return figure


def _map(axes: Axes, points: np.ndarray | None, number: int) -> None:
    """One dot per neuron; those that would lie on each other are shaken a little."""
    if points is None:
        nothing(axes, "not counted")
        return
    rate, reach = points
    shake = np.random.default_rng(0).uniform(-0.012, 0.012, (2, len(rate)))
    top = max(float(rate.max(initial=0.0)), 0.05)
    colour = layer_style(number)["color"]
    axes.scatter(rate + shake[0] * top, reach + shake[1], s=2.5, color=colour, alpha=0.35, linewidths=0)
    axes.set_xlim(-0.05 * top, 1.05 * top)
    axes.set_ylim(-0.05, 1.05)
    axes.grid(visible=True, alpha=0.25)
    corner = int(((rate == 0) & (reach == 0)).sum())
    if corner:
        text = f"{corner:,} dead without a gradient"
        axes.text(0.97, 0.05, text, transform=axes.transAxes, fontsize=5, ha="right")


def _distances(axes: Axes, points: Sequence[tuple[int, object]]) -> None:
    """The first and the last histogram of U - threshold, on an axis that is even in asinh."""
    if not points:
        nothing(axes, "not counted")
        return
    places = np.arcsinh(20 * EDGES)
    for (epoch, histogram), colour, style in zip(
        (points[0], points[-1]) if len(points) > 1 else points[-1:], ("#777777", "#0077bb"), (":", "-"), strict=False
    ):
        counts = as_array(histogram)
        shares = counts[1:-1] / max(counts.sum(), 1)
        smooth = shares.reshape(-1, 3).sum(1)
        axes.stairs(smooth, places[::3], color=colour, linestyle=style, label=f"epoch {epoch}")
    ticks = [-100, -10, -1, -0.1, 0, 0.1, 1, 10, 100]
    seen = [as_array(h)[1:-1] for _, h in (points[0], points[-1])]
    used = np.nonzero(np.sum(seen, axis=0))[0]
    low, high = (places[used[0]], places[used[-1] + 1]) if len(used) else (-3.0, 3.0)
    axes.set_xlim(low - 0.3, high + 0.3)
    inside = [t for t in ticks if low - 0.3 <= np.arcsinh(20 * t) <= high + 0.3]
    inside = [t for t in inside if abs(t) >= 1 or t == 0] if len(inside) > 5 else inside
    axes.set_xticks([float(np.arcsinh(20 * t)) for t in inside], [f"{t:g}" for t in inside])
    axes.axvline(0, color="black", linewidth=0.6)
    axes.set_xlabel("U − θ")
    axes.set_ylabel("share of membranes")
    legend(axes)
