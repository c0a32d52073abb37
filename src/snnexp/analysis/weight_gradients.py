"""The norm of each neuron's weight gradient: how much of the loss comes back to the weights that feed it.

Of a neuron: the Euclidean norm of the gradient of its incoming weights, recurrent ones among them, before
trainer.grad_clip; of a convolution's channel: of its kernel, which all neurons of the channel share. Taken in some
batches of a training pass, since reading all gradients costs a part of the optimizer's step: in the first, second,
fourth and eighth, and in every eighth after that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from snnexp.models.network import Network
from snnexp.models.spec import WEIGHT_KINDS
from snnexp.models.ways import surroundings

EVERY = 8  # batches


@dataclass(frozen=True)
class Norms:
    """Of one layer in one pass, on the host."""

    neurons: Tensor  # mean over the measured batches, per neuron or channel, float64
    batches: Tensor  # norm of the whole layer's gradient in each measured batch, float64


class WeightGradients:
    """Collects the norms over a pass."""

    def __init__(self, network: nn.Module) -> None:
        self._feeding = feeding(network) if isinstance(network, Network) else {}
        self.reset()

    def reset(self) -> None:
        """Start a pass."""
        self._batch = 0
        self._squares: dict[str, list[Tensor]] = {}

    @torch.no_grad()
    def after_backward(self) -> None:
        """Look at the gradients, if it is this batch's turn."""
        self._batch += 1
        turn = self._batch % EVERY == 0 or self._batch in (1, 2, 4)
        if not turn:
            return
        for name, modules in self._feeding.items():
            grads = [w.grad for module in modules for w in _weights(module) if w.grad is not None]
            if grads:
                squares = [torch.linalg.vector_norm(g.flatten(1), dim=1).double() ** 2 for g in grads]
                self._squares.setdefault(name, []).append(torch.stack(squares).sum(0))

    def state_dict(self) -> dict[str, Any]:
        """Of a pass that is under way."""
        return {"batch": self._batch, "squares": {name: list(squares) for name, squares in self._squares.items()}}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Go on from there."""
        self._batch = int(state["batch"])
        self._squares = {name: [each.to(device) for each in squares] for name, squares in state["squares"].items()}

    def norms(self) -> dict[str, Norms]:
        """By spiking layer, of the pass so far."""
        found = {}
        for name, squares in self._squares.items():
            each = torch.stack(squares).cpu()  # [batches, neurons]
            found[name] = Norms(each.sqrt().mean(0), each.sum(1).sqrt())
        return found


def weight_norms(network: Network) -> dict[str, float]:
    """Euclidean norm of everything that is learned between each spiking layer and the neurons before it."""
    found: dict[str, float] = {}
    squares: list[Tensor] = []
    modules = dict(network.named_modules())
    for layer in network.layers:
        if layer.kind == "spiking":
            if squares:
                found[layer.name] = float(torch.stack(squares).sum().sqrt())
            squares = []
        elif (module := modules.get(layer.name)) is not None or layer.kind in WEIGHT_KINDS:
            module = network.get_submodule(layer.name) if module is None else module
            squares += [torch.linalg.vector_norm(p.detach()).double() ** 2 for p in module.parameters()]
    return found


def feeding(network: Network) -> dict[str, list[nn.Module]]:
    """The layers with weights whose sums drive each spiking layer: one, or one of each way through a residual block."""
    around = surroundings(network.layers)
    found = {name: [network.get_submodule(way.weights) for way in around[name].ways] for name in around}
    return {name: modules for name, modules in found.items() if modules}


def _weights(module: nn.Module) -> list[nn.Parameter]:
    """The weights of a layer that a gradient comes to, [out, ...] each."""
    recurrent = getattr(module, "recurrent", None)
    owners = [module, recurrent] if isinstance(recurrent, nn.Module) else [module]
    return [w for owner in owners if (w := owner._parameters.get("weight")) is not None]
