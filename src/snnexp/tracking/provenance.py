"""Which code made a run. MLflow sets git.commit only if the main script lies in a git tree: an installed command's does
not, so we look at where the package's own source lies."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path

from snnexp.version import __version__


@functools.cache
def code_tags() -> dict[str, str]:
    """Version, and git commit, branch and dirty flag if the package runs from a git checkout of its own."""
    tags = {"snnexp.version": __version__}
    source = Path(__file__).resolve().parents[1]
    # tracked? an environment inside somebody else's repository must not lend us that one's commit
    if git(source, "ls-files", "--error-unmatch", "__init__.py") is None:
        return tags
    commit = git(source, "rev-parse", "HEAD")
    if commit:
        tags["git.commit"] = commit
        tags["git.branch"] = git(source, "rev-parse", "--abbrev-ref", "HEAD") or ""
        changed = git(source, "status", "--porcelain", "--untracked-files=no")
        tags["git.dirty"] = "unknown" if changed is None else ("true" if changed else "false")
    return tags


def git(folder: Path, *arguments: str) -> str | None:
    """What git prints there, or None if there is no git, or no repository."""
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None  # no git, or no repository
    return done.stdout.strip()
