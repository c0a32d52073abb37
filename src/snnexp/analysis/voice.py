"""What of the diagnosis is said during training: nothing about a layer that may come back by itself.

After the last epoch of a run, in `task=diagnose` and about the test pass all is said as it is; and a rescue that waits
for the diagnosis (`rescue.when=diagnosed`) always sees all findings.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from snnexp.analysis.causes import MOSTLY, SHARES, WAKES, Cause, Verdict, shares_of
from snnexp.analysis.fates import History

Findings = Sequence[tuple[str, str]]


def waiting(layers: Sequence[str], causes: Mapping[str, Verdict], waking: Collection[str]) -> set[str]:
    """The layers of which nothing is said yet: those that are `waking`, and those that get nothing from one that waits.

    layers: all spiking layers, from input to output.
    """
    waits: set[str] = set()
    for before, name in zip(("", *layers), layers, strict=False):
        starved = name in causes and causes[name].cause == Cause.input_silent and before in waits
        if name in causes and (name in waking or starved):
            waits.add(name)
    return waits


def state_in(key: str) -> tuple[str, str]:
    """Layer and state of a finding's key ("sn1 gradient-dead"); the state is empty if it is about something else."""
    name, state = key.split()[:2]
    return name, state.replace("-", "_") if state.replace("-", "_") in SHARES else ""


def spoken(findings: Findings, causes: Mapping[str, Verdict], waits: Collection[str]) -> list[tuple[str, str]]:
    """The findings that are not about a layer that waits; each key with its cause, so that another one is said anew."""
    return [
        (f"{key} {causes[name].cause}" if name in causes else key, text)
        for key, text in findings
        for name, state in (state_in(key),)
        if not (state and name in waits)
    ]


def is_over(key: str, history: History) -> bool:
    """Whether what a line said has ended, with room to spare: if it begins again, that is worth another line."""
    name, state = state_in(key)
    shares = shares_of(name, history).get(state) or {0: 1.0}
    return shares[max(shares)] <= MOSTLY - WAKES


def tags(claims: dict[str, str], causes: Mapping[str, Verdict], waits: Collection[str], epoch: int) -> dict[str, str]:
    """The tags `cause.<layer>` after an epoch, for the record.

    claims: layer -> what its tag says; brought up to date. A tag cannot be taken back, so it says that it has ended.
    """
    claims |= {name: str(verdict.cause) for name, verdict in causes.items() if name not in waits}
    claims |= {
        name: f"none since epoch {epoch}"
        for name, claim in claims.items()
        if name not in causes and not claim.startswith("none")
    }
    return {f"cause.{name}": claim for name, claim in claims.items()}
