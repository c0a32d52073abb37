"""What the command would compose of its words, without a process of its own."""

from __future__ import annotations

from typing import Any

from hydra import compose, initialize_config_dir

from snnexp.cli import conf_dir
from snnexp.config import register_schemas


def compose_words(*words: str) -> Any:
    """The configuration of these overrides, not yet checked."""
    register_schemas()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("config", overrides=list(words))
