"""Does a trained network use time? The same test samples with their time taken away in different ways.

    intact      as they are
    shuffled    a sample's time bins in a random order, the same for all its inputs: what comes together stays so
    redrawn     each input's values in random bins, independently of the others: only how much there is stays
    state cut   the network forgets everything between two time steps

Input that is the same at every step (encoder=direct) is the same after shuffling and redrawing: it has no time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import sqrt

import torch
from torch import Tensor

from snnexp.encoders import Input
from snnexp.experiment import Experiment
from snnexp.models.network import Output
from snnexp.models.observer import Observers
from snnexp.training.passes import evaluation_pass
from snnexp.training.seeding import derive_seed

Change = Callable[[Tensor, torch.Generator], Tensor]


def shuffled(x: Tensor, generator: torch.Generator) -> Tensor:
    """Time bins of each sample in an order of its own; x [T, B, ...]."""
    order = torch.rand(x.shape[:2], generator=generator, device=x.device).argsort(0)
    return x.gather(0, order.view(*order.shape, *[1] * (x.dim() - 2)).expand_as(x))


def redrawn(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each input's values in an order of its own; x [T, B, ...]. Its counts are the same, its times are not."""
    return x.gather(0, torch.rand(x.shape, generator=generator, device=x.device).argsort(0))


def dense(x: Input) -> Tensor:
    """Any input as a tensor [T, B, ...]."""
    return x if isinstance(x, Tensor) else x.to_dense()


class Timing:
    """Accuracy of an experiment's network on its test split, with time as it is or taken away."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.samples = 0

    def intact(self) -> float:
        """As trained."""
        return self._accuracy(self.experiment)

    def changed(self, change: Change) -> float:
        """With the input's time bins changed."""
        generator = torch.Generator(self.experiment.device)
        generator.manual_seed(derive_seed(self.experiment.conf.seed, "timing"))
        network = self.experiment.network
        return self._accuracy(replace(self.experiment, through=lambda x: network(change(dense(x), generator))))

    def state_cut(self) -> float:
        """Each time step by itself, from a state at rest."""
        network = self.experiment.network

        def run(x: Input) -> Output:
            steps = [network(step.unsqueeze(0)) for step in dense(x).unbind(0)]
            return Output(*(torch.cat(parts) for parts in zip(*steps, strict=True)))

        return self._accuracy(replace(self.experiment, through=run))

    def _accuracy(self, experiment: Experiment) -> float:
        result = evaluation_pass(experiment, "test", Observers([]), 0)
        self.samples = result.samples
        return result.accuracy


def verdict(intact: float, shuffled_to: float, redrawn_to: float, samples: int) -> tuple[bool, str]:
    """Whether the result uses time, and why: yes if shuffling or redrawing costs more than chance could.

    Chance: twice the standard error of a difference of two accuracies on this many samples.
    """
    fall = intact - min(shuffled_to, redrawn_to)
    p = (intact + min(shuffled_to, redrawn_to)) / 2
    chance = 2 * sqrt(2 * p * (1 - p) / max(samples, 1))
    uses = fall > chance
    rule = f"taking time away costs {100 * fall:.1f} %, and chance explains {100 * chance:.1f} % on {samples:,} samples"
    return uses, f"{'yes' if uses else 'no'}: {rule}"
