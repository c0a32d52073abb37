"""From overrides, as on the command line, to a checked configuration, without the command line."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from snnexp.config import Config, register_schemas
from snnexp.errors import ConfigError, SnnexpError
from snnexp.folders import conf_dir


def as_overrides(what: str | Sequence[str], group: str) -> list[str]:
    """The list of overrides; one word alone is an option of `group`: "nmnist" is ["dataset=nmnist"].

    Raises: ConfigError if it is neither.
    """
    if isinstance(what, str):
        return [what if "=" in what else f"{group}={what}"]
    overrides = list(what)
    wrong = [word for word in overrides if not isinstance(word, str)]
    if wrong:
        raise ConfigError(f"{wrong[0]!r}: overrides are words, as on the command line: ['{group}=NAME', 'seed=1'].")
    return overrides


def composed(overrides: Sequence[str], config_dir: str | Path | None = None) -> tuple[Config, Any]:
    """Compose and check a configuration; inside `borrowed_hydra`, whose HydraConfig then knows of it.

    Returns: the typed configuration, and the composed one with Hydra's own node left out.
    Raises: ConfigError, with the message that the command would show.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import open_dict

    from snnexp.composition import explain
    from snnexp.overrides import arranged
    from snnexp.secrets import mask_arguments
    from snnexp.settled import settle_store
    from snnexp.validation import validate

    if flags := [word for word in overrides if word.startswith("-")]:
        raise ConfigError(f"{flags[0]}: flags are for the command line. Give KEY=VALUE, and call once for each run.")
    typed = arranged(mask_arguments(list(overrides)))
    if config_dir is not None:
        typed = [f"hydra.searchpath=[file://{Path(config_dir).expanduser().resolve()}]", *typed]
    register_schemas()
    try:
        with initialize_config_dir(str(conf_dir()), job_name="snnexp", version_base="1.3"):
            cfg = compose("config", typed, return_hydra_config=True)
        if cfg.hydra.mode == RunMode.MULTIRUN:
            raise ConfigError(
                "this experiment is a sweep over its arms and seeds. Choose one run of it (arm=NAME hydra.mode=RUN), "
                "or start the sweep on the command line."
            )
        with open_dict(cfg):
            cfg.hydra.mode = RunMode.RUN
        HydraConfig.instance().set_config(cfg)
        plain = copy.deepcopy(cfg)
        with open_dict(plain):
            del plain["hydra"]
        settle_store(plain)
        return validate(plain), plain
    except SnnexpError:
        raise
    except Exception as error:
        if (message := explain(error)) is None:
            raise
        # what is advice for the command line only
        message = re.sub(r"To run one after the other: .*", "Call once for each of them.", message)
        raise ConfigError(message) from error
