"""Reading runs back from the MLflow store."""

from __future__ import annotations

import math
from typing import Any

from snnexp.tracking.mlflow_store import Store


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


def best_value(store: Store, run: Any, key: str) -> float | None:
    """The largest finite value of a metric over all epochs, or None if it was never logged."""
    if key not in run.data.metrics:
        return None
    values = [point.value for point in store.client.get_metric_history(run.info.run_id, key)]
    return max((value for value in values if math.isfinite(value)), default=None)
