"""Neurons of the literature that are not cases of our equation, each one step: presets in conf/neuron/ name them.

`mem` is always the membrane before the reset, as everywhere here. Shares kept per step are learned within the range
that a range of time constants gives, one per neuron, drawn from all of it; all states start at zero.
"""

from __future__ import annotations

from math import exp, log
from typing import Any

import torch

from snnexp.neurons.custom import Param

Values = Any  # tensors, or the compiler's symbols


def _between(low: float, high: float) -> Param:
    """A value per neuron, drawn from the range that it is clamped to."""
    return Param((low, high), learn=True, per="neuron", low=low, high=high)


FAST = _between(exp(-1 / 5), exp(-1 / 25))  # of the membrane: 5 to 25 steps
SLOW = _between(exp(-1 / 30), exp(-1 / 120))
SLOWER = _between(exp(-1 / 60), exp(-1 / 300))
FROM_0, UP_TO_2, AROUND_0 = _between(0.0, 1.0), _between(0.0, 2.0), _between(-1.0, 1.0)


def adlif(
    x: Values, mem: Values, spk: Values, w: Values, *, spike: Any, threshold: Values,
    decay: Values = FAST, rho: Values = SLOW, a: Values = AROUND_0, b: Values = UP_TO_2,
) -> tuple[Values, ...]:  # fmt: skip
    """Adaptive LIF (Bittar and Garner 2022, doi:10.3389/fnins.2022.865897; their code: idiap/sparch).

    w[t] = rho w[t-1] + a U[t-1] + b S[t-1]     U[t] = decay (U[t-1] - S[t-1]) + (1 - decay)(x[t] - w[t])
    The gradient passes through the reset. There, states start at random numbers.
    """
    w = rho * w + a * mem + b * spk
    mem = decay * (mem - spk) + (1 - decay) * (x - w)
    return mem, spike(mem - threshold), w


def se_adlif(
    x: Values, mem: Values, spk: Values, w: Values, *, spike: Any, threshold: Values,
    decay: Values = FAST, rho: Values = SLOWER, a: Values = FROM_0, b: Values = UP_TO_2, q: Values = 120.0,
) -> tuple[Values, ...]:  # fmt: skip
    """Adaptive LIF, symplectic Euler (Baronig et al. 2024, arXiv:2408.07517; their code: IGITUGraz/SE-adlif).

    U[t] = decay U'[t-1] + (1 - decay)(x[t] - w[t-1])     U' = U (1 - S), the reset without gradient
    w[t] = rho w[t-1] + (1 - rho) q (a U'[t] + b S[t])
    w sees this step's membrane and spike. They learn time constants, here what is kept per step learns.
    """
    mem = decay * (mem * (1 - spk.detach())) + (1 - decay) * (x - w)
    spk = spike(mem - threshold)
    w = rho * w + (1 - rho) * (a * (mem * (1 - spk.detach())) + b * spk) * q
    return mem, spk, w


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


def alif(
    x: Values, mem: Values, spk: Values, w: Values, *, spike: Any, threshold: Values,
    decay: Values = Param(exp(-1 / 20), learn=True, per="neuron", low=0.0, high=1.0),  # noqa: B008
    rho: Values = Param(exp(-1 / 150), learn=True, per="neuron", low=0.0, high=1.0),  # noqa: B008
    strength: Values = 1.8,
) -> tuple[Values, ...]:  # fmt: skip
    """Adaptive threshold (LSNN: Bellec et al. 2018, arXiv:1803.09574), in the order of Yin et al. 2021.

    w[t] = rho w[t-1] + (1 - rho) S[t-1]     level[t] = threshold + strength w[t]
    U[t] = decay U[t-1] + (1 - decay) x[t] - level[t] S[t-1]     S[t] = 1 if U[t] > level[t]
    """
    w = rho * w + (1 - rho) * spk
    level = threshold + strength * w
    mem = decay * mem + (1 - decay) * x - level * spk
    return mem, spike(mem - level), w
