"""The figures of a run, as matplotlib `Figure`s and PNG files. matplotlib is imported when the first one is drawn.

No pyplot: its global state would collect the figures of every job of a sweep. Names of metrics are the contract's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from snnexp.collector import importing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from snnexp.analysis.tested import Outcome

History = Mapping[str, Sequence[tuple[int, float]]]
PerEpoch = Mapping[str, Sequence[tuple[int, Any]]]  # layer -> (epoch, values of its neurons)
Array = NDArray[np.float64]

DPI = 120
SPLIT_COLOURS = {"train": "#4477aa", "val": "#ee7733", "test": "#228833"}  # told apart with any colour vision
LAYER_COLOURS = ("#0077bb", "#ee7733", "#009988", "#cc3311", "#33bbee", "#ee3377", "#777777", "#aa9900")
LAYER_STYLES = ("-", "--", ":")
MAX_RASTER_NEURONS = 120  # a panel is some 90 points high: more rows would run into each other
SYMBOLS = {
    "threshold": "threshold θ",
    "beta": "β (share of the membrane kept per step)",
    "alpha": "α (share of I kept)",
}


def learning_curves(history: History, test: Mapping[str, float] | None = None) -> Figure:
    """Loss and accuracy of the training and validation split over epochs; `test` (the one test pass) as a line."""
    figure = _figure(9.0, 3.6)
    for number, quantity in enumerate(("loss", "accuracy")):
        axes = figure.add_subplot(1, 2, number + 1)
        for split in ("train", "val"):
            points = history.get(f"{split}/{quantity}", ())
            if points:
                _line(axes, points, color=SPLIT_COLOURS[split], label=split)
        if test and f"test/{quantity}" in test:
            value = test[f"test/{quantity}"]
            axes.axhline(value, color=SPLIT_COLOURS["test"], linestyle=":", label=f"test, best epoch: {value:.3f}")
        if quantity == "accuracy":
            axes.set_ylim(-0.02, 1.02)
        _epochs(axes, quantity + (" (share of samples)" if quantity == "accuracy" else ""))
        _legend(axes)
        if not axes.lines:
            _nothing(axes, f"no {quantity} was logged")
    return figure


def dead_neurons(history: History, samples: Mapping[str, int] | None = None) -> Figure:
    """Share of dead neurons (no spike in the whole pass) per layer over epochs, one panel per split that has it.

    Args:
        samples: of a pass, by split. They belong to the figure: the more samples, the fewer neurons are dead in all.
    """
    splits = {split: _by_layer(history, f"{split}/dead_fraction/") for split in ("train", "val")}
    splits = {split: layers for split, layers in splits.items() if layers}
    figure = _figure(4.5 * max(len(splits), 1), 3.6)
    names = _natural({name for layers in splits.values() for name in layers})
    for number, (split, layers) in enumerate(splits.items()):
        axes = figure.add_subplot(1, len(splits), number + 1)
        for name in names:
            if name in layers:
                _line(axes, layers[name], label=name, **_layer_style(names.index(name)))
        axes.set_ylim(-0.02, 1.02)
        axes.set_title(split + _in_samples(samples, split))
        _epochs(axes, "dead neurons (share of the layer)")
        _legend(axes)
    if not splits:
        _nothing(figure.add_subplot(), "dead neurons were not counted")
    return figure


def value_histograms(per_epoch: PerEpoch, quantity: str = "threshold") -> Figure:
    """How the values of a learned quantity spread over training, a panel per layer: colour is the share of neurons.

    A layer with a single value is a line. Epoch 0 is the start.
    """
    layers = {name: per_epoch[name] for name in _natural(per_epoch) if per_epoch[name]}
    rows, columns = _grid(len(layers))
    figure = _figure(4.2 * columns, 3.3 * rows)
    for number, (name, points) in enumerate(layers.items()):
        axes = figure.add_subplot(rows, columns, number + 1)
        series = [(epoch, _array(values).ravel()) for epoch, values in points]
        if all(values.size == 1 for _, values in series):
            _line(axes, [(epoch, float(values[0])) for epoch, values in series], **_layer_style(number))
        else:
            image = _density(axes, series)
            _line(axes, [(e, float(np.nanmedian(v))) for e, v in series], color="white", linewidth=1.0, markersize=2.5)
            figure.colorbar(image, ax=axes, label="share of neurons; white: median")
        axes.set_title(f"{name} ({max(values.size for _, values in series):,} learned)")
        _epochs(axes, SYMBOLS.get(quantity, quantity), grid=all(values.size == 1 for _, values in series))
    if not layers:
        _nothing(figure.add_subplot(), f"no {quantity} is learned in this run")
    return figure


def threshold_histograms(per_epoch: PerEpoch) -> Figure:
    """`value_histograms` of learned thresholds."""
    return value_histograms(per_epoch, "threshold")


def decay_histograms(per_epoch: PerEpoch, quantity: str = "beta") -> Figure:
    """`value_histograms` of learned decays, beta or alpha."""
    return value_histograms(per_epoch, quantity)


def firing_rate_histogram(rates: Mapping[str, Any], samples: Mapping[str, int] | None = None) -> Figure:
    """How many neurons of each layer fire how often (spikes per time step, 0 to 1); the bar at the left edge is dead.

    Args:
        rates: firing rate of every neuron, by layer.
        samples: of a pass, by split; the rates are of the test split.
    """
    names = _natural(rates)
    rows, columns = _grid(len(names))
    figure = _figure(4.0 * columns, 3.0 * rows)
    if samples:
        figure.suptitle(f"test{_in_samples(samples, 'test')}", fontsize=9)
    for number, name in enumerate(names):
        axes = figure.add_subplot(rows, columns, number + 1)
        values = _array(rates[name]).ravel()
        top = 1.02 * float(values.max(initial=0.0)) or 1.0  # all dead: the whole range, 0 to 1
        width = top / 40
        dead = int((values == 0).sum())
        axes.hist(values[values > 0], bins=list(np.linspace(0, top, 41)), color=_layer_style(number)["color"])
        if dead:
            axes.bar(-width, dead, width, color="black", label=f"dead: {dead:,} of {values.size:,}")
            _legend(axes)
        axes.set_title(f"{name}, mean {values.mean() if values.size else 0.0:.3f}")
        axes.set_xlabel("firing rate (spikes per time step)")
        axes.set_ylabel("neurons")
        _whole_numbers(axes.yaxis)
        axes.margins(y=0.1)
    if not names:
        _nothing(figure.add_subplot(), "no spiking layer")
    return figure


def raster(spk: Mapping[str, Any], label: str, prediction: str) -> Figure:
    """Every spike of one sample, a panel per layer from input to output.

    Args:
        spk: spikes by layer, each [T, N]; of large layers, evenly chosen neurons are shown and the axis says how many.
        label: the sample's class. prediction: what the network says.
    """
    names = _natural(spk)
    figure = _figure(8.0, max(1.6 * len(names), 2.4) + 0.6)
    verdict = "right" if label == prediction else "wrong"
    figure.suptitle(f"One test sample of class {label}, predicted {prediction} ({verdict})")
    first: Axes | None = None
    for number, name in enumerate(names):
        axes = figure.add_subplot(len(names), 1, number + 1, sharex=first)
        first = first or axes
        spikes = _array(spk[name])
        steps, neurons = spikes.shape
        shown = np.unique(np.linspace(0, neurons - 1, min(neurons, MAX_RASTER_NEURONS)).round().astype(int))
        times, rows = np.nonzero(spikes[:, shown])
        height = min(max(80 / len(shown), 1.0), 8.0)  # points; a panel is about 90 high
        width = min(max(150 / steps, 1.0), 5.0)
        axes.scatter(times, rows, s=height**2, marker="|", linewidths=width, color=_layer_style(number)["color"])
        if not len(times):
            _nothing(axes, "no spike", ticks=True)
        axes.set_xlim(-0.5, steps - 0.5)
        axes.set_ylim(-0.5, len(shown) - 0.5)
        _whole_numbers(axes.xaxis)
        _whole_numbers(axes.yaxis)
        part = "" if len(shown) == neurons else f"\n{len(shown)} of {neurons:,}"
        axes.set_ylabel(f"{name}\nneuron{part}")
        axes.set_title(f"{spikes.mean():.3f} spikes per neuron and step", fontsize=8, loc="right", pad=2)
        if number == len(names) - 1:
            axes.set_xlabel("time step")
        else:
            axes.tick_params(labelbottom=False)
    if not names:
        _nothing(figure.add_subplot(), "no spiking layer")
    return figure


def confusion_matrix(matrix: Any, class_names: Sequence[str]) -> Figure:
    """Counts of [true, predicted] classes; colour is the share of the true class, so rare classes show as well."""
    counts = _array(matrix)
    classes = len(counts)
    totals = counts.sum(1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)
    names = [str(name) for name in class_names]
    longest = max((len(name) for name in names), default=0)
    inches = min(max(3.2 + 0.32 * classes, 4.6), 12.0) + 0.07 * min(longest, 30)
    figure = _figure(inches + 0.8, inches)
    axes = figure.add_subplot()
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    size = 9 if classes <= 12 else 7 if classes <= 40 else 5
    places = list(range(0, classes, 1 if classes <= 40 else -(-classes // 40)))
    axes.set_xticks(places, [names[i] for i in places], rotation=90 if longest > 2 else 0, fontsize=size)
    axes.set_yticks(places, [names[i] for i in places], fontsize=size)
    if classes <= 40:
        for row, column in zip(*np.nonzero(counts), strict=True):
            dark = shares[row, column] > 0.5
            axes.text(
                column, row, f"{counts[row, column]:.0f}", ha="center", va="center", fontsize=size - (classes > 12),
                color="white" if dark else "black",
            )  # fmt: skip
    correct = float(np.trace(counts) / max(counts.sum(), 1))
    axes.set_title(f"Accuracy {correct:.3f} of {counts.sum():,.0f} test samples")
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    return figure


def save_figures(folder: Path, figures: Mapping[str, Figure]) -> list[Path]:
    """Write each figure as <name>.png; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in figures.items():
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1], dpi=DPI)
    return paths


def save_run_plots(
    folder: Path,
    history: History,
    distributions: Mapping[str, PerEpoch],
    outcome: Outcome,
    class_names: Sequence[str],
    samples: Mapping[str, int],
) -> list[Path]:
    """Draw everything that a finished run has; returns the files.

    Args:
        distributions: learned quantity (threshold, beta, alpha) -> layer -> (epoch, values).
        samples: of a pass, by split.
    """
    names = class_names
    figures = {
        "learning_curves": learning_curves(history, outcome.metrics),
        "dead_neurons": dead_neurons(history, samples),
        "firing_rates": firing_rate_histogram(outcome.rates, samples),
        "raster": raster(outcome.raster, names[outcome.raster_label], names[outcome.raster_prediction]),
        "confusion_matrix": confusion_matrix(outcome.confusion, names),
    }
    figures |= {
        f"{quantity}_histograms": value_histograms(layers, quantity) for quantity, layers in distributions.items()
    }
    return save_figures(folder, figures)


# --- details ---


def _figure(width: float, height: float) -> Figure:
    with importing():
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _grid(panels: int) -> tuple[int, int]:
    """Rows and columns for so many panels."""
    columns = 2 if panels == 4 else min(max(panels, 1), 3)
    return max(-(-panels // columns), 1), columns


def _array(values: Any) -> Array:
    """A float64 array of a tensor, an array or a list."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64)


def _natural(names: Any) -> list[str]:
    """Names in the order of the network: sn2 before sn10."""
    return sorted(names, key=lambda name: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", name)])


def _by_layer(history: History, prefix: str) -> dict[str, Sequence[tuple[int, float]]]:
    return {key.removeprefix(prefix): points for key, points in history.items() if key.startswith(prefix) and points}


def _in_samples(samples: Mapping[str, int] | None, split: str) -> str:
    return f" ({samples[split]:,} samples)" if samples and split in samples else ""


def _layer_style(number: int) -> dict[str, Any]:
    """A layer's colour and line, the same in every figure."""
    style = LAYER_STYLES[number // len(LAYER_COLOURS) % len(LAYER_STYLES)]
    return {"color": LAYER_COLOURS[number % len(LAYER_COLOURS)], "linestyle": style}


def _line(axes: Axes, points: Sequence[tuple[int, float]], **style: Any) -> None:
    """A curve with a mark per epoch while there are few, so that a single epoch shows."""
    steps, values = zip(*points, strict=True)
    style.setdefault("markersize", 3.5)
    axes.plot(steps, values, marker="o" if len(points) <= 30 else "", **style)


def _density(axes: Axes, series: Sequence[tuple[int, Array]]) -> Any:
    """Share of neurons per value bin and epoch as an image; each epoch's column reaches to the next one's."""
    from matplotlib.colors import PowerNorm

    values = np.concatenate([values[np.isfinite(values)] for _, values in series])
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
    margin = max(0.02 * (high - low), 1e-3 * max(abs(low), abs(high), 1e-3))
    size = min(max(int(3 * series[0][1].size ** 0.5), 12), 60)
    bins = np.linspace(low - margin, high + margin, size + 1)
    columns = [np.histogram(values, bins)[0] / max(values.size, 1) for _, values in series]
    epochs = [epoch for epoch, _ in series]
    gap = epochs[-1] - epochs[-2] if len(epochs) > 1 else 1
    edges = np.array([*epochs, epochs[-1] + gap], dtype=np.float64) - 0.5
    # square root: at the start all neurons share one bin, and would leave nothing to see of the later epochs
    scale = PowerNorm(0.5, vmin=0, vmax=max(float(column.max()) for column in columns))
    return axes.pcolormesh(edges, bins, np.stack(columns, 1), cmap="viridis", norm=scale)


def _epochs(axes: Axes, label: str, grid: bool = True) -> None:
    axes.set_xlabel("epoch (0: before training)")
    axes.set_ylabel(label)
    if grid:
        axes.grid(visible=True, alpha=0.25)
    _whole_numbers(axes.xaxis)
    low, high = axes.get_xlim()
    if high - low < 1:  # a single epoch: no fractions of it on the axis
        axes.set_xlim(round(low) - 1, round(high) + 1)


def _whole_numbers(axis: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins="auto", integer=True, min_n_ticks=1))


def _legend(axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        axes.legend(handles, labels, fontsize=8, framealpha=0.7, ncols=1 + (len(labels) > 8))


def _nothing(axes: Axes, text: str, ticks: bool = False) -> None:
    """Say in words why a panel is empty."""
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, color="#555555")
    if not ticks:
        axes.set_axis_off()
