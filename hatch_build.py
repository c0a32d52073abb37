"""The package's readme: README.md, its links made absolute: they work on a package page, too.

The address is the one in pyproject.toml, `project.urls.Source`; it stands nowhere else.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


def absolute_links(text: str, source: str) -> str:
    """`](docs/data.md)` becomes `](SOURCE/blob/main/docs/data.md)`, and pictures `](SOURCE/raw/main/...)`."""

    def absolute(match: re.Match[str]) -> str:
        start, target = match.groups()
        return f"{start}({source}/{'raw' if start.startswith('!') else 'blob'}/main/{target})"

    return re.sub(r"(!?\[[^\]]*\])\((?!https?://|#)([^)\s]+)\)", absolute, text)


class ReadmeHook(MetadataHookInterface):
    """Called by hatchling for `[tool.hatch.metadata.hooks.custom]`."""

    def update(self, metadata: dict[str, Any]) -> None:
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        source = metadata["urls"]["Source"].rstrip("/")
        metadata["readme"] = {"content-type": "text/markdown", "text": absolute_links(text, source)}
