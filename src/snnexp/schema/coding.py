"""Keys of the groups `encoder` and `decoder`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from snnexp.schema.fields import choice, number


@dataclass
class EncoderConf:
    """How a static image becomes input over time; event data needs none."""

    name: str = MISSING
    kwargs: dict[str, Any] = field(default_factory=dict)  # what an encoder of your own takes by name


@dataclass
class RateEncoderConf(EncoderConf):
    """Bernoulli spikes with probability gain * x + offset at each step (snntorch.spikegen.rate)."""

    gain: float = number(1.0, above=0)
    offset: float = number(0.0)


@dataclass
class LatencyEncoderConf(EncoderConf):
    """One spike per pixel, bright pixels first (snntorch.spikegen.latency)."""

    linear: bool = True  # t = (T-1)(1-x); false: logarithmic, an RC circuit of time constant tau
    tau: float = number(5.0, above=0)
    threshold: float = number(0.01, low=0, below=1)  # darker pixels stay silent (clip) or fire at the last step
    clip: bool = True


@dataclass
class DeltaEncoderConf(EncoderConf):
    """A spike each time the input has changed by another `threshold` (snntorch.spikegen.delta on the levels crossed).

    A static image is first faded in linearly from black over the T steps, so that there is a change to see.
    """

    threshold: float = number(0.1, above=0)
    off_spike: bool = False  # fade out again in the second half, with spikes of -1


@dataclass
class DecoderConf:
    """How the output over time becomes class scores, and the loss that trains them."""

    name: str = MISSING
    loss: str = "cross_entropy"  # one of registry.LOSSES, or a function of your own: package.module:name, file.py:name
    correct_rate: float = number(1.0, low=0, high=1)  # mse on rates: target firing rate of the right class
    incorrect_rate: float = number(0.0, low=0, high=1)
    scale: float = number(1.0, above=0)  # scores are multiplied by this before the cross-entropy
    tet_lambda: float = number(1e-3, low=0, high=1)  # tet: share of the distance to tet_level in the loss
    tet_level: float = number(1.0)  # tet: what outputs are drawn to, whatever their class
    # each batch goes through the network twice, with other masks of dropout: weight of the distance of the two outputs
    agreement: float = number(0.0, low=0)
    synops: float | None = number(None, above=0)  # budget of synaptic operations per sample, kept by a term of the loss
    synops_weight: float = number(1.0, above=0)
    weights: str = choice("linear", "linear", "exponential")  # temporal_weight: gamma (T-t)/T, or gamma^-t
    gamma: float = number(1.0, above=0)
    votes: int = number(1, low=1)  # vote: output neurons per class
    integrate: bool = True  # membrane: the output layer integrates and never spikes
    reduce: str = choice("last", "last", "mean", "max")  # membrane: over time
    on_target: int = number(0, low=0)  # mse_temporal: step at which the right class should fire first
    off_target: int | None = number(None, low=0)  # mse_temporal: the same for the wrong classes; null: last step
