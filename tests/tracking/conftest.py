"""Stores and runs for the tests of tracking."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from snnexp.config import TrackingConf
from snnexp.tracking.runs import RunFolder, claim
from snnexp.tracking.store import Tracker, open_tracker

CONFIG: dict[str, Any] = {
    "seed": 0,
    "state_dir": "./runs",
    "dataset": {"name": "digits", "root": "./data", "num_steps": 8},
    "neuron": {"name": "fixed", "threshold": 1.0},
    "trainer": {"name": "default", "max_epochs": 3, "resume": "auto"},
    "tracking": {"name": "mlflow", "uri": None, "experiment": "snnexp", "run_name": None, "system_metrics": False},
}


@pytest.fixture
def config() -> dict[str, Any]:
    """A resolved config, small but with every kind of key."""
    return copy.deepcopy(CONFIG)


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables: about 2 s to make, so made once and copied."""
    from snnexp.tracking.mlflow_store import connect

    path = tmp_path_factory.mktemp("migrated") / "mlflow.db"
    connect(f"sqlite:///{path}", "template")
    return path


@pytest.fixture
def start_dir(tmp_path: Path, migrated: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to start commands in, with a ready database and no server in the environment."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "start here"  # with a space: addresses must survive it
    folder.mkdir()
    shutil.copy(migrated, folder / "mlflow.db")
    return folder


class Opener:
    """Claims and opens runs as the training task does, and lets go of all of them at the end."""

    def __init__(self, start_dir: Path) -> None:
        self.start_dir = start_dir
        self.folders: list[RunFolder] = []

    def __call__(self, config: dict[str, Any], **more: Any) -> tuple[Tracker, RunFolder]:
        folder = claim(config, self.start_dir / "runs", config["trainer"]["resume"])
        self.folders.append(folder)
        return open_tracker(
            TrackingConf(**config["tracking"]), folder, config, start_dir=self.start_dir, **more
        ), folder


@pytest.fixture
def open_run(start_dir: Path) -> Iterator[Callable[..., tuple[Tracker, RunFolder]]]:
    """`tracker, folder = open_run(config)`."""
    opener = Opener(start_dir)
    yield opener
    for folder in opener.folders:
        folder.finish("KILLED")
