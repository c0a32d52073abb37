"""python -m benchmarks.against COMMIT: what a training step costs now, against the code of another commit.

Each side is a process with its own source and its own kernels, built by its own benchmarks/. They take turns: a few
steps here, a few there, and who begins changes. Only one of them runs at a time, so a busy machine meets both; what
counts is the ratio of the fastest steps. Clock: CPU time of the process, one thread. `--first` times the first step
instead, kernels compiled anew. On a busy machine: taskset -c 0.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.compare import CannotRun, lay_out

NAMES = ("W1", "W2", "W2r", "W3", "W4", "W5", "W6")

# What a side runs: answers "N" on its input with the CPU seconds of N steps. Of both commits: nothing newer than A.
SIDE = """
import sys, time
from snnexp.allocator import prepare_allocator
prepare_allocator()
import torch
torch.set_flush_denormal(True)
torch.set_num_threads(1)
from benchmarks.candidates import OURS, build
from benchmarks.workloads import WORKLOADS, make_inputs
ballast = torch.empty(9973 * int(sys.argv[3]))  # everything else lies elsewhere in each pair of processes
w = WORKLOADS[sys.argv[1]]
if sys.argv[2] == "quick":
    w = w.shrunk()
training = build(OURS, w, make_inputs(w), torch.device("cpu"))
print("ready", flush=True)
for line in sys.stdin:
    seconds = []
    for _ in range(int(line)):
        start = time.process_time()
        training.step()
        seconds.append(time.process_time() - start)
    print(*seconds, flush=True)
"""


@dataclass
class Side:
    """One of the two, and the seconds that it took."""

    process: subprocess.Popen[str]
    seconds: list[float]

    def take(self, steps: int) -> None:
        """Let it take some steps; the first of a turn finds the other side's memory in the caches: not counted."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise CannotRun(f"it ended with {self.process.wait()}")
        self.seconds += [float(word) for word in line.split()][1 if steps > 1 else 0 :]


def start(tree: Path, name: str, size: str, cache: Path, number: int = 0) -> Side:
    """Start a side of the pair `number` and wait until it is ready. Raises: CannotRun."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= {"PYTHONPATH": f"{tree / 'src'}{os.pathsep}{tree}", "XDG_CACHE_HOME": str(cache)}
    environment |= {"NUMBA_CACHE_DIR": str(cache / "numba")}
    process = subprocess.Popen(
        [sys.executable, "-c", SIDE, name, size, str(number)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tree, env=environment,
    )  # fmt: skip
    assert process.stdout is not None
    if process.stdout.readline().strip() != "ready":
        raise CannotRun(f"{tree}: {name} ends with {process.wait()}")
    return Side(process, [])


def turns(
    trees: tuple[Path, Path], name: str, rounds: int, steps: int, size: str, folder: Path, pair: int
) -> list[list[float]]:
    """Seconds of the steps of both sides, in turns."""
    sides = [start(tree, name, size, folder / f"cache{n}", pair) for n, tree in enumerate(trees)]
    try:
        for side in sides:
            side.take(3)  # compiles
            side.seconds.clear()
        for number in range(rounds):
            for side in sides[:: 1 if number % 2 else -1]:
                side.take(steps)
    finally:
        for side in sides:
            side.process.kill()
            side.process.communicate()  # and close its pipes
    return [side.seconds for side in sides]


def first_steps(trees: tuple[Path, Path], name: str, rounds: int, size: str, folder: Path) -> list[list[float]]:
    """Seconds of the first steps of both sides, each time with an empty cache."""
    found: list[list[float]] = [[], []]
    for number in range(rounds):
        for n in (0, 1) if number % 2 else (1, 0):
            side = start(trees[n], name, size, folder / f"{name}-{number}-{n}")
            side.take(1)
            side.process.kill()
            side.process.communicate()  # and close its pipes
            found[n] += side.seconds
    return found


def row(name: str, before: list[float], now: list[float]) -> str:
    """A line of the table: fastest steps, their ratio, and that of the medians."""
    medians = statistics.median(now) / statistics.median(before)
    old, new = 1000 * min(before), 1000 * min(now)
    return f"| {name} | {old:.1f} | {new:.1f} | {new / old:.3f} | {medians:.3f} | {len(now)} |"


def main(arguments: list[str] | None = None) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.against", description=__doc__)
    parser.add_argument("commit")
    parser.add_argument("--only", default=",".join(NAMES))
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--steps", type=int, default=4, help="steps of a turn; the first does not count")
    parser.add_argument("--processes", type=int, default=2, help="so many of each side, one pair after the other")
    parser.add_argument("--first", action="store_true", help="time the first step, which compiles")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: tries it out, measures nothing")
    options = parser.parse_args(arguments)
    size = "quick" if options.quick else "full"
    with tempfile.TemporaryDirectory(prefix="against-") as scratch:
        try:
            folders = [Path(scratch) / side for side in "ab"]
            for folder in folders:
                folder.mkdir()
            trees = (lay_out(options.commit, folders[0], "benchmarks"), lay_out(None, folders[1]))
            unit = "first step, ms" if options.first else "step, ms"
            print(
                f"| | {options.commit}: {unit} | now: {unit} | ratio | of medians | steps |\n|---|---|---|---|---|---|"
            )
            for name in options.only.split(","):
                if options.first:
                    both = first_steps(trees, name, options.rounds, size, Path(scratch))
                else:  # where a process's memory lies moves its steps by some percent: more than one of each
                    given = (trees, name, options.rounds, options.steps, size, Path(scratch))
                    found = [turns(*given, pair) for pair in range(options.processes)]
                    both = [[s for pair in found for s in pair[n]] for n in (0, 1)]
                print(row(name, *both), flush=True)
        except CannotRun as error:
            print(f"against: {error}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
