"""Networks for other programs, and from them: the Neuromorphic Intermediate Representation, NIR (docs/nir.md).

One time step is DT seconds, as in snnTorch. With Euler steps NIR's equations are ours with reset to zero:

    LIF      tau dv/dt = (v_leak - v) + r x       beta = 1 - DT/tau         x counts r DT/tau
    CubaLIF  tau_syn dI/dt = -I + w_in x          alpha = 1 - DT/tau_syn    x counts w_in DT/tau_syn
             tau_mem dv/dt = (v_leak - v) + r I   beta = 1 - DT/tau_mem     I counts r DT/tau_mem
    spike if v > v_threshold, then v = v_reset; here v_leak = v_reset = 0

A neuron that fires at U >= theta has v_threshold = the largest float32 below theta, which is the same for float32
membranes.
"""

from __future__ import annotations

from typing import Any

from snnexp.errors import ConfigError

DT = 1e-4  # seconds per time step; snnTorch's importer assumes it


def import_nir() -> Any:
    """The package nir. Raises: ConfigError that says how to install it."""
    try:
        import nir
    except ImportError as error:
        raise ConfigError("NIR needs the package nir: pip install 'snnexp[nir]'.") from error
    return nir
