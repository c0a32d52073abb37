"""Words of users in paths."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from snnexp.naming import path_word
from snnexp.tracking.runs import claim


@given(st.text(st.characters(codec="utf-8")), st.text(st.characters(codec="utf-8")))
def test_a_word_becomes_one_harmless_name_of_its_own(word: str, other: str) -> None:
    name = path_word(word)
    assert name and Path("x", name).name == name and "/" not in name and not name.startswith((".", "-"))
    assert name.isprintable() and " " not in name and len(name.encode()) <= 100
    assert (path_word(other) == name) == (other == word)
    assert path_word(name) == name or "~" in name


def test_ordinary_words_stay_and_others_can_be_told_apart() -> None:
    for word in ("fixed", "rouser", "my_neuron", "v1.2", "lif+alpha", "größe", "2026_11_25", "a-b"):
        assert path_word(word) == word
    odd = [
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "a_b/",
        "a b",
        "a\tb",
        "a\nb",
        "-x",
        ".x",
        "x.",
        "a" * 300,
        "a" * 301,
        "a\\b",
        "o\u0308",
    ]
    assert len({path_word(word) for word in odd}) == len(odd)


def test_a_run_stays_below_its_state_dir(tmp_path: Path) -> None:
    for name in ("../../outside", "a/b", "n" * 400, "tab\there"):
        folder = claim({"dataset": {"name": "digits"}, "neuron": {"name": name}, "seed": 0}, tmp_path / "runs")
        assert folder.path.parent.parent == tmp_path / "runs"
        folder.finish("FINISHED")
