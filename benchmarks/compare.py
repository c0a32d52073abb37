"""python -m benchmarks.compare A [B]: does commit B compute the same numbers as commit A?

Trains the golden set (every preset, a convolution with batch norm, a recurrent layer, event lists) with both and says
"same bits", or the first epoch and metric that differ. B is the working tree if left out. Weights and all metrics but
times are compared bit for bit. Both sides run in this environment with one thread each, side by side.

Exit status: 0 same bits, 1 something differs, 2 a commit cannot be run.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import math
import os
import subprocess
import sys
import tarfile
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMMON = ("tracking=off", "device=cpu", "trainer.max_epochs=3", "trainer.plots=false", "trainer.diagnose=false")
SMALL = ("dataset.limit_train=400", "dataset.limit_val=100", "dataset.limit_test=100")
# name -> what follows `snnexp`; a sweep is one process for all presets
GOLDEN: dict[str, tuple[str, ...]] = {
    "presets": ("-m", "neuron=fixed,rouser,plif,ttfs,ltmd,dietsnn", "model.spec=FC64-SN-FC-SN"),
    "conv": ("model.spec=c8k3-BN-SN-MP2-DP0.2-FC-SN", "encoder=rate", *SMALL),
    "recurrent": ("dataset=randman", "model.spec=RFC32-SN-FC-SN", *SMALL),
    "events": ("dataset=motion", "neuron=rouser", "model.spec=FC32-SN-FC-SN", "dataset.sparse=always", *SMALL),
}
TIMEOUT_S = 900


class CannotRun(Exception):
    """A commit that cannot be had or whose command fails; the text says which and why."""


@dataclass(frozen=True)
class Run:
    """What one run computed: metric -> epoch -> value, and a hash of the last weights."""

    metrics: dict[str, dict[int, float]]
    weights: str


@dataclass(frozen=True)
class Difference:
    """Where one run of the golden set first differs; `text` says it."""

    run: str
    text: str


def lay_out(commit: str | None, folder: Path, *more: str) -> Path:
    """The source tree of a commit (and `more` of its folders) under `folder`, or the working tree for None.

    Raises: CannotRun.
    """
    if commit is None:
        return ROOT
    try:
        done = subprocess.run(["git", "archive", commit, "src", "conf", *more], cwd=ROOT, capture_output=True)
    except OSError as error:
        raise CannotRun(f"git: {error.strerror}") from None
    if done.returncode:
        raise CannotRun(f"{commit}: {done.stderr.decode(errors='replace').strip()}")
    tree = folder / "tree"
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(tree, filter="data")
    return tree


def train(tree: Path, folder: Path, only: list[str]) -> dict[str, Run]:
    """Run the golden set with the code in `tree`; its run folders go below `folder`. Raises: CannotRun."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("SNNEXP", "MLFLOW"))}
    environment |= {"PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1"}
    runs: dict[str, Run] = {}
    for name in only:
        where = folder / name
        where.mkdir(parents=True)
        options = list(GOLDEN[name])
        flags = [option for option in options if option.startswith("-")]
        words = [option for option in options if not option.startswith("-")]
        command = [sys.executable, "-m", "snnexp", *flags, *words, *COMMON, f"state_dir={where / 'runs'}"]
        done = subprocess.run(
            command, cwd=where, env=environment, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S
        )
        if done.returncode:
            raise CannotRun(f"{tree}: {name} ends with {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
        runs |= read_runs(where / "runs", name)
    return runs


def read_runs(folder: Path, name: str) -> dict[str, Run]:
    """All runs below a state folder, by golden set and `<dataset>-<neuron>`: identities differ between versions."""
    runs = {}
    for path in sorted(folder.glob("*/*/metrics.jsonl")):
        metrics: dict[str, dict[int, float]] = {}
        for line in path.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            for key, value in entry["metrics"].items():
                if not key.startswith("time/"):
                    metrics.setdefault(key, {})[int(entry["step"])] = float(value)
        dataset_and_neuron = path.parent.parent.name.rpartition("-")[0]
        runs[f"{name}/{dataset_and_neuron}"] = Run(metrics, hash_weights(path.parent / "last.safetensors"))
    return runs


def hash_weights(path: Path) -> str:
    """SHA-256 of names, shapes and bits of all tensors, whatever the header says."""
    from safetensors.numpy import load_file  # heavy imports only where runs are read

    digest = hashlib.sha256()
    for name, values in sorted(load_file(path).items()):
        digest.update(f"{name} {values.dtype} {values.shape}\n".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def differences(a: dict[str, Run], b: dict[str, Run]) -> list[Difference]:
    """Each run that differs, with its first epoch and metric; a metric that only one side has is no difference."""
    found = []
    for run in sorted(a.keys() | b.keys()):
        if run not in a or run not in b:
            found.append(Difference(run, f"only {'A' if run in a else 'B'} has this run"))
            continue
        points = []
        for key in sorted(a[run].metrics.keys() & b[run].metrics.keys()):
            old, new = a[run].metrics[key], b[run].metrics[key]
            for step in sorted(old.keys() | new.keys()):
                x, y = old.get(step, math.nan), new.get(step, math.nan)
                if x != y and not (math.isnan(x) and math.isnan(y)):
                    points.append((step, key, x, y))
        if points:
            step, key, x, y = min(points)
            size = f", {abs(y - x) / abs(x):.1e} of it" if x and math.isfinite(x - y) else ""
            found.append(Difference(run, f"first at epoch {step}: {key} {x:.9g} -> {y:.9g}{size}"))
        elif a[run].weights != b[run].weights:
            found.append(Difference(run, "same metrics, but the last weights differ in some bits"))
    return found


def only_on_one_side(a: dict[str, Run], b: dict[str, Run]) -> tuple[set[str], set[str]]:
    """Metrics that no run of the other side has."""
    names = [{key for run in side.values() for key in run.metrics} for side in (a, b)]
    return names[0] - names[1], names[1] - names[0]


def show(a: dict[str, Run], b: dict[str, Run]) -> int:
    """Print the verdict; the exit status."""
    gone, added = only_on_one_side(a, b)
    for word, names in (("gone", gone), ("new", added)):
        if names:
            print(f"{word} metrics: {', '.join(sorted(names))}")
    found = differences(a, b)
    for difference in found:
        print(f"{difference.run}: {difference.text}")
    same = len(a.keys() | b.keys()) - len(found)
    print(f"same bits in {same} of {same + len(found)} runs" if found else f"same bits ({same} runs)")
    return 1 if found else 0


def main(arguments: list[str] | None = None) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("a", help="a commit")
    parser.add_argument("b", nargs="?", help="another commit; left out: the working tree")
    parser.add_argument("--only", default=",".join(GOLDEN), help="some of " + ",".join(GOLDEN))
    options = parser.parse_args(arguments)
    only = options.only.split(",")
    if unknown := set(only) - GOLDEN.keys():
        parser.error(f"--only={','.join(sorted(unknown))}: choose from {', '.join(GOLDEN)}")

    def side(name: str, commit: str | None) -> dict[str, Run]:
        folder = Path(scratch) / name
        folder.mkdir()
        return train(lay_out(commit, folder), folder / "work", only)

    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(2) as pool:
        try:
            both = [pool.submit(side, name, commit) for name, commit in (("a", options.a), ("b", options.b))]
            return show(*(future.result() for future in both))
        except CannotRun as error:
            print(f"compare: {error}", file=sys.stderr)
            return 2


if __name__ == "__main__":
    sys.exit(main())
