"""What a table of means must say beside the means: paired differences over seeds, and what else differed.

Runs of one seed share initial weights, split and order of samples, so their difference says more than two means do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from snnexp.claims.judge import MIN_SEEDS, interval
from snnexp.tracking.identity import is_bookkeeping

if TYPE_CHECKING:
    from snnexp.analysis.seeds import Group

MAX_LISTED = 12  # keys that are named; a comparison in which more differ is none


def paired(groups: Sequence[Group]) -> list[str]:
    """The first setting minus each other one, over the seeds that both have; in accuracy, 0 to 1."""
    lines = []
    for group in groups[1:]:
        pairs = [
            (mine.test, theirs.test)
            for seed, mine in groups[0].runs.items()
            if mine.test is not None and (theirs := group.runs.get(seed)) is not None and theirs.test is not None
        ]
        gaps = [a - b for a, b in pairs if a is not None and b is not None]
        if gaps:
            lines.append(f"{_name(groups[0])} - {_name(group)}: {_gap(gaps)}")
    return lines


def _gap(gaps: Sequence[float]) -> str:
    seeds = f"n = {len(gaps)} seed{'s' * (len(gaps) != 1)}"
    if len(gaps) == 1:
        return f"{gaps[0]:+.4f}, {seeds}: too few to tell"
    mean, low, high = interval(gaps)
    few = "" if len(gaps) >= MIN_SEEDS else ": too few to tell"
    verdict = "" if few else (": differs" if low > 0 or high < 0 else ": no difference seen")
    return f"{mean:+.4f} (95 % interval {low:+.4f} to {high:+.4f}), paired, {seeds}{few}{verdict}"


def also_differs(groups: Sequence[Group]) -> list[str]:
    """Keys outside the columns whose values differ between settings: what a difference may be due to as well.

    The keys of a neuron that is a column are its equation, which is what is compared, so they are counted, not named.
    """
    if len(groups) < 2:
        return []
    shown = list(groups[0].values)
    params = [next(iter(group.runs.values())).params for group in groups]
    keys = sorted({key for values in params for key in values} - set(shown))
    varying = [key for key in keys if not _is_told(key, shown) and len({values.get(key) for values in params}) > 1]
    equation = [key for key in varying if "neuron" in shown and key.startswith("neuron.")]
    others = [key for key in varying if key not in equation]
    lines = []
    if equation:
        lines.append(f"The neurons differ in {len(equation)} keys of their equation ({', '.join(_short(equation))}).")
    if others:
        named = "; ".join(f"{key} {_values(key, params)}" for key in others[:MAX_LISTED])
        more = f"; and {len(others) - MAX_LISTED} more" if len(others) > MAX_LISTED else ""
        hint = " recipe=common makes these alike." if "neuron" in shown else ""
        lines.append(f"What else differed: {named}{more}.{hint}")
    else:
        lines.append("Nothing else differed between these settings.")
    return lines


def _is_told(key: str, shown: Sequence[str]) -> bool:
    """Keys that say what a column says, or that change no number."""
    group = key.rpartition(".")[0]
    names_a_group = "." not in key or key.endswith(".name")
    return key in ("seed", "data") or is_bookkeeping(key) or names_a_group or (group in shown and group != "neuron")


def _short(keys: Sequence[str]) -> list[str]:
    names = [key.removeprefix("neuron.") for key in keys]
    return names if len(names) <= MAX_LISTED else [*names[:MAX_LISTED], "..."]


def _values(key: str, params: Sequence[Mapping[str, str]]) -> str:
    return "|".join(dict.fromkeys(values.get(key, "-") for values in params))


def _name(group: Group) -> str:
    return ", ".join(group.values.values()) or "all"
