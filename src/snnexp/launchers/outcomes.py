"""How a sweep's jobs ended, in lines that a user can read, and as what Hydra's sweepers take."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from snnexp.launchers.worker import JobLost

How = Literal["finished", "failed", "killed", "lost"]
LONGEST = 300


@dataclass(frozen=True)
class Outcome:
    """Of one job: `killed` was asked for (scancel, Ctrl-C, its time was up), `lost` was not (kill -9, memory, a node).

    `done` is Hydra's JobReturn.
    """

    number: int
    name: str
    how: How
    done: Any
    text: str = ""

    def line(self) -> str:
        """`#3 finished: seed=1 (best on validation 0.9324)`."""
        words = f"#{self.number} {self.how}: {self.name}".rstrip(": ")
        return f"{words} ({self.text})" if self.text else words


def names(job_overrides: Sequence[Sequence[str]]) -> list[str]:
    """What tells each job from the others: the words that they do not all have, or all words of a single one."""
    own = [[word for word in words if not word.lstrip("+").startswith("hydra")] for words in job_overrides]
    shared = set(own[0]).intersection(*own) if len(own) > 1 else set()
    return [" ".join(word for word in words if word not in shared) for words in own]


def ended(number: int, name: str, done: Any) -> Outcome:
    """The outcome of a job that came back by itself."""
    from hydra.core.utils import JobStatus

    if done.status == JobStatus.COMPLETED:
        value = done._return_value
        text = f"best on validation {value:.4f}" if isinstance(value, float) else ""
        return Outcome(number, name, "finished", done, text)
    return Outcome(number, name, "failed", done, _short(str(done._return_value)))


def broken_off(number: int, name: str, overrides: Sequence[str], how: How, why: str) -> Outcome:
    """The outcome of a job that did not come back. why: "job 123_4 was cancelled"."""
    from hydra.core.utils import JobReturn, JobStatus

    done = JobReturn(overrides=list(overrides), status=JobStatus.FAILED)
    done.return_value = JobLost(f"{why}. The same command goes on with what is left.")
    return Outcome(number, name, how, done, _short(why))


def _short(text: str) -> str:
    first = text.strip().splitlines()[0] if text.strip() else ""
    return first if len(first) <= LONGEST else first[: LONGEST - 3] + "..."


def counted(jobs: int) -> str:
    """`1 job`, `3 jobs`."""
    return f"{jobs} job{'' if jobs == 1 else 's'}"


def summary(outcomes: Sequence[Outcome], where: str) -> list[str]:
    """The counts, and where the rest of the story is."""
    counts = Counter(outcome.how for outcome in outcomes)
    parts = [f"{counts[how]} {how}" for how in ("finished", "failed", "killed", "lost") if counts[how]]
    lines = [f"{counted(len(outcomes))}: {', '.join(parts)}. Output: {where}"]
    if counts["finished"] < len(outcomes):
        lines.append("The same command goes on with what is left: finished runs are skipped, others continue.")
    return lines


def say(text: str) -> None:
    """One line for the user, at once: a launcher's output is often a file that somebody follows."""
    try:
        print(text, flush=True)
    except OSError:  # the terminal is gone
        sys.stdout = None  # type: ignore[assignment]
