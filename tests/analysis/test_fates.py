"""What became of each neuron: packed and kept small, spells counted by hand, figures that show them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from snnexp.analysis.activity import LayerActivity
from snnexp.analysis.fate_plots import diagnosis_page, layer_maps, survival_curves
from snnexp.analysis.fates import Fates, Spells, record, sets, spells, survival
from snnexp.analysis.reach import EDGES
from snnexp.training.checkpoint import load_state, save_state


def activity(rates: list[float], reach: list[float] | None = None) -> LayerActivity:
    histogram = np.zeros(len(EDGES) + 1, np.int64)
    histogram[100:140] = 3
    some = torch.zeros(len(rates))
    return LayerActivity(
        torch.tensor(rates, dtype=torch.float64), 0.0, 0.0, some, some, 4, 0.0,
        None if reach is None else torch.tensor(reach, dtype=torch.float64), None if reach is None else histogram,
    )  # fmt: skip


def told(*epochs: tuple[list[float], list[float]]) -> Fates:
    fates: Fates = {}
    for epoch, (rates, reach) in enumerate(epochs):
        record(fates, epoch, {"sn1": activity(rates, reach)})
    return fates


STORY = told(
    # neuron 0 lives; 1 dies in epoch 1 and is back in 3; 2 is dead throughout and out of reach; 3 dies in the end
    ([0.5, 0.5, 0.0, 0.1], [1, 1, 0, 1]),
    ([0.5, 0.0, 0.0, 0.1], [1, 1, 0, 1]),
    ([0.5, 0.0, 0.0, 0.1], [1, 1, 0, 1]),
    ([0.5, 0.2, 0.0, 0.0], [1, 1, 0, 1]),
)


def test_sets_are_a_bit_per_neuron() -> None:
    assert STORY["dead"]["sn1"][0][1].dtype == torch.uint8 and STORY["dead"]["sn1"][0][1].numel() == 1
    assert [list(np.nonzero(which)[0]) for _, which in sets(STORY, "dead", "sn1")] == [[2], [1, 2], [1, 2], [2, 3]]
    assert [epoch for epoch, _ in STORY["maps"]["sn1"]] == [0, 1, 2, 3]


def test_maps_keep_powers_of_two_and_the_last_epoch_of_some_neurons() -> None:
    fates: Fates = {}
    for epoch in range(12):
        record(fates, epoch, {"sn1": activity([0.1] * 5000, [0.5] * 5000)})
    record(fates, 11, {"sn1": activity([0.2] * 5000, [0.5] * 5000)})  # the same again
    kept = fates["maps"]["sn1"]
    assert [epoch for epoch, _ in kept] == [0, 1, 2, 4, 8, 11]
    assert kept[-1][1].shape == (2, 1000) and float(kept[-1][1][0, 0]) == pytest.approx(0.2)
    assert len(fates["dead"]["sn1"]) == 12


def test_without_gradients_there_is_no_more_than_the_dead() -> None:
    fates: Fates = {}
    record(fates, 0, {"sn1": activity([0.0, 1.0])})
    assert set(fates) == {"sizes", "dead"}
    assert len(spells(fates, "sn1").lengths) == 1


def test_spells_and_survival_on_paper() -> None:
    found = spells(STORY, "sn1")
    each = sorted(zip(found.lengths.tolist(), found.ended.tolist(), found.blind.tolist(), strict=True))
    assert each == [(0, False, False), (2, True, False), (3, False, True)]
    # lengths 1 (back), 2 (back), 2 (still dead), 3 (back): S(1) = 3/4, S(2) = 3/4 * 2/3, S(3) = 0
    some = Spells(np.array([1, 2, 2, 3]), np.array([True, True, False, True]), np.zeros(4, bool))
    times, share = survival(some)
    assert times.tolist() == [0, 1, 2, 3]
    assert share.tolist() == pytest.approx([1, 3 / 4, 1 / 2, 0])


def test_they_go_through_a_checkpoint(tmp_path: Path) -> None:
    save_state(tmp_path / "state.pt", {"fit": {"fates": STORY}})
    back = load_state(tmp_path / "state.pt")["fit"]["fates"]
    again = spells(back, "sn1")
    assert again.lengths.tolist() == spells(STORY, "sn1").lengths.tolist()
    assert torch.equal(back["maps"]["sn1"][-1][1], STORY["maps"]["sn1"][-1][1])


def test_figures() -> None:
    maps = layer_maps(STORY, "digits")
    assert [a.get_title() for a in maps.axes] == [f"sn1, epoch {n}" for n in range(4)]
    assert maps.axes[0].collections[0].get_offsets().shape == (4, 2)
    assert "1 dead without a gradient" in [t.get_text() for t in maps.axes[0].texts]
    curves = survival_curves(STORY, "digits")
    labels = curves.axes[0].get_legend_handles_labels()[1]
    assert labels == ["in reach, 1 of 2 back", "gradient-dead, 0 of 1 back"]
    history = {"val/dead_fraction/sn1": [(0, 0.25), (1, 0.5)], "val/gradient_dead/sn1": [(0, 0.25), (1, 0.25)]}
    page = diagnosis_page(history, "val", STORY, {"sn1": "50 % of its 4 neurons never fired."}, "digits")
    assert len(page.axes) == 4 and len(page.axes[0].lines) == 2
    assert "50 % of its 4 neurons never" in page.axes[3].texts[0].get_text()
    empty = diagnosis_page({}, "val", {}, {"sn1": "It is not mostly dead."}, "digits")
    assert empty.axes[1].texts[0].get_text() == "not counted"
    assert survival_curves({}).axes[0].texts and layer_maps({}).axes[0].texts
