"""Minutes from raw files to a test accuracy: `python -m benchmarks.time_to_accuracy`, a process for each candidate.

N-MNIST's samples below $SNNEXP_DATA (800 for training, of which the command holds 81 out, and 100 for testing), in ten
bins of equal counts, the data set's default, in 60 of 5 ms (--bins 5ms), as neunorm_nmnist has it, or in 300 of 1 ms
(--bins 1ms), as snnTorch's tutorial on N-MNIST with tonic has it. The same network, initial weights, order of batches,
shifts by up to two pixels, surrogate and optimizer for all. The clock runs from the start of the process to the epoch
whose accuracy on the test part is the level: imports, reading, binning, compiling, training and evaluating after each
epoch are in it. snnexp is the command as a user types it, with its record in MLflow (SQLite), its event store not yet
packed; it evaluates on the validation part, too, and counts dead neurons. Its kernels are compiled (cold) or found in a
cache (warm); the others have none. What the test part shows stops the clock and
selects nothing else. --seeds repeats all that: epochs to a level are luck with a hundred samples, so ratios are those
of the seeds' summed seconds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.peers import FOLDER as PEERS

ROOT = Path(__file__).parents[1]
COLD, WARM = "snnexp, kernels to be compiled", "snnexp, kernels in the cache"
CANDIDATES = (COLD, WARM, "snntorch", "snntorch, layers folded", "spikingjelly")
LR, BATCH, CHANNELS, SHIFT = 0.002, 16, (12, 64), 2


@dataclass(frozen=True)
class Binning:
    """How events become time steps, and what of the network goes with that."""

    title: str
    key: str  # in `records`
    num_steps: int
    bin_us: int | None  # None: bins of equal counts
    reduce: str  # which membranes count: the last ones, or their mean over time
    beta: float = 0.9
    bias: bool = True  # of convolutions and FC

    def words(self) -> tuple[str, ...]:
        """Our command's words for it."""
        width = ("dataset.bin_by=count",) if self.bin_us is None else (
            "dataset.bin_by=width", f"dataset.bin_ms={self.bin_us / 1000:g}"
        )  # fmt: skip
        decoder = {"last": "membrane", "mean": "membrane_mean"}[self.reduce]
        return (
            f"dataset.num_steps={self.num_steps}", *width, f"decoder={decoder}", f"neuron.beta={self.beta}",
            *(() if self.bias else ("model.bias=false",)),
        )  # fmt: skip


BINS = {
    "count": Binning("10 bins of equal counts", "accuracy", 10, None, "last"),
    "5ms": Binning("60 bins of 5 ms", "accuracy_5ms", 60, 5000, "mean"),
    # The same leak per millisecond; biases, which are added at each step, would drown the few spikes.
    "1ms": Binning("300 bins of 1 ms", "accuracy_1ms", 300, 1000, "mean", 0.98, False),
}
LEVELS = (0.9, 0.93, 0.95)  # of the table: a hundred test samples are few, and 0.95 may come by luck
WORDS = (
    "dataset=nmnist", f"dataset.batch_size={BATCH}",
    f"dataset.augment={{shift: {SHIFT}, rotate: 0}}", "dataset.download=false", "neuron=fixed",
    "neuron.surrogate={name: triangular, scale: 1.0, width: 1.0}", "model.gain=2",
    f"model.spec=c{CHANNELS[0]}k5p0-SN-MP2-c{CHANNELS[1]}k5p0-SN-MP2-FC10-SN", f"optimizer.lr={LR}",
    "trainer.test_curve=true",
)  # fmt: skip
# what the command sets for itself, so that the others have it, too
ALLOCATOR = {
    "THP_MEM_ALLOC_ENABLE": "1",
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": "2147483647",
}


@dataclass
class Progress:
    """Seconds since the process began, and the accuracy, at the end of each epoch."""

    accuracies: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)  # processor time of the process, all threads
    ended: float | None = None  # wall time when it ended by itself

    def record(self, level: float) -> dict[str, Any]:
        """For the JSON file. epochs: None if the level was not reached."""
        reached = next((n for n, value in enumerate(self.accuracies) if value >= level), None)
        found = {"accuracies": self.accuracies, "wall_s": self.wall, "cpu_s": self.cpu, "whole_wall_s": self.ended}
        if reached is None:
            return found | {"epochs": None}
        return found | {"epochs": reached + 1, "seconds": self.wall[reached], "cpu_seconds": self.cpu[reached]}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Run the candidates asked for, one after the other; prints the table and writes the JSON file."""
    options = _options(arguments)
    out: Path = options.out
    found: dict[str, Any] = json.loads(out.read_text()) if out.exists() and options.add else {"seeds": {}}
    found.setdefault("seeds", {})
    found |= {"bins": options.bins, "level": options.level}
    for seed in options.seeds:
        with tempfile.TemporaryDirectory(prefix="snnexp-bench-") as scratch:
            folder = Path(scratch)
            task = prepare(folder, options, seed)
            found["samples"] = task["samples"]
            for name in options.only:
                progress = run(name, task, folder, options)
                found["seeds"].setdefault(str(seed), {})[name] = progress.record(options.level)
                out.parent.mkdir(parents=True, exist_ok=True)
                out.write_text(json.dumps(found, indent=1) + "\n")
                print(f"seed {seed}, {name}: done", file=sys.stderr, flush=True)
    if options.docs:
        _keep(found)
    print(table(found))
    return found


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.time_to_accuracy", description=__doc__)
    parser.add_argument("--only", default=";".join(CANDIDATES), help="some of these, with ; between: %(default)s")
    parser.add_argument("--bins", choices=list(BINS), default="count")
    parser.add_argument("--level", type=float, default=0.95)
    parser.add_argument("--max-epochs", type=int, default=20)
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("SNNEXP_DATA", "data")))
    parser.add_argument("--out", type=Path, default=Path("outputs/bench/accuracy.json"))
    parser.add_argument("--add", action="store_true", help="keep what other candidates and seeds have in --out")
    parser.add_argument("--limit", type=int, default=0, help="training samples, to try it out")
    parser.add_argument("--docs", action="store_true", help="keep it for docs/benchmarks.md, and write that anew")
    options = parser.parse_args(arguments)
    options.only = [name.strip() for name in options.only.split(";")]
    if unknown := [name for name in options.only if name not in CANDIDATES]:
        parser.error(f"--only: no such candidate {', '.join(unknown)}. There are {', '.join(CANDIDATES)}.")
    options.data, options.out = options.data.absolute(), options.out.absolute()
    return options


def words(folder: Path, options: argparse.Namespace, seed: int) -> list[str]:
    """Our command's words; record, store and kernels lie in `folder`."""
    limit = [f"dataset.limit_train={options.limit}", "dataset.limit_test=20"] if options.limit else []
    return [
        *WORDS, *BINS[options.bins].words(), *limit, f"dataset.root={options.data}",
        f"dataset.store={folder / 'store'}", f"seed={seed}",
        f"trainer.max_epochs={options.max_epochs}", f"state_dir={folder / 'runs'}",
        f"tracking.uri=sqlite:///{folder / 'mlflow.db'}", "hydra.run.dir=" + str(folder / "hydra"),
    ]  # fmt: skip


def prepare(folder: Path, options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Before any clock runs: the files of our splits in order and our initial weights, for the others.

    Raises: DataError if N-MNIST is not there.
    """
    import torch
    from hydra import compose, initialize_config_dir

    from snnexp.cli import conf_dir
    from snnexp.config import register_schemas
    from snnexp.experiment import assemble
    from snnexp.validation import validate

    register_schemas()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        conf = validate(compose("config", overrides=words(folder / "prepared", options, seed)[:-1]))
    experiment = assemble(conf)
    source: Any = experiment.source
    layers = [experiment.network.get_submodule(name) for name in ("conv1", "conv2", "fc1")]
    torch.save([{key: value.clone() for key, value in layer.state_dict().items()} for layer in layers], folder / "w.pt")
    files = {
        part: [str(options.data / "NMNIST" / source.store.names[n]) for n in source.splits[part]]
        for part in ("train", "test")
    }
    labels = {part: source.store.labels[source.splits[part]].tolist() for part in files}
    samples = {part: len(split) for part, split in source.splits.items()}
    binning = BINS[options.bins]
    return {part: (files[part], labels[part], binning.num_steps, binning.bin_us) for part in files} | {
        "reduce": binning.reduce, "bias": binning.bias, "weights": str(folder / "w.pt"), "channels": CHANNELS,
        "beta": binning.beta, "lr": LR, "batch_size": BATCH, "shift": SHIFT, "seed": seed, "level": options.level,
        "max_epochs": options.max_epochs,
        "threads": options.threads, "samples": samples,
    }  # fmt: skip


def run(name: str, task: dict[str, Any], folder: Path, options: argparse.Namespace) -> Progress:
    """Run one candidate in a process of its own until it reaches the level, or its epochs are over."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "PYTHONWARNINGS": "ignore"}
    if name not in (COLD, WARM):
        path = folder / "task.json"
        path.write_text(json.dumps(task))
        environment |= ALLOCATOR | {"PYTHONPATH": f"{ROOT}{os.pathsep}{PEERS}"}
        command = [sys.executable, "-m", "benchmarks.plain_training", name, str(path)]
        return watch(command, environment, folder, lambda line: json.loads(line)["accuracy"], options)
    cache = folder / "kernels"
    environment |= {"PYTHONPATH": str(ROOT / "src"), "XDG_CACHE_HOME": str(cache)}
    environment |= {"NUMBA_CACHE_DIR": str(cache / "numba")}
    command = [sys.executable, "-m", "snnexp"]
    if name == WARM and not cache.exists():  # not timed: one epoch of a few samples compiles all
        few = words(folder / "warming", options, task["seed"])
        few += ["trainer.max_epochs=1", "dataset.limit_train=40"]
        subprocess.run([*command, *few], cwd=folder, env=environment, capture_output=True, check=True)
    place = folder / f"run{CANDIDATES.index(name)}"
    command += words(place, options, task["seed"])
    return watch(command, environment, folder, None, options, place / "runs")


def watch(
    command: list[str],
    environment: dict[str, str],
    folder: Path,
    read: Callable[[str], float] | None,
    options: argparse.Namespace,
    runs: Path | None = None,
) -> Progress:
    """Run the command, and note the time of each epoch's accuracy: in its output, or in the metrics of its run folder.

    Raises: RuntimeError with the end of what it printed if it fails.
    """
    progress, log = Progress(), folder / "log.txt"
    with log.open("w+") as output:
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT)
        while True:
            code = process.poll()
            now, used = time.perf_counter() - start, _cpu_of(process.pid)
            seen = _accuracies_in(runs) if runs is not None else _accuracies_printed(log, read)
            for accuracy in seen[len(progress.accuracies) :]:
                progress.accuracies.append(accuracy)
                progress.wall.append(now)
                progress.cpu.append(used if used is not None else progress.cpu[-1] if progress.cpu else 0.0)
            if code is not None:
                break
            if progress.accuracies and max(progress.accuracies) >= options.level:
                process.kill()
                process.wait()
                return progress
            time.sleep(0.01)
        progress.ended = time.perf_counter() - start
    if code:
        raise RuntimeError(f"{' '.join(command[:4])} ended with {code}: {log.read_text()[-2000:]}")
    return progress


def _accuracies_printed(log: Path, read: Callable[[str], float] | None) -> list[float]:
    assert read is not None
    whole = log.read_text(errors="replace").split("\n")[:-1]  # what is behind the last line's end is not a line yet
    return [read(line) for line in whole if line.startswith('{"epoch"')]


def _accuracies_in(runs: Path) -> list[float]:
    found = []
    for path in runs.glob("*/*/metrics.jsonl"):
        for line in path.read_text().split("\n")[:-1]:
            entry = json.loads(line)
            if "test_curve/accuracy" in entry["metrics"] and entry["step"] > 0:
                found.append(float(entry["metrics"]["test_curve/accuracy"]))
    return found


def _cpu_of(pid: int) -> float | None:
    """Processor time of a process so far, in seconds; None where /proc has none or it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    used = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return used or None  # a process that has ended and is not yet waited for


def _keep(found: dict[str, Any]) -> None:
    from benchmarks.__main__ import describe
    from benchmarks.page import write_docs
    from benchmarks.records import DOCS, all_kept, keep

    keep(
        {
            **describe(
                f"python -m benchmarks.time_to_accuracy --bins {found['bins']} --seeds {','.join(found['seeds'])}"
            ),
            BINS[found["bins"]].key: found,
        }
    )
    write_docs(all_kept(), DOCS)


def table(found: dict[str, Any]) -> str:
    """Seconds to each level, and how much faster we are than the others with cold and with warm kernels."""
    rows = {
        name: [Progress(run["accuracies"], run["wall_s"], run["cpu_s"]) for run in runs] for name, runs in _runs(found)
    }
    samples, bins = found["samples"], BINS[found["bins"]].title
    head = f"{samples['train']} training samples, {samples['test']} test samples, {bins}; seconds (epochs)"
    seeds = ", ".join(found["seeds"])
    columns = [f"to {level:g}" for level in LEVELS] + ["first epoch", "each further epoch"]
    lines = [f"| {head}; seeds {seeds} | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for name, runs in rows.items():
        cells = [", ".join(_reached(progress.record(level)) for progress in runs) for level in LEVELS]
        cells += [_median(progress.wall[0] for progress in runs), _median(_steps(runs))]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    for own in (COLD, WARM):
        for name in [name for name in rows if name not in (COLD, WARM) and own in rows]:
            ratios = [_ratio(rows[name], rows[own], level) for level in LEVELS]
            theirs, ours = (statistics.median(_steps(rows[n]) or [math.nan]) for n in (name, own))
            lines.append(f"| **{name} / {own}** | " + " | ".join(ratios) + f" | | {theirs / ours:.2f}x |")
    return "\n".join(lines)


def _runs(found: dict[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Each candidate's records, those of one seed after the other; of candidates that have run with all seeds."""
    seeds = list(found["seeds"].values())
    return [(name, [seed[name] for seed in seeds]) for name in CANDIDATES if all(name in seed for seed in seeds)]


def _reached(record: dict[str, Any]) -> str:
    return "not reached" if record["epochs"] is None else f"{record['seconds']:.1f} ({record['epochs']})"


def _steps(runs: list[Progress]) -> list[float]:
    """Seconds of each epoch but the first ones."""
    return [after - before for progress in runs for before, after in itertools.pairwise(progress.wall)]


def _median(seconds: Iterable[float]) -> str:
    values = list(seconds)
    return f"{statistics.median(values):.2f}" if values else ""


def _ratio(theirs: list[Progress], ours: list[Progress], level: float) -> str:
    """Of the seconds that all seeds took together."""
    sums = []
    for runs in (theirs, ours):
        records = [progress.record(level) for progress in runs]
        if any(record["epochs"] is None for record in records):
            return "-"
        sums.append(sum(record["seconds"] for record in records))
    return f"{sums[0] / sums[1]:.2f}x"


if __name__ == "__main__":
    main()
