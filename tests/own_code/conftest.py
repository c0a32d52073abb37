"""Shared by these tests: a file of the user's own in the folder that the command starts in."""

from pathlib import Path

import pytest


@pytest.fixture
def mine(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with `MINE` of the test's module as mine.py."""
    (tmp_path / "mine.py").write_text(request.module.MINE)
    monkeypatch.chdir(tmp_path)
    return tmp_path
