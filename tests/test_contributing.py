"""CONTRIBUTING.md: each walk is done as it stands there, in a copy of the source, and its command trains."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
WALKS = {"preset": "**A preset**", "term": "**A term", "loss": "**A loss**", "data set": "**A data set**"}
SMALL = ("trainer=smoke", "trainer.max_epochs=1", "trainer.plots=false", "tracking=off", "model.spec=FC8-SN-FC-SN")


def walk(name: str) -> str:
    start = PAGE.index(WALKS[name])
    ends = [PAGE.index(other) for other in WALKS.values() if PAGE.index(other) > start]
    return PAGE[start : min(ends, default=len(PAGE))]


def follow(text: str, tree: Path) -> list[str]:
    """Do what a walk says in `tree`; returns the words of its command."""

    def change(path: str, old: str, new: str) -> None:
        source = (tree / path).read_text(encoding="utf-8")
        assert source.count(old) == 1, f"{path}: {old!r} stands there {source.count(old)} times"
        (tree / path).write_text(source.replace(old, new), encoding="utf-8")

    for path, content in re.findall(r"[Nn]ew file `([^`]+)`:\n```\n(.*?)```", text, re.S):
        assert not (tree / path).exists()
        (tree / path).write_text(content, encoding="utf-8")
    for path, anchor, content in re.findall(r"In `([^`]+)`, after `([^`]+)`:\n```\n(.*?)```", text, re.S):
        change(path, anchor + "\n", f"{anchor}\n{content}")
    for path, line in re.findall(r"In `([^`]+)`,((?: (?:and )?`[^`\n]+` becomes `[^`\n]+`)+)", text):
        for old, new in re.findall(r"`([^`]+)` becomes `([^`]+)`", line):
            change(path, old, new)
    (command,) = re.findall(r"Try: `([^`]+)`", text)
    return str(command).split()


def test_the_page_is_short() -> None:
    assert len(PAGE.splitlines()) <= 60


def copied(tree: Path) -> Path:
    for folder in ("src", "conf"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return tree


@pytest.mark.parametrize("name", WALKS)
def test_what_a_walk_changes_is_there(name: str, tmp_path: Path) -> None:
    assert follow(walk(name), copied(tmp_path / "tree"))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "preset" else pytest.mark.slow) for name in WALKS]
)
def test_walk(name: str, tmp_path: Path) -> None:
    tree = copied(tmp_path / "tree")
    words = follow(walk(name), tree)
    environment = {**os.environ, "PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "snnexp", *words, *SMALL], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "test: accuracy" in done.stdout
