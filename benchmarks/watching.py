"""What counting costs: `python -m benchmarks.watching`, one thread, about 5 minutes; pin it to one core with taskset.

A training step (forward, backward, Adam) of the workloads W1 to W6 and of the default network, watched in four ways:
`off`, the dead neurons that are always counted; `reach`, with what the surrogates reach; `norms`, with the norms of the
weights' gradients, taken in every eighth step; `all`, with both, as `trainer.gradient_activity=all` has it. The ways
are interleaved and the minima compared: on a busy machine that is the step without its neighbours.
"""

from __future__ import annotations

import argparse
import json
import warnings
from typing import Any

from snnexp.allocator import prepare_allocator

prepare_allocator()  # as the command does, before torch is imported

import torch  # noqa: E402

from benchmarks.harness import interleave  # noqa: E402
from benchmarks.workloads import WORKLOADS, Workload, make_inputs, our_network  # noqa: E402
from snnexp.analysis.activity import ActivityMeter  # noqa: E402
from snnexp.analysis.weight_gradients import EVERY  # noqa: E402

CPU = torch.device("cpu")
EPS = 0.01
DIGITS = Workload("default", "the default run", "c16k3-BN-SN-MP2-c32k3-BN-SN-MP2-FC-SN", (1, 8, 8), 8, 32, 10)


class _Norms(ActivityMeter):
    """The weights' gradients alone."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__(network)

    def after_backward(self) -> None:
        self._gradients.after_backward()


class _Reach(ActivityMeter):
    """The surrogates' reach alone."""

    def after_backward(self) -> None:
        pass


def step_of(w: Workload, way: str) -> Any:
    """A training step, watched."""
    network = our_network(w)
    inputs = make_inputs(w)
    x = inputs.events if w.density is not None and w.density < 0.05 and network.wants_events else inputs.dense
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, fused=True)
    made = {"off": ActivityMeter, "norms": _Norms}.get(way)
    meter = made(network) if made is not None else (_Reach if way == "reach" else ActivityMeter)(network, EPS)

    def step() -> None:
        output = network(x, meter)
        loss = torch.nn.functional.cross_entropy(output.spk.sum(0), inputs.labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        meter.after_backward()
        optimizer.step()

    return step


def main() -> None:
    """Print milliseconds per step and what is added, per workload."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["default", *WORKLOADS])
    parser.add_argument("--rounds", type=int, default=48, help="steps of each way")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    rows: dict[str, dict[str, float]] = {}
    for name in options.names:
        w = {**WORKLOADS, "default": DIGITS}[name]
        ways = {way: step_of(w, way) for way in ("off", "reach", "norms", "all")}
        timings = interleave(ways, CPU, options.rounds, warmup=EVERY, clock="cpu", warm=False)
        row = {}
        for way, timing in timings.items():
            turns = timing.seconds[EVERY - 1 :: EVERY] or timing.seconds
            others = [s for i, s in enumerate(timing.seconds, 1) if i % EVERY]
            row[way] = 1000 * (min(others) * (EVERY - 1) + min(turns)) / EVERY
        rows[name] = row
        added = ", ".join(f"{way} {100 * (row[way] / row['off'] - 1):+.1f} %" for way in ("reach", "norms", "all"))
        print(f"{name:>8}: off {row['off']:.2f} ms; {added}", flush=True)
    if options.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
