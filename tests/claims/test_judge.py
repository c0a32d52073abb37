"""Verdicts by hand: every rule with numbers that a pencil can check."""

from __future__ import annotations

import pytest

from snnexp.claims.conf import ClaimConf, CompareConf, ValueConf
from snnexp.claims.judge import Quantity, Run, interval, judge


def run(arm: str, seed: int, accuracy: float, *, complete: bool = True, epochs: int = 2, **curves: list[float]) -> Run:
    points = {name.replace("__", "/"): [[e, v] for e, v in enumerate(values)] for name, values in curves.items()}
    points["time/epoch_s"] = [[e, 10.0] for e in range(1, epochs + 1)]
    metrics = {"test/accuracy": accuracy}
    return Run(arm, seed, "snnexp", "c0ffee", False, {"train": 100}, complete, epochs, 20.0, metrics, points)


def claim(**keys: object) -> ClaimConf:
    arms: dict[str, dict[str, object]] = {"new": {}, "old": {}}
    return ClaimConf(paper="P", where="Table 1", says="new is better", arms=arms, **keys)  # type: ignore[arg-type]


def pairs(*gaps: float, complete: bool = True) -> list[Run]:
    """Seeds 0, 1, ...: old at 50 %, new so many per cent above it."""
    old = [run("old", seed, 0.5, complete=complete) for seed in range(len(gaps))]
    return old + [run("new", seed, 0.5 + gap / 100, complete=complete) for seed, gap in enumerate(gaps)]


COMPARE = [CompareConf(better="new", than="old", published=10.0)]


def test_interval_by_hand() -> None:
    # mean 2, sd 1, n 3: 4.303 * 1 / sqrt(3) = 2.4843
    mean, low, high = interval([1.0, 2.0, 3.0])
    assert (mean, low, high) == pytest.approx((2.0, -0.4843, 4.4843), abs=1e-4)


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [(0.90, "reproduced"), (0.896, "reproduced"), (0.894, "not reproduced"), (0.95, "reproduced")],
)
def test_a_row_may_be_worse_by_the_tolerance(ours: float, verdict: str) -> None:
    judged = judge(claim(values=[ValueConf(arm="new", value=90.0)], tolerance=0.5), [run("new", 0, ours)])
    assert judged.rows[0].verdict == verdict
    assert judged.rows[0].difference == pytest.approx(100 * ours - 90)


def test_smaller_is_better_for_dead_neurons() -> None:
    values = [ValueConf(arm="new", value=30.0, metric="val/dead_fraction/sn1", reading="epoch", epoch=2)]
    for last, verdict in ((0.1, "reproduced"), (0.4, "not reproduced")):
        judged = judge(claim(values=values), [run("new", 0, 0.5, val__dead_fraction__sn1=[0.9, 0.5, last])])
        assert judged.rows[0].verdict == verdict


def test_what_makes_a_row_not_comparable() -> None:
    value = ValueConf(arm="new", value=90.0, epoch=50, reading="epoch", metric="test_curve/accuracy")
    part = run("new", 0, 0.9, complete=False, test_curve__accuracy=[0.1, 0.8, 0.9])
    [row] = judge(claim(values=[value], samples=60000), [part], ["neuron.beta=0.3"]).rows
    assert row.verdict == "not comparable"
    assert row.why == "part of the data: 100 of 60,000 samples; 2 epochs instead of 50; changed: neuron.beta=0.3"
    assert (row.ours, row.early) == (90.0, True)
    [row] = judge(claim(values=[ValueConf(arm="new", value=90.0, grade="unverified")]), [run("new", 0, 0.9)]).rows
    assert row.why == "the published value is not verified"
    [row] = judge(claim(values=[ValueConf(arm="new", value=90.0)]), [run("old", 0, 0.9)]).rows
    assert (row.verdict, row.n) == ("not run", 0)


@pytest.mark.parametrize(
    ("runs", "verdict", "why"),
    [
        (pairs(9, 10, 11), "reproduced", ""),
        (pairs(2, 3, 4), "direction only", "of another size"),
        (pairs(9, 10, 11, complete=False), "direction only", "part of the data"),
        (pairs(-1, 0, 1), "not reproduced", "no difference seen: the interval has 0"),
        (pairs(-9, -10, -11), "not reproduced", "the interval excludes 0 on the other side"),
        (pairs(-1, 0, 1, complete=False), "not comparable", "no difference seen: the interval has 0; part of the data"),
        (pairs(9, 10), "open", "2 seeds: too few to tell (three are needed)"),
        (pairs(9), "open", "1 seed: too few to tell (three are needed)"),
        ([], "not run", ""),
    ],
)
def test_differences(runs: list[Run], verdict: str, why: str) -> None:
    judged = judge(claim(compare=COMPARE), runs)
    assert (judged.differences[0].verdict, judged.differences[0].why) == (verdict, why)
    assert judged.verdict == verdict


def test_a_control_of_which_the_paper_says_nothing() -> None:
    compare = [CompareConf(better="new", than="old", claimed=False)]
    judged = judge(claim(compare=compare), pairs(-9, -10, -11))
    assert (judged.verdict, judged.differences[0].why) == ("no claim", "they differ")


def test_only_seeds_that_both_arms_have_are_paired() -> None:
    runs = [*pairs(9, 10, 11), run("new", 7, 0.1)]
    assert judge(claim(compare=COMPARE), runs).differences[0].n == 3


def test_a_published_gap_comes_from_values_that_may_be_cited() -> None:
    values = [ValueConf(arm="new", value=90.0), ValueConf(arm="old", value=80.0)]
    compare = [CompareConf(better="new", than="old")]
    assert judge(claim(values=values, compare=compare), pairs(9, 10, 11)).differences[0].published == 10.0
    values[1].grade = "unverified"
    line = judge(claim(values=values, compare=compare), pairs(9, 10, 11)).differences[0]
    assert (line.published, line.verdict) == (None, "direction only")


def test_epochs_to_a_level_and_what_never_reaches_it() -> None:
    fast = [run("new", s, 0.9, test_curve__accuracy=[0.1, 0.7, 0.9]) for s in range(3)]
    slow = [run("old", s, 0.9, test_curve__accuracy=[0.1, 0.2, 0.3]) for s in range(3)]
    keys = {"metric": "test_curve/accuracy", "reading": "epochs_to", "level": 0.7}
    values = [ValueConf(arm="new", value=1.0), ValueConf(arm="old", value=9.0)]
    compare = [CompareConf(better="new", than="old", higher=False)]
    judged = judge(claim(values=values, compare=compare, **keys), [*fast, *slow])
    assert [(row.ours, row.n, row.missing) for row in judged.rows] == [(1.0, 3, 0), (None, 0, 3)]
    assert judged.rows[1].why == "never reached"
    assert judged.differences[0].why == "reached by 3 of 3 (new) and 0 of 3 (old)"
    assert Quantity("test_curve/accuracy", "seconds_to", None, 0.9).of(fast[0]) == 20.0


def test_best_and_share_readings() -> None:
    one = run("new", 0, 0.5, test_curve__accuracy=[0.99, 0.7, 0.6], weights__change=[0.0, 1.0, 4.0])
    assert Quantity("test_curve/accuracy", "best", None, None).of(one) == 0.7  # the untrained network does not count
    assert Quantity("weights/change", "share_of", 1, None, 2).of(one) == 0.25
    assert Quantity("nothing", "epoch", 1, None).of(one) is None
