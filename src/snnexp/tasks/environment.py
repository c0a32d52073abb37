"""What Hydra knows about this job: where it was started, what the user typed, and the sweep that it belongs to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from snnexp.config import Config


@dataclass(frozen=True)
class Environment:
    """`parent_run_id` and `sweep_id` are None outside a sweep."""

    start_dir: Path
    overrides: tuple[str, ...]
    in_sweep: bool
    parent_run_id: str | None
    sweep_id: str | None


def environment(cfg: DictConfig) -> Environment:
    """Read it from Hydra's state; outside a Hydra job (tests) there is no sweep and the folder is the current one."""
    if not HydraConfig.initialized():
        return Environment(Path.cwd(), (), False, None, None)
    from snnexp.tracking.sweep import current_sweep

    hydra = HydraConfig.get()
    in_sweep = hydra.mode == RunMode.MULTIRUN
    sweep = current_sweep(Path(hydra.sweep.dir)) if in_sweep else None
    return Environment(
        start_dir=Path(hydra.runtime.cwd),
        overrides=tuple(hydra.overrides.task),
        in_sweep=in_sweep,
        parent_run_id=sweep.parent_run_id if sweep else None,
        sweep_id=sweep.sweep_id if sweep else None,
    )


def absolute_paths(conf: Config, cfg: DictConfig) -> None:
    """Make the folders of the configuration absolute: relative ones start where the command was started."""
    start = Path(HydraConfig.get().runtime.cwd) if HydraConfig.initialized() else Path.cwd()
    for owner, node, key in ((conf, cfg, "state_dir"), (conf.dataset, cfg.dataset, "root")):
        path = str((start / Path(getattr(owner, key)).expanduser()).resolve())
        setattr(owner, key, path)
        node[key] = path
