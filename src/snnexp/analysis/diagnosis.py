"""Says in words what is wrong when a layer is mostly dead or saturated, with numbers, and what to try."""

from __future__ import annotations

from math import floor, log10

import torch

from snnexp.analysis.activity import ActivityMeter, LayerActivity
from snnexp.models.network import Network
from snnexp.models.spec import WEIGHT_KINDS
from snnexp.neurons.layer import SpikingLayer

MOSTLY = 0.5  # share of a layer from which it is worth a word


def diagnose(network: Network, meter: ActivityMeter) -> list[tuple[str, str]]:
    """Findings about the pass that `meter` closed last: a short key such as "sn1 dead", and the text.

    A dead layer gets its largest membrane (in the first batch of the pass) beside its threshold, and a threshold that
    half of its neurons would have reached. Only the first finding proposes values: they are for all layers, and what
    comes later depends on what comes before.
    """
    findings: list[tuple[str, str]] = []
    first: str | None = None  # the first layer with a finding: neuron.threshold and model.gain serve all layers
    for name, layer in network.spiking_layers.items():
        activity = meter.last.get(name)
        if activity is None:
            continue
        if activity.dead_fraction > MOSTLY:
            findings.append((f"{name} dead", _dead(name, layer, activity, first, _gain(network, name))))
        elif activity.saturated_fraction > MOSTLY:
            findings.append((f"{name} saturated", _saturated(name, layer, activity, first, _gain(network, name))))
        first = findings[0][0].split()[0] if findings else None
    return findings


def _dead(name: str, layer: SpikingLayer, activity: LayerActivity, earlier: str | None, gain: float | None) -> str:
    threshold = float(layer.threshold.detach().min())
    peak = float(activity.peaks.max())
    text = f"{name}: {_percent(activity.dead_fraction)} of its {activity.rates.numel():,} neurons never fired."
    if not torch.isfinite(activity.peaks).all():
        return f"{text} Its membranes are not finite: lower optimizer.lr, or set trainer.grad_clip=1."
    text += f" Largest membrane {peak:.3g}, smallest threshold {threshold:.3g}."
    if earlier:
        return f"{text} Start with {earlier}, before it."
    advice = []
    # Half of the neurons reached the median peak, so a threshold just below it lets that half fire.
    reachable = _round_down(float(activity.peaks.median()))
    if 0 < reachable < threshold:
        advice.append(f"neuron.threshold={reachable:g}")
    elif peak > 0:
        lowered = _round_down(peak / 2)
        if 0 < lowered < threshold:
            advice.append(f"neuron.threshold={lowered:g}")
    if gain is not None and 0 < reachable < threshold:
        # half as much again, since biases do not grow with the weights
        advice.append(f"model.gain={_round_up(1.5 * gain * threshold / reachable):g} (larger initial weights)")
    elif gain is not None and peak <= 0:
        advice.append(f"model.gain={3 * gain:g} (no membrane is above 0: larger initial weights)")
    if not layer.threshold_parameters():
        advice.append("neuron=rouser without neuron.threshold (it learns one)")
    elif threshold > 0:
        advice.append("a larger optimizer.lr_threshold")
    return f"{text} Try {', or '.join(advice)}."


def _saturated(name: str, layer: SpikingLayer, activity: LayerActivity, earlier: str | None, gain: float | None) -> str:
    threshold = float(layer.threshold.detach().max())
    share = _percent(activity.saturated_fraction)
    text = f"{name}: {share} of its {activity.rates.numel():,} neurons fire at nearly every step."
    if threshold <= 0:
        return f"{text} Its threshold has fallen to {threshold:.3g}. Try a smaller optimizer.lr_threshold."
    median = float(activity.peaks.median())
    text += f" Median largest membrane {median:.3g}, threshold {threshold:.3g}."
    if earlier:
        return f"{text} Start with {earlier}, before it."
    wanted = max(2 * threshold, median / 2)
    text += f" Try neuron.threshold={_round_up(wanted):g}"
    if gain is None:
        return f"{text}."
    return f"{text}, or model.gain={_round_down(gain * threshold / wanted):g} (smaller initial weights)."


def _gain(network: Network, name: str) -> float | None:
    """The gain of the initial weights, or None if a normalisation before the layer takes every gain out again."""
    if network.normalises_weights:
        return None
    index = next(i for i, layer in enumerate(network.layers) if layer.name == name)
    for layer in reversed(network.layers[:index]):
        if layer.kind in ("batch_norm", "layer_norm"):
            return None
        if layer.kind in WEIGHT_KINDS:
            break
    return network.gain


def _percent(share: float) -> str:
    """Whole per cent, but never 100 % for a share below 1."""
    return f"{floor(share * 100):d} %"


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
