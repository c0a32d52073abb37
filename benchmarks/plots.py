"""The results of a run as plots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

Record = dict[str, Any]


def plot_all(record: Record, folder: Path) -> None:
    """Write the plots that the run has the numbers for."""
    folder.mkdir(parents=True, exist_ok=True)
    if record["workloads"]:
        plot_steps(record, folder)
    if record.get("scaling"):
        plot_scaling(record, folder)
    if record.get("density"):
        plot_density(record, folder)


def plot_steps(record: Record, folder: Path) -> None:
    """Bars: step time of every candidate against ours."""
    import matplotlib.pyplot as plt

    results = record["workloads"]
    columns = min(4, len(results))
    lines = -(-len(results) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(3.4 * columns, 2.8 * lines), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(results) :]:
        axis.set_visible(False)
    for axis, (name, result) in zip(axes.flat, results.items(), strict=False):
        rows = {k: v for k, v in result["candidates"].items() if "refused" not in v}
        ours = rows["snnexp"]["median_ms"]
        low = [(v["median_ms"] - v["min_ms"]) / ours for v in rows.values()]
        high = [(v["max_ms"] - v["median_ms"]) / ours for v in rows.values()]
        values = [v["median_ms"] / ours for v in rows.values()]
        colours = ["C1" if k.startswith("snnexp") else "0.7" if k == "no neurons" else "C0" for k in rows]
        axis.barh(range(len(rows)), values, xerr=[low, high], color=colours, ecolor="0.3")
        axis.set_yticks(range(len(rows)), list(rows), fontsize=6)
        axis.invert_yaxis()
        axis.axvline(1, color="0.3", linewidth=0.8)
        axis.set_title(name, fontsize=9)
        axis.tick_params(axis="x", labelsize=7)
        axis.set_xlabel("time of a step / snnexp", fontsize=7)
    figure.savefig(folder / "bench_steps.png", dpi=130)
    plt.close(figure)


def plot_scaling(record: Record, folder: Path) -> None:
    """Step time against T, neurons, batch and density, with the machine's own limit as a dashed line."""
    import matplotlib.pyplot as plt

    sweeps = record["scaling"]
    names = list(dict.fromkeys(name for sweep in sweeps.values() for name in sweep["candidates"]))
    colours = {name: f"C{number}" for number, name in enumerate(names)}  # the same everywhere
    measured = {t: s for t, s in sweeps.items() if all("memory_mb" in p for c in s["candidates"].values() for p in c)}
    count = len(sweeps) + len(measured)
    figure, axes = plt.subplots(1, count, figsize=(3.6 * count, 3.6), squeeze=False, layout="constrained")
    for axis, (title, sweep) in zip(axes[0, len(sweeps) :], measured.items(), strict=True):
        for candidate, points in sweep["candidates"].items():
            axis.plot(sweep["x"], [p["memory_mb"] for p in points], marker="o", markersize=3, color=colours[candidate])
        axis.set(xscale="log", yscale="log", xlabel=title, ylabel="memory of a step, MB")
        axis.grid(alpha=0.3, which="both", linewidth=0.3)
    for axis, (title, sweep) in zip(axes[0, : len(sweeps)], sweeps.items(), strict=True):
        for candidate, points in sweep["candidates"].items():
            values = [p["median_ms"] for p in points]
            low, high = [p["min_ms"] for p in points], [p["max_ms"] for p in points]
            axis.fill_between(sweep["x"], low, high, alpha=0.15, color=colours[candidate])
            axis.plot(sweep["x"], values, marker="o", markersize=3, label=candidate, color=colours[candidate])
        axis.plot(sweep["x"], sweep["roofline_ms"], "k--", linewidth=1, label="limit of the dense network")
        axis.set(xscale="log", yscale="log", xlabel=title, ylabel="ms per step")
        axis.grid(alpha=0.3, which="both", linewidth=0.3)
    shown = {label: line for axis in axes[0] for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(shown.values(), shown.keys(), loc="outside upper center", ncols=len(shown), fontsize=8)
    figure.savefig(folder / "bench_scaling.png", dpi=130)
    plt.close(figure)


def plot_density(record: Record, folder: Path) -> None:
    """Time of a step with model.sparse=auto over that with never, against density."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for title, points in record["density"].items():
        x = [100 * max(p["density"], 0.001) for p in points]
        axis.plot(x, [p["ratio"] for p in points], marker="o", markersize=3, label=title)
    axis.axhline(1.03, color="0.3", linewidth=0.8, linestyle="--", label="the bound, 1.03")
    axis.set(xscale="log", xlabel="inputs that are not zero, % (0 at 0.1)", ylabel="auto / never", ylim=(0, None))
    axis.grid(alpha=0.3, which="both", linewidth=0.3)
    axis.legend(fontsize=7)
    figure.savefig(folder / "bench_density.png", dpi=130)
    plt.close(figure)
