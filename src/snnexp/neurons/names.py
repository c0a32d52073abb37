"""The words a configuration may use for surrogates and engines. Imports nothing: configuration checks read it."""

from __future__ import annotations

FUSED_SURROGATES = ("atan", "fast_sigmoid", "sigmoid", "triangular", "rectangular", "exponential")
"""Surrogates of our own: every engine runs them."""

SNNTORCH_PREFIX = "snntorch:"

SNNTORCH_SURROGATES = (
    "SFS",
    "SSO",
    "atan",
    "fast_sigmoid",
    "heaviside",
    "sigmoid",
    "spike_rate_escape",
    "straight_through_estimator",
    "triangular",
)
"""Functions of `snntorch.surrogate` that need no argument and work (in 1.0.0 LSO raises); reference engine only."""

SURROGATES = (*FUSED_SURROGATES, *(SNNTORCH_PREFIX + name for name in SNNTORCH_SURROGATES))
"""Every legal value of `neuron.surrogate.name`."""

ENGINES = ("reference", "numba", "triton")
"""Every engine; `neuron.engine` also takes `auto`."""

RESETS = ("none", "zero", "subtract", "subtract_first")
"""Every legal value of `neuron.reset`."""
