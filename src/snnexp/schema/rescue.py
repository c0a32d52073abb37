"""Keys of the group `rescue`: what wakes dead neurons, or keeps them from dying. A class per cure, in `rescue/`."""

from __future__ import annotations

from dataclasses import dataclass

from snnexp.schema.fields import choice, number


@dataclass
class RescueConf:
    """No cure."""

    name: str = "none"


@dataclass
class CureConf(RescueConf):
    """What all cures have."""

    # start: of all spiking layers, from the start; diagnosed: of a layer, once the diagnosis calls it dead
    when: str = choice("start", "start", "diagnosed")


@dataclass
class RouserConf(CureConf):
    """Learned thresholds (Rouser); their rate is optimizer.lr_threshold."""

    name: str = "rouser"


@dataclass
class BoundsConf(CureConf):
    """Bounds on firing rates as a loss; rates are spikes per time step."""

    name: str = "bounds"
    lower: float = number(0.01, low=0, high=1)  # of each neuron, in each sample
    upper: float = number(0.5, low=0, high=1)  # of a layer's mean, in each sample
    strength: float = number(100.0, low=0)  # of the lower bound
    strength_upper: float = number(1.0, low=0)


@dataclass
class HomeostasisConf(CureConf):
    """Thresholds that follow each neuron's firing rate after every step of the optimizer, outside the gradient."""

    name: str = "homeostasis"
    target: float = number(0.05, above=0, high=1)  # spikes per time step
    rate: float = number(0.1, above=0)  # the threshold moves by rate x (firing rate - target) at each step
    lowest: float = number(0.05, low=0)  # no threshold goes below this


@dataclass
class FluctuationInitConf(CureConf):
    """Initial weights from how far the membrane's fluctuations shall be from the threshold."""

    name: str = "fluctuation_init"
    xi: float = number(1.0, above=0)  # distance of the mean membrane (0) from the threshold, in standard deviations
    rate: float | None = number(None, above=0)  # of presynaptic neurons, per time step; null: the input's, measured
    forward_share: float = number(0.9, above=0, high=1)  # of the variance; the rest is a recurrent matrix's


@dataclass
class VarianceInitConf(CureConf):
    """Initial weights of variance 1/(n P(U > theta)), for membranes of unit variance in every layer."""

    name: str = "variance_init"
    scale: float = number(1.0, above=0)  # of the variance


@dataclass
class WideSurrogateConf(CureConf):
    """A surrogate that reaches further at first."""

    name: str = "wide_surrogate"
    stretch: float = number(5.0, low=1)  # how many times as far, at first
    share: float = number(0.5, low=0, high=1)  # of the epochs until it is as it was


@dataclass
class ResampleConf(CureConf):
    """Dormant neurons get fresh weights, and the optimizer forgets the old ones."""

    name: str = "resample"
    dormant: float = number(0.0, low=0, below=1)  # spikes relative to the layer's mean, up to which a neuron is dormant
    every: int = number(1, low=1)  # epochs
    gain: float = number(1.0, above=0)  # fresh weights are the initial distribution's times this
    outgoing: str = choice("zero", "zero", "keep")  # what follows a redrawn neuron, unless the whole layer is redrawn


@dataclass
class PseudospikeConf(CureConf):
    """Silent neurons send on, at the last step, how near they are to a spike after the end of the trial."""

    name: str = "pseudospike"
    height: float = number(1.0, above=0, high=1)  # of a pseudospike right after the end; a spike is 1
    drive: float = number(1.25, above=1)  # after the end membranes go to this many times the threshold


RESCUES: dict[str, type[RescueConf]] = {
    "base": RescueConf,
    "rouser": RouserConf,
    "bounds": BoundsConf,
    "homeostasis": HomeostasisConf,
    "fluctuation_init": FluctuationInitConf,
    "variance_init": VarianceInitConf,
    "wide_surrogate": WideSurrogateConf,
    "resample": ResampleConf,
    "pseudospike": PseudospikeConf,
}
