"""Published values against ours: pure functions from a claim and its runs to rows, differences and verdicts in words.

The rules, in full (`RULES` is what tables print):

A row (one published value of one arm) is *not comparable* if the value is unverified, or if ours was measured on a part
of the data, after another number of epochs, or with settings that the command changed. It is *reproduced* if the mean
over seeds is at most `claim.tolerance` below the published value (above, where smaller is better), and *not
reproduced* else.

A difference between two arms is taken seed by seed, since the arms of a seed share weights, split and order. It is
*open* with fewer than three seeds. If its 95 % interval (Student's t) does not exclude 0 on the claimed side it is *not
reproduced*, or *not comparable* where the runs are not. If it does, it is *reproduced* if the runs are comparable and
the published difference lies in the interval or within the tolerance of the mean, and *direction only* else.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from snnexp.claims.conf import ClaimConf, CompareConf, ValueConf

REPRODUCED, DIRECTION, NOT_REPRODUCED = "reproduced", "direction only", "not reproduced"
NOT_COMPARABLE, OPEN, NOT_RUN, NO_CLAIM = "not comparable", "open", "not run", "no claim"

RULES = (
    "A row is *not comparable* if the published value is unverified, or if ours comes from a part of the data, another "
    "number of epochs, or settings that differ from the file's; *reproduced* if our mean is at most the tolerance "
    "worse than the published value, *not reproduced* if not.",
    "A difference is taken seed by seed (the arms of a seed share initial weights, split and order). With fewer than "
    "three seeds it stays *open*. If its 95 % interval (Student's t) does not exclude 0 on the claimed side it is *not "
    "reproduced*, or *not comparable* where the runs are not. If it does, it is *reproduced* if the runs are "
    "comparable and the published difference lies in the interval or within the tolerance of the mean, and "
    "*direction only* else.",
)

# Student's t at 0.975 for 1, 2, ... degrees of freedom (NIST/SEMATECH e-Handbook, table of critical values)
_T975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
MIN_SEEDS = 3


@dataclass(frozen=True)
class Run:
    """One finished run of one arm: what `collect` found, as it stands in the JSON file."""

    arm: str
    seed: int
    command: str
    commit: str
    dirty: bool
    samples: Mapping[str, int]
    complete: bool
    epochs: int
    seconds: float  # of training, all epochs
    metrics: Mapping[str, float]  # last value of each
    curves: Mapping[str, Sequence[Sequence[float]]]  # metric -> [epoch, value] pairs
    facts: Mapping[str, Any] = field(default_factory=dict)  # device, engine, threads, fingerprint, ...


@dataclass(frozen=True)
class Quantity:
    """What a number is a value of."""

    metric: str
    reading: str
    epoch: int | None
    level: float | None
    whole: int | None = None

    def describe(self) -> str:
        """In words, for a table: `test/accuracy`, `test_curve/accuracy at epoch 5`."""
        if self.reading in ("epochs_to", "seconds_to"):
            unit = self.reading.removesuffix("_to")
            return f"{unit} until {self.metric} is {_number(100 * (self.level or 0))} %"
        some = "" if self.epoch is None else f"{self.epoch} epoch{'s' * (self.epoch != 1)}"
        when = {
            "end": "",
            "epoch": f" at epoch {self.epoch}" if self.epoch is not None else " at the last epoch",
            "share_of": f" at epoch {self.epoch}, share of that at {self.whole}",
            "best": f", best of {some}" if some else ", best epoch",
        }
        return self.metric + when[self.reading]

    def of(self, run: Run) -> float | None:
        """The value in one run (None: not logged, or the level was not reached)."""
        if self.reading == "end":
            return run.metrics.get(self.metric)
        points = [(int(epoch), value) for epoch, value in run.curves.get(self.metric, ())]
        if self.reading in ("epochs_to", "seconds_to"):
            assert self.level is not None
            epoch = min((e for e, v in points if e > 0 and v >= self.level), default=None)
            if epoch is None or self.reading == "epochs_to":
                return None if epoch is None else float(epoch)
            return sum(seconds for e, seconds in run.curves["time/epoch_s"] if e <= epoch)
        if self.reading == "share_of":
            return _at(points, self.epoch, 0.0) / (_at(points, self.whole, 0.0) or 1.0) if points else None
        within = [(e, v) for e, v in points if self.epoch is None or e <= self.epoch]
        if self.reading == "best":
            return max((v for e, v in within if e > 0), default=None)
        return within[-1][1] if within else None


@dataclass(frozen=True)
class Row:
    """One line of the table: a published value beside ours. Numbers are in `claim.unit`."""

    arm: str
    quantity: str
    published: float | None
    said: str
    where: str
    grade: str
    ours: float | None
    sd: float | None
    n: int
    missing: int  # runs in which there is no value: the level was not reached
    difference: float | None
    samples: int | None
    epochs: int | None
    seconds: float | None
    early: bool  # our runs ended before the epoch that the value is of; ours is from their last one
    verdict: str
    why: str


@dataclass(frozen=True)
class Difference:
    """One line of the second table: better minus than, paired over seeds, in `claim.unit`."""

    better: str
    than: str
    quantity: str
    published: float | None
    mean: float | None
    low: float | None
    high: float | None
    n: int
    verdict: str
    why: str


@dataclass(frozen=True)
class Judgement:
    """Everything that a table shows."""

    rows: list[Row]
    differences: list[Difference]
    verdict: str

    def as_dict(self) -> dict[str, Any]:
        """Plain containers for JSON."""
        return asdict(self)


def judge(claim: ClaimConf, runs: Sequence[Run], changed: Sequence[str] = ()) -> Judgement:
    """Compare the claim with its runs. `changed`: overrides with which the experiment was changed."""
    values = claim.values or [ValueConf(arm=arm, said="") for arm in claim.arms]
    rows = [_row(claim, value, [run for run in runs if run.arm == value.arm], changed) for value in values]
    differences = [_difference(claim, compare, runs, changed) for compare in claim.compare]
    return Judgement(rows, differences, _overall(rows, differences))


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and its 95 % interval (Student's t) of two or more values."""
    mean, n = statistics.fmean(values), len(values)
    t = _T975[n - 2] if n - 2 < len(_T975) else 1.96 + 2.5 / (n - 1)
    half = t * statistics.stdev(values) / math.sqrt(n)
    return mean, mean - half, mean + half


def quantity(claim: ClaimConf, part: ValueConf | CompareConf) -> Quantity:
    """What a value or comparison is of, with the claim's own words where it has none."""
    reading = part.reading or claim.reading
    epoch = part.epoch if part.epoch is not None else claim.epoch
    level = part.level if part.level is not None else claim.level
    return Quantity(part.metric or claim.metric, reading, None if reading == "end" else epoch, level, claim.whole)


def scale(claim: ClaimConf, of: Quantity) -> float:
    """What a metric is multiplied by to be in the claim's unit: shares in per cent, epochs and seconds as they are."""
    return 100.0 if claim.unit == "%" and not of.reading.endswith("_to") else 1.0


def _at(points: Sequence[tuple[int, float]], epoch: int | None, default: float) -> float:
    """The value at `epoch`, or the last one before it."""
    return next((v for e, v in reversed(points) if epoch is None or e <= epoch), default)


def _row(claim: ClaimConf, value: ValueConf, runs: Sequence[Run], changed: Sequence[str]) -> Row:
    of = quantity(claim, value)
    factor = scale(claim, of)
    found = [factor * x for x in (of.of(run) for run in runs) if x is not None]
    ours = statistics.fmean(found) if found else None
    sd = statistics.stdev(found) if len(found) > 1 else None
    grade = value.grade or claim.grade
    difference = ours - value.value if ours is not None and value.value is not None else None
    verdict, why = _row_verdict(claim, value, of, runs, ours, difference, grade, changed)
    return Row(
        arm=value.arm,
        quantity=of.describe(),
        published=value.value,
        said=value.said or "",
        where=value.where or claim.where,
        grade=grade,
        ours=ours,
        sd=sd,
        n=len(found),
        missing=len(runs) - len(found),
        difference=difference,
        samples=_common([run.samples.get("train", 0) for run in runs]),
        epochs=_common([run.epochs for run in runs]),
        seconds=statistics.fmean(run.seconds for run in runs) if runs else None,
        early=of.reading == "epoch" and of.epoch is not None and any(run.epochs < of.epoch for run in runs),
        verdict=verdict,
        why=why,
    )


def _row_verdict(
    claim: ClaimConf,
    value: ValueConf,
    of: Quantity,
    runs: Sequence[Run],
    ours: float | None,
    difference: float | None,
    grade: str,
    changed: Sequence[str],
) -> tuple[str, str]:
    if not runs:
        return NOT_RUN, ""
    if value.value is None:
        return NOT_COMPARABLE, "no number was published"
    if grade == "unverified":
        return NOT_COMPARABLE, "the published value is not verified"
    reasons = obstacles(claim, of, runs, changed, value.samples)
    if reasons:
        return NOT_COMPARABLE, "; ".join(reasons)
    if ours is None or difference is None:
        return NOT_REPRODUCED, "never reached"
    smaller_is_better = of.reading.endswith("_to") or "dead" in of.metric or "loss" in of.metric
    worse = difference if smaller_is_better else -difference
    if worse <= claim.tolerance:
        return REPRODUCED, "above it" if worse < -claim.tolerance else f"within {_number(claim.tolerance)} {claim.unit}"
    return NOT_REPRODUCED, f"more than {_number(claim.tolerance)} {claim.unit} worse"


def obstacles(
    claim: ClaimConf, of: Quantity, runs: Sequence[Run], changed: Sequence[str], samples: int | None = None
) -> list[str]:
    """Why a number of these runs is not the number that was published; empty if nothing speaks against it."""
    reasons = list(claim.incomparable)
    if not all(run.complete for run in runs):
        wanted = samples or claim.samples
        reasons.append("part of the data" + (f": {_range(runs)} of {wanted:,} samples" if wanted else ""))
    wanted_epochs = max((e for e in (of.epoch, of.whole) if e is not None), default=claim.epoch)
    if wanted_epochs is not None and any(run.epochs < wanted_epochs for run in runs):
        reasons.append(f"{_epochs([run.epochs for run in runs])} instead of {wanted_epochs}")
    if changed:
        reasons.append(f"changed: {' '.join(changed)}")
    return reasons


def _difference(claim: ClaimConf, compare: CompareConf, runs: Sequence[Run], changed: Sequence[str]) -> Difference:
    of = quantity(claim, compare)
    factor = scale(claim, of)
    sign = 1.0 if compare.higher else -1.0
    sides = [{run.seed: run for run in runs if run.arm == arm} for arm in (compare.better, compare.than)]
    seeds = sorted(set(sides[0]) & set(sides[1]))
    pairs = [(of.of(sides[0][seed]), of.of(sides[1][seed])) for seed in seeds]
    both = [factor * (a - b) for a, b in pairs if a is not None and b is not None]
    published = compare.published if compare.published is not None else _published_gap(claim, compare, of)
    involved = [side[seed] for side in sides for seed in seeds]
    mean = low = high = None
    if len(both) == 1:
        mean = both[0]
    elif both:
        mean, low, high = interval(both)

    def line(verdict: str, why: str) -> Difference:
        return Difference(
            compare.better, compare.than, of.describe(), published, mean, low, high, len(pairs), verdict, why
        )

    if not pairs:
        return line(NOT_RUN, "")
    if len(both) < len(pairs):
        return line(*_where_not_reached(compare, pairs))
    if len(pairs) < MIN_SEEDS:
        return line(OPEN, f"{len(pairs)} seed{'s' * (len(pairs) > 1)}: too few to tell (three are needed)")
    assert mean is not None and low is not None and high is not None
    if not compare.claimed:
        return line(NO_CLAIM, "they differ" if low > 0 or high < 0 else "no difference seen: the interval has 0")
    reasons = obstacles(claim, of, involved, changed)
    if (low if sign > 0 else -high) <= 0:
        opposite = (high if sign > 0 else -low) < 0
        seen = "the interval excludes 0 on the other side" if opposite else "no difference seen: the interval has 0"
        return line(NOT_COMPARABLE if reasons else NOT_REPRODUCED, "; ".join([seen, *reasons]))
    if compare.grade == "unverified":
        reasons.append("the published difference is not verified")
    if published is None:
        reasons.append("no difference was published")
    elif not (low <= published <= high or abs(mean - published) <= claim.tolerance):
        reasons.append("of another size")
    return line(DIRECTION, "; ".join(reasons)) if reasons else line(REPRODUCED, "")


def _where_not_reached(compare: CompareConf, pairs: Sequence[tuple[float | None, float | None]]) -> tuple[str, str]:
    """A level that a run never reaches has no number: count who reached it, and say so."""
    reached = [sum(pair[side] is not None for pair in pairs) for side in (0, 1)]
    text = (
        f"reached by {reached[0]} of {len(pairs)} ({compare.better}) and {reached[1]} of {len(pairs)} ({compare.than})"
    )
    if len(pairs) < MIN_SEEDS:
        return OPEN, f"{text}; too few seeds to tell"
    return (DIRECTION if reached == [len(pairs), 0] else OPEN), text


def _published_gap(claim: ClaimConf, compare: CompareConf, of: Quantity) -> float | None:
    """Better minus than from the published values of the same quantity, if both are numbers that may be cited."""
    found = []
    for arm in (compare.better, compare.than):
        same = [
            v.value
            for v in claim.values
            if v.arm == arm and quantity(claim, v) == of and (v.grade or claim.grade) != "unverified"
        ]
        found.append(same[0] if same else None)
    return found[0] - found[1] if found[0] is not None and found[1] is not None else None


def _overall(rows: Sequence[Row], differences: Sequence[Difference]) -> str:
    """The worst of what was judged: differences where the claim is one, else the rows."""
    order = (NOT_REPRODUCED, OPEN, DIRECTION, NOT_COMPARABLE, REPRODUCED)
    verdicts = [d.verdict for d in differences] or [row.verdict for row in rows]
    judged = [verdict for verdict in verdicts if verdict not in (NOT_RUN, NO_CLAIM)]
    if not judged and NO_CLAIM in verdicts:
        return NO_CLAIM
    return next((verdict for verdict in order if verdict in judged), NOT_RUN)


def _epochs(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low} epoch{'s' * (low != 1)}" if low == high else f"{low} to {high} epochs"


def _common(values: Sequence[int]) -> int | None:
    return values[0] if values and len(set(values)) == 1 else None


def _range(runs: Sequence[Run]) -> str:
    counts = sorted({int(run.samples.get("train", 0)) for run in runs})
    return f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"


def _number(value: float) -> str:
    return f"{value:.4g}"
