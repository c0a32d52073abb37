"""How things are timed: warm-up, interleaved rounds, medians with their spread; memory in a process of its own."""

from __future__ import annotations

import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

Run = Callable[[], Any]


@dataclass
class Timing:
    """Seconds of each round of one candidate."""

    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Median in seconds."""
        return statistics.median(self.seconds)

    def record(self) -> dict[str, Any]:
        """For the JSON file, in milliseconds."""
        ms = [1000 * s for s in self.seconds]
        return {"median_ms": 1000 * self.median, "min_ms": min(ms), "max_ms": max(ms), "rounds_ms": ms}


def timer(device: torch.device, clock: str = "wall") -> Callable[[Run], float]:
    """Return what times one call in seconds: a clock on the CPU, CUDA events on a GPU (the host may run ahead).

    clock: wall, or cpu for the CPU time of this process. With one thread that is what a step costs on a busy machine.
    """
    read = time.perf_counter if clock == "wall" else time.process_time

    def on_cpu(run: Run) -> float:
        start = read()
        run()
        return read() - start

    def on_cuda(run: Run) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1000

    return on_cpu if device.type == "cpu" else on_cuda


def interleave(
    runs: Mapping[str, Run],
    device: torch.device,
    rounds: int,
    warmup: int = 2,
    budget_s: float = 60,
    clock: str = "wall",
    warm: bool = True,
) -> dict[str, Timing]:
    """Time all candidates in turns, so that a busy moment of the machine meets all of them.

    A turn is one call that is not timed and one that is: in training, the step before was the same network's, so caches
    and heap hold its memory and not another candidate's. Each round begins with another candidate. Ends after `rounds`
    rounds, or after `budget_s` seconds and three rounds. Garbage is collected between rounds only.

    warm: false leaves out the call that is not timed, for whole commands.
    """
    once = timer(device, clock)
    for _ in range(warmup):
        for run in runs.values():
            run()
    timings = {name: Timing() for name in runs}
    start = time.perf_counter()
    gc.collect()
    gc.disable()
    try:
        for done in range(rounds):
            if done >= 3 and time.perf_counter() - start > budget_s:
                break
            names = list(runs)
            first = done % len(names)
            for name in names[first:] + names[:first]:
                if warm:
                    runs[name]()
                timings[name].seconds.append(once(runs[name]))
            gc.collect()
    finally:
        gc.enable()
    return timings


# --- memory -------------------------------------------------------------------------------------------------------


def peak_growth_mb(prepare: Callable[[], Run], steps: int, device: torch.device) -> float:
    """Growth of the peak memory of this process (CUDA: of the allocator) while inputs are made and steps taken, in MB.

    On the CPU the kernel's peak counter is reset first (Linux), so that imports do not hide what follows.
    """
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
    run = prepare()
    for _ in range(steps):
        run()
    if device.type == "cuda":
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    return (_status("VmHWM") - before) / 1e6


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {key}")


def memory_in_subprocess(arguments: list[str]) -> float | None:
    """Run `python -m benchmarks --memory ...`, which prints a number in MB; None where that cannot be measured."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    try:
        return float(json.loads(done.stdout.splitlines()[-1])["peak_growth_mb"])
    except (IndexError, ValueError, KeyError):
        return None
