"""Fixtures for all tests: the real command, the folder of real data, and a quiet MLflow."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MPLBACKEND", "Agg")

# A shell starts background jobs with SIGINT ignored and children inherit that: tests of Ctrl-C would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def ordinary_floats() -> Iterator[None]:
    """A run in this process flushes denormals to zero; the next test may need them back (hypothesis does)."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)


Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def snnexp(tmp_path: Path) -> Command:
    """Run the real command in a subprocess, started in an empty folder."""

    def run(
        *arguments: str, timeout: float = 240, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_TRACKING", "SNNEXP_START"))}
        return subprocess.run(
            [sys.executable, "-m", "snnexp", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**environment, "OMP_NUM_THREADS": "2", **(env or {})},
        )

    return run


@pytest.fixture
def real_data() -> Path:
    """The folder of real data, or the test is skipped."""
    root = os.environ.get("SNNEXP_DATA")
    if not root or not Path(root).is_dir():
        pytest.skip("needs real data: set SNNEXP_DATA to a folder that holds NMNIST/, mnist/, ...")
    return Path(root)
