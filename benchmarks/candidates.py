"""Everything that is timed: one `Training` per candidate, and the check that all of them compute the same thing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peers import BUILDERS, WithoutNeurons
from benchmarks.workloads import Inputs, Workload, as_read, make_events, make_inputs, our_network, real_events
from snnexp.analysis.activity import ActivityMeter
from snnexp.config import OptimizerConf, TrainerConf
from snnexp.encoders import Input
from snnexp.neurons.layer import SpikingLayer
from snnexp.training.optimisation import build_optimizer

OURS, REFERENCE, COUNTED, ROUSER, BARE = (
    "snnexp",
    "snnexp, reference engine",
    "snnexp, activity counted",
    "snnexp, Rouser's reset",
    "no neurons",
)
LISTS, DENSE = "snnexp, event lists", "snnexp, dense input"
UNSPARSE = "snnexp, model.sparse=never"
LOSS_TOLERANCE = 0.01  # relative; float32 sums in another order move single spikes
DIRECTION_TOLERANCE = 0.98  # cosine between gradients of the first weights


@dataclass
class Training:
    """One candidate, ready to take whole steps: forward, backward, optimizer."""

    network: nn.Module
    x: Input
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


def density_of(w: Workload) -> float:
    """Share of inputs that are not zero, as dataset.sparse=auto measures it on real events; 1: not made of events."""
    if w.data is None:
        return 1.0 if w.density is None else w.density
    return real_events(w).density


def uses_lists(w: Workload) -> bool:
    """Whether dataset.sparse=auto hands event lists to this network."""
    if not w.from_events:
        return False
    from snnexp.data.events.source import SPARSE_BELOW  # which imports numba

    return our_network(w).wants_events and density_of(w) < SPARSE_BELOW


def names_for(w: Workload, versions: dict[str, str | None]) -> tuple[list[str], dict[str, str]]:
    """Names of the candidates of a workload in the order of the table, and the reasons why some are missing."""
    ours = [OURS, COUNTED]
    network = our_network(w)
    convolves = any(layer.kind == "conv" for layer in network.layers)
    if w.from_events and network.wants_events:
        ours.append(DENSE if uses_lists(w) else LISTS)
    if convolves:
        ours.append(UNSPARSE)
    if w.current_based:
        ours.append(ROUSER)
    missing = {name: f"{package} is not installed" for name, (package, _) in BUILDERS.items() if not versions[package]}
    peers = [n for n in BUILDERS if n not in missing and (convolves or "channels_last" not in n)]
    if convolves or "channels_last" in missing:
        return [*ours, BARE, *peers], missing
    return [*ours, BARE, *peers], {n: why for n, why in missing.items() if "channels_last" not in n}


def build(name: str, w: Workload, inputs: Inputs, device: torch.device) -> Training:
    """Build a candidate. Raises: Refused if the peer has no such neuron."""
    dense: Input = inputs.dense
    if name in BUILDERS or name == BARE:
        source = our_network(w)
        peer = (WithoutNeurons(source) if name == BARE else BUILDERS[name][1](source, w)).to(device)
        return Training(peer, dense, inputs.labels, torch.optim.Adam(peer.parameters(), lr=1e-3, fused=True), peer)
    lists = {LISTS: True, DENSE: False, UNSPARSE: False}.get(name) if inputs.events is not None else False
    lists = uses_lists(w) if lists is None else lists
    if name == ROUSER:
        w = replace(w, reset="zero")
    sparse = "never" if name == UNSPARSE else "auto"
    network = our_network(w, engine="reference" if name == REFERENCE else "auto", sparse=sparse).to(device)
    meter = ActivityMeter(network, TrainerConf(name="bench").gradient_eps) if name == COUNTED else None
    optimizer = build_optimizer(OptimizerConf(name="adam"), network.parameter_groups())
    x = inputs.events if lists and inputs.events is not None else as_read(w, inputs.dense)
    return Training(network, x, inputs.labels, optimizer, _spikes_of(network, meter))


def measured_inputs(name: str, w: Workload, device: torch.device) -> Inputs:
    """The inputs of which memory is counted: lists for who reads lists, without the dense tensor."""
    reads_lists = name == LISTS or (name in (OURS, COUNTED, ROUSER) and uses_lists(w))
    if not reads_lists:
        return on_device(make_inputs(w)._replace(events=None), device)
    return on_device(Inputs(torch.empty(0), *make_events(w)), device)


def on_device(inputs: Inputs, device: torch.device) -> Inputs:
    """The same inputs on `device`."""
    events = None if inputs.events is None else inputs.events.to(device)
    dense = inputs.dense
    if dense.dim() and dense.stride(0) == 0:  # one frame for all steps stays one
        return Inputs(dense[0].to(device).expand(dense.shape), events, inputs.labels.to(device))
    return Inputs(dense.to(device), events, inputs.labels.to(device))


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
    if w.precise:
        w, inputs = replace(w, batch=2), _two_samples(inputs)
        training = build(name, w, inputs, device)
        training.network.double()
    loss, gradient = training.first_gradient()
    found: list[Agreement] = []
    # The same function in another order of sums moves single spikes, and batch norm spreads them over the batch: what
    # counts is whether any engine, memory layout and batch norm (ours or torch's) gives the candidate's numbers.
    for engine, layout, torchs in itertools.product(("reference", "auto"), (True, False), (False, True)):
        ours = our_network(w, engine, bn_per_step=name == "snntorch", channels_last=layout).to(device)
        if torchs:
            _take_batch_norm_from_torch(ours)
        ours.to(inputs.dense.dtype)
        expected = Training(
            ours, as_read(w, inputs.dense), inputs.labels, torch.optim.Adam(ours.parameters()), _spikes_of(ours)
        )
        our_loss, our_gradient = expected.first_gradient()
        direction = float(F.cosine_similarity(gradient.flatten(), our_gradient.flatten(), dim=0))
        found.append(Agreement(loss, our_loss, direction))
        if found[-1].problem is None:
            break
    return min(found, key=lambda a: (a.problem is not None, abs(a.loss - a.expected)))


def _two_samples(inputs: Inputs) -> Inputs:
    """Two samples of a dense input, in float64; a constant one stays a view of one frame."""
    frames = inputs.dense[:1, :2].double() if inputs.dense.stride(0) == 0 else inputs.dense[:, :2].double()
    return Inputs(frames.expand(len(inputs.dense), *frames.shape[1:]), None, inputs.labels[:2])


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
        network(as_read(w, inputs.dense), meter)
    metrics = meter.metrics("train")
    return {k.rsplit("/", 1)[1]: v for k, v in metrics.items() if k.startswith("train/firing_rate/")}


def share_of_inputs(inputs: Inputs) -> float:
    """Share of the dense input that is not zero, of this batch."""
    return inputs.events.density if inputs.events is not None else float((inputs.dense != 0).double().mean())


def share_with_gradient(w: Workload, inputs: Inputs, device: torch.device) -> dict[str, float]:
    """Share of membranes, of each layer at the start, at which the surrogate's derivative is not zero."""
    network = our_network(w, engine="reference").to(device)
    found: dict[str, float] = {}

    def look(name: str, layer: SpikingLayer) -> Callable[..., None]:
        def hook(module: nn.Module, given: Any, made: Any) -> None:
            derivative = layer.dynamics.surrogate.derivative(made.mem - layer.threshold)
            found[name] = float((derivative != 0).double().mean())

        return hook

    for name, layer in network.spiking_layers.items():
        layer.register_forward_hook(look(name, layer))
    with torch.no_grad():
        network(as_read(w, inputs.dense))
    return found
