"""Fixtures for all tests: the real command, the folder of real data, and a quiet MLflow.

No test may depend on how fast the machine is: nothing waits for a subprocess with a limit of its own (the one limit,
`timeout` in pyproject.toml, is for what hangs), and nothing asserts how long something took.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("SNNEXP_AHEAD", "0")  # the cores are the tests' own
# `make test` runs one process per core, and threads that wait for each other crawl on a loaded machine.
# Tests of threads set their number themselves.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Examples take as long as they take.
hypothesis.settings.register_profile("patient", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("patient")

# A shell starts background jobs with SIGINT ignored and children inherit that: tests of Ctrl-C would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def ordinary_floats() -> Iterator[None]:
    """A run in this process flushes denormals to zero; the next test may need them back (hypothesis does)."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)


@pytest.fixture
def threads() -> Iterator[None]:
    """A test may change torch's number of threads."""
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def snnexp(tmp_path: Path) -> Command:
    """Run the real command in a subprocess, started in an empty folder."""

    def run(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_TRACKING", "SNNEXP_START"))}
        return subprocess.run(
            [sys.executable, "-m", "snnexp", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={**environment, **(env or {})},
        )

    return run


@pytest.fixture
def real_data() -> Path:
    """The folder of real data, or the test is skipped."""
    root = os.environ.get("SNNEXP_DATA")
    if not root or not Path(root).is_dir():
        pytest.skip("needs real data: set SNNEXP_DATA to a folder that holds NMNIST/, mnist/, ...")
    return Path(root)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Two processes take file by file in this order: the longest one first, or the other process waits for it."""
    items.sort(key=lambda item: item.path.name != "test_resume.py")
