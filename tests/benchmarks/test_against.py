"""`python -m benchmarks.against`: a row of its table, and the real thing at tiny sizes."""

from __future__ import annotations

import pytest

from benchmarks import against


def test_a_row_has_the_fastest_steps_and_both_ratios() -> None:
    assert against.row("W1", [0.2, 0.1, 0.3], [0.11, 0.4, 0.2]) == "| W1 | 100.0 | 110.0 | 1.100 | 1.000 | 3 |"


def test_an_unknown_commit_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert against.main(["no-such-commit", "--quick"]) == 2
    assert "against: no-such-commit" in capsys.readouterr().err


@pytest.mark.slow
def test_both_sides_take_steps(capsys: pytest.CaptureFixture[str]) -> None:
    quick = ["--quick", "--only", "W1", "--rounds", "2", "--processes", "1"]
    assert against.main(["HEAD", *quick]) == 0 and against.main(["HEAD", *quick, "--first"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| W1")]
    assert [row.split()[-2] for row in rows] == ["6", "2"]
