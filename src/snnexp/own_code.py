"""Code that is not ours in a run: which keys name it, what it is exactly, and whether it may be imported.

Standard library only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from snnexp.registry import KINDS, Kind


def own_words(config: Any) -> Iterator[tuple[Kind, str]]:
    """Every word of a configuration (typed, or plain dicts) that names something of the registry, ours too."""
    for kind in KINDS.values():
        value = config
        for part in kind.key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else getattr(value, part, None)
        for word in value if isinstance(value, list | tuple) else [value]:
            if isinstance(word, str):
                yield kind, word
