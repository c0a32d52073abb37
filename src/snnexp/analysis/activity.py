"""Dead, silent and saturated neurons and firing rates per layer, counted on the device during a pass over a split.

A neuron is *dead* if it emits no spike over a window. Three windows (DESIGN section 6):

    dead_fraction         the whole pass: share of neurons without a spike in any sample
    dead_fraction_batch   a batch: that share within each batch, averaged over batches
    dead_fraction_sample  a sample: share of (neuron, sample) pairs without a spike

and so dead_fraction <= dead_fraction_batch <= dead_fraction_sample for batches of equal size. `firing_rate` is spikes
per neuron per time step. Spikes that `neuron.force_last_spike` forced are left out everywhere; `forced_fraction` is
their share of all pairs of neuron and sample. A neuron is *saturated* if it spikes in at least 95 % of all time steps
of the pass.

Dead says something about neuron and samples together: the more samples a pass has, the fewer neurons are dead in it.

With `eps`, what the gradient reaches is counted as well (`analysis/reach.py`, `analysis/weight_gradients.py`): a third
state beside dead and saturated. A *gradient-dead* neuron has a surrogate derivative below eps at every step and sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from snnexp import collectives, ranks
from snnexp.analysis.counters import Counter, InputCounter
from snnexp.analysis.reach import quantile
from snnexp.analysis.weight_gradients import Norms, WeightGradients
from snnexp.config import TrainerConf
from snnexp.data.base import EventFrames
from snnexp.models.network import Network
from snnexp.models.observer import Counts, Firing
from snnexp.models.spec import WEIGHT_KINDS
from snnexp.neurons.layer import SpikingLayer
from snnexp.neurons.module_layer import ModuleLayer
from snnexp.neurons.reach import Reach, reach_of

SATURATED_RATE = 0.95  # spikes per time step


@dataclass(frozen=True)
class LayerActivity:
    """What one spiking layer did in one pass; tensors are on the host, one entry per neuron, flat."""

    rates: Tensor  # spikes per time step, float64
    dead_fraction_batch: float
    dead_fraction_sample: float
    peaks: Tensor  # largest membrane in the first batch of the pass, float32
    thresholds: Tensor  # in effect in that batch, float32; nan for neurons that have none
    samples: int
    quiet_fraction: float  # share of samples in which no neuron of the layer spiked
    reach: Tensor | None = None  # share of steps and samples in the gradient's reach, float64; None: not counted
    distances: NDArray[np.int64] | None = None  # sampled U - threshold, a histogram over `reach.EDGES`
    gradients: Norms | None = None  # of the weights' gradients, in training

    @property
    def dead(self) -> Tensor:
        """Which neurons never spiked in the pass."""
        return self.rates == 0

    @property
    def saturated(self) -> Tensor:
        """Which neurons spiked in at least 95 % of the time steps."""
        return self.rates >= SATURATED_RATE

    @property
    def gradient_dead(self) -> Tensor | None:
        """Which neurons no gradient passed in the pass; None: not counted."""
        return None if self.reach is None else self.reach == 0

    @property
    def dead_fraction(self) -> float:
        """Share of neurons that never spiked in the pass."""
        return float(self.dead.double().mean())

    @property
    def firing_rate(self) -> float:
        """Spikes per neuron per time step."""
        return float(self.rates.mean())

    @property
    def saturated_fraction(self) -> float:
        """Share of neurons that spike in at least 95 % of the time steps."""
        return float(self.saturated.double().mean())


class ActivityMeter:
    """Observer that counts spikes over passes; `metrics(split)` closes a pass and starts the next one.

    Neurons are counted by the engine as they run; here that costs one reading of the counts per layer and batch, and
    no wait for the device except for the one copy in `metrics`. Compared with the pass before (train only), it tells
    how many neurons were revived and how many died.
    """

    reads_spikes = False

    @property
    def reads_membranes(self) -> bool:
        """For the peaks of each layer's first batch: one that was stopped halfway has told of some layers only."""
        layers = {*getattr(self.network, "spiking_layers", ()), *self._counters} or {""}
        return any(name not in self._counters or self._counters[name].batches == 0 for name in layers)

    def __init__(self, network: nn.Module, eps: float | None = None) -> None:
        self.network = network
        self.eps = eps  # share of a surrogate's peak from which a gradient passes; None: nobody counts
        self._reach: dict[str, Reach | None] = {}
        self._gradients = WeightGradients(network)
        self.last: dict[str, LayerActivity] = {}  # of the pass closed last, by layer
        self.silent_input: float | None = None  # share of its samples whose input was zero throughout; None: not seen
        self._watched = _entrance(network)
        self._counters: dict[str, Counter] = {}
        self._input = InputCounter()
        self._forced: dict[str, Tensor | float] = {}  # sum over samples of the share of forced neurons, by layer
        self._dead_before: dict[str, Tensor] = {}

    def spiking(self, name: str, layer: nn.Module, firing: Firing) -> None:
        """Add the spikes of one batch, or of one segment of its time steps."""
        with torch.no_grad():
            counter = self._counter(name, layer, firing.counts[0].numel(), firing.counts.device)
            if collectives.absent():
                counter.add_nothing(firing.last)
                if unforced(layer, firing)[1] is not None:
                    self._forced.setdefault(name, 0)
                return
            firing, forced = unforced(layer, firing)
            if forced is not None:
                self._forced[name] = self._forced.get(name, 0) + forced.double().mean() * forced.shape[0]
            counter.add(firing)
            self._input.take_apart(firing.counts.shape[0], firing.last)

    def reach(self, name: str, layer: nn.Module) -> Counts | None:
        """What the engine may count of a layer while it runs; see `models.observer`."""
        if self.eps is None or collectives.absent() or not isinstance(layer, SpikingLayer):
            return None
        if isinstance(layer, ModuleLayer):
            return None
        return self._counter(name, layer, prod(layer.shape), layer.raw_beta.device).near

    def _counter(self, name: str, layer: nn.Module, neurons: int, device: torch.device) -> Counter:
        if name in self._counters:
            return self._counters[name]
        known = self._reach.get(name)
        moved = known is not None and known.dynamics is not known.layer.dynamics  # another surrogate since
        if self.eps is not None and (name not in self._reach or moved):
            self._reach[name] = reach_of(layer, self.eps)
        self._counters[name] = Counter(layer, neurons, device, self._reach.get(name))
        return self._counters[name]

    def connection(self, name: str, module: nn.Module, x: Tensor | EventFrames, repeat: int) -> None:
        """Look for samples without input at the network's entrance; inputs of other layers do not matter here."""
        if name == self._watched and not collectives.absent():
            with torch.no_grad():
                self._input.see(x)

    def after_backward(self) -> None:
        """Look at the gradients of a batch of training, before the optimizer does."""
        if self.eps is not None:
            self._gradients.after_backward()

    def reset(self) -> None:
        """Forget a pass that was not finished."""
        self._counters = {}
        self._gradients.reset()
        self._forced = {}
        self._input = InputCounter()

    def metrics(self, split: str) -> dict[str, float]:
        """Close the pass and return its metrics under the contract's names; empty if nothing ran.

        For "train", `train/revived` and `train/newly_dead` count neurons against the train pass before.
        """
        if ranks.several():
            self._join()
        self.last = self._to_host()
        samples = {name: counter.samples for name, counter in self._counters.items()}
        metrics = {f"{split}/forced_fraction/{name}": float(n) / samples[name] for name, n in self._forced.items()}
        self.reset()
        for name, layer in self.last.items():
            metrics[f"{split}/dead_fraction/{name}"] = layer.dead_fraction
            metrics[f"{split}/dead_fraction_batch/{name}"] = layer.dead_fraction_batch
            metrics[f"{split}/dead_fraction_sample/{name}"] = layer.dead_fraction_sample
            metrics[f"{split}/dead_neurons/{name}"] = float(layer.dead.sum())
            metrics[f"{split}/firing_rate/{name}"] = layer.firing_rate
            metrics[f"{split}/saturated_fraction/{name}"] = layer.saturated_fraction
            metrics |= _gradient_metrics(split, name, layer)
            if split == "train" and name in self._dead_before:
                before = self._dead_before[name]
                metrics[f"train/revived/{name}"] = float((before & ~layer.dead).sum())
                metrics[f"train/newly_dead/{name}"] = float((~before & layer.dead).sum())
        if self.last:
            metrics[f"{split}/dead_neurons"] = float(sum(int(layer.dead.sum()) for layer in self.last.values()))
            self._dead_before = {name: layer.dead for name, layer in self.last.items()}
        return metrics

    def rates(self) -> dict[str, Tensor]:
        """Spikes per time step of every neuron in the pass closed last, by layer, flat, on the host."""
        return {name: layer.rates for name, layer in self.last.items()}

    def state_dict(self) -> dict[str, Any]:
        """What the next pass is compared with: which neurons were dead."""
        return {"dead": dict(self._dead_before)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue after a resume."""
        self._dead_before = {name: dead.bool().cpu() for name, dead in state["dead"].items()}

    def pass_state(self) -> dict[str, Any]:
        """What was counted so far in a pass that is under way, between two batches."""
        return {
            "counters": {name: counter.state_dict() for name, counter in self._counters.items()},
            "gradients": self._gradients.state_dict(),
            "input": {"silent": self._input.silent, "samples": self._input.samples},
            "forced": dict(self._forced),
        }

    def load_pass_state(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Go on counting from there."""
        self.reset()
        layers: Mapping[str, nn.Module] = self.network.spiking_layers  # type: ignore[assignment]
        for name, counted in state["counters"].items():
            self._counter(name, layers[name], counted["spikes"].numel(), device).load_state_dict(counted)
        self._gradients.load_state_dict(state["gradients"], device)
        silent = state["input"]["silent"]
        self._input.silent = None if silent is None else silent.to(device)
        self._input.samples = int(state["input"]["samples"])
        self._forced = {name: n.to(device) if isinstance(n, Tensor) else n for name, n in state["forced"].items()}

    def _join(self) -> None:
        """Put the counts of all processes together."""
        for counter in self._counters.values():
            counter.join()
        if self._counters:
            self._input.join()
        for name, share in self._forced.items():
            self._forced[name] = float(collectives.add_up(torch.tensor(float(share), dtype=torch.float64)))

    def _to_host(self) -> dict[str, LayerActivity]:
        """Fetch all counters in one copy."""
        if not self._counters:
            return {}
        parts = [
            part
            for c in self._counters.values()
            for part in (c.spikes, c.shares, c.peaks.double(), c.thresholds.double(), *c.near_parts())
        ]
        if self._input.silent is not None:
            parts.append(self._input.silent.double().view(1))
        host = torch.cat(parts).cpu()  # the only copy from the device, once per pass
        self.silent_input = None if self._input.silent is None else float(host[-1]) / self._input.samples
        layers, at, norms = {}, 0, self._gradients.norms()
        for name, counter in self._counters.items():
            n = counter.spikes.numel()
            spikes, shares, peaks, thresholds = torch.split(host[at : at + 3 * n + 3], [n, 3, n, n])
            at += 3 * n + 3
            reach, distances = None, None
            if counter.near is not None:
                reach, distances = host[at : at + n] / counter.steps, counter.near.distances()
                at += n
            batch, silent, quiet = (
                shares / torch.tensor([counter.batches, counter.samples * n, counter.samples])
            ).tolist()
            layers[name] = LayerActivity(
                spikes / counter.steps,
                batch,
                silent,
                peaks.float(),
                thresholds.float(),
                counter.samples,
                quiet,
                reach,
                distances,
                norms.get(name),
            )
        return layers


def counted_eps(trainer: TrainerConf, split: str) -> float | None:
    """The eps with which a pass over this split counts what the gradient reaches, or None if it does not."""
    where = trainer.gradient_activity
    return None if where == "off" or (where == "evaluation" and split == "train") else trainer.gradient_eps


def _gradient_metrics(split: str, name: str, layer: LayerActivity) -> dict[str, float]:
    """What the gradient reaches, under the contract's names; empty if nobody counted."""
    metrics = {}
    if layer.reach is not None and layer.distances is not None:
        metrics[f"{split}/gradient_dead/{name}"] = float((layer.reach == 0).double().mean())
        metrics[f"{split}/gradient_reach/{name}"] = float(layer.reach.mean())
        for share in (5, 50, 95):
            metrics[f"{split}/distance/p{share:02d}/{name}"] = quantile(layer.distances, share / 100)
    if layer.gradients is not None:
        norms = layer.gradients.neurons
        for statistic, value in (("min", norms.min()), ("mean", norms.mean()), ("max", norms.max())):
            metrics[f"{split}/weight_gradient/{statistic}/{name}"] = float(value)
        there = layer.gradients.batches[layer.gradients.batches > 0]  # none at all is no smaller one
        burst = float(there.max() / there.median()) if len(there) else 1.0
        metrics[f"{split}/weight_gradient/burst/{name}"] = burst
    return metrics


def unforced(layer: nn.Module, firing: Firing) -> tuple[Firing, Tensor | None]:
    """`firing` without the spikes that `force_last_spike` made, and these [B, *shape]; None: this layer forces none."""
    if not (isinstance(layer, SpikingLayer) and layer.training and layer.dynamics.force_last_spike):
        return firing, None
    forced = forced_spikes(layer, firing)
    return replace(firing, counts=firing.counts - forced.to(firing.counts.dtype)), forced


def forced_spikes(layer: SpikingLayer, firing: Firing) -> Tensor:
    """Which neurons [B, *shape] fired at the last step only because `force_last_spike` made them: theirs is no answer
    to an input, so it counts for nobody. Their membrane never reached the threshold.
    """
    level = layer.threshold.detach()
    mem = firing.membranes()
    reached = (mem > level if layer.dynamics.strict else mem >= level).any(0)
    return (firing.counts > 0) & ~reached


def _entrance(network: nn.Module) -> str | None:
    """The first layer with weights, if no spiking layer comes before it: what it is given is the network's input."""
    if not isinstance(network, Network):
        return None
    first = next((layer for layer in network.layers if layer.kind in (*WEIGHT_KINDS, "spiking")), None)
    return first.name if first is not None and first.kind in WEIGHT_KINDS else None
