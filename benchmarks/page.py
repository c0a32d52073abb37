"""docs/benchmarks.md between its two marks: what is kept of all processors (`records`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks import plots, report
from benchmarks.records import WHOLE, processor

Record = dict[str, Any]
BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"


def write_docs(kept: list[Record], folder: Path) -> None:
    """Replace what stands between the two marks of docs/benchmarks.md, and the plots."""
    page = folder / "benchmarks.md"
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n\n{markdown(kept)}\n{END}{after}")
    for one in reversed(kept):  # the first one with such a part is what is drawn
        plots.plot_all(_as_run(one), folder / "images")


def markdown(kept: list[Record]) -> str:
    """The figures of all processors side by side, then each processor's tables."""
    return "\n\n".join([figure_table(kept), *(section(one) for one in kept)]) + "\n"


def figure_table(kept: list[Record]) -> str:
    """Measured / to reach of each workload on each processor."""
    lines = [
        "| | processor (day) | " + " | ".join(report.COLUMNS.values()) + " |",
        "|---|---|" + "---|" * len(report.COLUMNS),
    ]
    names = [name for name in report.WORKLOADS if any(name in one["parts"] for one in kept)]
    for name in names:
        for one in kept:
            if name in one["parts"]:
                ratios = report.figures({"workloads": {name: one["parts"][name]["result"]}})[name]
                where = f"{processor(one['machine'])} ({one['parts'][name]['about']['date']})"
                lines.append(f"| {name} | {where} | {report.figure_cells(name, ratios)} |")
    return "\n".join(lines)


def section(one: Record) -> str:
    """All tables of one processor, and how each part was measured."""
    parts = [f"### {processor(one['machine'])}"]
    parts += dict.fromkeys(_how(part) for part in one["parts"].values())
    run = _as_run(one)
    if run["workloads"]:
        parts += [_limits(one), report.workload_table(run)]
    return "\n\n".join([*parts, *report.other_tables(run)])


def _how(part: Record) -> str:
    about = part["about"]
    text = report.header(about) if "roofline" in about else f"Command: `{about['command']}`, load {about['load']:.1f}."
    return f"{text} {about['date']}, commit {about['commit']}."


def _limits(one: Record) -> str:
    """The limits of each workload by the rates measured in its own run."""
    lines: list[str] = []
    for name, part in one["parts"].items():
        if name in report.WORKLOADS and "roofline" in part["about"]:
            table = report.limit_table({"workloads": {name: part["result"]}, "roofline": part["about"]["roofline"]})
            lines += table.split("\n")[2 if lines else 0 :]
    return "\n".join(lines)


def _as_run(one: Record) -> Record:
    """The parts as one run has them."""
    parts = one["parts"]
    names = [name for name in report.WORKLOADS if name in parts]
    found: Record = {"workloads": {name: parts[name]["result"] for name in names}}
    return found | {key: parts[name]["result"] for key, name in WHOLE.items() if name in parts}
