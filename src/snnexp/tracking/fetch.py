"""Files of an earlier run, from the MLflow store."""

from __future__ import annotations

import os
from pathlib import Path

from snnexp.config import TrackingConf
from snnexp.tracking.store import resolve_uri


def fetch_artifact(conf: TrackingConf, start_dir: Path, run_id: str, name: str) -> Path | None:
    """Download one artifact to a temporary folder; None if the store or the run does not have it."""
    uri = resolve_uri(conf.uri, start_dir)
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
        return None  # asking MLflow would create an empty store
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow
    from mlflow.exceptions import MlflowException

    try:
        return Path(mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=name, tracking_uri=uri))
    except (MlflowException, OSError):
        return None
