"""The published curves beside ours: a panel for each metric, a colour for each arm; bars where there is no curve."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from snnexp.claims.conf import ClaimConf
from snnexp.claims.judge import Run, judge, quantity, scale

SUFFIXES = (".png", ".pdf")


def draw(stem: Path, claim: ClaimConf, runs: Sequence[Run]) -> list[Path]:
    """Draw <stem>.png and <stem>.pdf; published solid with marks, ours dashed with one standard deviation shaded."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    metrics = list(dict.fromkeys(curve.metric or claim.metric for curve in claim.curves))
    if not metrics and claim.reading != "end":
        metrics = [claim.metric]
    panels = max(len(metrics), 1)
    figure, axes = plt.subplots(1, panels, figsize=(5.2 * panels + 1.0, 4.0), squeeze=False, layout="constrained")
    if metrics:
        for axis, metric in zip(axes[0], metrics, strict=True):
            _curves(axis, claim, runs, metric)
    else:
        _bars(axes[0][0], claim, runs)
    figure.suptitle(f"{claim.paper}, {claim.where}", fontsize=10)
    paths = [stem.with_name(stem.name + suffix) for suffix in SUFFIXES]
    for path in paths:
        figure.savefig(path, dpi=90, metadata={"CreationDate": None} if path.suffix == ".pdf" else None)
    plt.close(figure)
    return paths


def _curves(axis: Any, claim: ClaimConf, runs: Sequence[Run], metric: str) -> None:
    factor = 100.0 if claim.unit == "%" else 1.0
    for number, arm in enumerate(claim.arms):
        colour = f"C{number}"
        for curve in claim.curves:
            if curve.arm == arm and (curve.metric or claim.metric) == metric:
                known = "published" if (curve.grade or claim.grade) != "unverified" else "not verified"
                axis.plot(curve.epochs, curve.values, "o-", color=colour, markersize=4, label=f"{arm}, {known}")
        ours: dict[int, list[float]] = {}
        for run in (run for run in runs if run.arm == arm):
            points = [(int(epoch), factor * value) for epoch, value in run.curves.get(metric, ())]
            within = [(e, v) for e, v in points if claim.whole is None or e <= claim.whole]
            last = within[-1][1] if within and claim.reading == "share_of" else 1.0
            for epoch, value in within:
                ours.setdefault(epoch, []).append(value / (last or 1.0))
        if ours:
            epochs = sorted(ours)
            means = [statistics.fmean(ours[e]) for e in epochs]
            spread = [statistics.stdev(ours[e]) if len(ours[e]) > 1 else 0.0 for e in epochs]
            n = max(len(values) for values in ours.values())
            axis.plot(epochs, means, "--", color=colour, label=f"{arm}, ours (n = {n})")
            low = [m - s for m, s in zip(means, spread, strict=True)]
            high = [m + s for m, s in zip(means, spread, strict=True)]
            axis.fill_between(epochs, low, high, color=colour, alpha=0.15, linewidth=0)
    axis.set_xlabel("epoch")
    axis.set_ylabel(f"{metric} [{claim.unit}]" if claim.unit else metric)
    axis.legend(fontsize=8)


def _bars(axis: Any, claim: ClaimConf, runs: Sequence[Run]) -> None:
    rows = judge(claim, runs).rows
    places = range(len(rows))
    known = [row.published if row.grade != "unverified" else None for row in rows]
    axis.bar([p - 0.2 for p in places], [v or 0.0 for v in known], 0.4, label="published", color="C7")
    ours, errors = [row.ours or 0.0 for row in rows], [row.sd or 0.0 for row in rows]
    axis.bar([p + 0.2 for p in places], ours, 0.4, yerr=errors, capsize=3, label="ours (mean ± sd)", color="C0")
    several = len({row.quantity for row in rows}) > 1
    names = [row.arm + (f"\n{row.quantity}" if several else "") for row in rows]
    axis.set_xticks(list(places), names, fontsize=7, rotation=20, ha="right")
    numbers = [v for v in (*known, *(row.ours for row in rows)) if v is not None]
    if numbers and scale(claim, quantity(claim, claim.values[0])) == 100.0 and min(numbers) > 50:
        axis.set_ylim(max(0.0, min(numbers) - 5), 100)
    axis.set_ylabel(f"{claim.metric} [{claim.unit}]" if not several else claim.unit)
    axis.legend(fontsize=8)
