"""The typed form of a claim, which stands in the experiment's own file under `claim:`.

A claim is one table or figure of a paper: its arms (what is compared), its seeds, and what was published. Nothing here
imports torch or the rest of the configuration: `config.py` reads it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

GRADES = ("primary", "third_party", "unverified")
READINGS = ("end", "epoch", "best", "epochs_to", "seconds_to", "share_of")
SPLITS = ("test", "train", "validation", "unstated")


@dataclass
class ValueConf:
    """One published value of one arm; what is left out is as the claim says."""

    arm: str = ""
    value: float | None = None  # in `claim.unit`; null: no number was published, `said` has the words
    said: str | None = None  # what stands there instead of a number ("did not converge")
    metric: str | None = None
    reading: str | None = None
    epoch: int | None = None
    level: float | None = None
    split: str | None = None
    samples: int | None = None
    where: str | None = None
    read_off: bool | None = None
    grade: str | None = None


@dataclass
class CurveConf:
    """A published curve of one arm: values over epochs, drawn beside ours."""

    arm: str = ""
    metric: str | None = None
    label: str | None = None  # in the legend, if a panel has several metrics
    epochs: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    grade: str | None = None


@dataclass
class CompareConf:
    """That one arm is better than another one: what the paper is about. Judged on paired differences over seeds."""

    better: str = ""
    than: str = ""
    metric: str | None = None
    reading: str | None = None
    epoch: int | None = None
    level: float | None = None
    higher: bool = True  # false: smaller is better (dead neurons, epochs)
    claimed: bool = True  # false: a control of ours, of which the paper says nothing
    published: float | None = None  # better minus than, in `claim.unit`; null: from `values`, where both are there
    grade: str | None = None


@dataclass
class ClaimConf:
    """One table or figure. `metric` to `grade` say what its values are values of, unless a value says otherwise.

    reading: how ours is read from a run. end: the metric at the end (test/accuracy is that of the weights which
        validation selected). epoch: at `epoch`. best: the best of all epochs up to `epoch`, for papers that select on
        the test set. epochs_to: the first epoch at which the metric reaches `level`. ratio_to: not used by values.
    """

    paper: str = ""
    where: str = ""
    says: str = ""  # the claim in one sentence
    unit: str = "%"  # %: shares times 100; else the metric's own unit
    arms: dict[str, dict[str, Any]] = field(default_factory=dict)  # arm -> dotted key -> value
    metric: str = "test/accuracy"
    reading: str = "end"
    epoch: int | None = None  # null: the paper does not say
    level: float | None = None
    whole: int | None = None
    split: str = "test"
    samples: int | None = None  # training samples of the paper
    read_off: bool = False  # read off a figure
    read_off_error: float = 0.0  # half-width of the reading, in `unit`
    grade: str = "primary"
    values: list[ValueConf] = field(default_factory=list)
    curves: list[CurveConf] = field(default_factory=list)
    compare: list[CompareConf] = field(default_factory=list)
    tolerance: float = 0.5  # in `unit`: how far our mean may be from the published value and still reproduce it
    # why no value of ours can be the published one, whatever is run ("another network"); differences still tell
    incomparable: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what a reader of the table must know
    differs: list[str] = field(default_factory=list)  # where our recipe is known to differ, or a choice is ours
