"""The same recording twice: in training and test it makes the test result worthless, so it is named."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from snnexp.data.files import count_of, some

Indices = NDArray[np.int64]


def find_repeats(
    splits: Mapping[str, Indices], digests: NDArray[np.uint64], names: list[str], labels: Indices
) -> list[str]:
    """One line for each pair of splits that share samples of equal content, and for each split that repeats some.

    Args:
        splits: per split, its samples as indices into the other arguments; samples without content left out.
        digests: of each sample's content; names and labels of each sample.
    """
    order = list(splits)
    members = np.concatenate([*splits.values(), np.empty(0, np.int64)]).astype(np.int64)
    codes = np.repeat(np.arange(len(order)), [len(indices) for indices in splits.values()])
    sorting = np.argsort(digests[members], kind="stable")  # within equal digests, splits stay in order
    members, codes = members[sorting], codes[sorting]
    values = digests[members]
    pairs: dict[tuple[int, int], list[tuple[int, str]]] = {}
    for i in np.flatnonzero(values[1:] == values[:-1]) + 1:
        first = int(np.searchsorted(values, values[i]))
        one, two = members[first], members[i]
        differ = "" if labels[one] == labels[two] else f" (as classes {labels[one]} and {labels[two]})"
        pairs.setdefault((int(codes[first]), int(codes[i])), []).append(
            (int(one), f"{names[one]} = {names[two]}{differ}")
        )
    lines = []
    for (a, b), found in sorted(pairs.items()):
        where = f"{order[a]} and {order[b]} share" if a != b else f"{order[a]} repeats"
        same = [text for _, text in sorted(found)]
        lines.append(f"{where} {count_of(same, 'recording')} of equal content: {some(same)}")
    return lines
