"""Neurons of the literature that are not cases of our equation, each one step: presets in conf/neuron/ name them.

`mem` is always the membrane before the reset, as everywhere here. Values that learn are the authors': what is kept per
step, time constants, or a place in their range; one per neuron, drawn as theirs are. All states start at zero. A
readout without spikes runs `<name>_readout`: the leaky integrator of the same paper.
"""

from __future__ import annotations

from math import exp, log, pi, sqrt
from typing import Any

import torch

from snnexp.neurons.custom import Param

Values = Any  # tensors, or the compiler's symbols


def _between(low: float, high: float) -> Param:
    """A value per neuron, drawn from the range that it is clamped to."""
    return Param((low, high), learn=True, per="neuron", low=low, high=high)


def _around(mean: float, deviation: float) -> Param:
    """A time constant per neuron: theirs is normal, here it is drawn evenly with the same mean and deviation."""
    return Param((mean - sqrt(3) * deviation, mean + sqrt(3) * deviation), learn=True, per="neuron", low=1.0)


FAST = _between(exp(-1 / 5), exp(-1 / 25))  # of the membrane: 5 to 25 steps
SLOW = _between(exp(-1 / 30), exp(-1 / 120))
STEPS_15 = exp(-1 / 15)
FROM_0, UP_TO_2, AROUND_0 = _between(0.0, 1.0), _between(0.0, 2.0), _between(-1.0, 1.0)


def adlif(
    x: Values, mem: Values, spk: Values, w: Values, *, spike: Any, threshold: Values,
    decay: Values = FAST, rho: Values = SLOW, a: Values = AROUND_0, b: Values = UP_TO_2,
) -> tuple[Values, ...]:  # fmt: skip
    """Adaptive LIF (Bittar and Garner 2022, doi:10.3389/fnins.2022.865897; their code: idiap/sparch).

    w[t] = rho w[t-1] + a U[t-1] + b S[t-1]     U[t] = decay (U[t-1] - S[t-1]) + (1 - decay)(x[t] - w[t])
    The gradient passes through the reset. There, states start at random numbers from 0 to 1.
    """
    w = rho * w + a * mem + b * spk
    mem = decay * (mem - spk) + (1 - decay) * (x - w)
    return mem, spike(mem - threshold), w


def adlif_readout(x: Values, mem: Values, spk: Values, *, decay: Values = FAST) -> tuple[Values, ...]:
    """Leaky integrator: U[t] = decay U[t-1] + (1 - decay) x[t]."""
    return decay * mem + (1 - decay) * x, 0.0 * spk


def se_adlif(
    x: Values, mem: Values, spk: Values, w: Values, *, spike: Any, threshold: Values,
    place_u: Values = FROM_0, place_w: Values = FROM_0, a: Values = FROM_0, b: Values = UP_TO_2, q: Values = 120.0,
) -> tuple[Values, ...]:  # fmt: skip
    """Adaptive LIF, symplectic Euler (Baronig et al. 2024, arXiv:2408.07517; their code: IGITUGraz/SE-adlif).

    U[t] = decay U'[t-1] + (1 - decay)(x[t] - w[t-1])     U' = U (1 - S), the reset without gradient
    w[t] = rho w[t-1] + (1 - rho) q (a U'[t] + b S[t])
    decay = exp(-1 / (5 + 20 place_u)), rho = exp(-1 / (60 + 240 place_w)): what learns is a place between the shortest
    and the longest time constant. w sees this step's membrane and spike.
    """
    decay, rho = torch.exp(-1 / (5 + 20 * place_u)), torch.exp(-1 / (60 + 240 * place_w))
    mem = decay * (mem * (1 - spk.detach())) + (1 - decay) * (x - w)
    spk = spike(mem - threshold)
    w = rho * w + (1 - rho) * (a * (mem * (1 - spk.detach())) + b * spk) * q
    return mem, spk, w


def se_adlif_readout(x: Values, mem: Values, spk: Values, *, decay: Values = STEPS_15) -> tuple[Values, ...]:
    """Leaky integrator of 15 steps, fixed."""
    return adlif_readout(x, mem, spk, decay=decay)


def silif(
    x: Values, mem: Values, spk: Values, w: Values, *, spike: Any, threshold: Values,
    log_dt: Values = Param(log(0.004), learn=True, per="neuron"),  # noqa: B008
    log_leak: Values = Param((log(10.0), log(250.0)), learn=True, per="neuron"),  # noqa: B008
    log_slow: Values = Param((log(2.5), log(10.0)), learn=True, per="neuron"),  # noqa: B008
    a: Values = FROM_0, b: Values = UP_TO_2,
) -> tuple[Values, ...]:  # fmt: skip
    """adLIF, parametrised as a state space model (SiLIF: Fabre et al. 2025, arXiv:2506.06374).

    Their code: Maxtimer97/SSM-inspired-LIF. As `adlif`, with rates per second and a time step, learned, 4 ms at first:
    decay = exp(-e^log_leak e^log_dt), rho = exp(-e^log_slow e^log_dt).
    """
    step = torch.exp(log_dt)
    decay, rho = torch.exp(-(torch.exp(log_leak) * step)), torch.exp(-(torch.exp(log_slow) * step))
    return adlif(x, mem, spk, w, spike=spike, threshold=threshold, decay=decay, rho=rho, a=a, b=b)


silif_readout = adlif_readout


def alif(
    x: Values, mem: Values, spk: Values, w: Values, *, spike: Any, threshold: Values,
    tau: Values = _around(20.0, 5.0), tau_w: Values = _around(150.0, 10.0), strength: Values = 1.8,  # noqa: B008
) -> tuple[Values, ...]:  # fmt: skip
    """Adaptive threshold (LSNN: Bellec et al. 2018, arXiv:1803.09574), in the order of Yin et al. 2021.

    The latter: doi:10.1038/s42256-021-00397-w; their code: byin-cwi/Efficient-spiking-networks.
    decay = exp(-1 / tau), rho = exp(-1 / tau_w):
    w[t] = rho w[t-1] + (1 - rho) S[t-1]     level[t] = threshold + strength w[t]
    U[t] = decay U[t-1] + (1 - decay) x[t] - level[t] S[t-1]     S[t] = 1 if U[t] > level[t]
    There, w starts at the threshold and, on SHD, U at random numbers from 0 to 1.
    """
    decay, rho = torch.exp(-1 / tau), torch.exp(-1 / tau_w)
    w = rho * w + (1 - rho) * spk
    level = threshold + strength * w
    mem = decay * mem + (1 - decay) * x - level * spk
    return mem, spike(mem - level), w


def alif_readout(x: Values, mem: Values, spk: Values, *, tau: Values = _around(20.0, 5.0)) -> tuple[Values, ...]:  # noqa: B008
    """Leaky integrator: U[t] = decay U[t-1] + (1 - decay) x[t], decay = exp(-1 / tau)."""
    return adlif_readout(x, mem, spk, decay=torch.exp(-1 / tau))


def multi_gaussian(x: Values, width: float, scale: float) -> Values:
    """Yin et al.'s surrogate, negative on both sides: scale (1.15 n(x; 0, w) - 0.15 (n(x; w, 6w) + n(x; -w, 6w))).

    n(x; m, s) is the normal density with mean m and deviation s.
    """

    def normal(middle: float, deviation: float) -> Values:
        return torch.exp(-(((x - middle) / deviation) ** 2) / 2) / (sqrt(2 * pi) * deviation)

    return scale * (1.15 * normal(0.0, width) - 0.15 * (normal(width, 6 * width) + normal(-width, 6 * width)))
