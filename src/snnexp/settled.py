"""The last touch to a composed configuration before it is checked: which store, without its password."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from snnexp.secrets import mask
from snnexp.tracking.address import resolve_experiment

if TYPE_CHECKING:
    from omegaconf import DictConfig


def settle_store(cfg: DictConfig) -> None:
    """Put the masked address and the experiment's name into the configuration: from here on nothing else is kept."""
    from omegaconf import OmegaConf, read_write

    node = OmegaConf.select(cfg, "tracking")
    if not OmegaConf.is_dict(node):
        return  # `validate` says so
    with contextlib.suppress(Exception), read_write(node):  # an interpolation that fails: `validate` says which
        if isinstance(node.get("uri"), str):
            node["uri"] = mask(node["uri"])
        if "experiment" in node:
            node["experiment"] = resolve_experiment(node["experiment"])
