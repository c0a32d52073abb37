"""Step time against T, neurons, batch and density, and the rates of the machine that bound it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from benchmarks.candidates import BARE, DENSE, LISTS, OURS, build, on_device, uses_lists
from benchmarks.harness import interleave
from benchmarks.workloads import Workload, make_inputs, matrix_flops, neuron_bytes

BASE = Workload("scaling", "FC-SN", "FC512-SN", (1, 1, 512), 100, 16, 512, gain=2.0)
EVENTS = Workload("density", "FC-SN on events", "FC256-SN", (1, 1, 2048), 100, 32, 256, density=0.01, gain=2.0)


def roofline(device: torch.device, quick: bool, clock: str = "wall") -> dict[str, float]:
    """Measured rates: float32 matrix product in FLOP/s, copying in bytes moved (read and written) per second."""
    n, numbers = (256, 1 << 18) if quick else (2048, 1 << 26)
    a, b = torch.rand(2, n, n, device=device)
    source, target = torch.rand(2, numbers, device=device)
    runs = {"sgemm": lambda: a @ b, "copy": lambda: target.copy_(source)}
    timings = interleave(runs, device, rounds=5 if quick else 9, clock=clock)
    return {
        "sgemm_flops": 2 * n**3 / timings["sgemm"].median,
        "copy_bytes": 8 * numbers / timings["copy"].median,
    }


def sweeps(quick: bool) -> dict[str, tuple[list[float], list[Workload]]]:
    """Axis title -> values and workloads."""
    times = [4, 16] if quick else [10, 30, 100, 300, 1000]
    sizes = [16, 64] if quick else [64, 256, 1024, 2048]
    batches = [1, 4] if quick else [1, 4, 16, 64, 256]
    densities = [0.01, 0.1] if quick else [0.002, 0.006, 0.02, 0.05, 0.1, 0.2]
    base = BASE.shrunk() if quick else BASE
    events = EVENTS.shrunk() if quick else EVENTS
    wide = [replace(base, spec=f"FC{n}-SN", shape=(1, 1, n), classes=n) for n in sizes]
    return {
        "time steps (512 neurons, batch 16)": ([*times], [replace(base, num_steps=t) for t in times]),
        "inputs = neurons (T 100, batch 16)": ([*sizes], wide),
        "batch (T 100, 512 neurons)": ([*batches], [replace(base, batch=b) for b in batches]),
        "density (2048 inputs, 256 neurons)": (densities, [replace(events, density=d) for d in densities]),
    }


def measure_scaling(
    device: torch.device, quick: bool, peers: list[str], roof: dict[str, float], clock: str = "wall"
) -> dict[str, Any]:
    """Time snnexp, the network without neurons, and the peers along each axis."""
    record: dict[str, Any] = {}
    for title, (values, workloads) in sweeps(quick).items():
        found: dict[str, list[dict[str, Any]]] = {}
        limits = []
        for w in workloads:
            inputs = on_device(make_inputs(w), device)
            runs = {}
            for name in [OURS, BARE, *peers]:
                label = name
                if name == OURS and w.density is not None:
                    label = "snnexp, event lists"
                    runs["snnexp, dense input"] = build(OURS if not uses_lists(w) else DENSE, w, inputs, device).step
                    runs[label] = build(OURS if uses_lists(w) else LISTS, w, inputs, device).step
                    continue
                runs[label] = build(name, w, inputs, device).step
            for name, timing in interleave(runs, device, 3 if quick else 7, 1, 3, clock).items():
                found.setdefault(name, []).append(timing.record())
            limits.append(1000 * (matrix_flops(w) / roof["sgemm_flops"] + neuron_bytes(w) / roof["copy_bytes"]))
        record[title] = {"x": values, "candidates": found, "roofline_ms": limits}
    return record
