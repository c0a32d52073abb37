"""What `gpu.sh` runs: `python -m benchmarks.gpu [--try] [--out DIR]`, the GPU page in one call of under nine minutes.

Parts are processes of their own, in the order of what is asked for most: the LIF kernel alone, whole steps of W1 to W6
against SpikingJelly's Triton and CUDA backends (which it chooses at its import), what CUDA graphs give, W10. Each has a
limit, and what it measured is in gpu.json and gpu.md before the next begins. --try: tiny sizes on the CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

BUDGET_S = 510.0
WHOLE_STEPS = ("W3", "W4", "W1", "W2", "W5", "W6", "W2r", "W10")
PEERS = "snnexp, event lists;snnexp, dense input;no neurons;snntorch;spikingjelly;spikingjelly, channels_last"
BACKENDS = ("triton", "cuda")
STEPS, BATCH, NEURONS = 32, 64, 65_536

Found = dict[str, Any]


def parts(tiny: bool) -> list[tuple[str, list[str], dict[str, str], float]]:
    """Name, arguments of the process, its environment, and its limit in seconds.

    tiny: one of each kind.
    """
    found: list[tuple[str, list[str], dict[str, str], float]] = []
    for backend in BACKENDS:
        chosen = {"SJ_LIF_CUDA_IMPLEMENTATION": backend}
        found.append((f"kernel, SpikingJelly's {backend}", ["-m", "benchmarks.gpu", "--part", "kernel"], chosen, 60))
    for name in WHOLE_STEPS[:4]:
        found += [_steps(name, backend, 60) for backend in BACKENDS]
    found.append(("CUDA graphs", ["-m", "benchmarks.gpu", "--part", "graphs"], {}, 80))
    for name in WHOLE_STEPS[4:]:
        found += [_steps(name, backend, 60) for backend in BACKENDS]
    return (
        [found[0], found[2], *(part for part in found if part[0] in ("CUDA graphs", "W5, triton"))] if tiny else found
    )


def _steps(name: str, backend: str, limit: float) -> tuple[str, list[str], dict[str, str], float]:
    """Whole training steps; with the second backend only what it changes is measured again."""
    candidates = PEERS if backend == BACKENDS[0] else "spikingjelly;spikingjelly, channels_last"
    arguments = ["-m", "benchmarks", "--only", name, "--candidates", candidates]
    return f"{name}, {backend}", arguments, {"SJ_LIF_CUDA_IMPLEMENTATION": backend}, limit


def main(arguments: list[str] | None = None) -> None:
    """Run all parts within the budget, or one of them (--part, in a process of its own)."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--try", dest="tiny", action="store_true", help="on the CPU, tiny sizes: measures nothing")
    parser.add_argument("--out", type=Path, default=Path("outputs/gpu"))
    parser.add_argument("--budget", type=float, default=BUDGET_S, help="seconds for all")
    parser.add_argument("--part", choices=["kernel", "graphs"], help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.part is not None:
        print(json.dumps({"kernel": kernel, "graphs": graphs}[options.part](options.tiny)))
        return
    out: Path = options.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    start, found = time.monotonic(), {"about": about(), "tiny": options.tiny, "parts": {}}
    for name, command, environment, limit in parts(options.tiny):
        left = options.budget - (time.monotonic() - start)
        if left < 10:
            found["parts"][name] = {"failed": "no time was left"}
            continue
        began = time.monotonic()
        found["parts"][name] = run(
            name, command, environment, 300 if options.tiny else min(limit, left), out, options.tiny
        )
        found["parts"][name]["took_s"] = round(time.monotonic() - began, 1)
        (out / "gpu.json").write_text(json.dumps(found, indent=1) + "\n")
        (out / "gpu.md").write_text(page(found))
        print(f"{name}: {found['parts'][name]['took_s']} s", file=sys.stderr, flush=True)
    print(page(found))


def run(name: str, command: list[str], environment: dict[str, str], limit: float, out: Path, tiny: bool) -> Found:
    """Run a part in a process; what it found, or {"failed": why}."""
    is_bench = command[1] == "benchmarks"
    folder = out / name.replace(", ", "-").replace(" ", "-").replace("'", "")
    if is_bench:
        device = ["--device", "cpu" if tiny else "cuda", "--no-memory", "--no-plots", "--rounds", "9"]
        command = [*command, *device, "--out", str(folder), *(["--quick"] if tiny else [])]
    elif tiny:
        command = [*command, "--try"]
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", *command],
            env={**os.environ, **environment}, capture_output=True, text=True, timeout=limit,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"failed": f"it took more than {limit:.0f} s"}
    if done.returncode:
        return {"failed": " ".join(done.stderr.strip().splitlines()[-1:])[-400:] or f"exit code {done.returncode}"}
    if is_bench:
        record: Found = json.loads((folder / "bench.json").read_text())
        return {"record": record}
    measured: Found = json.loads(done.stdout.strip().splitlines()[-1])
    return measured


def about() -> Found:
    """Machine and versions."""
    import torch

    from benchmarks.__main__ import describe

    return describe("benchmarks/gpu.sh", "cuda" if torch.cuda.is_available() else "cpu")


# --- the neurons alone --------------------------------------------------------------------------------------------


def kernel(tiny: bool) -> Found:
    """Forward and backward of one LIF layer alone, ours and SpikingJelly's, beside a copy of the same memory."""
    import torch

    from benchmarks.harness import interleave
    from benchmarks.peers import find_peers

    find_peers()
    device = torch.device("cpu" if tiny else "cuda")
    shape = (4, 2, 128) if tiny else (STEPS, BATCH, NEURONS)
    found: Found = {"shape": shape, "backend": os.environ.get("SJ_LIF_CUDA_IMPLEMENTATION", "")}
    for dtype in (torch.float32, torch.float16):
        runs: dict[str, Callable[[], Any]] = {}
        for name, make in (("snnexp", _ours), ("spikingjelly", _spikingjelly)):
            try:
                runs[name] = make(shape, dtype, device, tiny)
                runs[name]()
            except Exception as error:  # a backend that the machine has not is a line of the table
                runs.pop(name, None)
                found[f"{name}, {dtype}"] = {"failed": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
        source = torch.rand(shape, device=device).to(dtype)
        target = torch.empty_like(source)
        runs["copy"] = lambda target=target, source=source: target.copy_(source)
        size = source.numel() * source.element_size()
        for name, timing in interleave(runs, device, 3 if tiny else 15, 3, 15).items():
            moved = 2 if name == "copy" else 6  # x, spikes, membranes; membranes, gradient in, gradient out
            rate = moved * size / min(timing.seconds)
            found[f"{name}, {dtype}"] = {**timing.record(), "bytes": moved * size, "bytes_per_s": rate}
        del runs, source, target
    return found


def _ours(shape: tuple[int, ...], dtype: Any, device: Any, tiny: bool) -> Callable[[], Any]:
    import torch

    from benchmarks.workloads import WORKLOADS, neuron_conf
    from snnexp.neurons.layer import SpikingLayer

    layer = SpikingLayer(neuron_conf(WORKLOADS["W1"], "triton"), shape[2:], "sn1").to(device)
    x = torch.rand(shape, device=device).to(dtype).requires_grad_()
    gradient = torch.rand_like(x)

    def step() -> None:
        x.grad = None
        layer(x).spk.backward(gradient)

    return step


def _spikingjelly(shape: tuple[int, ...], dtype: Any, device: Any, tiny: bool) -> Callable[[], Any]:
    import torch
    from spikingjelly.activation_based import neuron, surrogate

    from benchmarks.workloads import BETA, SLOPE

    node: Any = neuron.LIFNode(
        tau=1 / (1 - BETA), decay_input=False, surrogate_function=surrogate.SuperSpike(SLOPE), detach_reset=True,
        step_mode="m",
    ).to(device)  # fmt: skip
    x = torch.rand(shape, device=device).to(dtype).requires_grad_()
    gradient = torch.rand_like(x)

    def step() -> None:
        x.grad = None
        node.reset()
        node(x).backward(gradient)

    return step


# --- CUDA graphs --------------------------------------------------------------------------------------------------


def graphs(tiny: bool) -> Found:
    """Whole steps of ours, as they are and replayed from a CUDA graph."""
    import torch

    from benchmarks.candidates import OURS, build, on_device
    from benchmarks.harness import interleave
    from benchmarks.workloads import WORKLOADS, make_inputs

    found: Found = {}
    device = torch.device("cpu" if tiny else "cuda")
    for name in ("W2", "W1", "W3", "W2r", "W4"):
        w = WORKLOADS[name].shrunk() if tiny else WORKLOADS[name]
        training = build(OURS, w, on_device(make_inputs(w), device), device)
        if tiny:
            training.step()
            found[name] = {"failed": "CUDA graphs need CUDA"}
            continue
        parameters = list(training.network.parameters())
        training.optimizer = torch.optim.Adam(parameters, lr=1e-3, fused=True, capturable=True)
        try:
            replayed = _captured(training.step)
        except Exception as error:
            found[name] = {"failed": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
            torch.cuda.synchronize()
            continue
        timings = interleave({"as it is": training.step, "graph": replayed}, device, 15, 2, 12)
        found[name] = {kind: timing.record() for kind, timing in timings.items()}
    return found


def _captured(step: Callable[[], Any]) -> Callable[[], Any]:
    """The step as a graph; what it reads and writes stays where it is."""
    import torch

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # type: ignore[no-untyped-call]
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


# --- the page -----------------------------------------------------------------------------------------------------


def page(found: Found) -> str:
    """What is there so far, as Markdown."""
    values = {**found["about"]["machine"], **found["about"]["versions"]}
    lines = [", ".join(f"{key} {value}" for key, value in values.items() if value is not None), ""]
    if found["tiny"]:
        lines += ["**Tiny sizes on the CPU: this tries the script out and measures nothing.**", ""]
    for name, part in found["parts"].items():
        if "failed" in part:
            lines += [f"**{name}**: {part['failed']}", ""]
        elif "record" in part:
            from benchmarks import report

            lines += [
                f"**{name}**",
                "",
                report.figure_table(part["record"]),
                "",
                report.workload_table(part["record"]),
                "",
            ]
        else:
            lines += [f"**{name}**", "", *(_kernel_table(part) if "shape" in part else _graph_table(part)), ""]
    return "\n".join(lines)


def _measured(part: Found, lines: list[str]) -> Iterator[tuple[str, Found]]:
    """The rows of a part that were measured; the others are added to `lines`, with what went wrong."""
    for name, row in part.items():
        if isinstance(row, dict) and "failed" in row:
            lines.append(f"| {name} | {row['failed']} | | |")
        elif isinstance(row, dict):
            yield name, row


def _kernel_table(part: Found) -> list[str]:
    steps, batch, neurons = part["shape"]
    lines = [f"T = {steps}, {batch} x {neurons}; forward and backward", ""]
    lines += ["| | ms | GB/s | of the copy |", "|---|---|---|---|"]
    for name, row in _measured(part, lines):
        copy = part[f"copy, {name.rpartition(', ')[2]}"]["bytes_per_s"]
        rate = row["bytes_per_s"]
        lines.append(f"| {name} | {row['min_ms']:.3f} | {rate / 1e9:.1f} | {100 * rate / copy:.0f} % |")
    return lines


def _graph_table(part: Found) -> list[str]:
    lines = ["| | as it is, ms | graph, ms | ratio |", "|---|---|---|---|"]
    for name, row in _measured(part, lines):
        plain, graph = row["as it is"]["median_ms"], row["graph"]["median_ms"]
        lines.append(f"| {name} | {plain:.2f} | {graph:.2f} | {plain / graph:.2f}x |")
    return lines


if __name__ == "__main__":
    main()
