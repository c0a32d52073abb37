"""Step time against T, neurons, batch and density, and the rates of the machine that bound it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from benchmarks.candidates import BARE, DENSE, LISTS, OURS, UNSPARSE, build, on_device, uses_lists
from benchmarks.harness import Timing, interleave, memory_in_subprocess
from benchmarks.workloads import Workload, find, make_inputs, matrix_flops, neuron_bytes

BASE = Workload("scaling", "FC-SN", "FC512-SN", (1, 1, 512), 100, 16, 512, gain=2.0)
EVENTS = Workload("density", "FC-SN on events", "FC256-SN", (1, 1, 2048), 100, 32, 256, density=0.01, gain=2.0)


# model.sparse=auto against never: networks whose input has the density; neurons in front hand their input on, so that a
# layer behind spikes has it
SWEPT = (
    Workload("", "c12k5 on events 2x34x34", "c12k5p0-SN-AP4-FC10-SN", (2, 34, 34), 10, 16, 10, density=0.0, gain=2.0),
    Workload("", "c32k3 on events 2x64x64", "c32k3-SN-AP8-FC10-SN", (2, 64, 64), 10, 8, 10, density=0.0, gain=2.0),
    Workload("", "c64k5 on spikes 12x17x17", "SN-c64k5-SN-AP4-FC10-SN", (12, 17, 17), 10, 16, 10, density=0.0,
             gain=2.0),
    Workload("", "c128k3 on spikes 128x17x17", "SN-c128k3-SN-AP4-FC10-SN", (128, 17, 17), 10, 4, 10, density=0.0,
             gain=2.0),
    Workload("", "c128k3s2 on spikes 64x16x16", "SN-c128k3s2-SN-AP4-FC10-SN", (64, 16, 16), 10, 8, 10, density=0.0,
             gain=2.0),
    Workload("", "FC512 on spikes 1024", "SN-FC512-SN-FC10-SN", (1, 1, 1024), 50, 16, 10, density=0.0, gain=2.0),
)  # fmt: skip


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
        "density (2x34x34, two convolutions)": (densities, [_convolutions(d, quick) for d in densities]),
    }


def _convolutions(density: float, quick: bool) -> Workload:
    w = find(f"conv@{density:g}")
    return w.shrunk() if quick else w


def measure_scaling(
    device: torch.device,
    quick: bool,
    peers: list[str],
    roof: dict[str, float],
    clock: str = "wall",
    memory: bool = False,
) -> dict[str, Any]:
    """Time snnexp, the network without neurons, and the peers along each axis; of convolutions also the memory."""
    record: dict[str, Any] = {}
    for title, (values, workloads) in sweeps(quick).items():
        found: dict[str, list[dict[str, Any]]] = {}
        limits = []
        for w in workloads:
            inputs = on_device(make_inputs(w), device)
            names = _candidates(w, peers)
            runs = {label: build(name, w, inputs, device).step for label, name in names.items()}
            for label, timing in interleave(runs, device, 3 if quick else 7, 1, 3, clock).items():
                found.setdefault(label, []).append(timing.record())
                if memory and w.name.startswith("conv@"):
                    arguments = ["--memory", f"{w.name}:{names[label]}", "--device", str(device)]
                    found[label][-1]["memory_mb"] = memory_in_subprocess(arguments)
            limits.append(1000 * (matrix_flops(w) / roof["sgemm_flops"] + neuron_bytes(w) / roof["copy_bytes"]))
        record[title] = {"x": values, "candidates": found, "roofline_ms": limits}
    return record


def _candidates(w: Workload, peers: list[str]) -> dict[str, str]:
    """Label in the plot -> candidate."""
    if w.name.startswith("conv@"):
        return {"snnexp": OURS, UNSPARSE: UNSPARSE} | {name: name for name in (BARE, *peers)}
    ours = {"snnexp": OURS}
    if w.density is not None:
        lists = uses_lists(w)
        ours = {"snnexp, dense input": DENSE if lists else OURS, "snnexp, event lists": OURS if lists else LISTS}
    return ours | {name: name for name in (BARE, *peers)}


def measure_density(device: torch.device, quick: bool, clock: str = "wall") -> dict[str, list[dict[str, Any]]]:
    """model.sparse=auto against never over densities from nothing to everything, by network; both take turns.

    Each is built twice: where the memory of a network lies makes the same step some per cent faster or slower. `apart`
    says by how much the fastest steps of the two with never differ: smaller differences say nothing.
    """
    densities = (0.01, 0.5) if quick else (0.0, 0.003, 0.01, 0.03, 0.06, 0.1, 0.15, 0.25, 0.5, 1.0)
    record: dict[str, list[dict[str, Any]]] = {}
    for swept in SWEPT[:: 5 if quick else 1]:
        for density in densities:
            w = replace(swept, density=density, batch=2 if quick else swept.batch)
            inputs = on_device(make_inputs(w), device)
            runs = {f"{name}, {i}": build(name, w, inputs, device).step for i in "12" for name in (OURS, UNSPARSE)}
            timings = interleave(runs, device, 3 if quick else 15, 2, 6, clock)
            first, second = (min(timings[f"{UNSPARSE}, {i}"].seconds) for i in "12")
            auto, never = (_both(timings, name) for name in (OURS, UNSPARSE))
            point = {"density": density, "auto_ms": 1000 * min(auto.seconds), "never_ms": 1000 * min(never.seconds)}
            point |= {"ratio": min(auto.seconds) / min(never.seconds), "of_medians": auto.median / never.median}
            point["apart"] = max(first, second) / min(first, second) - 1
            record.setdefault(swept.title, []).append(point)
    return record


def _both(timings: dict[str, Timing], name: str) -> Timing:
    return Timing([seconds for i in "12" for seconds in timings[f"{name}, {i}"].seconds])
