"""The door through which Hydra finds `hydra/sweeper=optuna`; the search itself is `snnexp.search`.

Hydra imports every plugin at each start, of any program in this environment: so nothing is imported here that Hydra
has not, and no option is stored here (ours is conf/hydra/sweeper/optuna.yaml). No dataclass either: with
`from __future__ import annotations` one breaks Hydra's scan, which runs a file before it is in sys.modules.
"""

from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class OptunaSearch(Sweeper):
    """Asks Optuna for values, lets the launcher train with them, and tells Optuna what came out."""

    def __init__(self, **settings: Any) -> None:
        self.hydra_context: HydraContext | None = None
        self.config: DictConfig | None = None  # the settings are in it, too
        self.launcher: Launcher | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        from snnexp.search.sweeper import run_search

        assert self.config is not None and self.launcher is not None
        return run_search(self.config, self.launcher, lambda words: self.validate_batch_is_legal([words]))
