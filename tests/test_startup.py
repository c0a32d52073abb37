"""The command starts fast: it imports what the task needs, and the collector keeps away from what that brings."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import pytest

from snnexp.collector import importing

# Each costs between 0.1 s and as much as torch. The bundled data need none, and a network that is only looked at
# needs no kernels, no optimizer, no record and no plots; its picture of samples is Pillow's, which is quick.
HEAVY = (
    *("sklearn", "scipy", "pandas", "pyarrow", "joblib", "numba", "llvmlite", "triton", "sympy", "torch._dynamo"),
    *("mlflow", "sqlalchemy", "matplotlib", "tonic", "h5py", "requests", "IPython", "torchvision"),
)


def test_inspect_imports_nothing_that_it_does_not_need(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "snnexp", "task=inspect"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "train 1,292, val 145, test 360" in done.stdout
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    # the list is what we think it is
    assert {
        "torch",
        "snntorch",
        "rich.table",
        "snnexp.data.images.digits",
    } <= imported  # the list is what we think it is
    assert imported.isdisjoint(HEAVY)


def test_training_ends_without_complaints(snnexp, tmp_path: Path) -> None:
    """triton's binding library complains on stderr if the collector never saw its objects."""
    done = snnexp("trainer=smoke", "tracking=off", "trainer.plots=false")
    assert done.returncode == 0, done.stderr
    assert "leaked" not in done.stderr and "Traceback" not in done.stderr


@pytest.fixture
def frozen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Calls of gc.freeze, as if triton were not there (other tests may bring it)."""
    calls: list[str] = []
    monkeypatch.setattr(gc, "freeze", lambda: calls.append("freeze"))
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    assert gc.isenabled()
    return calls


def import_something(monkeypatch: pytest.MonkeyPatch, name: str = "snnexp_imported_by_a_test") -> None:
    monkeypatch.setitem(sys.modules, name, sys)


def test_no_collection_while_importing(frozen: list[str]) -> None:
    with importing():
        assert not gc.isenabled()
        with importing(freeze=True):
            assert not gc.isenabled()
        assert not gc.isenabled()  # the inner block leaves that to the outer one
    assert gc.isenabled()
    with pytest.raises(ImportError), importing():
        raise ImportError
    assert gc.isenabled()
    assert frozen == []


def test_a_collector_that_is_off_stays_off(frozen: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    gc.disable()
    try:
        with importing(freeze=True):
            import_something(monkeypatch)
        assert not gc.isenabled() and frozen == []
    finally:
        gc.enable()


def test_only_a_block_that_imports_freezes_and_only_if_told(frozen: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with importing(freeze=True):
        pass
    with importing():
        import_something(monkeypatch, "snnexp_first")
    assert frozen == []  # the next job of a sweep imports nothing: what the first has left must be collected
    with importing(freeze=True):
        import_something(monkeypatch, "snnexp_second")
    assert frozen == ["freeze"]
    with importing(freeze=True):
        import_something(monkeypatch, "triton")
    assert frozen == ["freeze"]
