"""The words a configuration may use for surrogates and engines. Imports no torch: configuration checks read it."""

from __future__ import annotations

from snnexp.registry import SURROGATES as _SURROGATES

SNNTORCH_PREFIX = "snntorch:"

SURROGATES = tuple(_SURROGATES.ours)
"""Our values of `neuron.surrogate.name`; a package or a file may bring others."""

FUSED_SURROGATES = tuple(name for name in SURROGATES if not name.startswith(SNNTORCH_PREFIX))
"""Surrogates of our own: every engine runs them."""

SNNTORCH_SURROGATES = tuple(name.removeprefix(SNNTORCH_PREFIX) for name in SURROGATES if ":" in name)
"""Functions of `snntorch.surrogate`; reference engine only."""

ENGINES = ("reference", "numba", "triton")
"""Every engine; `neuron.engine` also takes `auto`."""

RESETS = ("none", "zero", "subtract", "subtract_first")
"""Every legal value of `neuron.reset`."""
