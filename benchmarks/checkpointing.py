"""What `trainer.checkpoint_steps` saves and costs: `python -m benchmarks.checkpointing`, one thread, about 3 minutes.

Each number is from a process of its own. Peak memory is that of live blocks: malloc returns every freed block at once.
Step times are the CPU time of forward, backward and Adam, median of 9 steps, with the allocator as the command sets it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from dataclasses import replace

from snnexp.allocator import prepare_allocator

prepare_allocator()  # as the command does, before torch is imported

import torch  # noqa: E402

from benchmarks.candidates import LISTS, OURS, build, uses_lists  # noqa: E402
from benchmarks.harness import Run, interleave, peak_growth_mb  # noqa: E402
from benchmarks.workloads import WORKLOADS, Inputs, Workload, make_inputs  # noqa: E402
from snnexp.models.network import Network  # noqa: E402

CPU = torch.device("cpu")
STEPS = (None, 100, 50, 20)
CASES = {
    "W5": replace(WORKLOADS["W5"], reset="zero"),  # as Rouser's
    "W3, T = 300, batch 8": replace(WORKLOADS["W3"], num_steps=300, batch=8),
}
# glibc then maps and unmaps every block of more than 64 KiB, so that the peak is that of live memory
EXACT = {f"MALLOC_{key}_": "65536" for key in ("MMAP_THRESHOLD", "TOP_PAD", "TRIM_THRESHOLD")}


def training_step(w: Workload, steps: int | None, inputs: Inputs) -> Run:
    """Forward and backward of our network as it would run, in segments of `steps`."""
    training = build(LISTS if uses_lists(w) else OURS, w, inputs, CPU)
    assert isinstance(training.network, Network)
    training.network.checkpoint_steps = steps
    return training.step


def memory_mb(case: str, steps: int | None) -> float:
    """In this process: growth of the peak over three steps, after one with one sample has compiled everything."""
    w = CASES[case]
    training_step(replace(w, batch=1), steps, make_inputs(replace(w, batch=1)))()
    inputs = make_inputs(w)
    return peak_growth_mb(lambda: training_step(w, steps, inputs), 3, CPU)


def step_ms(case: str, steps: int | None) -> float:
    """In this process: median CPU time of a step."""
    w = CASES[case]
    step = training_step(w, steps, make_inputs(w))
    return 1000 * interleave({"": step}, CPU, 9, clock="cpu")[""].median


def main() -> None:
    """Print a Markdown table."""
    warnings.simplefilter("ignore")
    torch.set_flush_denormal(True)
    torch.set_num_threads(1)
    if len(sys.argv) == 4:
        measure = {"memory": memory_mb, "time": step_ms}[sys.argv[1]]
        print(measure(sys.argv[2], json.loads(sys.argv[3])))
        return
    print("| network | checkpoint_steps | peak memory | CPU time of a step |\n|---|---|---|---|")
    for case in CASES:
        for steps in map(json.dumps, STEPS):
            memory = _alone({**os.environ, **EXACT}, "memory", case, steps)
            print(f"| {case} | {steps} | {memory:.0f} MB | {_alone({**os.environ}, 'time', case, steps):.0f} ms |")


def _alone(environment: dict[str, str], *arguments: str) -> float:
    command = [sys.executable, "-m", "benchmarks.checkpointing", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
