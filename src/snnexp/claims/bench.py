"""Tables and figures of docs/dead-neurons.md: `python -m snnexp.claims.bench [results [docs/dead-neurons.md]]`.

A block between `<!-- made: NAME -->` and `<!-- end -->` is worked out anew from results/*.json; nothing in it is typed.
"""

from __future__ import annotations

import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from snnexp.analysis.energy import TABLES
from snnexp.claims.bench_figures import draw_bench, draw_rouser
from snnexp.claims.bench_runs import EPOCHS, curve, read_bench, read_rouser, share
from snnexp.claims.judge import Run

BLOCK = re.compile(r"(<!-- made: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def over_seeds(values: Sequence[float | None], scale: float = 1.0, digits: int = 1) -> str:
    """Mean ± sample standard deviation; a dash if there is none."""
    there = [scale * value for value in values if value is not None]
    if not there:
        return "-"
    spread = f" ± {statistics.stdev(there):,.{digits}f}" if len(there) > 1 else ""
    return f"{statistics.fmean(there):,.{digits}f}{spread}"


def bench_table(folder: Path) -> str:
    """One table for each data set and depth."""
    cells, arms = read_bench(folder)
    lines = []
    for (data, depth), runs in cells.items():
        if depth == 1:
            continue
        healthy = _accuracies(cells.get((data, 1), []))
        reference = f"; one hidden layer: {over_seeds(healthy, 100)} %" if healthy else ""
        lines += [
            f"**{data}, {depth} hidden layers{reference}**",
            "",
            "| cure | seeds | test accuracy, % | dead at epoch 0 / 5 / 20, % | gradient-dead at 0 / 5 / 20, % | synops "
            "per sample | s per epoch |",
            "|---|---:|---:|---:|---:|---:|---:|",
        ]
        lines += [_bench_row(arm, [run for run in runs if run.arm == arm]) for arm in arms]
        lines.append("")
    return "\n".join(lines)


def _bench_row(arm: str, runs: Sequence[Run]) -> str:
    if not runs:
        return f"| {arm} | 0 | not run | - | - | - | - |"
    cells = [arm, str(len(runs)), over_seeds(_accuracies(runs), 100)]
    for quantity in ("dead_fraction", "gradient_dead"):
        means = [
            over_seeds([share(run, quantity, epoch) for run in runs], 100, 0).partition(" ")[0] for epoch in EPOCHS
        ]
        cells.append(" / ".join(means))
    cells += [over_seeds([run.metrics.get("test/synops") for run in runs], 1, 0)]
    cells += [f"{statistics.fmean(_epoch_seconds(run) for run in runs):.2f}"]
    return "| " + " | ".join(cells) + " |"


def _accuracies(runs: Sequence[Run]) -> list[float]:
    return [run.metrics["test/accuracy"] for run in runs]


def _epoch_seconds(run: Run) -> float:
    """Median over the epochs: compiling is in the first one, and other programs in some."""
    return statistics.median(curve(run, "time/epoch_s").values())


def rouser_table(folder: Path) -> str:
    """Each trial of each cure on Rouser's dying network."""
    arms, runs = read_rouser(folder)
    if not runs:
        return "Not run yet.\n"
    last = max((run.epochs for run in runs), default=0)
    lines = [
        f"| trial | setting | seeds | test accuracy, % | best validation accuracy, % | dead after epoch {last}, 1 / 2 "
        "/ output, % | gradient-dead, 1 / 2 / output, % | synops per sample, millions |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for arm, values in arms.items():
        if chosen := [run for run in runs if run.arm == arm]:
            lines.append(_rouser_row(arm, values, chosen, last))
    return "\n".join(lines) + "\n"


def _rouser_row(arm: str, settings: Mapping[str, object], runs: Sequence[Run], last: int) -> str:
    knobs = [f"{key}={value}" for key, value in settings.items() if key != "rescue"]
    cells = [arm, f"`{' '.join(knobs)}`" if knobs else "-", str(len(runs)), over_seeds(_accuracies(runs), 100)]
    cells.append(over_seeds([run.metrics.get("best/val_accuracy") for run in runs], 100))
    for quantity in ("dead_fraction", "gradient_dead"):
        each = []
        for layer in ("sn1", "sn2", "sn3"):
            values = [curve(run, f"val/{quantity}/{layer}").get(last) for run in runs]
            each.append(over_seeds(values, 100, 0).partition(" ")[0])
        cells.append(" / ".join(each))
    cells.append(over_seeds([run.metrics.get("test/synops") for run in runs], 1e-6, 2))
    return "| " + " | ".join(cells) + " |"


def energy_table(folder: Path) -> str:
    """Prices and sources of each table, and what the bench's healthy networks cost under it."""
    lines = ["| table | AC | MAC | update | memory, per byte | bytes | source |", "|---|---:|---:|---:|---:|---:|---|"]
    for name, table in TABLES.items():
        prices = " | ".join(f"{price:g}" for price in (table.ac, table.mac, table.update, table.memory, table.word))
        lines.append(f"| `{name}` | {prices} | {table.source} |")
    lines += [
        "",
        "| network | table | energy, nJ | as an ANN, nJ | rate | break-even rate |",
        "|---|---|---:|---:|---:|---:|",
    ]
    cells, _ = read_bench(folder)
    for (data, depth), runs in cells.items():
        healthy = [run for run in runs if run.arm == "none" and "test/synaptic_rate" in run.metrics]
        if depth != 1 or not healthy:
            continue
        for name in TABLES:
            keys = (f"test/energy/{name}", f"test/energy_ann/{name}")
            numbers = [over_seeds([run.metrics.get(key) for run in healthy], 1, 1) for key in keys]
            rates = ("test/synaptic_rate", f"test/break_even_rate/{name}")
            numbers += [over_seeds([run.metrics.get(key) for run in healthy], 1, 3) for key in rates]
            lines.append(f"| {data}, FC64-SN-FC-SN | `{name}` | " + " | ".join(numbers) + " |")
    return "\n".join(lines) + "\n"


MADE = {"deep_silence": bench_table, "rouser_cures": rouser_table, "energy": energy_table}


def filled(text: str, folder: Path) -> str:
    """The page with its blocks made anew."""

    def make(match: re.Match[str]) -> str:
        return f"{match[1]}\n{MADE[match[2]](folder)}\n{match[3]}"

    return BLOCK.sub(make, text)


def main() -> None:
    """Fill the page and draw its figures."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "results")
    target = Path(sys.argv[2] if len(sys.argv) > 2 else "docs/dead-neurons.md")
    if not read_bench(folder)[0]:  # a page full of tables would lose them
        sys.exit(f"{folder}: no deep_silence_<data set>_<depth>.json in it. Run this where results/ lies, or name it.")
    target.write_text(filled(target.read_text(encoding="utf-8"), folder), encoding="utf-8")
    images = target.parent / "images"
    written = [*draw_bench(images / "deep_silence", folder), *draw_rouser(images / "rouser_cures", folder)]
    print(f"written: {', '.join(map(str, [target, *written]))}")


if __name__ == "__main__":
    main()
