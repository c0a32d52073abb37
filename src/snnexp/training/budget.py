"""A budget of synaptic operations as a loss: decoder.synops.

    L += synops_weight * max(0, s / synops - 1)^2

s is the mean number per sample of synaptic operations that the network's own spikes cause: a spike costs as many as it
reaches non-zero weights. Its derivative by a spike is that price; the spike's own is the surrogate's. What the input
causes is not in it: no weight can change that. Within the budget the term is zero, and costs nothing but its counting.

Source: Sorbaro et al. 2020, doi:10.3389/fnins.2020.00662, whose loss is (s - target)^2 / target^2; ours looks at one
side only. Nothing is lost by dead neurons here: they are the cheapest.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from snnexp import collectives
from snnexp.analysis.synops import fan_out
from snnexp.experiment import Experiment
from snnexp.models.sums import Sums
from snnexp.models.ways import accumulating


class Budget:
    """The term of one epoch: prices are those of the weights as the epoch begins."""

    def __init__(self, experiment: Experiment) -> None:
        conf = experiment.conf.decoder
        assert conf.synops is not None
        self.budget, self.weight = conf.synops, conf.synops_weight
        self.prices = prices(experiment)

    def term(self, sums: Sums, samples: int) -> Tensor:
        """The equation above, of a batch of so many samples, of which other processes may have a part."""
        spent = collectives.summed(torch.stack([sums.found[name] for name in self.prices]).sum()) / samples
        return self.weight * torch.relu(spent / self.budget - 1).square()


@torch.no_grad()
def prices(experiment: Experiment) -> dict[str, Tensor]:
    """What a spike at each input costs, [inputs], by layer with weights; a recurrent matrix is `rfc1.recurrent`."""
    network, found = experiment.network, {}
    for layer in network.layers:
        recurrent = getattr(network.get_submodule(layer.name), "recurrent", None) if layer.kind == "recurrent" else None
        if isinstance(recurrent, nn.Module):
            found[f"{layer.name}.recurrent"] = fan_out(recurrent, torch.Size(layer.out_shape))
    for layer in accumulating(network.layers):
        found[layer.name] = fan_out(network.get_submodule(layer.name), torch.Size(layer.in_shape))
    return found
