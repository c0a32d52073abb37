"""Why the neurons of a layer are silent, saturated or out of reach: a cause as a value, with the numbers it rests on.

A layer is looked at if more than half of its neurons are dead, saturated or gradient-dead. The first that applies:

    input_silent            nothing, or next to nothing, comes in: the layer before is mostly dead, or more than half
                            of the samples reach the layer as zeros
    threshold_risen         the threshold was learned upwards, and most dead neurons reach the one they started from;
                            or the layer was alive before the threshold doubled
    killed_by_update        the layer was well at the end of an epoch and in a bad state at the end of the next, in
                            which its weights doubled in size, or one gradient was a hundred times the usual one
    saturated               the layer is mostly saturated
    surrogate_out_of_reach  the layer is mostly gradient-dead, though not mostly dead
    inhibited               most dead neurons would fire if what is negative of their input were positive, and the mean
                            input of three quarters of the layer is negative (of random weights it is of one half)
    leak_too_strong         without leak the others would fire, and with it they hold no more than two inputs' worth
    weights_too_small       neither: what reaches them is below the threshold, summed up over all steps

The last three are decided neuron by neuron, on what they are given in the first batch of the split (`Drives`), and by
running the layer's own equation on a changed input; the most frequent one is the layer's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from snnexp import ranks
from snnexp.analysis.activity import ActivityMeter, LayerActivity
from snnexp.analysis.fates import History
from snnexp.neurons.layer import SpikingLayer
from snnexp.schema.fields import ends

if TYPE_CHECKING:
    from snnexp.experiment import Experiment

MOSTLY = 0.5  # share of a layer, or of the samples, from which it is worth a word
SAMPLES = 32  # of a batch: what is looked at neuron by neuron
NEURONS = 2000  # of a layer, evenly chosen
RISEN = 1.2  # times the threshold at the start
LARGE_UPDATE = 2.0  # times the size of the weights an epoch before
BURST = 100.0  # times the usual gradient; of Fig. 6b of Rouser it is 450 to 2,600 in the first epoch
WORTH = 2.0  # inputs that a leaky membrane holds at most
NEGATIVE = 0.75  # share of a layer whose mean input is negative
WAKES = 0.1  # of a layer within an epoch: that many neurons less in a bad state, and it comes back by itself
SHARES = {"dead": "dead_fraction", "saturated": "saturated_fraction", "gradient_dead": "gradient_dead"}  # their metrics


class Cause(StrEnum):
    """What keeps a layer from firing or learning."""

    input_silent = "input_silent"
    weights_too_small = "weights_too_small"
    inhibited = "inhibited"
    threshold_risen = "threshold_risen"
    leak_too_strong = "leak_too_strong"
    killed_by_update = "killed_by_update"
    surrogate_out_of_reach = "surrogate_out_of_reach"
    saturated = "saturated"


@dataclass(frozen=True)
class Verdict:
    """A layer's cause and its evidence; epoch: in which it was killed."""

    cause: Cause
    numbers: dict[str, float] = field(default_factory=dict)
    epoch: int | None = None


class Drives:
    """Observer of one batch: what every spiking layer is given, [T, B, *shape]."""

    reads_spikes = reads_membranes = False

    def __init__(self, layers: Mapping[str, SpikingLayer]) -> None:
        self._layers = layers
        self._parts: dict[str, list[Tensor]] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look at the input of every spiking layer, which the engine may write over."""
        handles = [
            layer.register_forward_pre_hook(lambda _, given, name=name: self._see(name, given[0]))
            for name, layer in self._layers.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _see(self, name: str, x: Tensor) -> None:
        self._parts.setdefault(name, []).append(x[:, :SAMPLES].detach().float().clone())

    def of(self, name: str) -> Tensor | None:
        """What the layer was given; None: nobody saw it."""
        parts = self._parts.get(name)
        return None if not parts else torch.cat(parts)

    def spiking(self, name: str, layer: object, firing: object) -> None:
        pass

    def connection(self, name: str, module: object, x: object, repeat: int) -> None:
        pass


class Explainer:
    """Finds the causes in a run. It looks at the network's inside only if a layer is in a bad state that is new.

    waking: which of the layers of the last answer may come back by themselves (`waking`).
    """

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.waking: set[str] = set()
        self._last: tuple[dict[str, str], dict[str, Verdict]] = ({}, {})

    def explain(self, meter: ActivityMeter, split: str, history: History) -> dict[str, Verdict]:
        """The causes of the pass over `split` that `meter` closed last, by layer, from input to output.

        history: metrics by epoch, up to the weights of that pass; empty: nobody knows what was before.
        """
        states = {
            name: state
            for name in self.experiment.network.spiking_layers
            if name in meter.last and (state := bad_state(meter.last[name], *self._kind(name))) is not None
        }
        may_wake = {name for name, state in states.items() if waking(name, state, history)}
        if (states, may_wake) != (self._last[0], self.waking):
            self.waking = may_wake
            with ranks.alone():
                drives = self._drives(split) if "dead" in states.values() else None
                self._last = (
                    states,
                    {name: self._verdict(name, s, states, meter, drives, history) for name, s in states.items()},
                )
        return self._last[1]

    def _kind(self, name: str) -> tuple[bool, bool]:
        """Whether the layer's neurons fire once, and whether the loss reads its membranes."""
        layers, decoder = self.experiment.network.spiking_layers, self.experiment.conf.decoder
        # an integrator behind the last spiking layer is none of them
        read = decoder.name == "membrane" and not decoder.integrate and name == list(layers)[-1]
        return layers[name].dynamics.fire_once, read

    @torch.no_grad()
    def _drives(self, split: str) -> Drives:
        experiment = self.experiment
        network, was_training = experiment.network, experiment.network.training
        drives = Drives(network.spiking_layers)
        network.eval()
        try:
            with torch.random.fork_rng(devices=[experiment.device] if experiment.device.type == "cuda" else []):
                batch = next(iter(experiment.source.batches(split, *([0, 0] if split == "train" else []))))
                with drives.watching():
                    experiment.forward(batch, drives)
        finally:
            network.train(was_training)
        return drives

    def _verdict(
        self,
        name: str,
        state: str,
        states: Mapping[str, str],
        meter: ActivityMeter,
        drives: Drives | None,
        history: History,
    ) -> Verdict:
        activity = meter.last[name]
        kept = killed_at(name, history)
        update = kept is not None and (kept[1]["weights"] >= LARGE_UPDATE or kept[1]["burst"] >= BURST)
        if state != "dead":
            if kept is not None and update:
                return Verdict(Cause.killed_by_update, kept[1], kept[0])
            return _not_dead(state, activity)
        layers = list(self.experiment.network.spiking_layers)
        before = layers[layers.index(name) - 1] if layers.index(name) else None
        blank = meter.silent_input or 0.0
        silent = max(blank, 0.0 if before is None else meter.last[before].quiet_fraction)
        if silent > MOSTLY or states.get(before or "") == "dead":
            return Verdict(Cause.input_silent, {"silent_samples": silent})
        layer = self.experiment.network.spiking_layers[name]
        start = ends(self.experiment.conf.neuron.threshold)
        risen = _risen(layer, activity, sum(start) / len(start) if start else 0.0, kept is not None)
        if risen is not None:
            return risen
        if kept is not None and update:
            return Verdict(Cause.killed_by_update, kept[1], kept[0])
        drive = drives.of(name) if drives is not None else None
        if drive is None:
            peaks = activity.peaks[activity.dead]
            return Verdict(Cause.weights_too_small, {"peak": float(peaks.median())})
        return why_silent(layer, drive, activity.dead)


def _not_dead(state: str, activity: LayerActivity) -> Verdict:
    """Of a layer that fires: too much, or where no gradient comes."""
    if state == "saturated":
        return Verdict(Cause.saturated, {"saturated_fraction": activity.saturated_fraction})
    assert activity.reach is not None
    share = float((activity.reach == 0).double().mean())
    return Verdict(Cause.surrogate_out_of_reach, {"gradient_dead": share, "dead": activity.dead_fraction})


def bad_state(activity: LayerActivity, fires_once: bool, read_by_membrane: bool = False) -> str | None:
    """dead, saturated or gradient_dead, if that is what most of a layer's neurons are; None: the layer is well."""
    if activity.dead_fraction > MOSTLY:
        return "dead"
    if activity.saturated_fraction > MOSTLY and not fires_once:
        return "saturated"
    reach = activity.reach
    gone = reach is not None and float((reach == 0).double().mean()) > MOSTLY
    return "gradient_dead" if gone and not read_by_membrane else None


def shares_of(name: str, history: History) -> dict[str, dict[int, float]]:
    """State -> epoch -> share of a layer's neurons, in the validation passes, or in training where there are none."""
    split = "val" if f"val/dead_fraction/{name}" in history else "train"
    return {state: dict(history.get(f"{split}/{metric}/{name}", ())) for state, metric in SHARES.items()}


def waking(name: str, state: str, history: History) -> bool:
    """Whether a layer in a bad state may come back by itself, by the last two looks at it (epoch 0 is one).

    Either its share in that state has fallen by a tenth of the layer; or it was well before, and a tenth of it is yet:
    many layers that end well are worst after the first epoch.
    """
    shares = shares_of(name, history)
    looks = sorted(shares[state])[-2:]
    if len(looks) < 2:
        return False
    before, now = (shares[state][epoch] for epoch in looks)
    was_well = all(share.get(looks[0], 0.0) <= MOSTLY for share in shares.values())
    return before - now > WAKES - 1e-9 or (was_well and now < 1 - WAKES + 1e-9)


def killed_at(name: str, history: History) -> tuple[int, dict[str, float]] | None:
    """The epoch in which a layer went from well to a bad state, and by how much its weights and gradients jumped.

    None: it never was well, or is.
    """
    shares = shares_of(name, history)
    epochs = sorted(shares["dead"])
    alive = [epoch for epoch in epochs if all(share.get(epoch, 0.0) <= MOSTLY for share in shares.values())]
    if not alive or alive[-1] == epochs[-1]:
        return None
    epoch = min(e for e in epochs if e > alive[-1])
    size = dict(history.get(f"weights/norm/{name}", ()))
    burst = dict(history.get(f"train/weight_gradient/burst/{name}", ()))
    grown = size[epoch] / max(size[alive[-1]], 1e-30) if epoch in size and alive[-1] in size else 1.0
    return epoch, {"weights": grown, "burst": burst.get(epoch, 1.0), "dead_before": shares["dead"][alive[-1]]}


def _risen(layer: SpikingLayer, activity: LayerActivity, start: float, was_alive: bool) -> Verdict | None:
    """A learned threshold that has left its neurons behind."""
    if not layer.threshold_parameters() or start <= 0:
        return None
    thresholds, peaks = activity.thresholds[activity.dead], activity.peaks[activity.dead]
    now = float(thresholds.median())
    reached = float((peaks >= start).double().mean())
    if now > RISEN * start and (reached > MOSTLY or (was_alive and now > 2 * start)):
        return Verdict(Cause.threshold_risen, {"threshold": now, "start": start, "reach_the_start": reached})
    return None


@torch.no_grad()
def why_silent(layer: SpikingLayer, drive: Tensor, dead: Tensor) -> Verdict:
    """inhibited, leak_too_strong or weights_too_small: what most of the dead neurons are.

    Args: drive: what the layer is given [T, B, *shape]. dead: which of its neurons are dead, flat.
    """
    chosen = dead.nonzero().flatten()
    chosen = chosen[:: -(-len(chosen) // NEURONS)]
    would_fire = _fires(layer, drive.abs())[chosen]
    given = drive.flatten(2)[:, :, chosen]
    level = layer.threshold.detach().float().expand(layer.shape).flatten()[chosen]
    summed, held, largest = _accumulated(layer, given, chosen)
    leaks = torch.zeros_like(would_fire) if summed is None else (summed >= level) & (held <= WORTH * largest)
    negative = float((drive.mean((0, 1)) < 0).double().mean())
    others = ~would_fire
    shares = {
        "inhibited": float(would_fire.double().mean()),
        "leak": float(leaks[others].double().mean()) if others.any() else 0.0,
        "negative": negative,
    }
    if not others.any() or (shares["inhibited"] > MOSTLY and negative >= NEGATIVE):
        cause = Cause.inhibited
    else:
        cause = Cause.leak_too_strong if shares["leak"] > MOSTLY else Cause.weights_too_small
    numbers = {f"share_{name}": share for name, share in shares.items()}
    numbers |= {"drive": float(given.mean((0, 1)).median()), "threshold": float(level.median())}
    if summed is not None:
        numbers |= {"reachable": float(summed.median()), "held": float(held.median())}
    return Verdict(cause, numbers)


def _fires(layer: SpikingLayer, x: Tensor) -> Tensor:
    """Which neurons [N] fire for any sample of x."""
    was_training = layer.training
    layer.eval()
    out: Any = layer(x.clone())
    layer.train(was_training)
    fired: Tensor = (out.spk > 0).any(0).any(0).flatten()
    return fired


def _accumulated(layer: SpikingLayer, given: Tensor, chosen: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
    """Of input given [T, B, n] to the neurons `chosen`: the largest sum without leak, with it, and the largest input.

    Each over samples and steps, without any reset; without leak, a current keeps what it is given, too. The first is
    None for an equation of the user's own.
    """

    def per_neuron(value: Tensor) -> Tensor:
        return value.detach().float().expand(layer.shape).flatten()[chosen]

    largest = given.amax((0, 1))
    if layer.dynamics.equation is not None:
        return None, largest, largest
    beta = per_neuron(layer.beta)
    alpha = None if layer.alpha is None else per_neuron(layer.alpha)
    scale = 1 - beta if layer.dynamics.tau_form else torch.ones_like(beta)
    cur = kept = total = mem = torch.zeros_like(given[0])
    summed = held = torch.full_like(largest, -torch.inf)
    for x in given.unbind(0):
        cur = x if alpha is None else alpha * cur + x
        kept = x if alpha is None else kept + x
        total, mem = total + scale * kept, beta * mem + scale * cur
        summed, held = torch.maximum(summed, total.amax(0)), torch.maximum(held, mem.amax(0))
    return summed, held, scale * largest
