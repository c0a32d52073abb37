"""The library's page and the notebooks are run as they stand, in an empty folder each."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib

    matplotlib.use("Agg")
    monkeypatch.chdir(tmp_path)


def run_blocks(blocks: list[str], where: str) -> dict[str, Any]:
    """Execute blocks of code in one namespace, as a notebook does."""
    from matplotlib import pyplot

    names: dict[str, Any] = {"__name__": "__main__"}
    try:
        for number, block in enumerate(blocks, start=1):
            exec(compile(block, f"{where}, block {number}", "exec"), names)
    finally:
        pyplot.close("all")
    return names


def code_of(notebook: dict[str, Any]) -> list[str]:
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_the_page_does_what_it_says(empty_folder: None) -> None:
    text = (DOCS / "library.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == text.count("```") // 2 == 9  # none of another language that nobody runs
    names = run_blocks(blocks, "library.md")
    assert names["out"].spk.shape == (20, 8, 64) and set(names["dead"]) == {"sn1", "sn2"}
    import snnexp

    assert all(f"`{name}" in text for name in snnexp.__all__ if not name.startswith("__"))


QUICK = {"own_data"}  # the page has what the others have


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, id=p.stem, marks=[] if p.stem in QUICK else [pytest.mark.slow]) for p in NOTEBOOKS],
)
def test_notebooks_run(path: Path, empty_folder: None) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells), "commit without outputs"
    names = run_blocks(code_of(notebook), path.name)
    assert names["net"].spiking_layers
    if path.stem == "own_data":
        assert names["net"].class_names == ("left", "right") and names["run"].metrics["test/accuracy"] > 0.7


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of jupyter's
def test_the_quick_start_runs_in_a_real_kernel(empty_folder: None, tmp_path: Path) -> None:
    """Where there is an event loop, IPython's display, and a kernel's own signal handlers."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(DOCS / "notebooks" / "quick_start.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=None, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = "".join(out.get("text", "") for cell in notebook.cells for out in cell.get("outputs", []))
    assert "epoch 2/2" in shown and "test: accuracy" in shown
