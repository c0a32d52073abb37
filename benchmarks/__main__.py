"""python -m benchmarks [--only W1,W3,scaling] [--device cpu|cuda] [--quick] [--out DIR]: see docs/benchmarks.md."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import logging
import os
import platform
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

from snnexp.allocator import prepare_allocator

MEMORY_OF = ("snnexp", "no neurons", "snntorch", "spikingjelly", "norse")
PARTS = ("W1", "W2", "W2r", "W3", "W4", "W5", "W6", "W7", "W8", "W9", "W10", "scaling", "density")


def main(arguments: list[str] | None = None) -> None:
    """Run the parts asked for; prints the tables and writes bench.json, bench.md and the plots."""
    options = _options(arguments)
    prepare_allocator()  # before torch is imported, and the same for all candidates
    warnings.filterwarnings("ignore", category=UserWarning)
    import torch

    torch.set_flush_denormal(True)  # for all candidates, as the command does it; before the first parallel operation
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.memory:
        _print_memory(options)
        return
    record = run(options)
    _save(record, options.out)
    from benchmarks import page, plots, records, report

    text = report.markdown(record)
    (options.out / "bench.md").write_text(text)
    if not options.no_plots:
        plots.plot_all(record, options.out)
    if options.docs:
        records.keep(record)
        page.write_docs(records.all_kept(), records.DOCS)
    print(text)


def _save(record: dict[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bench.json").write_text(json.dumps(record, indent=1) + "\n")


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", default=",".join(PARTS), help="some of " + ",".join(PARTS))
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--quick", action="store_true", help="tiny sizes: tries the bench out, measures nothing")
    parser.add_argument("--out", type=Path, default=Path("outputs/bench"))
    parser.add_argument(
        "--candidates", default="", help="some of a workload's candidates, with ; between; snnexp is one"
    )
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=0, help="torch's threads; 0: its own choice")
    parser.add_argument("--clock", default="wall", choices=["wall", "cpu"], help="cpu: CPU time, for a busy machine")
    parser.add_argument("--no-memory", action="store_true", help="leave out memory: a process for each candidate")
    parser.add_argument("--no-plots", action="store_true", help="tables only; matplotlib is not needed then")
    parser.add_argument("--docs", action="store_true", help="keep it for docs/benchmarks.md, and write that anew")
    parser.add_argument(
        "--data", type=Path, default=Path(os.environ.get("SNNEXP_DATA", "data")), help="real data, of W7 and W9"
    )
    parser.add_argument("--memory", default="", help=argparse.SUPPRESS)  # workload:candidate, in a subprocess
    options = parser.parse_args(arguments)
    options.parts = options.only.split(",")
    os.environ["SNNEXP_DATA"] = str(options.data)  # where W9 finds it, in processes of their own, too
    options.arguments = sys.argv[1:] if arguments is None else arguments
    if unknown := [part for part in options.parts if part not in PARTS]:
        parser.error(f"--only: no such part {', '.join(unknown)}. There are {', '.join(PARTS)}.")
    return options


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure; returns what goes into bench.json."""
    import torch

    from benchmarks.peers import find_peers
    from benchmarks.scaling import measure_density, measure_scaling, roofline
    from benchmarks.workloads import WORKLOADS
    from snnexp.errors import DataError

    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: torch sees no CUDA device. Use --device cpu, or install a CUDA build.")
    peers = find_peers()
    if peers["norse"]:
        logging.getLogger().setLevel(logging.ERROR)  # it reports what it did not compile
    _quiet_spikingjelly()
    command = " ".join(["python -m benchmarks", *options.arguments])
    for word, path in (("DATA", options.data), ("OUT", options.out)):  # where they lie here is nobody's business
        command = command.replace(str(path), word)
    record = describe(command, device)
    record |= {"quick": options.quick, "clock": options.clock, "workloads": {}, "left_out": {}}  # why, by workload
    record["roofline"] = roofline(device, options.quick, options.clock)
    for name, workload in WORKLOADS.items():
        if name in options.parts:
            tried = workload.shrunk() if options.quick else workload
            try:
                record["workloads"][name] = measure_workload(tried, device, peers, options)
            except DataError as error:
                record["left_out"][name] = str(error)
            _save(record, options.out)  # what is measured is kept if a later part fails
            print(f"{name} done", file=sys.stderr, flush=True)
    if "scaling" in options.parts:
        others = [n for n in ("snntorch", "spikingjelly") if peers[n]]
        memory = not (options.no_memory or options.quick)
        record["scaling"] = measure_scaling(device, options.quick, others, record["roofline"], options.clock, memory)
    if "density" in options.parts:
        record["density"] = measure_density(device, options.quick, options.clock)
    if "W7" in options.parts:
        record["data_path"] = _data_path(options)
    if "W8" in options.parts:
        from benchmarks.startup import measure_startup

        record["startup"] = measure_startup(1 if options.quick else 5)
    return record


def describe(command: str, device: Any = "cpu") -> dict[str, Any]:
    """What a measurement has to say about itself before it begins."""
    import torch

    from benchmarks.peers import find_peers
    from benchmarks.records import origin

    return {
        "command": command,
        "load": os.getloadavg()[0],  # processes that wanted a core in the minute before
        "device": str(device),
        "machine": _machine(torch.device(device)),
        "versions": _versions(find_peers()),
        **origin(),
    }


def measure_workload(w: Any, device: Any, peers: dict[str, str | None], options: argparse.Namespace) -> dict[str, Any]:
    """Check that the candidates of a workload agree, time those that do, and measure their memory."""
    from benchmarks.candidates import (
        BARE,
        OURS,
        build,
        compare,
        firing_rates,
        names_for,
        on_device,
        share_of_inputs,
        share_with_gradient,
    )
    from benchmarks.harness import interleave, memory_in_subprocess
    from benchmarks.peers import Refused
    from benchmarks.workloads import make_inputs, matrix_flops, neuron_bytes

    inputs = on_device(make_inputs(w), device)
    names, missing = names_for(w, peers)
    if options.candidates:
        names = [name for name in names if name == OURS or name in options.candidates.split(";")]
    rows: dict[str, dict[str, Any]] = {}
    runs = {}
    for name in names:
        try:
            training = build(name, w, inputs, device)
        except Refused as reason:
            rows[name] = {"refused": str(reason)}
            continue
        rows[name] = {}
        if name != BARE:
            agreement = compare(name, training, w, inputs, device)
            rows[name] = {"loss": agreement.loss, "expected_loss": agreement.expected, "cosine": agreement.direction}
            if agreement.problem:
                rows[name]["refused"] = agreement.problem
                continue
            training = build(name, w, inputs, device)  # batch norm has seen the batch
        runs[name] = training.step
    for name, timing in interleave(
        runs, device, options.rounds if not options.quick else 2, 1, 60, options.clock
    ).items():
        rows[name] |= timing.record()
    runs.clear()
    if not (options.no_memory or options.quick):
        extra = ["--device", str(device), *(["--quick"] if options.quick else [])]
        for name, row in rows.items():
            if "refused" not in row and name in MEMORY_OF:
                row["memory_mb"] = memory_in_subprocess(["--memory", f"{w.name}:{name}", *extra])
    return {
        "title": w.title,
        "num_steps": w.num_steps,
        "batch": w.batch,
        "firing_rates": firing_rates(w, inputs, device),
        "density": share_of_inputs(inputs),
        "gradient_share": share_with_gradient(w, inputs, device) if w.compact else None,
        "matrix_flops": matrix_flops(w),
        "neuron_bytes": neuron_bytes(w),
        "candidates": rows,
        "missing": missing,
    }


def _print_memory(options: argparse.Namespace) -> None:
    """In a subprocess: growth of peak memory over making the inputs the candidate reads and three steps."""
    import torch

    from benchmarks.candidates import build, measured_inputs
    from benchmarks.harness import peak_growth_mb
    from benchmarks.peers import find_peers
    from benchmarks.workloads import find

    workload, _, candidate = options.memory.partition(":")
    w = find(workload).shrunk() if options.quick else find(workload)
    device = torch.device(options.device)
    find_peers()
    _quiet_spikingjelly()
    tiny = find(workload).shrunk()
    build(candidate, tiny, measured_inputs(candidate, tiny, device), device).step()  # imports, compilations, pools

    def prepare() -> Any:
        return build(candidate, w, measured_inputs(candidate, w, device), device).step

    print(json.dumps({"peak_growth_mb": peak_growth_mb(prepare, 3, device)}))


def _quiet_spikingjelly() -> None:
    with contextlib.suppress(ImportError):
        importlib.import_module("loguru").logger.remove()


def _data_path(options: argparse.Namespace) -> dict[str, Any]:
    from benchmarks import data_path

    printed = io.StringIO()
    with tempfile.TemporaryDirectory(prefix="snnexp-bench-") as folder, contextlib.redirect_stdout(printed):
        path = Path(folder) / "w7.json"
        repeats = "1" if options.quick else "3"
        data_path.main(["--root", str(options.data), "--repeats", repeats, "--json", str(path)])
        found: dict[str, Any] = json.loads(path.read_text())
    return {**found, "table": printed.getvalue().rstrip()}


def _machine(device: Any) -> dict[str, Any]:
    import torch

    model, flags = platform.processor() or platform.machine(), ""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
        flags = next((line for line in lines if line.startswith("flags")), "")
    from benchmarks.records import emulation

    capability = torch.backends.cpu.get_cpu_capability()
    machine = {
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "capability": capability,
        "emulated": emulation() if "avx512f" in flags and capability != "AVX512" else None,
        "allocator": "torch's own" if os.environ.get("SNNEXP_ALLOC") == "0" else "snnexp's",
    }
    if device.type == "cuda":
        machine["gpu"] = torch.cuda.get_device_name()
    return machine


def _versions(peers: dict[str, str | None]) -> dict[str, str]:
    import numba
    import numpy
    import torch

    from snnexp import __version__

    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": numpy.__version__}
    versions |= {"numba": numba.__version__, "snnexp": __version__}
    return versions | {name: version or "not installed" for name, version in peers.items()}


if __name__ == "__main__":
    main()
