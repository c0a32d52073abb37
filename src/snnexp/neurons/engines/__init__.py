"""Engines run the neuron equation over all T steps at once; all agree with `reference` in forward and backward."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from snnexp.errors import ConfigError, unknown_choice
from snnexp.layout import memory_order
from snnexp.neurons.compiler.plan import derived_values, forward_plan, why_not_compiled
from snnexp.neurons.engines import reference
from snnexp.neurons.engines.calls import InputNorm, Near
from snnexp.neurons.engines.fused import run_fused, run_fused_layer, with_derived
from snnexp.neurons.engines.recurrence import Backend
from snnexp.neurons.equation import Dynamics, Pool, State, initial_state, value_dict
from snnexp.neurons.names import ENGINES, FUSED_SURROGATES, RESETS
from snnexp.neurons.surrogates import Surrogate

FUSED_DEVICE = {"numba": "cpu", "triton": "cuda"}
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def run_neurons(
    x: Tensor,
    alpha: Tensor | None,
    beta: Tensor,
    threshold: Tensor,
    dynamics: Dynamics,
    state: State | None = None,
    engine: str = "reference",
    overwrite_input: bool = False,
    recurrent: Tensor | None = None,
    more: Mapping[str, Tensor] | None = None,
    noise: Tensor | None = None,
) -> tuple[Tensor, Tensor, State]:
    """Run spiking neurons over all time steps (equation and options: `snnexp.neurons.equation`).

    Args:
        x: input current [T, B, *shape], T >= 1. Half precision is computed in float32.
        alpha, beta, threshold: each broadcasts to [*shape] (one per layer, channel or neuron); alpha None: no current.
        state: where to start; None: at rest.
        engine: reference, numba (CPU) or triton (CUDA); see `choose_engine`.
        overwrite_input: the engine may put the membranes into x's memory. Safe if nothing else reads x later: its
            producer must not need its own output in backward (linear, convolution and batch norm do not), else
            backward raises torch's error about a tensor modified in place. The reference engine never does it.
        recurrent: weights [N, N] from the neurons' spikes S[t-1] to their own input x[t], for neurons of shape [N];
            computed in the neurons' precision.
        more: values of a user's equation, by name; they broadcast as beta does.
        noise: what is added to the membranes, like x, in the precision computed in; given if dynamics.noisy.
    Returns: spikes in x's dtype, membranes before the reset in the dtype computed in, both like x, and the last state.
        All of them, state included, carry gradients to x, alpha, beta, threshold and the given state.
    Raises: ConfigError if a value does not broadcast to [*shape]; the message has both shapes.
    """
    recurrent = _checked(x, value_dict(alpha, beta, threshold, more), recurrent)
    if state is not None and state.mem.shape != x.shape[1:]:
        raise ConfigError(f"the state has shape {list(state.mem.shape)}, but the input needs {list(x.shape[1:])}.")
    exact = x if x.dtype in (torch.float32, torch.float64) else x.float()
    overwrite_input = overwrite_input or exact is not x
    if engine == "reference":
        start = initial_state(exact[0], dynamics, alpha is not None) if state is None else state
        spk, mem, after = reference.run(exact, alpha, beta, threshold, dynamics, start, recurrent, more, noise)
        return spk.to(x.dtype), mem, after
    # Triton's kernels read half precision themselves; the matrix product of a recurrent layer does not mix precisions.
    given = x if engine == "triton" and recurrent is None else exact
    options = (overwrite_input, recurrent, more, noise)
    spk, mem, after = run_fused(given, alpha, beta, threshold, dynamics, state, _backend(engine), *options)
    return spk.to(x.dtype), mem, after


def _backend(engine: str) -> Backend:
    """A fused engine; its package is imported by who uses it."""
    if engine == "numba":
        from snnexp.neurons.engines.numba_engine import NumbaBackend

        return NumbaBackend()
    from snnexp.neurons.engines.triton_engine import TritonBackend

    return TritonBackend()


class LayerRun(NamedTuple):
    """What a spiking layer hands on within a network."""

    spk: Tensor  # [T, B, *shape], or [T, B, C, H // size, W // size] with pooling
    mem: Tensor  # [T, B, *shape]; T = 0 if there are none, since nobody looks at them
    counts: Tensor | None  # spikes over the T steps, before pooling, [B, *shape]
    needed: Tensor | None = None  # uint8, like spk: 0 where the gradient of spikes comes to nothing


def run_layer(
    x: Tensor,
    alpha: Tensor | None,
    beta: Tensor,
    threshold: Tensor,
    dynamics: Dynamics,
    engine: str,
    *,
    overwrite_input: bool = False,
    recurrent: Tensor | None = None,
    pool: Pool | None = None,
    counts: bool = False,
    private: bool = False,
    more: Mapping[str, Tensor] | None = None,
    noise: Tensor | None = None,
    start: State | None = None,
    needed: bool = False,
    norm: InputNorm | None = None,
    unseen: bool = False,
    near: Near | None = None,
) -> LayerRun:
    """Run a layer from `start` (None: rest) to the end, with what follows the spikes in the same pass where it can be.

    Args: those of `run_neurons`, and
        pool: pooling layer on the spikes; `can_pool` tells where that is allowed.
        counts: count the spikes per sample and neuron.
        private: the membranes are only looked at, and not after backward has begun: they carry no gradient, and
            backward may put the input's gradient into their memory.
        needed: say where the gradient of spikes is, if the engine can, and the equation lets it (`plan.where_needed`).
        norm: what x is to be normalised by first; `can_normalise` tells where that is allowed.
        unseen: nobody looks at the membranes, which are private: if x is normalised, there may be none (T = 0).
        near: what else to count with `counts`; `can_count_near` tells where that is allowed.
    """
    if engine == "numba" and x.dtype in (torch.float32, torch.float64):
        recurrent = _checked(x, value_dict(alpha, beta, threshold, more), recurrent)
        needed = needed and recurrent is None
        more_options = (recurrent, pool, counts, private, more, noise, start)
        given = (x, alpha, beta, threshold, dynamics, _backend(engine), overwrite_input)
        return LayerRun(*run_fused_layer(*given, *more_options, needed, norm, unseen and private, near))
    assert norm is None and near is None
    options = (engine, overwrite_input, recurrent, more, noise)
    spk, mem, _ = run_neurons(x, alpha, beta, threshold, dynamics, start, *options)
    counted = spikes_over_time(spk, dynamics.high_spikes) if counts else None
    return LayerRun(pooled(spk, pool), mem.detach() if private else mem, counted)


def pooled(spk: Tensor, pool: Pool | None) -> Tensor:
    """Spikes [T, B, C, H, W] pooled by torch; as they are without a pooling layer."""
    if pool is None:
        return spk
    pooling = F.max_pool2d if pool.kind == "max" else F.avg_pool2d
    found: Tensor = pooling(spk.flatten(0, 1), pool.size)
    return found.view(*spk.shape[:2], *found.shape[1:])


def can_pool(dynamics: Dynamics, engine: str, dtype: torch.dtype) -> bool:
    """Whether `run_layer` pools in the same pass.

    Backward works spikes out from the membranes again, except forced ones that no record of first spikes tells of. Its
    windows are of spikes of 0 and 1.
    """
    forced = dynamics.force_last_spike and not dynamics.fire_once
    plain = dynamics.spiking and not dynamics.high_spikes and not forced
    return engine == "numba" and plain and dtype in (torch.float32, torch.float64)


def can_normalise(dynamics: Dynamics, names: tuple[str, ...], engine: str, x: Tensor) -> bool:
    """Whether `run_layer` takes a `norm` for maps x [T, B, C, H, W] and values of these names.

    Channels lie next to each other in memory, and backward does not read the normalised input, which is never written.
    """
    if engine != "numba" or x.dtype not in (torch.float32, torch.float64) or x.dim() != 5:
        return False
    names = (*names, *derived_values(dynamics, names))
    lies = x.permute(0, 1, 3, 4, 2).is_contiguous()
    return lies and "x" not in forward_plan(dynamics, names, frozenset(names)).stored


def can_count_near(dynamics: Dynamics, engine: str, x: Tensor, recurrent: bool) -> bool:
    """Whether `run_layer` takes a `near` for x [T, B, ...]."""
    if engine != "numba" or x.dtype not in (torch.float32, torch.float64) or recurrent or not x.numel():
        return False
    from snnexp.neurons.engines.numba_near import MANY  # numba takes 0.2 s to import
    from snnexp.neurons.engines.numba_source import ForwardUse

    return len(x) < MANY and ForwardUse(counting=True).near(dynamics)


def spikes_over_time(spk: Tensor, high: bool = False) -> Tensor:
    """Number of spikes [T, B, ...] over T, exact in half precision too (bfloat16 counts to 256).

    Read in the order of memory: torch's sum of channels_last maps is 13 times slower.
    """
    dtype = torch.float64 if spk.dtype == torch.float64 else torch.float32
    if high:  # spikes of any height
        spk = (spk > 0).to(dtype)
    order = memory_order(spk)
    back = [order.index(d) - 1 for d in range(1, spk.dim())]
    return spk.detach().permute(order).sum(0, dtype=dtype).permute(back)


def _checked(x: Tensor, values: Mapping[str, Tensor], recurrent: Tensor | None) -> Tensor | None:
    """Check shapes; returns the recurrent weights in the neurons' precision."""
    if x.dim() < 2 or x.shape[0] == 0:
        raise ValueError(f"neurons take [T, B, ...] with T >= 1, got {list(x.shape)}")
    for name, value in values.items():
        _check_broadcast(name, value, x.shape[2:])
    if recurrent is not None:
        if x.dim() != 3 or recurrent.shape != (x.shape[2], x.shape[2]):
            raise ConfigError(
                f"recurrent weights {list(recurrent.shape)} need neurons of shape [N], not {list(x.shape[2:])}."
            )
        if recurrent.dtype != x.dtype:
            recurrent = recurrent.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    return recurrent


def _check_broadcast(name: str, value: Tensor, shape: torch.Size) -> None:
    fits = value.dim() <= len(shape) and all(
        a in (1, b) for a, b in zip(reversed(value.shape), reversed(shape), strict=False)
    )
    if not fits:
        raise ConfigError(
            f"neuron.{name} has shape {list(value.shape)}, which does not broadcast to the neurons' shape "
            f"{list(shape)}. Give one value, one per channel, or one per neuron."
        )


def choose_engine(
    requested: str, device: torch.device | str, dynamics: Dynamics, dtype: torch.dtype
) -> tuple[str, str]:
    """Choose the engine for a layer; returns its name and the reason in words.

    An engine asked for by name is used or refused; `auto` takes the fused engine of the device if it can do the job.

    Raises: ConfigError if `requested` is unknown, or cannot run here; the message names the choices.
    """
    if requested not in ("auto", *ENGINES):
        raise ConfigError(unknown_choice("neuron.engine", requested, ("auto", *ENGINES)))
    kind = torch.device(device).type
    if requested == "reference":
        return "reference", "asked for"
    if requested == "auto":
        name = next((engine for engine, where in FUSED_DEVICE.items() if where == kind), None)
        if name is None:
            return "reference", f"no fused engine runs on {kind}"
        problem = why_not(name, kind, dynamics, dtype)
        return (name, f"fastest on {kind}") if problem is None else ("reference", f"{name} cannot: {problem}")
    problem = why_not(requested, kind, dynamics, dtype)
    if problem is not None:
        able = [engine for engine in ENGINES if engine == "reference" or why_not(engine, kind, dynamics, dtype) is None]
        raise ConfigError(f"neuron.engine={requested}: {problem}. Here these can: auto, {', '.join(able)}.")
    return requested, "asked for"


def why_not(engine: str, device_type: str, dynamics: Dynamics, dtype: torch.dtype) -> str | None:
    """Say why a fused engine cannot run these neurons here, or return None if it can."""
    interpreted = engine == "triton" and device_type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    if device_type != FUSED_DEVICE[engine] and not interpreted:
        return f"it runs on {FUSED_DEVICE[engine]}, and the device is {device_type}"
    if not _available(engine):
        return f"the package {engine} is not installed"
    return beyond(engine, dynamics, dtype)


def beyond(engine: str, dynamics: Dynamics, dtype: torch.dtype) -> str | None:
    """Say what of this an engine has no kernel for, wherever it runs, or return None."""
    if engine == "reference":
        return None
    if dynamics.spiking and not dynamics.surrogate.fused:
        return f"no kernel for surrogate {dynamics.surrogate.name}: {dynamics.surrogate.why_not_fused}"
    if dtype not in _DTYPES:
        return f"it has no kernel for {dtype}"
    return None if dynamics.equation is None else why_not_compiled(dynamics)


def kernel_source(engine: str, dynamics: Dynamics, values: Mapping[str, Tensor]) -> str:
    """The source of the kernels, forward and back, that train such neurons within a network; empty for reference."""
    if engine == "reference":
        return ""
    values = with_derived(dynamics, values)
    names, wants = tuple(values), frozenset(name for name, value in values.items() if value.requires_grad)
    if engine == "triton":
        from snnexp.neurons.engines import triton_source as triton

        back = triton.backward_kernel(dynamics, names, wants, True, False)
        return f"{triton.forward_kernel(dynamics, names, wants).source}\n\n{back.source}"
    from snnexp.neurons.engines import numba_source as numba

    forward = numba.forward_kernel(dynamics, names, wants, numba.ForwardUse(in_place=True, counting=True), False)
    backward = numba.backward_kernel(dynamics, names, wants, numba.BackwardUse(in_place=True), False)
    return f"{forward.source}\n\n{backward.source}"


def support_table() -> str:
    """Return the table engine x option of docs/neurons.md in Markdown, made from what `choose_engine` goes by."""
    plain = Dynamics(Surrogate("atan"))
    rows: list[tuple[str, Dynamics, torch.dtype]] = [
        *((f"reset: {name}", replace(plain, reset=name), torch.float32) for name in RESETS),
        ("strict: true", replace(plain, strict=True), torch.float32),
        ("tau_form: true", replace(plain, tau_form=True), torch.float32),
        ("ignore_reset_in_backward: true", replace(plain, ignore_reset_in_backward=True), torch.float32),
        ("fire_once: true", replace(plain, fire_once=True), torch.float32),
        ("force_last_spike: true", replace(plain, force_last_spike=True), torch.float32),
        ("relative_surrogate: true", replace(plain, relative_surrogate=True), torch.float32),
        ("spike_height: threshold", replace(plain, spike_height="threshold"), torch.float32),
        ("noise", replace(plain, noisy=True), torch.float32),
        ("detach_reset: false", replace(plain, detach_reset=False), torch.float32),
        ("readout without spikes", replace(plain, spiking=False), torch.float32),
        *(
            (f"surrogate: {name}", replace(plain, surrogate=Surrogate(name)), torch.float32)
            for name in FUSED_SURROGATES
        ),
        ("surrogate: snntorch:...", replace(plain, surrogate=Surrogate("snntorch:SFS")), torch.float32),
        *((f"input in {str(dtype).removeprefix('torch.')}", plain, dtype) for dtype in _DTYPES),
    ]
    lines = ["| | " + " | ".join(ENGINES) + " |", "|---|" + "---|" * len(ENGINES)]
    for label, dynamics, dtype in rows:
        cells = ("yes" if beyond(engine, dynamics, dtype) is None else "no" for engine in ENGINES)
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


@cache
def _available(engine: str) -> bool:
    return importlib.util.find_spec(engine) is not None
