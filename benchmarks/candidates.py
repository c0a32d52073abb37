"""Everything that is timed: one `Training` per candidate, and the check that all of them compute the same thing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peers import BUILDERS, WithoutNeurons
from benchmarks.workloads import Inputs, Workload, make_events, make_inputs, our_network
from snnexp.analysis.activity import ActivityMeter
from snnexp.config import OptimizerConf
from snnexp.data.base import EventFrames
from snnexp.data.events.source import SPARSE_BELOW
from snnexp.training.optimisation import build_optimizer

OURS, REFERENCE, COUNTED, ROUSER, BARE = (
    "snnexp",
    "snnexp, reference engine",
    "snnexp, activity counted",
    "snnexp, Rouser's reset",
    "no neurons",
)
LISTS, DENSE = "snnexp, event lists", "snnexp, dense input"
LOSS_TOLERANCE = 0.01  # relative; float32 sums in another order move single spikes
DIRECTION_TOLERANCE = 0.98  # cosine between gradients of the first weights


@dataclass
class Training:
    """One candidate, ready to take whole steps: forward, backward, optimizer."""

    network: nn.Module
    x: Tensor | EventFrames
    labels: Tensor
    optimizer: torch.optim.Optimizer
    forward: Callable[[Any], Tensor]  # x -> spikes [T, B, K]

    def loss(self) -> Tensor:
        """Cross-entropy of the spike counts."""
        return F.cross_entropy(self.forward(self.x).sum(0), self.labels)

    def step(self) -> Tensor:
        """One training step; the loss is not waited for."""
        loss = self.loss()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss.detach()

    def first_gradient(self) -> tuple[float, Tensor]:
        """Loss and the gradient of the first layer's weights, without a step."""
        loss = self.loss()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        weight = next(p for p in self.network.parameters() if p.dim() > 1)
        assert weight.grad is not None
        gradient = weight.grad.detach().clone()
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss.detach()), gradient


def uses_lists(w: Workload) -> bool:
    """Whether dataset.sparse=auto hands event lists to this network."""
    return w.density is not None and w.density < SPARSE_BELOW and not w.spec.startswith(("c", "("))


def names_for(w: Workload, versions: dict[str, str | None]) -> tuple[list[str], dict[str, str]]:
    """Names of the candidates of a workload in the order of the table, and the reasons why some are missing."""
    ours = [OURS, COUNTED]
    if w.density is not None and not w.spec.startswith(("c", "(")):
        ours.append(DENSE if uses_lists(w) else LISTS)
    if w.current_based:
        ours.append(ROUSER)
    missing = {name: f"{package} is not installed" for name, (package, _) in BUILDERS.items() if not versions[package]}
    convolves = any(layer.kind == "conv" for layer in our_network(w).layers)
    peers = [n for n in BUILDERS if n not in missing and (convolves or "channels_last" not in n)]
    if convolves or "channels_last" in missing:
        return [*ours, BARE, *peers], missing
    return [*ours, BARE, *peers], {n: why for n, why in missing.items() if "channels_last" not in n}


def build(name: str, w: Workload, inputs: Inputs, device: torch.device) -> Training:
    """Build a candidate. Raises: Refused if the peer has no such neuron."""
    dense: Tensor | EventFrames = inputs.dense
    if name in BUILDERS or name == BARE:
        source = our_network(w)
        peer = (WithoutNeurons(source) if name == BARE else BUILDERS[name][1](source, w)).to(device)
        return Training(peer, dense, inputs.labels, torch.optim.Adam(peer.parameters(), lr=1e-3, fused=True), peer)
    lists = {LISTS: True, DENSE: False}.get(name, uses_lists(w))
    if name == ROUSER:
        w = replace(w, reset="zero")
    network = our_network(w, engine="reference" if name == REFERENCE else "auto").to(device)
    meter = ActivityMeter(network) if name == COUNTED else None
    optimizer = build_optimizer(OptimizerConf(name="adam"), network.parameter_groups())
    x = inputs.events if lists and inputs.events is not None else dense
    return Training(network, x, inputs.labels, optimizer, _spikes_of(network, meter))


def measured_inputs(name: str, w: Workload, device: torch.device) -> Inputs:
    """The inputs of which memory is counted: lists for who reads lists, without the dense tensor."""
    reads_lists = name == LISTS or (name in (OURS, COUNTED, ROUSER) and uses_lists(w))
    if not reads_lists:
        return on_device(make_inputs(w)._replace(events=None), device)
    rng = np.random.default_rng(1)
    labels = torch.from_numpy(rng.integers(0, w.classes, w.batch))
    return on_device(Inputs(torch.empty(0), make_events(w, rng), labels), device)


def on_device(inputs: Inputs, device: torch.device) -> Inputs:
    """The same inputs on `device`."""
    events = None if inputs.events is None else inputs.events.to(device)
    return Inputs(inputs.dense.to(device), events, inputs.labels.to(device))


@dataclass(frozen=True)
class Agreement:
    """How a candidate compares with our engines before any step."""

    loss: float
    expected: float
    direction: float  # cosine between the gradients of the first weights

    @property
    def problem(self) -> str | None:
        """Why the candidate computes something else, or None."""
        if not math.isclose(self.loss, self.expected, rel_tol=LOSS_TOLERANCE):
            return f"its loss is {self.loss:.4f}, ours {self.expected:.4f}"
        if not self.direction >= DIRECTION_TOLERANCE:
            return f"its gradient points elsewhere (cosine {self.direction:.3f})"
        return None


def compare(name: str, training: Training, w: Workload, inputs: Inputs, device: torch.device) -> Agreement:
    """Hold a candidate against our engines: same loss, same direction of the first weights' gradient.

    Norse's weights are scaled, so only the direction of a gradient means the same for all. Peers that run batch norm
    within the loop over time have statistics per step, as ours with model.bn_per_step.
    """
    if name == ROUSER:
        w = replace(w, reset="zero")
    loss, gradient = training.first_gradient()
    found: list[Agreement] = []
    # The same function in another order of sums moves single spikes, and batch norm spreads them over the batch: what
    # counts is whether any engine, memory layout and batch norm (ours or torch's) gives the candidate's numbers.
    for engine, layout, torchs in itertools.product(("reference", "auto"), (True, False), (False, True)):
        ours = our_network(w, engine, bn_per_step=name == "snntorch", channels_last=layout).to(device)
        if torchs:
            _take_batch_norm_from_torch(ours)
        expected = Training(ours, inputs.dense, inputs.labels, torch.optim.Adam(ours.parameters()), _spikes_of(ours))
        our_loss, our_gradient = expected.first_gradient()
        direction = float(F.cosine_similarity(gradient.flatten(), our_gradient.flatten(), dim=0))
        found.append(Agreement(loss, our_loss, direction))
        if found[-1].problem is None:
            break
    return min(found, key=lambda a: (a.problem is not None, abs(a.loss - a.expected)))


def _take_batch_norm_from_torch(network: nn.Module) -> None:
    """Put torch's batch norm in the place of ours, with the same weights."""
    for name, module in list(network.named_children()):
        if isinstance(module, nn.BatchNorm2d):
            plain = nn.BatchNorm2d(module.num_features).to(module.weight.device)
            plain.load_state_dict(module.state_dict())
            setattr(network, name, plain)


def _spikes_of(network: nn.Module, meter: ActivityMeter | None = None) -> Callable[[Any], Tensor]:
    def forward(x: Any) -> Tensor:
        spikes: Tensor = network(x, meter).spk
        return spikes

    return forward


def firing_rates(w: Workload, inputs: Inputs, device: torch.device) -> dict[str, float]:
    """Spikes per neuron and step of each layer at the start: how much there is to do."""
    network = our_network(w).to(device)
    meter = ActivityMeter(network)
    with torch.no_grad():
        network(inputs.dense, meter)
    metrics = meter.metrics("train")
    return {k.rsplit("/", 1)[1]: v for k, v in metrics.items() if k.startswith("train/firing_rate/")}
