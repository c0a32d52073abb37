"""rescue=rouser: firing thresholds that learn, each neuron its own (Rouser, arXiv:2407.19566, Eq. 6 to 8).

    theta <- theta - lr_threshold * dL/dtheta

A neuron whose membrane stays below theta but within the surrogate's reach gets a gradient that lowers theta. The
neuron's own code does it (`neuron.learn_threshold`); here is only from when on. Until a layer is diagnosed, its
thresholds get no gradient.
"""

from __future__ import annotations

import torch

from snnexp.config import CureConf
from snnexp.experiment import Experiment
from snnexp.rescue.cure import Cure


class Rouser(Cure):
    """Learned thresholds."""

    def __init__(self, conf: CureConf, experiment: Experiment, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(conf, experiment, optimizer)
        for layer in self.network.spiking_layers.values():
            for parameter in layer.threshold_parameters():
                parameter.requires_grad_(False)

    def begin(self, name: str, epoch: int) -> None:
        """Let the thresholds of a layer learn."""
        super().begin(name, epoch)
        for parameter in self.network.spiking_layers[name].threshold_parameters():
            parameter.requires_grad_(True)
