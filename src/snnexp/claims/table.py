"""The table of a claim as Markdown: published / ours / difference, the paired differences, the verdict and its rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from snnexp.claims.conf import ClaimConf
from snnexp.claims.judge import RULES, Difference, Row, Run, judge
from snnexp.training.words import duration

_GRADES = {"primary": "", "third_party": " (third party)", "unverified": " (unverified)"}


def markdown(content: Mapping[str, Any], claim: ClaimConf, runs: Sequence[Run], level: int = 2) -> str:
    """One claim's section. `content`: the JSON file's other keys (command, changed, ...)."""
    judgement = judge(claim, runs, content["changed"])
    lines = [f"{'#' * level} {claim.paper}, {claim.where}: {judgement.verdict}", "", f"Claim: {claim.says}.", ""]
    lines += _rows(claim, judgement.rows)
    if judgement.differences:
        lines += ["", *_differences(claim, judgement.differences)]
    lines += ["", *_provenance(content, runs)]
    lines += [f"- {note}" for note in claim.notes]
    if claim.differs:
        lines += ["- our recipe differs or chooses: " + "; ".join(claim.differs)]
    lines += ["", *(f"Rule: {rule}" for rule in RULES)] if level == 2 else []
    return "\n".join(lines) + "\n"


def _rows(claim: ClaimConf, rows: Sequence[Row]) -> list[str]:
    head = (
        "arm",
        "of what",
        f"published [{claim.unit}]",
        f"ours [{claim.unit}]",
        "difference",
        "n",
        "samples",
        "epochs",
        "time per run",
        "verdict",
    )
    lines = [_line(head), _line(["---"] * 2 + ["---:"] * 7 + ["---"])]
    for row in rows:
        ours = "-" if row.ours is None else f"{row.ours:.2f}" + ("" if row.sd is None else f" ± {row.sd:.2f}")
        if row.early and row.ours is not None:
            ours += f" (epoch {row.epochs})" if row.epochs is not None else " (earlier)"
        if row.missing and row.n + row.missing:
            ours += f" (not reached in {row.missing} of {row.n + row.missing})"
        cells = [
            row.arm,
            row.quantity,
            published(row, claim.read_off),
            ours,
            "-" if row.difference is None else f"{row.difference:+.2f}",
            str(row.n),
            "-" if row.samples is None else f"{row.samples:,}",
            "-" if row.epochs is None else str(row.epochs),
            "-" if row.seconds is None else duration(row.seconds),
            row.verdict + (f": {row.why}" if row.why else ""),
        ]
        lines.append(_line(cells))
    return lines


def published(row: Row, read_off: bool = False) -> str:
    """A published value in words; what is not verified is never printed as published."""
    if row.published is None:
        return row.said or "-"
    if row.grade == "unverified":
        return f"not verified: {row.published:g}"
    mark = "≈ " if read_off else ""
    return f"{mark}{row.published:g}{_GRADES[row.grade]}"


def _differences(claim: ClaimConf, differences: Sequence[Difference]) -> list[str]:
    head = (
        "difference, paired over seeds",
        "of what",
        f"published [{claim.unit}]",
        "ours (95 % interval)",
        "n",
        "verdict",
    )
    lines = [_line(head), _line(["---"] * 2 + ["---:"] * 3 + ["---"])]
    for line in differences:
        cells = [
            f"{line.better} - {line.than}",
            line.quantity,
            "-" if line.published is None else f"{line.published:+.2f}",
            difference_text(line),
            str(line.n),
            line.verdict + (f": {line.why}" if line.why else ""),
        ]
        lines.append(_line(cells))
    return lines


def difference_text(line: Difference) -> str:
    """The mean difference with its interval; a dash if there is none."""
    if line.mean is None:
        return "-"
    if line.low is None or line.high is None:
        return f"{line.mean:+.2f}"
    return f"{line.mean:+.2f} ({line.low:+.2f} to {line.high:+.2f})"


def _provenance(content: Mapping[str, Any], runs: Sequence[Run]) -> list[str]:
    """Where the numbers come from: command, commit, data, machine."""
    wanted = content.get("runs_wanted", len(runs))
    lines = [f"- command: `{content['command']}`; {len(runs)} of {wanted} runs finished"]
    if not runs:
        return lines
    commits = sorted({run.commit[:10] + (" (changed files)" if run.dirty else "") for run in runs})
    samples = sorted({", ".join(f"{split} {n:,}" for split, n in run.samples.items()) for run in runs})
    engines = sorted({f"{run.facts.get('device', '?')}, engine {run.facts.get('engine', '?')}" for run in runs})
    whole = "the whole data set" if all(run.complete for run in runs) else "a part of the data set"
    lines.append(f"- commit: {', '.join(commits)}; {'; '.join(samples)} samples ({whole}); {'; '.join(engines)}")
    return lines


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
