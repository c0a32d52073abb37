"""MLflow's chart page, arranged: accuracy first, then dead neurons, then the rest, folded.

By itself the page has a section for every prefix of a metric's name, in the order of the alphabet, and hides the runs
of a sweep inside their parent. What its *Share* button keeps, the page also takes from us: a view, a JSON text in a tag
of the experiment, which the address names with `viewStateShareKey`. It holds the filter, the sections and the charts.
A version of MLflow that reads it no longer says so on the page, and shows what it shows by itself.
"""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Iterable
from typing import Any

TAG = "mlflow.sharedViewState."  # followed by the key
MAX_RUNS = 20  # the page draws the first so many; it offers 10 and 20
MAX_TAG = 5000  # the least of MLflow's limits over its versions
STATISTICS = ("min", "mean", "max")

# Section, whether it is open, and the names that are in it, in this order. What none of them takes is in the last.
SECTIONS = (
    ("Accuracy and dead neurons", True, r"val/accuracy|val/dead_neurons|test/accuracy"),
    ("Dead neurons, layer by layer", True, r"val/dead_fraction/.+"),
    ("Learned thresholds, decays, delays (min, mean, max)", True, r"(threshold|beta|alpha|delay)/.+"),
    ("Firing rates", False, r"val/(firing_rate|saturated_fraction)/.+"),
    ("Training", False, r"train/accuracy|train/loss|val/loss|train/dead_neurons|train/(revived|newly_dead)/.+"),
    ("Test", False, r"test/.+|best/.+|epochs_to/.+"),
    ("Everything else", False, r".+"),
)


def view_tag(key: str, metrics: Iterable[str], search: str = "") -> tuple[str, str] | None:
    """Name and value of the experiment's tag that arranges the chart page; None if it would be too long.

    Args:
        key: what the address calls it.
        metrics: the names that the runs have.
        search: which runs to show, in MLflow's language.
    """
    text = json.dumps(view(metrics, search), separators=(",", ":"))
    value = "deflate;" + base64.b64encode(zlib.compress(text.encode(), 9)).decode("ascii")
    return (TAG + key, value) if len(value) <= MAX_TAG else None


def view(metrics: Iterable[str], search: str = "") -> dict[str, Any]:
    """The state of the page, in its own words."""
    names = sorted(metrics, key=importance)
    placed = {title: [name for name in names if importance(name)[0] == n] for n, (title, _, _) in enumerate(SECTIONS)}
    charts = [_chart(name, title, members) for title, members in placed.items() for name in members]
    sections = [
        {"uuid": title, "name": title, "display": open_, "isReordered": True, "deleted": False, "isGenerated": False}
        for title, open_, _ in SECTIONS
        if placed[title]
    ]
    return {
        "searchFilter": search,
        "orderByKey": "tags.`mlflow.runName`",
        "orderByAsc": True,
        "compareRunCharts": charts,
        "compareRunSections": sections,
        "isAccordionReordered": True,  # else the page sorts the sections by name
        "hideEmptyCharts": True,
        "runsHiddenMode": f"FIRST_{MAX_RUNS}_RUNS",
        "viewMaximized": False,
        "runListHidden": False,
    }


def _chart(name: str, section: str, siblings: list[str]) -> dict[str, Any]:
    """One chart; min, mean and max of a layer are one, and those of them that it covers are marked as removed."""
    chart = {
        "uuid": name,
        "metricSectionId": section,
        "metricKey": name,
        "displayName": name,
        "isGenerated": False,
        "deleted": False,
    }
    if name.startswith(("test/", "best/", "epochs_to/")):
        return {**chart, "type": "BAR"}
    chart |= {"type": "LINE", "xAxisKey": "step", "useGlobalXaxisKey": False, "lineSmoothness": 0}
    quantity, _, rest = name.partition("/")
    statistic, _, layer = rest.partition("/")
    if layer and statistic in STATISTICS:
        trio = [f"{quantity}/{word}/{layer}" for word in STATISTICS]
        first = next(name for name in trio if name in siblings)
        if name == first:
            names = [name for name in trio if name in siblings]
            return {**chart, "selectedMetricKeys": names, "displayName": f"{quantity}, {layer}"}
        return {**chart, "deleted": True}
    return chart


def importance(name: str) -> tuple[int, int, list[tuple[int, str]]]:
    """Sorts metrics as people ask for them: by section, by the place in its pattern, and sn2 before sn10."""
    section = next(n for n, (_, _, pattern) in enumerate(SECTIONS) if re.fullmatch(pattern, name, re.DOTALL))
    alternatives = re.split(r"\|(?![^(]*\))", SECTIONS[section][2])  # those in brackets count as one
    rank = next(n for n, pattern in enumerate(alternatives) if re.fullmatch(pattern, name, re.DOTALL))
    return section, rank, [(int(p), "") if p.isdecimal() else (-1, p) for p in re.split(r"(\d+)", name)]
