"""Arms of a claim: `arm=learned` stands for the values that the experiment's file lists under that name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from snnexp.errors import ConfigError, unknown_choice


def apply_arm(cfg: DictConfig, typed: Iterable[str] = ()) -> None:
    """Set the values of `cfg.arm` in `cfg`; a key that the user typed (`typed`: overrides) keeps what was typed.

    Raises: ConfigError if the experiment has no such arm, or the arm sets a key that does not exist.
    """
    if cfg.get("arm") is None:
        return
    claim = cfg.get("claim")
    if claim is None:
        raise ConfigError(f"arm={cfg.arm}: only an experiment with a claim has arms. Add +experiment=NAME.")
    if cfg.arm not in claim.arms:
        raise ConfigError(unknown_choice("arm", cfg.arm, list(claim.arms)))
    chosen = {text.partition("=")[0].lstrip("+~") for text in typed}
    for key, value in claim.arms[cfg.arm].items():
        if key in chosen:
            continue
        try:
            _set(cfg, str(key), value)
        except OmegaConfBaseException as error:
            raise ConfigError(f"arm={cfg.arm}: {key}: {str(error).splitlines()[0]}") from error


def _set(cfg: DictConfig, key: str, value: Any) -> None:
    missing = object()
    if OmegaConf.select(cfg, key, default=missing, throw_on_missing=False) is missing:
        raise ConfigError(f"arm={cfg.arm}: {key}: no such key.")
    OmegaConf.update(cfg, key, value)


def single_unless_trained(arguments: Sequence[str]) -> list[str]:
    """An experiment's file is a sweep over its arms and seeds; a task other than training looks at one configuration.

    An explicit -m, --multirun or hydra.mode stays as it is.
    """
    words = [text.partition("=") for text in arguments]
    tasks = [value for key, _, value in words if key.lstrip("+") == "task"]
    explicit = any(key in ("-m", "--multirun", "hydra.mode") for key, _, _ in words)
    if tasks and tasks[-1] != "train" and not explicit:
        return [*arguments, "hydra.mode=RUN"]
    return list(arguments)
