"""What became of each neuron from epoch to epoch, in a form small enough for every checkpoint.

Kept per spiking layer, of the passes that are judged (validation, or training where there is none):

    dead, gradient_dead   which neurons, a bit each, after every epoch, epoch 0 included
    maps                  rate and gradient reach of up to 1,000 neurons, evenly chosen, after epochs 0, 1, 2, 4, 8, ...
                          and the last
    distances             the histogram of the sampled U - threshold after every epoch
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snnexp.analysis.activity import LayerActivity

History = Mapping[str, Sequence[tuple[int, float]]]  # metric -> (epoch, value)
MAPPED = 1000  # neurons of a layer
Fates = dict[str, dict[str, Any]]  # what is kept -> layer -> (epoch, tensor); sizes: layer -> neurons
Bools = NDArray[np.bool_]


def record(fates: Fates, epoch: int, layers: Mapping[str, LayerActivity]) -> None:
    """Add what the layers did after an epoch; the same epoch again replaces it."""
    for name, activity in layers.items():
        fates.setdefault("sizes", {})[name] = activity.rates.numel()
        _add(fates, "dead", name, epoch, _packed(activity.dead))
        if activity.reach is None or activity.distances is None:
            continue
        _add(fates, "gradient_dead", name, epoch, _packed(activity.reach == 0))
        _add(fates, "distances", name, epoch, torch.from_numpy(activity.distances.astype(np.int64)))
        points = fates.setdefault("maps", {}).setdefault(name, [])
        if points and not _is_kept(points[-1][0]):
            points.pop()
        chosen = torch.linspace(0, activity.rates.numel() - 1, min(MAPPED, activity.rates.numel())).long()
        _add(fates, "maps", name, epoch, torch.stack([activity.rates[chosen], activity.reach[chosen]]).float())


def sets(fates: Fates, kind: str, name: str) -> list[tuple[int, Bools]]:
    """Which neurons of a layer were `dead` or `gradient_dead`, by epoch."""
    size = fates.get("sizes", {}).get(name, 0)
    return [
        (epoch, np.unpackbits(bits.numpy(), count=size).astype(bool))
        for epoch, bits in fates.get(kind, {}).get(name, [])
    ]


@dataclass(frozen=True)
class Spells:
    """Stretches of epochs for which neurons were dead; arrays with an entry per spell."""

    lengths: NDArray[np.int64]  # epochs from the first one dead to the first one alive, or to the last one seen
    ended: Bools  # whether the neuron fired again
    blind: Bools  # whether it was gradient-dead, too, when the spell began

    def chosen(self, which: Bools) -> Spells:
        """Some of them."""
        return Spells(self.lengths[which], self.ended[which], self.blind[which])


def spells(fates: Fates, name: str) -> Spells:
    """Every spell of a layer's neurons. One that lasts to the last epoch has no end (censored)."""
    dead = sets(fates, "dead", name)
    blind = dict(sets(fates, "gradient_dead", name))
    lengths, ended, blinds = [], [], []
    size = fates.get("sizes", {}).get(name, 0)
    began = np.full(size, -1)
    was_blind = np.zeros(size, bool)
    for epoch, now in dead:
        starts, ends = now & (began < 0), ~now & (began >= 0)
        lengths += list(epoch - began[ends])
        ended += [True] * int(ends.sum())
        blinds += list(was_blind[ends])
        began[ends] = -1
        began[starts] = epoch
        was_blind[starts] = blind.get(epoch, np.zeros(size, bool))[starts]
    if dead:
        still = began >= 0
        lengths += list(dead[-1][0] - began[still])
        ended += [False] * int(still.sum())
        blinds += list(was_blind[still])
    return Spells(np.array(lengths, np.int64), np.array(ended, bool), np.array(blinds, bool))


def survival(found: Spells) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Kaplan and Meier's estimate: the share of spells that last longer than t epochs, t = 0, 1, ...

    S(t) = product over d <= t of (1 - spells that end after d epochs / spells of d epochs or more)
    """
    longest = int(found.lengths.max(initial=0))
    times, share = np.arange(longest + 1), np.ones(longest + 1)
    for t in range(1, longest + 1):
        at_risk = int((found.lengths >= t).sum())
        revived = int(((found.lengths == t) & found.ended).sum())
        share[t] = share[t - 1] * (1 - revived / at_risk if at_risk else 1.0)
    return times, share


def _add(fates: Fates, kind: str, name: str, epoch: int, value: Tensor) -> None:
    points = fates.setdefault(kind, {}).setdefault(name, [])
    if points and points[-1][0] == epoch:
        points.pop()
    points.append((epoch, value))


def _packed(which: Tensor) -> Tensor:
    return torch.from_numpy(np.packbits(which.numpy()))


def _is_kept(epoch: int) -> bool:
    return epoch & (epoch - 1) == 0  # 0 and the powers of two
