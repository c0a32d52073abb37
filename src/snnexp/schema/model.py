"""Keys of the group `model`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from snnexp.schema.fields import choice, number


@dataclass
class NeuNormConf:
    """NeuNorm (Wu et al. 2019): x[t] = k x[t-1] + v/F sum_f S_f[t]; the next layer sees S - A x."""

    k: float = number(0.9, low=0, below=1)
    # k + v F = 1 as printed, or k + v = 1 (x is then the mean rate); off: NN in model.spec does nothing
    form: str = choice("literal", "literal", "mean", "off")
    shared: bool = False  # A of shape [1, H, W] instead of [C, H, W]


@dataclass
class DelayConf:
    """The delays of DL<max> and RFC<out>DL<max>: x[t] becomes sum_l k[l] x[t - l], k around a learned d of 0 to max.

    sigma is the standard deviation of a gaussian k, or the half width of a triangle. In evaluation d is rounded.
    """

    learn: bool = True  # at the rate optimizer.lr_delay; false: the rounded start values act, in training too
    init: str = choice("uniform", "uniform", "zero")  # the start values: uniform in 0..max, or no delay
    kernel: str = choice("gaussian", "gaussian", "triangle")
    sigma: float | None = number(None, above=0)  # in the first epoch; null: max / 2
    sigma_final: float | None = number(None, above=0)  # null: 0.5 (gaussian), 1 (triangle: linear interpolation)
    sigma_share: float = number(0.25, low=0, high=1)  # share of trainer.max_epochs in which sigma falls, exponentially


@dataclass
class ModelConf:
    """A network in the literature's notation (DESIGN section 4; docs/models.md lists the tokens)."""

    name: str = MISSING
    spec: str = MISSING
    module: str | None = None  # a network of your own, without a spec: package.module:name or file.py:name
    kwargs: dict[str, Any] = field(default_factory=dict)  # what it is made with
    pooling: str = choice("as_written", "as_written", "average")  # average: every MP becomes AP (ETTFS, single spikes)
    bias: bool = True  # of convolutions and linear layers; those followed by BN never have one
    init: str = choice("default", "default", "kaiming_uniform", "kaiming_normal", "ettfs")
    gain: float = number(1.0, above=0)  # initial weights are multiplied by this; before BN or LN, the norm's scale
    weight_norm: bool = False  # ETTFS: weights standardised to sigma = sqrt(T/N) at each forward pass
    affine: str = choice("none", "none", "layer", "channel")  # ETTFS: I' = g I + b with learned g, b
    bn_per_step: bool = False  # BN statistics per time step (PLIF's released code) instead of over T and batch
    neunorm: NeuNormConf = field(default_factory=NeuNormConf)
    delay: DelayConf = field(default_factory=DelayConf)
    sparse: str = choice("auto", "auto", "always", "never")  # layers follow what is not 0 in their input (CPU)
