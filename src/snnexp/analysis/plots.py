"""The figures of a run, as matplotlib `Figure`s and as PNG and PDF files. Names of metrics are the contract's.

matplotlib is imported when the first one is drawn. How they look is in `drawing`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from snnexp.analysis.drawing import (
    COLUMN,
    SPLIT_COLOURS,
    TWO_COLUMNS,
    Array,
    as_array,
    epoch_axis,
    grid,
    in_samples,
    in_style,
    joined,
    layer_style,
    legend,
    line,
    natural,
    new_figure,
    nothing,
    save_figure,
    whole_numbers,
)
from snnexp.analysis.fate_plots import layer_maps, survival_curves
from snnexp.analysis.fates import Fates, History

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from snnexp.analysis.tested import Outcome

PerEpoch = Mapping[str, Sequence[tuple[int, Any]]]  # layer -> (epoch, values of its neurons)

MAX_RASTER_NEURONS = 60  # a panel is some 60 points high: more rows would run into each other
RASTER_HEIGHT = 0.85  # inches per layer
MAX_VECTOR_CELLS = 20_000  # of a density: more would make a PDF slow to open, so they become an image in it
SYMBOLS = {
    "threshold": "threshold θ",
    "beta": "β (share of U kept per step)",
    "alpha": "α (share of I kept per step)",
    "delay": "delay (time steps)",
}


@in_style
def learning_curves(
    history: History, test: Mapping[str, float] | None = None, samples: Mapping[str, int] | None = None, about: str = ""
) -> Figure:
    """Loss and accuracy of the training and validation split over epochs; `test` (the one test pass) as a line.

    Args:
        samples: of a pass, by split. about: what the run is; the title, with the number of samples.
    """
    figure = new_figure(1.75, joined(about, in_samples(samples, ("train", "val", "test"))))
    for number, quantity in enumerate(("loss", "accuracy")):
        axes = figure.add_subplot(1, 2, number + 1)
        for split in ("train", "val"):
            points = history.get(f"{split}/{quantity}", ())
            if points:
                line(axes, points, color=SPLIT_COLOURS[split], label=split, linestyle="-" if split == "val" else "--")
        if test and f"test/{quantity}" in test:
            value = test[f"test/{quantity}"]
            axes.axhline(value, color=SPLIT_COLOURS["test"], linestyle=":", label=f"test: {value:.3f}")
        if quantity == "accuracy":
            axes.set_ylim(-0.02, 1.02)
        epoch_axis(axes, quantity + (" (share of samples)" if quantity == "accuracy" else ""))
        legend(axes)
        if not axes.lines:
            nothing(axes, f"no {quantity} was logged")
    return figure


@in_style
def dead_neurons(history: History, samples: Mapping[str, int] | None = None, about: str = "") -> Figure:
    """Share of dead neurons (no spike in the whole pass) per layer over epochs, one panel per split that has it.

    Args:
        samples: of a pass, by split. They belong to the figure: the more samples, the fewer neurons are dead in all.
        about: what the run is; the title.
    """
    splits = {split: _by_layer(history, f"{split}/dead_fraction/") for split in ("train", "val")}
    splits = {split: layers for split, layers in splits.items() if layers}
    figure = new_figure(1.85, joined(about, "dead neurons"))
    names = natural({name for layers in splits.values() for name in layers})
    first: Axes | None = None
    for number, (split, layers) in enumerate(splits.items()):
        axes = figure.add_subplot(1, len(splits), number + 1, sharey=first)
        for name in names:
            if name in layers:
                line(axes, layers[name], label=name, **layer_style(names.index(name)))
        axes.set_ylim(-0.02, 1.02)
        axes.set_title(joined(split, in_samples(samples, (split,)).removesuffix(f" {split}")))
        epoch_axis(axes, "share of the layer without a spike" if first is None else "")
        if first is not None:
            axes.tick_params(labelleft=False)
        first = first or axes
        legend(axes)
    if not splits:
        nothing(figure.add_subplot(), "dead neurons were not counted")
    return figure


@in_style
def value_histograms(per_epoch: PerEpoch, quantity: str = "threshold", about: str = "") -> Figure:
    """How the values of a learned quantity spread over training, a panel per layer: colour is the share of neurons.

    Layers with a single value are lines, all in the first panel. Epoch 0 is the start.
    """
    label = SYMBOLS.get(quantity, quantity)
    layers = {
        name: [(epoch, as_array(values).ravel()) for epoch, values in per_epoch[name]]
        for name in natural(per_epoch)
        if per_epoch[name]
    }
    single = {name: points for name, points in layers.items() if all(values.size == 1 for _, values in points)}
    spread = {name: points for name, points in layers.items() if name not in single}
    panels = len(spread) + bool(single)
    rows, columns = grid(panels)
    figure = new_figure(1.75 if panels < 2 else 1.45 * rows, joined(about, f"learned {quantity}"))
    if single:
        axes = figure.add_subplot(rows, columns, 1)
        for name, points in single.items():
            style = layer_style(list(layers).index(name))
            line(axes, [(epoch, float(values[0])) for epoch, values in points], label=name, **style)
        epoch_axis(axes, label)
        axes.set_title("one value per layer")
        legend(axes)
    top = max((_density(points)[0].max() for points in spread.values()), default=1.0)
    for number, (name, points) in enumerate(spread.items()):
        axes = figure.add_subplot(rows, columns, number + 1 + bool(single))
        image = _draw_density(axes, points, float(top))
        line(axes, [(e, float(np.nanmedian(v))) for e, v in points], color="white", linewidth=0.8, markersize=1.2)
        axes.set_title(f"{name}, n = {max(values.size for _, values in points):,} neurons")
        epoch_axis(axes, label, show_grid=False)
        if number == len(spread) - 1:
            figure.colorbar(image, ax=figure.axes, label="share of neurons\n(white: median)", aspect=30)
    if not layers:
        nothing(figure.add_subplot(), f"no {quantity} is learned in this run")
    return figure


def threshold_histograms(per_epoch: PerEpoch, about: str = "") -> Figure:
    """`value_histograms` of learned thresholds."""
    return value_histograms(per_epoch, "threshold", about)


def decay_histograms(per_epoch: PerEpoch, quantity: str = "beta", about: str = "") -> Figure:
    """`value_histograms` of learned decays, beta or alpha."""
    return value_histograms(per_epoch, quantity, about)


@in_style
def firing_rate_histogram(
    rates: Mapping[str, Any], samples: Mapping[str, int] | None = None, about: str = ""
) -> Figure:
    """How many neurons of each layer fire how often (spikes per time step, 0 to 1); the bar at the left edge is dead.

    Args:
        rates: firing rate of every neuron, by layer.
        samples: of a pass, by split; the rates are of the test split. about: what the run is; the title.
    """
    names = natural(rates)
    rows, columns = grid(len(names))
    made_of = f"{in_samples(samples, ('test',))} samples" if samples else ""
    figure = new_figure(1.75 if len(names) < 2 else 1.4 * rows, joined(about, made_of))
    for number, name in enumerate(names):
        axes = figure.add_subplot(rows, columns, number + 1)
        values = as_array(rates[name]).ravel()
        top = 1.02 * float(values.max(initial=0.0)) or 1.0  # all dead: the whole range, 0 to 1
        width = top / 40
        dead = int((values == 0).sum())
        axes.hist(values[values > 0], bins=list(np.linspace(0, top, 41)), color=layer_style(number)["color"])
        if dead:
            axes.bar(-width, dead, width, color="black", label=f"dead: {dead:,} of {values.size:,}")
            legend(axes)
        axes.set_title(f"{name}, mean {values.mean() if values.size else 0.0:.3f}")
        axes.set_xlabel("firing rate (spikes per step)")
        axes.set_ylabel("neurons" if number % columns == 0 else "")
        whole_numbers(axes.yaxis)
        axes.margins(y=0.1)
    if not names:
        nothing(figure.add_subplot(), "no spiking layer")
    return figure


@in_style
def raster(spk: Mapping[str, Any], label: str, prediction: str, about: str = "") -> Figure:
    """Every spike of one sample, a panel per layer from input to output; y is the neuron's number in its layer.

    Args:
        spk: spikes by layer, each [T, N]; of large layers, evenly chosen neurons are shown and the axis says how many.
        label: the sample's class. prediction: what the network says. about: what the run is; in the title.
    """
    names = natural(spk)
    verdict = "right" if label == prediction else "wrong"
    title = joined(about, f"n = 1 test sample of class {label}, predicted {prediction} ({verdict})")
    figure = new_figure(max(RASTER_HEIGHT * len(names), 1.2) + 0.5, title)
    first: Axes | None = None
    for number, name in enumerate(names):
        axes = figure.add_subplot(len(names), 1, number + 1, sharex=first)
        first = first or axes
        spikes = as_array(spk[name])
        steps, neurons = spikes.shape
        shown = np.unique(np.linspace(0, neurons - 1, min(neurons, MAX_RASTER_NEURONS)).round().astype(int))
        times, rows = np.nonzero(spikes[:, shown])
        # a spike is a dash, as long as most of a step and as thick as most of a row, in points, and never too small
        length = min(max(0.7 * 72 * 2.5 / steps, 0.8), 6.0)
        thick = min(max(0.7 * 72 * RASTER_HEIGHT / len(shown), 0.9), 3.0)
        axes.scatter(
            times, shown[rows], s=length**2, marker="_", linewidths=thick, color=layer_style(number)["color"]
        )  # fmt: skip
        if not len(times):
            nothing(axes, "no spike", ticks=True)
        axes.set_xlim(-0.5, steps - 0.5)
        axes.set_ylim(-0.5 * neurons / len(shown), neurons - 1 + 0.5 * neurons / len(shown))
        whole_numbers(axes.xaxis)
        whole_numbers(axes.yaxis)
        part = "" if len(shown) == neurons else f", {len(shown)} of {neurons:,} shown"
        axes.set_ylabel("neuron")
        axes.set_title(f"{name}{part}", loc="left")
        axes.set_title(f"{spikes.mean():.3f} spikes per step", loc="right")
        if number == len(names) - 1:
            axes.set_xlabel("time step")
        else:
            axes.tick_params(labelbottom=False)
    if not names:
        nothing(figure.add_subplot(), "no spiking layer")
    return figure


@in_style
def confusion_matrix(matrix: Any, class_names: Sequence[str], about: str = "") -> Figure:
    """Counts of [true, predicted] classes; colour is the share of the true class, so rare classes show as well."""
    counts = as_array(matrix)
    classes = len(counts)
    totals = counts.sum(1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)
    names = [str(name) for name in class_names]
    longest = max((len(name) for name in names), default=0)
    width = COLUMN if classes <= 12 else TWO_COLUMNS
    correct = float(np.trace(counts) / max(counts.sum(), 1))
    title = joined(about, f"accuracy {correct:.3f}, n = {counts.sum():,.0f} test samples")
    figure = new_figure(0.88 * width, title, width)
    axes = figure.add_subplot()
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    size = 6 if classes <= 25 else 4.5
    places = list(range(0, classes, 1 if classes <= 40 else -(-classes // 40)))
    axes.set_xticks(places, [names[i] for i in places], rotation=90 if longest > 2 else 0, fontsize=size)
    axes.set_yticks(places, [names[i] for i in places], fontsize=size)
    if classes <= 40:
        for row, column in zip(*np.nonzero(counts), strict=True):
            dark = shares[row, column] > 0.5
            axes.text(
                column, row, f"{counts[row, column]:.0f}", ha="center", va="center", fontsize=size,
                color="white" if dark else "black",
            )  # fmt: skip
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    return figure


def save_figures(folder: Path, figures: Mapping[str, Figure]) -> list[Path]:
    """Write each figure as <name>.png and <name>.pdf; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    return [path for name, figure in figures.items() for path in save_figure(figure, folder / name)]


def save_run_plots(
    folder: Path,
    history: History,
    distributions: Mapping[str, PerEpoch],
    outcome: Outcome,
    class_names: Sequence[str],
    samples: Mapping[str, int],
    about: str = "",
    fates: Fates | None = None,
) -> list[Path]:
    """Draw everything that a finished run has; returns the files.

    Args:
        distributions: learned quantity (threshold, beta, alpha, delay) -> layer -> (epoch, values).
        samples: of a pass, by split.
        about: what the run is, for the titles: "digits, rouser, seed 0".
        fates: what became of each neuron.
    """
    names = class_names
    figures = {
        "learning_curves": learning_curves(history, outcome.metrics, samples, about),
        "dead_neurons": dead_neurons(history, samples, about),
        "firing_rates": firing_rate_histogram(outcome.rates, samples, about),
        "raster": raster(outcome.raster, names[outcome.raster_label], names[outcome.raster_prediction], about),
        "confusion_matrix": confusion_matrix(outcome.confusion, names, about),
    }
    figures |= {
        f"{quantity}_histograms": value_histograms(layers, quantity, about)
        for quantity, layers in distributions.items()
    }
    if fates:
        figures |= {"layer_maps": layer_maps(fates, about), "survival": survival_curves(fates, about)}
    return save_figures(folder, figures)


# --- details ---


def _by_layer(history: History, prefix: str) -> dict[str, Sequence[tuple[int, float]]]:
    return {key.removeprefix(prefix): points for key, points in history.items() if key.startswith(prefix) and points}


def _density(series: Sequence[tuple[int, Array]]) -> tuple[Array, Array]:
    """Share of neurons per value bin and epoch, and the edges of the bins."""
    values = np.concatenate([values[np.isfinite(values)] for _, values in series])
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
    margin = max(0.02 * (high - low), 1e-3 * max(abs(low), abs(high), 1e-3))
    size = min(max(int(3 * series[0][1].size ** 0.5), 12), 60)
    bins = np.linspace(low - margin, high + margin, size + 1)
    columns = [np.histogram(values, bins)[0] / max(values.size, 1) for _, values in series]
    return np.stack(columns, 1), bins


def _draw_density(axes: Axes, series: Sequence[tuple[int, Array]], top: float) -> Any:
    """The shares as an image; each epoch's column reaches to the next one's."""
    from matplotlib.colors import PowerNorm

    shares, bins = _density(series)
    epochs = [epoch for epoch, _ in series]
    gap = epochs[-1] - epochs[-2] if len(epochs) > 1 else 1
    edges = np.array([*epochs, epochs[-1] + gap], dtype=np.float64) - 0.5
    # square root: at the start all neurons share one bin, and would leave nothing to see of the later epochs
    scale = PowerNorm(0.5, vmin=0, vmax=top)
    return axes.pcolormesh(
        edges, bins, shares, cmap="viridis", norm=scale, rasterized=shares.size > MAX_VECTOR_CELLS, linewidth=0
    )
