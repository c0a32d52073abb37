"""docs/results.md and the figures from results/*.json: `python -m snnexp.claims.page [results [docs/results.md]]`.

Nothing on the page is typed by hand: tables, verdicts and figures are worked out anew from the runs and the claim in
each file, so that a change of a rule, or of how figures look, reaches all of them.
"""

from __future__ import annotations

import sys
from pathlib import Path

from snnexp.claims.collect import read_results
from snnexp.claims.figure import draw
from snnexp.claims.judge import RULES, judge
from snnexp.claims.table import difference_text, markdown

HEAD = """# What was reproduced, and what was not

Made from the files in `results/` by `make results`; do not edit. Each file holds the claim, every run with its command,
commit and data, and its curves; `snnexp task=reproduce +experiment=NAME` makes it anew ([how](reproducing.md)). A *no*
stays. What was tried on the way is in [tried.md](tried.md).
"""


def page(folder: Path) -> str:
    """The whole page: an overview, the rules, and a section for each file."""
    sections, overview, rows, runs_in_all = [], [], 0, 0
    for path in sorted(folder.glob("*.json")):
        content, claim, runs = read_results(path)
        judgement = judge(claim, runs, content["changed"])
        data = sorted({"all" if run.complete else f"{run.samples.get('train', 0):,} training samples" for run in runs})
        seeds = len({run.seed for run in runs})
        title = f"{claim.paper}, {claim.where}"
        seen = "-"
        if judgement.differences and (first := judgement.differences[0]).mean is not None:
            unit = "" if claim.unit == "1" else f" {claim.unit}"  # 1: a plain number
            seen = f"{first.better} - {first.than}: {difference_text(first)}{unit}"
        cells = (f"[{path.stem}](#{path.stem})", title, ", ".join(data) or "-", str(seeds), seen, judgement.verdict)
        overview.append("| " + " | ".join(cells) + " |")
        rows += len(judgement.rows) + len(judgement.differences)
        runs_in_all += len(runs)
        text = markdown(content, claim, runs, level=3)
        figure = path.with_suffix(".png")
        if figure.is_file():
            text += f"\n![{title}: published and ours](../{folder.name}/{figure.name})\n"
            if (pdf := path.with_suffix(".pdf")).is_file():
                text += f"\n[The same as PDF](../{folder.name}/{pdf.name}), as wide as a paper's column.\n"
        sections.append(f'<a id="{path.stem}"></a>\n\n{text}')
    lines = [HEAD, f"{len(overview)} claims, {rows} rows, {runs_in_all} runs.", ""]
    lines += [
        "| file | claim | data | seeds | first difference | verdict |",
        "|---|---|---|---:|---|---|",
        *overview,
        "",
    ]
    lines += ["## Rules", "", *(f"- {rule}" for rule in RULES), "", "## Tables", "", *sections]
    return "\n".join(lines).rstrip() + "\n"


def draw_figures(folder: Path) -> list[Path]:
    """Every figure anew, as PNG and PDF, from the runs and the claim in its file; nothing is run for it."""
    written = []
    for path in sorted(folder.glob("*.json")):
        _, claim, runs = read_results(path)
        if runs:
            written += draw(path.with_suffix(""), claim, runs)
    return written


def main() -> None:
    """Draw the figures and write the page, which links to them."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "results")
    target = Path(sys.argv[2] if len(sys.argv) > 2 else "docs/results.md")
    figures = draw_figures(folder)
    target.write_text(page(folder), encoding="utf-8")
    print(f"written: {target}, and {len(figures)} figures in {folder}")


if __name__ == "__main__":
    main()
