"""The result of a run as a Markdown table and as plots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.workloads import WORKLOADS

Record = dict[str, Any]
BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"


def workload_table(record: Record) -> str:
    """One table per workload: step time with its spread, against snnexp, and memory."""
    parts = []
    for name, result in record["workloads"].items():
        parts.append(
            f"**{name}: {result['title']}**, T = {result['num_steps']}, batch {result['batch']}; {_shares(result)}"
        )
        lines = ["| | ms/step | min | max | time / snnexp | memory, MB |", "|---|---|---|---|---|---|"]
        ours = result["candidates"]["snnexp"]["median_ms"]
        for candidate, row in result["candidates"].items():
            if "refused" in row:
                lines.append(f"| {candidate} | refused: {row['refused']} | | | | |")
                continue
            memory = "" if row.get("memory_mb") is None else f"{row['memory_mb']:.0f}"
            lines.append(
                f"| {candidate} | {row['median_ms']:.1f} | {row['min_ms']:.1f} | {row['max_ms']:.1f} "
                f"| {row['median_ms'] / ours:.2f} | {memory} |"
            )
        lines += [f"| {candidate} | {reason} | | | | |" for candidate, reason in result["missing"].items()]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _shares(result: Record) -> str:
    """How much there is to do: inputs that are not zero, spikes, membranes at which the surrogate is not zero."""
    rates = _by_layer(result["firing_rates"])
    text = f"inputs not zero: {100 * result['density']:.1f} %; spikes: {rates}" if "density" in result else rates
    if result.get("gradient_share"):
        text += f"; membranes with a gradient: {_by_layer(result['gradient_share'])}"
    return text


def _by_layer(shares: dict[str, float]) -> str:
    if len(shares) > 8:  # a deep network's
        low, high = 100 * min(shares.values()), 100 * max(shares.values())
        return f"{low:.1f} to {high:.1f} % in {len(shares)} layers"
    return ", ".join(f"{layer} {100 * share:.1f} %" for layer, share in shares.items())


def figures(record: Record) -> dict[str, dict[str, float]]:
    """The four ratios of PERFORMANCE's table for each workload, of the candidates as their authors document them."""
    found: dict[str, dict[str, float]] = {}
    for name, result in record["workloads"].items():
        rows = {k: v for k, v in result["candidates"].items() if "refused" not in v}
        ours = rows["snnexp"]
        ratios: dict[str, float] = {}
        if "snntorch" in rows:
            ratios["snntorch"] = rows["snntorch"]["median_ms"] / ours["median_ms"]
            if rows["snntorch"].get("memory_mb") and ours.get("memory_mb"):
                ratios["memory"] = ours["memory_mb"] / rows["snntorch"]["memory_mb"]
        jelly = [row["median_ms"] for k, row in rows.items() if k.startswith("spikingjelly")]
        if jelly:
            ratios["spikingjelly"] = min(jelly) / ours["median_ms"]
        if "no neurons" in rows:
            ratios["no neurons"] = ours["median_ms"] / rows["no neurons"]["median_ms"]
        found[name] = ratios
    return found


def figure_table(record: Record) -> str:
    """Measured / to reach, with a cross where it is missed."""
    columns = {
        "snntorch": "faster than snnTorch",
        "spikingjelly": "faster than SpikingJelly",
        "no neurons": "time / no neurons",
        "memory": "memory / snnTorch",
    }
    lines = ["| | " + " | ".join(columns.values()) + " |", "|---|" + "---|" * len(columns)]
    for name, ratios in figures(record).items():
        goals, cells = WORKLOADS[name].goals, []
        for column in columns:
            if column not in ratios:
                cells.append("-")
                continue
            more_is_better = column in ("snntorch", "spikingjelly")
            text = f"{ratios[column]:.1f}x" if more_is_better else f"{ratios[column]:.2f}"
            if column in goals:
                met = ratios[column] >= goals[column] if more_is_better else ratios[column] <= goals[column]
                text += f" ({'>=' if more_is_better else '<='} {goals[column]:g}{'' if met else ', **missed**'})"
            cells.append(text)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def limit_table(record: Record) -> str:
    """How near each step is to the machine's limit: dense products at sgemm rate, neuron traffic at copy rate."""
    roof = record["roofline"]
    lines = [
        "| | products, GFLOP | at sgemm rate, ms | neuron traffic, MB | at copy rate, ms | sum, ms | snnexp, ms |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, result in record["workloads"].items():
        compute = 1000 * result["matrix_flops"] / roof["sgemm_flops"]
        traffic = 1000 * result["neuron_bytes"] / roof["copy_bytes"]
        ours = result["candidates"]["snnexp"]["median_ms"]
        lines.append(
            f"| {name} | {result['matrix_flops'] / 1e9:.2f} | {compute:.1f} | {result['neuron_bytes'] / 1e6:.0f} "
            f"| {traffic:.1f} | {compute + traffic:.1f} | {ours:.1f} |"
        )
    return "\n".join(lines)


def startup_table(record: Record) -> str:
    """W8."""
    lines = ["| W8 | s | min | max |", "|---|---|---|---|"]
    for name, row in record["startup"].items():
        ms = (row["median_ms"], row["min_ms"], row["max_ms"])
        lines.append(f"| `{name}` | " + " | ".join(f"{value / 1000:.2f}" for value in ms) + " |")
    return "\n".join(lines)


def markdown(record: Record) -> str:
    """All tables of a run."""
    machine = ", ".join(f"{key} {value}" for key, value in {**record["machine"], **record["versions"]}.items())
    roof = record["roofline"]
    clock = {"wall": "wall-clock time", "cpu": "CPU time of the process"}[record["clock"]]
    parts = [
        f"Machine and versions: {machine}. Command: `{record['command']}`; times are {clock}, load before the run "
        f"{record['load']:.1f}. Measured rates: sgemm {roof['sgemm_flops'] / 1e9:.0f} GFLOP/s, copy "
        f"{roof['copy_bytes'] / 1e9:.1f} GB/s."
    ]
    if record["workloads"]:
        parts += [figure_table(record), limit_table(record), workload_table(record)]
    parts += [f"{name} was left out: {why}" for name, why in record["left_out"].items()]
    if record.get("data_path"):
        parts.append("**W7, data path**\n\n```\n" + record["data_path"]["table"] + "\n```")
    if record.get("startup"):
        parts.append(startup_table(record))
    return "\n\n".join(parts) + "\n"


def write_docs(record: Record, folder: Path) -> None:
    """Replace what stands between the two marks of docs/benchmarks.md by this run's tables, and the plots."""
    page = folder / "benchmarks.md"
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n\n{markdown(record)}\n{END}{after}")
    plot_all(record, folder / "images")


def plot_all(record: Record, folder: Path) -> None:
    """Write the plots that the run has the numbers for."""
    folder.mkdir(parents=True, exist_ok=True)
    if record["workloads"]:
        plot_steps(record, folder)
    if record.get("scaling"):
        plot_scaling(record, folder)


# --- plots --------------------------------------------------------------------------------------------------------


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
    figure, axes = plt.subplots(1, len(sweeps), figsize=(3.6 * len(sweeps), 3.6), squeeze=False, layout="constrained")
    for axis, (title, sweep) in zip(axes[0], sweeps.items(), strict=True):
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
