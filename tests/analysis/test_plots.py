"""Figures: what they show is what they were given, at the edges too; and drawing leaves no state behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from snnexp.analysis import plots
from snnexp.analysis.drawing import COLUMN, layer_style

HISTORY = {
    "train/loss": [(1, 2.0), (2, 1.0)],
    "val/loss": [(0, 2.5), (1, 2.25), (2, 1.5)],
    "train/accuracy": [(1, 0.5), (2, 0.75)],
    "val/accuracy": [(0, 0.1), (1, 0.4), (2, 0.6)],
    "train/dead_fraction/sn2": [(1, 0.5), (2, 0.25)],
    "train/dead_fraction/sn10": [(1, 1.0), (2, 0.0)],
    "train/dead_fraction_batch/sn2": [(1, 0.9), (2, 0.9)],
    "val/dead_fraction/sn2": [(0, 0.75), (1, 0.5), (2, 0.25)],
}


def curves(axes: Any) -> dict[str, tuple[list[float], list[float]]]:
    """Label -> x and y values of the lines of a panel."""
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}


def texts(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_learning_curves_show_both_splits_and_the_test_result() -> None:
    loss, accuracy = plots.learning_curves(HISTORY, {"test/accuracy": 0.5}).axes
    assert curves(loss) == {"train": ([1, 2], [2.0, 1.0]), "val": ([0, 1, 2], [2.5, 2.25, 1.5])}
    assert curves(accuracy)["train"] == ([1, 2], [0.5, 0.75])
    assert curves(accuracy)["test: 0.500"][1] == [0.5, 0.5]
    assert "share" in accuracy.get_ylabel()


def test_dead_neurons_are_those_of_the_whole_pass_in_the_order_of_the_network() -> None:
    train, val = plots.dead_neurons(HISTORY).axes
    assert list(curves(train)) == ["sn2", "sn10"]
    assert curves(train)["sn2"] == ([1, 2], [0.5, 0.25])  # not those of a batch
    assert list(curves(val)) == ["sn2"]
    assert train.lines[0].get_color() == val.lines[0].get_color()
    train, val = plots.dead_neurons(HISTORY, {"train": 1437, "val": 180, "test": 180}).axes
    assert (train.get_title(), val.get_title()) == ("train, n = 1,437", "val, n = 180")


def test_a_layer_has_one_colour_and_line_in_its_panel() -> None:
    styles = [tuple(layer_style(number).values()) for number in range(24)]
    assert len(set(styles)) == 24


@pytest.mark.parametrize("epochs", [1, 2, 40])
def test_value_histograms_count_every_neuron(epochs: int) -> None:
    generator = np.random.default_rng(0)
    series = [(epoch, torch.from_numpy(generator.normal(1.0, 0.1, 50))) for epoch in range(epochs)]
    figure = plots.threshold_histograms({"sn1": series})
    shares = figure.axes[0].collections[0].get_array()
    assert shares.shape[1] == epochs
    assert shares.sum(axis=0).tolist() == pytest.approx([1.0] * epochs)
    assert "threshold" in figure.axes[0].get_ylabel()


def test_one_value_per_layer_is_a_line() -> None:
    figure = plots.decay_histograms({"sn1": [(0, torch.tensor([0.5])), (1, torch.tensor(0.75))]})
    [(x, y)] = curves(figure.axes[0]).values()
    assert (x, y) == ([0, 1], [0.5, 0.75])


def test_equal_values_and_nan_can_be_drawn(tmp_path: Path) -> None:
    values = {"sn1": [(0, np.full(5, 1.25)), (1, np.array([1.25, np.nan, 1.25, 1.25, 1.25]))]}
    figure = plots.threshold_histograms(values)
    shares = figure.axes[0].collections[0].get_array()
    assert shares.sum(axis=0).tolist() == pytest.approx([1.0, 0.8])
    plots.save_figures(tmp_path, {"x": figure})


def test_firing_rates_count_dead_neurons_apart() -> None:
    axes = plots.firing_rate_histogram({"sn1": torch.tensor([0.0, 0.0, 0.125, 0.5])}).axes[0]
    heights = [patch.get_height() for patch in axes.patches]
    assert sum(heights) == 4
    assert heights[-1] == 2
    assert axes.get_legend().get_texts()[0].get_text() == "dead: 2 of 4"
    assert "mean 0.156" in axes.get_title()


def test_raster_has_one_mark_per_spike() -> None:
    spk = torch.zeros(5, 3)
    spk[1, 2] = spk[4, 0] = 1
    figure = plots.raster({"sn1": spk, "sn2": torch.zeros(5, 2)}, "cat", "dog")
    first, second = figure.axes
    assert sorted(map(tuple, first.collections[0].get_offsets().tolist())) == [(1.0, 2.0), (4.0, 0.0)]
    assert texts(second) == ["no spike"]
    title = figure.get_suptitle()
    assert "cat" in title
    assert "dog" in title
    assert "wrong" in title


def test_raster_of_a_large_layer_says_what_it_shows() -> None:
    figure = plots.raster({"sn1": torch.ones(2, 5000)}, "0", "0")
    axes = figure.axes[0]
    assert f"{plots.MAX_RASTER_NEURONS} of 5,000" in axes.get_title("left")
    offsets = axes.collections[0].get_offsets()
    assert len(offsets) == 2 * plots.MAX_RASTER_NEURONS
    assert offsets[:, 1].max() == 4999  # by the neuron's own number


def test_confusion_matrix_colours_the_share_and_writes_the_count() -> None:
    figure = plots.confusion_matrix(torch.tensor([[3, 1], [0, 0]]), ["a", "b"])
    axes = figure.axes[0]
    assert axes.images[0].get_array().tolist() == [[0.75, 0.25], [0.0, 0.0]]
    assert sorted(texts(axes)) == ["1", "3"]
    assert "accuracy 0.750, n = 4 test samples" in figure.get_suptitle()
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "true class")


def test_hundred_classes_show_fewer_names() -> None:
    axes = plots.confusion_matrix(np.eye(100), [str(i) for i in range(100)]).axes[0]
    assert 20 <= len(axes.get_xticks()) <= 40
    assert texts(axes) == []


def test_empty_figures_say_why(tmp_path: Path) -> None:
    figures = {
        "curves": plots.learning_curves({}),
        "dead": plots.dead_neurons({}),
        "thresholds": plots.threshold_histograms({}),
        "rates": plots.firing_rate_histogram({}),
        "raster": plots.raster({}, "0", "0"),
    }
    for name, figure in figures.items():
        assert texts(figure.axes[0]), name
    assert len(plots.save_figures(tmp_path, figures)) == 2 * 5


def test_firing_rates_say_in_how_many_samples() -> None:
    figure = plots.firing_rate_histogram({"sn1": torch.tensor([0.0, 0.5])}, {"test": 1180})
    assert figure.get_suptitle() == "n = 1,180 test samples"


def test_all_figures_of_a_run_are_files(tmp_path: Path) -> None:
    outcome = SimpleNamespace(
        metrics={"test/accuracy": 0.5, "test/loss": 1.0},
        confusion=torch.eye(2, dtype=torch.int64),
        raster={"sn1": torch.ones(4, 2)},
        raster_label=1,
        raster_prediction=0,
        rates={"sn1": torch.tensor([0.0, 1.0])},
    )
    samples = {"train": 8, "val": 4, "test": 4}
    learned = {"threshold": {"sn1": [(0, torch.ones(3)), (1, torch.rand(3))]}, "beta": {"sn1": [(0, torch.ones(1))]}}
    paths = plots.save_run_plots(tmp_path / "plots", HISTORY, learned, outcome, ("a", "b"), samples)  # type: ignore[arg-type]
    assert {path.stem for path in paths} == {
        "learning_curves",
        "dead_neurons",
        "firing_rates",
        "raster",
        "confusion_matrix",
        "threshold_histograms",
        "beta_histograms",
    }
    pictures, papers = ([p for p in paths if p.suffix == suffix] for suffix in (".png", ".pdf"))
    assert len(pictures) == len(papers) == 7
    assert all(path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for path in pictures)
    for path in papers:
        text = path.read_bytes()
        assert text.startswith(b"%PDF")
        assert b"/FontFile2" in text and b"/Type3" not in text  # letters are embedded TrueType


def test_figures_fit_a_column_and_say_what_they_show() -> None:
    about, samples = "digits, rouser, seed 0", {"train": 8, "val": 4, "test": 5}
    figures = [
        plots.learning_curves(HISTORY, {}, samples, about),
        plots.dead_neurons(HISTORY, samples, about),
        plots.firing_rate_histogram({"sn1": torch.ones(3)}, samples, about),
        plots.raster({"sn1": torch.ones(4, 2)}, "cat", "dog", about),
        plots.confusion_matrix(np.eye(3), ["a", "b", "c"], about),
        plots.threshold_histograms({"sn1": [(0, torch.rand(5))]}, about),
    ]
    for figure in figures:
        assert figure.get_figwidth() == COLUMN
        assert figure.get_suptitle().startswith(about)
        written = [
            figure.get_suptitle(),
            *(axes.get_title(where) for axes in figure.axes for where in ("center", "left")),
        ]
        assert any("n = " in text for text in written)
        sizes = [text.get_fontsize() for axes in figure.axes for text in (axes.xaxis.label, *axes.get_xticklabels())]
        assert all(6 <= size <= 8 for size in sizes)


def test_single_values_of_layers_share_one_panel_of_lines() -> None:
    values = {name: [(0, torch.tensor([0.5])), (1, torch.tensor([0.6]))] for name in ("sn1", "sn2")}
    [axes] = plots.decay_histograms(values).axes
    assert list(curves(axes)) == ["sn1", "sn2"]
    spread = plots.threshold_histograms({**values, "sn3": [(0, torch.rand(4)), (1, torch.rand(4))]})
    assert [axes.get_title() for axes in spread.axes[:2]] == ["one value per layer", "sn3, n = 4 neurons"]


def test_a_spike_can_be_seen_whatever_the_number_of_steps() -> None:
    for steps in (1, 8, 300):
        marks = plots.raster({"sn1": torch.ones(steps, 500)}, "0", "0").axes[0].collections[0]
        assert 0.8 <= marks.get_sizes()[0] ** 0.5 <= 6.0
        assert marks.get_linewidths()[0] >= 0.9


def test_pyplot_is_never_imported_and_matplotlib_late() -> None:
    script = (
        "import sys\nfrom snnexp.analysis import plots\nassert 'matplotlib' not in sys.modules\n"
        "plots.learning_curves({})\nassert 'matplotlib.pyplot' not in sys.modules\nassert 'matplotlib' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
