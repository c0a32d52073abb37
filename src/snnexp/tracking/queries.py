"""Reading runs back from the MLflow store."""

from __future__ import annotations

import math
from typing import Any

from snnexp.tracking.mlflow_store import Store

ROLE_TAG = "snnexp.role"  # "sweep" on parents, absent on runs
PARENT_TAG = "mlflow.parentRunId"
PRUNED_TAG = "pruned"  # the epoch after which a search ended the run


def search_all(store: Store, filter_string: str = "") -> list[Any]:
    """All active runs of the experiment that match, newest first, whatever their number."""
    runs: list[Any] = []
    token: str | None = None
    while True:
        page = store.client.search_runs([store.experiment_id], filter_string, max_results=1000, page_token=token)
        runs.extend(page)
        token = page.token
        if not token:
            return runs


def is_whole(run: Any) -> bool:
    """Whether a run was trained to its end and tested; one that a search pruned is FINISHED, too."""
    return run.info.status == "FINISHED" and not run.data.tags.get(PRUNED_TAG)


def best_value(store: Store, run: Any, key: str) -> float | None:
    """The largest finite value of a metric over all epochs of training, or None if it was never logged.

    Epoch 0, the untrained network, counts only if there is no other.
    """
    if key not in run.data.metrics:
        return None
    points = store.client.get_metric_history(run.info.run_id, key)
    trained = [point for point in points if point.step > 0] or points
    return max((point.value for point in trained if math.isfinite(point.value)), default=None)
