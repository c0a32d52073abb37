"""The result of a run as Markdown tables."""

from __future__ import annotations

from typing import Any

from benchmarks import time_to_accuracy
from benchmarks.workloads import WORKLOADS

Record = dict[str, Any]
COLUMNS = {
    "snntorch": "faster than snnTorch",
    "spikingjelly": "faster than SpikingJelly",
    "no neurons": "time / no neurons",
    "memory": "memory / snnTorch",
}


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
    text = f"inputs not zero: {100 * result['density']:.1f} %; " if "density" in result else ""
    text += f"spikes: {rates}"
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
    lines = ["| | " + " | ".join(COLUMNS.values()) + " |", "|---|" + "---|" * len(COLUMNS)]
    lines += [f"| {name} | {figure_cells(name, ratios)} |" for name, ratios in figures(record).items()]
    return "\n".join(lines)


def figure_cells(name: str, ratios: dict[str, float]) -> str:
    """The cells of a workload's row."""
    goals, cells = WORKLOADS[name].goals, []
    for column in COLUMNS:
        if column not in ratios:
            cells.append("-")
            continue
        more_is_better = column in ("snntorch", "spikingjelly")
        text = f"{ratios[column]:.1f}x" if more_is_better else f"{ratios[column]:.2f}"
        if column in goals:
            met = ratios[column] >= goals[column] if more_is_better else ratios[column] <= goals[column]
            text += f" ({'>=' if more_is_better else '<='} {goals[column]:g}{'' if met else ', **missed**'})"
        cells.append(text)
    return " | ".join(cells)


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


def header(record: Record) -> str:
    """Machine, versions, command, clock, load and rates of a run."""
    values = {key: value for key, value in record["machine"].items() if value is not None}
    machine = ", ".join(f"{key} {value}" for key, value in {**values, **record["versions"]}.items())
    roof = record["roofline"]
    clock = {"wall": "wall-clock time", "cpu": "CPU time of the process"}[record["clock"]]
    return (
        f"Machine and versions: {machine}. Command: `{record['command']}`; times are {clock}, load before the run "
        f"{record['load']:.1f}. Measured rates: sgemm {roof['sgemm_flops'] / 1e9:.0f} GFLOP/s, copy "
        f"{roof['copy_bytes'] / 1e9:.1f} GB/s."
    )


def markdown(record: Record) -> str:
    """All tables of a run."""
    parts = [header(record)]
    if record["workloads"]:
        parts += [figure_table(record), limit_table(record), workload_table(record)]
    parts += [f"{name} was left out: {why}" for name, why in record["left_out"].items()]
    parts += other_tables(record)
    return "\n\n".join(parts) + "\n"


def other_tables(record: Record) -> list[str]:
    """What is no workload of training steps."""
    parts = []
    if record.get("data_path"):
        parts.append("**W7, data path**\n\n```\n" + record["data_path"]["table"] + "\n```")
    if record.get("startup"):
        parts.append(startup_table(record))
    if record.get("density"):
        parts.append(density_table(record))
    for key in (binning.key for binning in time_to_accuracy.BINS.values()):
        if record.get(key):
            parts.append("**Time to accuracy**\n\n" + time_to_accuracy.table(record[key]))
    return parts


def density_table(record: Record) -> str:
    """model.sparse=auto against never: ratio of step times at each density, below 1 where auto is faster."""
    lines = ["**Density**: time of a step with model.sparse=auto over that with never (fastest steps; medians)", ""]
    densities = list(dict.fromkeys(f"{100 * p['density']:g} %" for row in record["density"].values() for p in row))
    lines += ["| | " + " | ".join([*densities, "apart"]) + " |", "|---|" + "---|" * (len(densities) + 1)]
    apart = []
    for title, points in record["density"].items():
        apart = sorted(p["apart"] for p in points if "apart" in p)  # older records do not have it
        cells = {f"{100 * p['density']:g} %": f"{p['ratio']:.2f} ({p['of_medians']:.2f})" for p in points}
        cells["apart"] = f"{apart[len(apart) // 2]:.1%} ({apart[-1]:.1%})" if apart else ""
        lines.append(f"| {title} | " + " | ".join(cells.get(d, "") for d in (*densities, "apart")) + " |")
    if apart:
        lines += ["", "*apart*: by how much two networks with never differ, fastest steps; median (most) of the row"]
    return "\n".join(lines)
