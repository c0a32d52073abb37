"""Launchers of a sweep's jobs in other processes: a Slurm cluster (`hydra/launcher=slurm`) and one machine's cores
(`hydra/launcher=joblib`). Both collect how every job ended, whatever happened to some of them."""

from __future__ import annotations

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins


def register() -> None:
    """Let `hydra/launcher=joblib` mean ours. A file in conf/ would be merged into the schema of Hydra's plugin."""
    Plugins.instance()  # looks for plugins, and thereby brings Hydra's own config of that name
    ours = {"_target_": "hydra_plugins.snnexp_launchers.JoblibLauncher", "n_jobs": -1}
    ConfigStore.instance().store(group="hydra/launcher", name="joblib", node=ours, provider="snnexp")
