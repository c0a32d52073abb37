"""Says in words what is wrong with a layer (or with its input), with numbers, and what to try.

Every sentence ends in something to do: overrides of the configuration that can be typed as they stand, or the layer to
begin with. `Finding` cannot be made without one. Numbers beside each other belong to the same neuron.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import floor, log10, nan

import torch
from torch import Tensor

from snnexp.analysis.activity import ActivityMeter, LayerActivity
from snnexp.analysis.cause_words import advice, sentence
from snnexp.analysis.causes import MOSTLY, Verdict, bad_state
from snnexp.config import Config, DeltaEncoderConf, EventDatasetConf, LatencyEncoderConf, RateEncoderConf
from snnexp.models.network import Network
from snnexp.neurons.layer import SpikingLayer, invert
from snnexp.schema.fields import ends

SILENT_INPUT = 0.05  # share of samples without input from which the data is to be looked at
ROUSER_REACH = 0.1  # neuron=rouser sums its input up over time: it gets by with membranes this small


@dataclass(frozen=True)
class Finding:
    """What is wrong: a short key such as "sn1 dead", the facts, and what to try (at least one thing)."""

    key: str
    facts: str
    first: str
    others: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        return f"{self.facts} {', or '.join((self.first, *self.others))}."


def diagnose(
    network: Network, meter: ActivityMeter, conf: Config, causes: Mapping[str, Verdict] | None = None
) -> list[tuple[str, str]]:
    """Findings about the pass that `meter` closed last: a short key such as "sn1 dead", and the text.

    causes: why, by layer, where that was looked into (`causes.Explainer`).

    The input comes first: what gets nothing cannot fire. Then the layers in order; only the first one with a finding
    gets values to try, since these are for all layers, and what comes later depends on what comes before.
    """
    findings = _input(meter, conf)
    if meter.silent_input == 1:
        return [(finding.key, finding.text) for finding in findings]
    begin = "the input" if findings and (meter.silent_input or 0) > MOSTLY else None
    before: LayerActivity | None = None
    for name, layer in network.spiking_layers.items():
        activity = meter.last.get(name)
        if activity is None:
            continue
        verdict = (causes or {}).get(name)
        found = _Examination(name, layer, activity, before, conf, _gain(network), verdict).findings()
        findings += [_after(begin, finding) for finding in found]
        if found and begin is None:
            begin = name
        before = activity
    return [(finding.key, finding.text) for finding in findings]


def _after(begin: str | None, finding: Finding) -> Finding:
    """The same facts with nothing to try but what comes before, if that has a finding, too."""
    if begin is None:
        return finding
    return Finding(finding.key, finding.facts, f"Start with {begin}, before it")


# --- the input ----------------------------------------------------------------------------------------------------


def _input(meter: ActivityMeter, conf: Config) -> list[Finding]:
    share = meter.silent_input
    if share is None or share <= SILENT_INPUT:
        return []
    samples = max((activity.samples for activity in meter.last.values()), default=0)
    facts = (
        f"input: {_percent(share)} of the {samples:,} samples reach the network as nothing but zeros. Neurons that get "
        "no input are not dead: look at the data and its encoding first."
    )
    return [Finding("input silent", facts, *_input_advice(conf))]


def _input_advice(conf: Config) -> tuple[str, tuple[str, ...]]:
    """What of the encoding or of the window over the events can keep a sample from the network."""
    encoder, data, values = conf.encoder, conf.dataset, []
    match encoder:
        case LatencyEncoderConf() if encoder.clip:
            values.append("encoder.clip=false (dark pixels spike last)")
            if encoder.threshold > 0.01:
                values.append("encoder.threshold=0.01")
        case RateEncoderConf() if encoder.gain < 1 or encoder.offset < 0:
            values.append("encoder=rate without encoder.gain and encoder.offset")
        case DeltaEncoderConf() if encoder.threshold > 0.1:
            values.append("encoder.threshold=0.1")
    if isinstance(data, EventDatasetConf):
        if data.crop is not None:
            values.append("dataset.crop=null")
        if data.bin_by == "width":
            values.append("dataset.bin_by=time (the whole recording)")
    if values:
        return f"Try {values[0]}", tuple(values[1:])
    return "Look at the data: snnexp task=prepare with the same overrides says what the samples hold", ()


# --- a layer ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Examination:
    """One layer: what it did, what the layer before it did, and what the configuration says."""

    name: str
    layer: SpikingLayer
    activity: LayerActivity
    before: LayerActivity | None
    conf: Config
    gain: float | None  # of the initial weights, where it matters
    verdict: Verdict | None = None  # why it is as it is

    def findings(self) -> list[Finding]:
        """At most one about thresholds below zero, and one about membranes, dead or saturated neurons."""
        found = []
        if not torch.isfinite(self.activity.peaks).all():
            found.append(self._not_finite())
        else:
            if self._learns and float(self.layer.threshold.detach().min()) <= 0:
                found.append(self._below_zero())
            if self.activity.dead_fraction > MOSTLY:
                found.append(self._dead())
            elif self.activity.saturated_fraction > MOSTLY and not self.layer.dynamics.fire_once and not found:
                found.append(self._saturated())
            elif self.verdict and bad_state(self.activity, self.layer.dynamics.fire_once) == "gradient_dead":
                found.append(self._out_of_reach(self.verdict))
        return found

    def _out_of_reach(self, verdict: Verdict) -> Finding:
        reach = self.activity.reach
        share = 0.0 if reach is None else float((reach == 0).double().mean())
        facts = (
            f"{self.name}: no gradient passes {_percent(share)} of its {self._neurons:,} "
            f"neurons in {self.activity.samples:,} samples. {sentence(verdict)}"
        )
        first, *others = advice(verdict, self.conf)
        return Finding(f"{self.name} gradient-dead", facts, f"Try {first}", tuple(others))

    def _not_finite(self) -> Finding:
        lost = int((~torch.isfinite(self.activity.peaks)).sum())
        facts = f"{self.name}: {lost:,} of its {self._neurons:,} neurons have membranes that are not finite numbers."
        if self.gain is not None and self.gain > 100:
            return Finding(f"{self.name} not finite", facts, "Try model.gain=1")
        return Finding(f"{self.name} not finite", facts, f"Try {self._smaller_lr()}")

    def _below_zero(self) -> Finding:
        values = self.layer.threshold.detach().flatten()
        below, lowest = int((values <= 0).sum()), float(values.min())
        facts = (
            f"{self.name}: {below:,} of its {values.numel():,} learned thresholds {'is' if below == 1 else 'are'} not "
            f"above zero (the lowest is {lowest:.3g}, the start was {self._start:g}); such neurons fire without input."
        )
        key = f"{self.name} threshold below zero"
        if self._start <= 0:
            return Finding(key, facts, f"Try {self._threshold_key}=1")
        softplus = ("neuron.threshold_param=softplus (it keeps them above zero)",)
        others = () if self.conf.neuron.module is not None else softplus
        return Finding(key, facts, f"Try {self._smaller_lr_threshold()}", others)

    def _dead(self) -> Finding:
        activity, key = self.activity, f"{self.name} dead"
        dead = activity.dead
        facts = (
            f"{self.name}: {_percent(activity.dead_fraction)} of its {self._neurons:,} neurons never fired in "
            f"{activity.samples:,} samples."
        )
        quiet = self.before.quiet_fraction if self.before is not None else 0.0
        if quiet > MOSTLY:
            facts += f" No spike reached it in {_percent(quiet)} of them."
        peaks, thresholds = activity.peaks[dead], activity.thresholds[dead]
        nearest = int((peaks - thresholds).nan_to_num().argmax())
        if self._threshold_key is not None:
            pair = _pair(peaks[nearest], thresholds[nearest])
            facts += f" The one nearest to firing reached a membrane of {pair[0]}; its threshold is {pair[1]}."
        own = []
        if self.verdict is not None:
            facts += f" {sentence(self.verdict)}"
            own = advice(self.verdict, self.conf)
        usual = self._dead_by_learning(thresholds) or self._dead_from_the_start() or [self._dead_by_weights()]
        first, *others = dict.fromkeys([*own, *usual])
        return Finding(key, facts, f"Try {first}", tuple(others))

    def _dead_by_learning(self, thresholds: Tensor) -> list[str]:
        """Thresholds that have risen away from their membranes."""
        typical = float(thresholds.median())
        if not self._learns or typical <= self._start or not self._start:
            return []
        if typical <= 1.5 * self._start and self._reachable < self._start:
            return []
        return [self._smaller_lr_threshold()]

    def _dead_from_the_start(self) -> list[str]:
        """Thresholds that were out of reach: lower ones, larger weights, or a neuron that sums its input up."""
        reachable, advice = self._reachable, []
        if not 0 < reachable < self._start:
            return []
        advice.append(f"{self._threshold_key}={reachable:g}")
        if self.gain is not None:
            # Half as much again, since biases do not grow with the weights; and where those are all there is, no factor
            # would be large enough: at least the usual weights.
            gain = max(1.5 * self.gain * self._start / reachable, 1.0)
            advice.append(f"model.gain={_round_up(gain):g} (larger initial weights)")
        plain = self.conf.neuron.module is None and self.conf.neuron.equation is None
        if plain and not self._learns and reachable >= ROUSER_REACH:
            advice.append("neuron=rouser without neuron.threshold (it learns one)")
        return advice

    def _dead_by_weights(self) -> str:
        """Membranes of half of the neurons or more that never rise above zero, which no threshold can help."""
        conf = self.conf
        if self.gain is not None and self.gain < 1:
            return "model.gain=1 (larger initial weights)"
        if conf.optimizer.lr > _usual_lr(conf):
            return self._smaller_lr()
        if self.before is not None and self._start > 0:
            return f"{self._threshold_key}={_round_down(self._start / 3):g} (more spikes reach it)"
        return f"seed={conf.seed + 1} (other initial weights)"

    def _saturated(self) -> Finding:
        activity = self.activity
        full = activity.saturated
        peaks, thresholds = activity.peaks[full], activity.thresholds[full]
        order = peaks.argsort()
        typical = order[len(order) // 2]
        facts = (
            f"{self.name}: {_percent(activity.saturated_fraction)} of its {self._neurons:,} neurons fire at nearly "
            "every step."
        )
        if self._threshold_key is None:
            return Finding(f"{self.name} saturated", facts, f"Try {self._smaller_lr()}")
        pair = _pair(peaks[typical], thresholds[typical])
        facts += f" A typical one of them reaches a membrane of {pair[0]}; its threshold is {pair[1]}."
        # A membrane that goes back to zero is no larger than the input of one step, and must not reach the threshold
        # within one; others pile up what the spikes do not take away.
        peak, threshold = float(peaks[typical]), float(thresholds[typical])
        wanted = 1.2 * peak if self.layer.dynamics.reset == "zero" else max(peak / 2, 2 * threshold)
        if wanted <= 0:
            return Finding(f"{self.name} saturated", facts, f"Try {self._threshold_key}=1")
        others = []
        if self.gain is not None and threshold > 0:
            others.append(f"model.gain={_round_down(self.gain * threshold / wanted):g} (smaller initial weights)")
        first = f"Try {self._threshold_key}={_round_up(wanted):g}"
        return Finding(f"{self.name} saturated", facts, first, tuple(others))

    # --- values that are used above ---

    @property
    def _neurons(self) -> int:
        return self.activity.rates.numel()

    @property
    def _learns(self) -> bool:
        return bool(self.layer.threshold_parameters())

    @property
    def _start(self) -> float:
        """The threshold at the start of training, on average; a fixed one has stayed there."""
        neuron = self.conf.neuron
        if self._threshold_key is None:
            return nan
        given = ends(neuron.threshold if neuron.module is None else neuron.kwargs.get("threshold", 1.0))  # snnTorch's 1
        return sum(given) / len(given)

    @property
    def _threshold_key(self) -> str | None:
        """What sets the threshold; None of neurons without one."""
        if self.layer.effective("threshold") is None:
            return None
        return "neuron.threshold" if self.conf.neuron.module is None else "neuron.kwargs.threshold"

    @property
    def _reachable(self) -> float:
        """Half of all neurons reached the median peak, so a threshold just below it lets that half fire."""
        return _round_down(0.99 * float(self.activity.peaks.median()))

    def _smaller_lr_threshold(self) -> str:
        """A rate at which the farthest of the parameters would have moved by a quarter of what it started from."""
        conf = self.conf.optimizer
        rate = conf.lr if conf.lr_threshold is None else conf.lr_threshold
        start = invert("threshold", self._start, self.layer.threshold_param)
        moved = max(float((raw.detach() - start).abs().max()) for raw in self.layer.threshold_parameters())
        return f"optimizer.lr_threshold={_round_down(rate * abs(start) / (4 * moved)):g} (it is {rate:g})"

    def _smaller_lr(self) -> str:
        rate = self.conf.optimizer.lr
        usual = _usual_lr(self.conf)
        smaller = min(rate / 10, usual) if rate else usual
        return f"optimizer.lr={_round_down(smaller):g} (it is {rate:g})"


def _usual_lr(conf: Config) -> float:
    """The learning rate of conf/optimizer."""
    return 0.1 if conf.optimizer.name == "sgd" else 1e-3


def _gain(network: Network) -> float | None:
    """The gain of the initial weights, or None if their own normalisation takes every gain out again."""
    return None if network.normalises_weights else network.gain


def _percent(share: float) -> str:
    """Whole per cent, but never 100 % for a share below 1."""
    return f"{floor(share * 100):d} %"


def _pair(a: Tensor, b: Tensor) -> tuple[str, str]:
    """Two numbers with as many digits as it takes to tell them apart."""
    digits = 3
    while digits < 9 and f"{float(a):.{digits}g}" == f"{float(b):.{digits}g}":
        digits += 1
    return f"{float(a):.{digits}g}", f"{float(b):.{digits}g}"


def _round_down(x: float) -> float:
    """Two leading digits, towards zero, so that what is reachable stays reachable; 0 for x <= 0."""
    if x <= 0:
        return 0.0
    unit = 10.0 ** (floor(log10(x)) - 1)
    return float(f"{floor(x / unit) * unit:.2g}")


def _round_up(x: float) -> float:
    """Two leading digits, away from zero."""
    unit = 10.0 ** (floor(log10(x)) - 1)
    return float(f"{-floor(-x / unit) * unit:.2g}")
