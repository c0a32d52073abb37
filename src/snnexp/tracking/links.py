"""Addresses into MLflow's pages. Imports nothing: a link must not cost two seconds.

Without `workflowType=machine_learning` a fresh browser lands in the GenAI view, whose charts know nothing of metrics.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import PurePosixPath
from urllib.parse import quote, urlsplit, urlunsplit

from snnexp.commands import program
from snnexp.secrets import mask

LOCAL_UI = "http://127.0.0.1:5000"  # where `mlflow ui` serves a local store


def without_password(uri: str) -> str:
    """`uri` as it may be shown and kept."""
    return mask(uri)


def ui_address(uri: str) -> str | None:
    """Where the store's pages are served: the server itself, or this machine for a database; None if unknown."""
    if uri.startswith(("http://", "https://")):
        parts = urlsplit(uri)
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])).rstrip("/")
    return LOCAL_UI if "://" in uri and not uri.startswith("databricks") else None


def run_link(uri: str, experiment_id: str, run_id: str) -> str | None:
    """The page of one run."""
    base = ui_address(uri)
    return base and f"{base}/#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning"


def experiment_link(uri: str, experiment_id: str) -> str | None:
    """The chart page of an experiment."""
    base = ui_address(uri)
    return base and f"{base}/#/experiments/{experiment_id}/runs?workflowType=machine_learning&compareRunsMode=CHART"


def view_link(uri: str, experiment_id: str, key: str) -> str | None:
    """The chart page of an experiment as a view of `chart_view` arranges it."""
    base = experiment_link(uri, experiment_id)
    return base and f"{base}&viewStateShareKey={quote(key)}"


def metric_link(uri: str, experiment_id: str, run_ids: list[str], metrics: list[str]) -> str | None:
    """The page with one chart: these metrics of all these runs over the epochs. The first metric names the page."""
    base = ui_address(uri)
    return base and f"{base}/{metric_page(experiment_id, run_ids, metrics)}"


def metric_page(experiment_id: str, run_ids: list[str], metrics: list[str]) -> str:
    """The same from within MLflow's pages, wherever they are served."""
    values = {"runs": run_ids, "experiments": [experiment_id], "metric": metrics[0], "plot_metric_keys": metrics}
    asked = "&".join(f"{key}={quote(json.dumps(value, separators=(',', ':')))}" for key, value in values.items())
    return f"#/metric?{asked}&x_axis=step&workflowType=machine_learning"


def compare_link(uri: str, experiment_id: str, run_ids: list[str]) -> str | None:
    """The page that compares runs: parallel coordinates, scatter, contour."""
    base = ui_address(uri)
    runs, experiments = (quote(json.dumps(ids, separators=(",", ":"))) for ids in (run_ids, [experiment_id]))
    return base and f"{base}/#/compare-runs?runs={runs}&experiments={experiments}&workflowType=machine_learning"


def ui_command(uri: str) -> str | None:
    """The command that serves a local store, or None where a server runs already."""
    if uri.startswith(("http://", "https://", "databricks")):
        return None
    if uri.startswith("sqlite:///") and re.search("[%?#]", uri):  # MLflow would take these for escapes
        path = PurePosixPath(uri.removeprefix("sqlite:///"))
        address = f"sqlite:///{path.name}"
        mlflow = program("mlflow", anywhere=True)
        return f"cd {shlex.quote(str(path.parent))} && {mlflow} ui --backend-store-uri {address} --workers 1"
    return f"{program('mlflow')} ui --backend-store-uri {shlex.quote(mask(uri))} --workers 1"
