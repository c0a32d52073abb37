"""Where a sweep is looked at: the chart page with its runs, arranged, and one chart with their dead neurons."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from snnexp.tracking import chart_view, links
from snnexp.tracking.reasons import telling_line

if TYPE_CHECKING:
    from snnexp.tracking.mlflow_store import Store

log = logging.getLogger(__name__)

MAX_IN_ADDRESS = 20  # runs: an address with more ids is cut off by some terminals, and nobody tells 20 curves apart
DEAD = "val/dead_neurons"


@dataclass(frozen=True)
class Pages:
    """Lines for the terminal, and links for a description within MLflow's pages (Markdown)."""

    lines: list[str]
    markdown: list[str]


def sweep_pages(store: Store, opened: dict[str, str], children: Sequence[Any]) -> Pages:
    """Arrange the chart page for the children of a sweep, and say where it is.

    Args:
        opened: run_id of the parent, and sweep_id.
        children: MLflow runs, those that belong to another parent included.
    """
    if not children:
        return Pages([], [])
    lines, markdown = [], []
    key = f"sweep-{opened['sweep_id']}"
    charts = links.view_link(store.uri, store.experiment_id, key)
    if not arrange(store, key, opened["run_id"], children):
        charts = links.experiment_link(store.uri, store.experiment_id)
    elif charts is not None:
        markdown.append(f"[Charts of these runs]({charts[charts.index('#') :]})")
    many = len(children) > chart_view.MAX_RUNS
    limit = f" (the first {chart_view.MAX_RUNS} of {len(children)} are drawn; the eye beside a run shows it)" * many
    if charts is not None:
        lines.append(f"Accuracy, dead neurons and thresholds of all runs{limit}:\n  {charts}")
    with_curves = [run.info.run_id for run in children if DEAD in run.data.metrics]
    shown = with_curves[:MAX_IN_ADDRESS]
    some = f" (the first {len(shown)} of {len(with_curves)} runs)" if len(shown) < len(with_curves) else ""
    if shown:
        page = links.metric_link(store.uri, store.experiment_id, shown, [DEAD])
        if page is not None:
            lines.append(f"Dead neurons over epochs, one chart{some}:\n  {page}")
            markdown.append(f"[Dead neurons over epochs{some}]({page[page.index('#') :]})")
    command = links.ui_command(store.uri)
    if command and lines:
        lines.append(f"Serve these pages with:\n  {command}")
    return Pages(lines, markdown)


def arrange(store: Store, key: str, parent: str, children: Sequence[Any]) -> bool:
    """Write the view of the children into the experiment; False if that was not possible."""
    own = f"tags.mlflow.parentRunId = '{parent}'"
    ids = ", ".join(f"'{run.info.run_id}'" for run in children)
    others = any(run.data.tags.get("mlflow.parentRunId") != parent for run in children)
    metrics = {name for run in children for name in run.data.metrics}
    search = f"attributes.run_id IN ({ids})" if others and len(children) <= chart_view.MAX_RUNS else own
    tag = chart_view.view_tag(key, metrics, search)
    if tag is None:
        return False
    try:
        store.client.set_experiment_tag(store.experiment_id, *tag)
    except Exception as error:  # a server may not let everybody change an experiment
        log.info("the chart page could not be arranged: %s", telling_line(error))
        return False
    return True
