"""Which settings are on the front of accuracy against synaptic operations."""

from __future__ import annotations

from pathlib import Path

from snnexp.analysis.pareto import Point, draw_pareto, front, points_of
from snnexp.analysis.seeds import Group, Result


def test_the_front_has_what_nothing_beats_in_both() -> None:
    cheap, good = Point("cheap", (10, 20), (0.5, 0.5)), Point("good", (100,), (0.9,))
    dear, bad = Point("dear", (120,), (0.9,)), Point("bad", (50,), (0.4,))
    twin = Point("twin", (15,), (0.5,))
    assert [p.name for p in front([bad, dear, good, cheap, twin])] == ["cheap", "twin", "good"]


def test_points_are_settings_with_both_numbers(tmp_path: Path) -> None:
    def group(name: str, synops: float | None) -> Group:
        runs = {str(seed): Result(str(seed), {}, 0.5 + seed / 10, None, synops=synops) for seed in (0, 1)}
        return Group({"neuron": name}, runs)

    points = points_of([group("fixed", 100.0), group("plif", None), group("rouser", 3000.0)])
    assert [(p.name, p.synops, p.accuracy) for p in points] == [
        ("neuron fixed", (100.0, 100.0), (0.5, 0.6)),
        ("neuron rouser", (3000.0, 3000.0), (0.5, 0.6)),
    ]
    written = draw_pareto(tmp_path / "pareto", points, "two settings")
    assert [path.suffix for path in written] == [".png", ".pdf"] and all(p.stat().st_size > 2000 for p in written)
