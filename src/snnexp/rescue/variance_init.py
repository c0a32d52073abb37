"""rescue=variance_init: initial weights for which membranes have unit variance in every layer, whatever the depth.

    Var(w_l) = scale / (n_l P(u > theta_(l-1))),   P(u > theta) = erfc(theta / sqrt 2) / 2 for u of variance 1, mean 0

Source: Micheli, Booij, van Gemert, Toemen 2024, arXiv:2410.00580: of n inputs, the share P(u > theta) of the neurons
before spikes, so that the variance of one step's input is 1. It looks at one time step; leak and reset are left out, as
there. The first layer's inputs are no spikes of neurons: its P is the mean square of the input, from which the same
follows. Biases stay; the factor `scale` is ours, and 1 is the paper. Before a norm its scale becomes sqrt(scale).
"""

from __future__ import annotations

from functools import cached_property
from math import erfc, sqrt

import torch

from snnexp.rescue.cure import Cure
from snnexp.rescue.measuring import input_power, normal
from snnexp.rescue.wiring import forget, wiring


def firing_share(threshold: float) -> float:
    """P(u > threshold) for u ~ N(0, 1)."""
    return max(0.5 * erfc(threshold / sqrt(2)), 1e-6)  # a learned threshold may be anywhere


class VarianceInit(Cure):
    """Initial weights of variance 1/(n P(U > theta))."""

    @cached_property
    def power(self) -> float:
        """Mean square of the network's input."""
        return max(input_power(self.experiment), 1e-6)

    @torch.no_grad()
    def treat(self, name: str, epoch: int) -> None:
        """Draw the weights of a layer."""
        around = wiring(self.network, name)
        if around.weights is None:
            return
        if around.norm is not None:
            scale = around.norm.get_parameter("weight")
            scale.fill_(sqrt(self.conf.scale))
            forget(self.optimizer, scale)
            return
        if around.before is None:
            share = self.power
        else:
            before = self.network.spiking_layers[around.before]
            share = firing_share(float(before.threshold.detach().mean()))
        modules = [(around.weights, name)]
        if around.recurrent is not None:
            modules.append((around.recurrent, f"{name}.recurrent"))
        for module, purpose in modules:
            weight = module.get_parameter("weight")
            own = share
            if module is around.recurrent:
                own = firing_share(float(self.network.spiking_layers[name].threshold.detach().mean()))
            inputs = weight[0].numel()
            sigma = sqrt(self.conf.scale / (len(modules) * inputs * own))  # both matrices together make variance 1
            weight.copy_(normal(weight.shape, sigma, self.experiment.conf.seed, purpose, epoch))
            forget(self.optimizer, weight)
