"""What Hydra knows about this job: where it was started, what the user typed, and the sweep that it belongs to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from snnexp.config import Config
from snnexp.search.trial import Trial, current_trial
from snnexp.tracking.sweep import Sweep, current_sweep

ONE_BY_ONE = "BasicLauncher"
OWN_TERMINAL = (
    ONE_BY_ONE,
    "submitit",
    "snnexp_launchers",
)  # one job after the other, or each into a file of its own


@dataclass(frozen=True)
class Environment:
    """`sweep` is None outside a sweep, and in one that is not tracked."""

    start_dir: Path
    overrides: tuple[str, ...]
    in_sweep: bool
    sweep: Sweep | None
    beside_others: bool = False  # other jobs of the sweep print to the same terminal meanwhile
    alone: bool = False  # no other job of the sweep runs meanwhile
    number: int = 0  # of the job in its sweep
    trial: Trial | None = None  # in a search


def environment(cfg: DictConfig) -> Environment:
    """Read it from Hydra's state; outside a Hydra job (tests) there is no sweep and the folder is the current one."""
    if not HydraConfig.initialized():
        return Environment(Path.cwd(), (), False, None, alone=True)
    hydra = HydraConfig.get()
    in_sweep = hydra.mode == RunMode.MULTIRUN
    launcher = str(hydra.launcher.get("_target_"))
    return Environment(
        start_dir=Path(hydra.runtime.cwd),
        overrides=tuple(hydra.overrides.task),
        in_sweep=in_sweep,
        sweep=current_sweep(Path(hydra.sweep.dir)) if in_sweep else None,
        beside_others=in_sweep and not any(word in launcher for word in OWN_TERMINAL),
        alone=not in_sweep or ONE_BY_ONE in launcher,
        number=int(hydra.job.num) if in_sweep else 0,
        trial=current_trial(hydra.runtime.cwd, cfg) if in_sweep else None,
    )


def absolute_paths(conf: Config, cfg: DictConfig) -> None:
    """Make the folders of the configuration absolute: relative ones start where the command was started."""
    start = Path(HydraConfig.get().runtime.cwd) if HydraConfig.initialized() else Path.cwd()
    paths = [(conf, cfg, "state_dir"), (conf.dataset, cfg.dataset, "root")]
    if getattr(conf.dataset, "path", None) is not None:
        paths.append((conf.dataset, cfg.dataset, "path"))
    for owner, node, key in paths:
        path = str((start / Path(getattr(owner, key)).expanduser()).resolve())
        setattr(owner, key, path)
        node[key] = path
