"""A search as it was asked for, checked before a record or a study is made."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from snnexp.composition import explain
from snnexp.errors import ConfigError
from snnexp.search.conf import SearchConf, check, resolve_storage, sampler_name, search_of
from snnexp.search.space import Space, Texts, parse_space
from snnexp.search.study import make_pruner, make_sampler

if TYPE_CHECKING:
    from hydra.core.config_loader import ConfigLoader

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Search:
    """A search as it was asked for, checked."""

    conf: SearchConf
    space: Space
    study: str  # its name
    storage: str  # resolved and masked
    max_epochs: int
    folder: Path  # the sweep's
    lock: Path  # its folder, beside the runs


def study_name(sweep_id: str) -> str:
    """Of the study of a sweep; it begins with letters, so that nothing reads it as a number."""
    return f"search-{sweep_id}"


def prepare(config: DictConfig, sweep_id: str) -> Search:
    """Check everything that can be checked before a record or a study is made.

    Raises: ConfigError.
    """
    conf = search_of(config)
    assert conf is not None
    check(conf, config.task)
    space = parse_space(list(config.hydra.overrides.task), conf.params, GlobalHydra.instance().config_loader())
    if sampler_name(conf) == "grid":
        space.grid()
    if sampler_name(conf) == "cmaes" and (texts := [k for k, d in space.dimensions.items() if isinstance(d, Texts)]):
        log.warning("sampler=cmaes is for numbers: it draws %s at random", ", ".join(texts))
    _compose_once(config, space)
    max_epochs = int(config.trainer.max_epochs)
    make_sampler(conf, 0)
    make_pruner(conf, max_epochs)
    start = Path(config.hydra.runtime.cwd)
    lock = start / Path(config.state_dir).expanduser() / study_name(sweep_id)
    storage = resolve_storage(conf, config.tracking, str(start))
    return Search(conf, space, study_name(sweep_id), storage, max_epochs, start / config.hydra.sweep.dir, lock)


def _compose_once(config: DictConfig, space: Space) -> None:
    """With the first value of everything: a wrong key or option ends the search before it begins."""
    loader: ConfigLoader = GlobalHydra.instance().config_loader()
    try:
        loader.load_sweep_config(config, space.overrides(space.first()))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error) or str(error)) from error
