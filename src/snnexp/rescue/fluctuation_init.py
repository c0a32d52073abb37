"""rescue=fluctuation_init: initial weights that let membranes fluctuate up to the threshold.

    sigma_w^2 = (theta / xi)^2 / (n nu e),   mean 0        e = sum over k of h[k]^2

n inputs of a neuron fire at the rate nu (per time step) like Poisson trains; h is the membrane's response to one input
spike: h[k] = beta^k, with a current sum over j of alpha^j beta^(k - j), in tau form times 1 - beta. The mean membrane
is then 0, and the threshold is xi standard deviations above it. With a recurrent matrix, the forward weights have the
share `forward_share` of that variance, the recurrent ones the rest. Biases stay; so does a readout without spikes.

Source: Rossbroich, Gygax, Zenke 2022, arXiv:2206.10226, with mu_U = 0; the kernel's integral is the sum over the
sample's time steps (stork's "numerical"). One nu for all layers, as there: rescue.rate, or the mean square of the
network's input. Ours: before a norm, which would take every factor of the weights out again, the norm's scale becomes
(theta / xi) / sqrt(e).
"""

from __future__ import annotations

from functools import cached_property
from math import sqrt

import torch
from torch import nn

from snnexp.neurons.layer import SpikingLayer
from snnexp.rescue.cure import Cure
from snnexp.rescue.measuring import input_power, normal
from snnexp.rescue.wiring import forget, wiring


def response_power(layer: SpikingLayer, steps: int) -> float:
    """Sum over `steps` steps of the squared response of a membrane to one spike through a weight of 1."""
    beta = float(layer.beta.detach().mean())
    alpha = None if layer.alpha is None else float(layer.alpha.detach().mean())
    gain = 1 - beta if layer.dynamics.tau_form else 1.0
    cur, mem, power = 1.0, 0.0, 0.0
    for _ in range(steps):
        mem = beta * mem + gain * cur
        power += mem**2
        cur = 0.0 if alpha is None else alpha * cur
    return power


class FluctuationInit(Cure):
    """Fluctuation-driven initial weights."""

    @cached_property
    def nu(self) -> float:
        """The presynaptic rate, per time step."""
        return float(self.conf.rate) if self.conf.rate is not None else max(input_power(self.experiment), 1e-6)

    @torch.no_grad()
    def treat(self, name: str, epoch: int) -> None:
        """Draw the weights of a layer."""
        around, layer = wiring(self.network, name), self.network.spiking_layers[name]
        if around.weights is None:
            return
        fluctuation = float(layer.threshold.detach().mean()) / self.conf.xi
        per_input = response_power(layer, self.network.num_steps)
        if around.norm is not None:
            scale = around.norm.get_parameter("weight")
            scale.fill_(fluctuation / sqrt(per_input))
            forget(self.optimizer, scale)
            return
        share = 1.0 if around.recurrent is None else self.conf.forward_share
        self._draw(around.weights, fluctuation**2 * share, around.fan_in * self.nu * per_input, name, epoch)
        if around.recurrent is not None:
            fan_in = around.recurrent.get_parameter("weight").shape[1]
            variance = fluctuation**2 * (1 - share)
            self._draw(around.recurrent, variance, fan_in * self.nu * per_input, f"{name}.recurrent", epoch)

    def _draw(self, module: nn.Module, variance: float, power: float, name: str, epoch: int) -> None:
        weight = module.get_parameter("weight")
        weight.copy_(normal(weight.shape, sqrt(variance / power), self.experiment.conf.seed, name, epoch))
        forget(self.optimizer, weight)
