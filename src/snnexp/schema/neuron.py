"""Keys of the group `neuron`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from snnexp.schema.fields import choice, number, spread


@dataclass
class SurrogateConf:
    """The derivative that stands in for that of the step, as a function of x = U - theta (`neurons/surrogates.py`)."""

    name: str = "atan"
    alpha: float = number(2.0, above=0)
    slope: float = number(25.0, above=0)
    scale: float = number(1.0, above=0)
    width: float = number(0.5, above=0)


@dataclass
class NeuronConf:
    """The one neuron equation (DESIGN section 3); the presets in conf/neuron/ are values of these keys.

    I[t] = alpha I[t-1] + x[t];  U[t] = beta U'[t-1] + g I[t] - R[t];  S[t] = 1 if U[t] >= theta else 0
    """

    name: str = MISSING
    engine: str = choice("auto", "auto", "reference", "numba", "triton")
    threshold: Any = spread(1.0)  # a number, or two to draw between, as beta and alpha
    beta: Any = spread(0.9, low=0, high=1)  # share of the membrane kept per step
    alpha: Any = spread(None, low=0, high=1)  # share of the current kept per step; null: no current state
    learn_threshold: bool = False
    learn_beta: bool = False
    learn_alpha: bool = False
    threshold_per: str = choice(
        "auto", "auto", "layer", "channel", "neuron"
    )  # auto: layer, or neuron where it is drawn
    beta_per: str = choice("auto", "auto", "layer", "channel", "neuron")
    alpha_per: str = choice("auto", "auto", "layer", "channel", "neuron")
    threshold_param: str = choice("direct", "direct", "softplus", "tanh")  # what is learned: theta, or a k behind it
    decay_param: str = choice("sigmoid", "sigmoid", "clamp")  # a learned beta or alpha: sigmoid(w), or itself clamped
    tau_form: bool = False  # g = 1 - beta: the input is divided by tau (PLIF, SpikingJelly)
    reset: str = choice("zero", "zero", "subtract", "subtract_first", "none")
    strict: bool = False  # true: a spike needs U > theta (snnTorch, STBP), false: U >= theta
    detach_reset: bool = True  # no gradient through the reset
    ignore_reset_in_backward: bool = False  # SLAYER: the backward pass runs as if there were no reset
    fire_once: bool = False  # a neuron spikes at most once per sample
    force_last_spike: bool = False  # training only: a neuron silent so far fires at the last step (ETTFS)
    relative_surrogate: bool = False  # the surrogate sees U/theta - 1 instead of U - theta (DIET-SNN)
    spike_height: str = choice("one", "one", "threshold")  # what a spike sends on, and a soft reset takes off (TrSG)
    initial_mem: str = choice("zero", "zero", "running_mean")  # where membranes start: at that of earlier batches' ends
    noise: float = number(0.0, low=0)  # standard deviation of what is added to the membrane at each step (Gaussian)
    noise_in: str = choice("training", "training", "always")
    surrogate: SurrogateConf = field(default_factory=SurrogateConf)
    equation: str | None = None  # a step function of your own: package.module:name or file.py:name
    params: dict[str, Any] = field(default_factory=dict)  # its values by name: {init, learn, per, low, high}
    module: str | None = None  # a neuron of snnTorch, or a module of your own: snntorch.Synaptic, package.module:name
    kwargs: dict[str, Any] = field(default_factory=dict)  # what it is made with

    @property
    def called(self) -> str:
        """What people call this neuron: the preset, or the name of what takes its place."""
        own = self.module or self.equation
        return self.name if own is None or own.startswith("snnexp.") else re.split(r"[/\\]", own)[-1]
