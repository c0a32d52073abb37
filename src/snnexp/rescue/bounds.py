"""rescue=bounds: firing rates below a lower and above an upper bound cost.

    L += strength * mean over b, i of max(0, lower - r[b, i])^2
       + strength_upper * mean over b of max(0, mean over i of r[b, i] - upper)^2        summed over the layers

r[b, i] is spikes per time step of neuron i in sample b; the derivative of a spike is the surrogate's. The lower bound
is of each neuron, the upper one of the layer's mean.

Source: Cramer et al. 2020, doi:10.1109/TNNLS.2020.3044364 (the baseline of SHD), as in the code of Rossbroich et al.
2022 (stork: LowerBoundL2 per neuron, UpperBoundL2 per population, means over samples and neurons). Theirs bound counts
over the sample, ours rates: with T steps, a strength s on counts is s T^2 on rates.
"""

from __future__ import annotations

import torch
from torch import Tensor

from snnexp.models.sums import Sums
from snnexp.rescue.cure import Cure


class Bounds(Cure):
    """Bounds on firing rates."""

    def sums(self) -> Sums | None:
        """The counts of the layers it acts on."""
        return Sums(self.since) if self.since else None

    def term(self, sums: Sums) -> Tensor:
        """The equation above."""
        terms = [self.of_layer(counts / self.network.num_steps) for name, counts in sums.found.items()]
        return torch.stack(terms).sum()

    def of_layer(self, rates: Tensor) -> Tensor:
        """The two bounds of one layer, from rates [B, *shape]."""
        below = torch.relu(self.conf.lower - rates).square().mean()
        above = torch.relu(rates.flatten(1).mean(1) - self.conf.upper).square().mean()
        total: Tensor = self.conf.strength * below + self.conf.strength_upper * above
        return total
