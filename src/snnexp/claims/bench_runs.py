"""The runs of `+experiment=deep_silence` from results/*.json, by data set and depth."""

from __future__ import annotations

import re
import statistics
from pathlib import Path
from typing import Any

from snnexp.claims.collect import read_results
from snnexp.claims.judge import Run

BENCH = re.compile(r"deep_silence_(\w+)_(\d+)")
EPOCHS = (0, 5, 20)
DATASETS = ("digits", "randman", "motion", "nmnist")

Cells = dict[tuple[str, int], list[Run]]  # (data set, depth) -> runs


def read_bench(folder: Path) -> tuple[Cells, list[str]]:
    """The runs of results/deep_silence_<data set>_<depth>.json, and the arms in their order."""
    cells: Cells = {}
    arms: list[str] = []
    for path in sorted(folder.glob("deep_silence_*.json")):
        if match := BENCH.fullmatch(path.stem):
            _, claim, runs = read_results(path)
            cells[match[1], int(match[2])] = runs
            arms = arms or list(claim.arms)
    order = sorted(cells, key=lambda cell: (DATASETS.index(cell[0]), cell[1]))
    return {cell: cells[cell] for cell in order}, arms


def read_rouser(folder: Path) -> tuple[dict[str, dict[str, Any]], list[Run]]:
    """Arms and runs of results/rouser_cures.json (the trials) and rouser_cures_best.json (three seeds of the best)."""
    arms: dict[str, dict[str, Any]] = {}
    found: dict[tuple[str, int], Run] = {}
    for name in ("rouser_cures_best", "rouser_cures"):
        if (path := folder / f"{name}.json").is_file():
            _, claim, runs = read_results(path)
            arms = arms or claim.arms
            found |= {(run.arm, run.seed): run for run in runs}
    return arms, [found[key] for key in sorted(found, key=lambda key: (list(arms).index(key[0]), key[1]))]


def curve(run: Run, name: str) -> dict[int, float]:
    """A metric over epochs."""
    return {int(epoch): float(value) for epoch, value in run.curves.get(name, [])}


def share(run: Run, quantity: str, epoch: int, hidden: bool = True) -> float | None:
    """Mean over the hidden layers of `val/<quantity>/<layer>` after an epoch."""
    found = {name: curve(run, name) for name in run.curves if name.startswith(f"val/{quantity}/")}
    layers = sorted(found, key=lambda name: int(re.sub(r"\D", "", name) or 0))
    values = [found[name][epoch] for name in (layers[:-1] if hidden else layers) if epoch in found[name]]
    return statistics.fmean(values) if values else None
