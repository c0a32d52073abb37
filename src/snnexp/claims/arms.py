"""Arms of a claim: `arm=learned` stands for the words that the experiment's file lists under that name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from snnexp.errors import ConfigError, unknown_choice
from snnexp.helptext import GROUPS


def apply_arm(cfg: DictConfig, typed: Sequence[str] = ()) -> None:
    """Set the values of `cfg.arm` in `cfg`; what the user typed (`typed`: overrides) stays as it was typed.

    An arm may also choose an option of a group (`encoder: rate`): the configuration is then composed once more, as if
    the word had been typed.

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
    values = {str(key): value for key, value in claim.arms[cfg.arm].items() if key not in chosen}
    options = [f"{key}={value}" for key, value in values.items() if key in GROUPS]
    if options:
        _choose(cfg, [*typed, *options])
    for key, value in values.items():
        if key not in GROUPS:
            _set(cfg, key, value)


def _choose(cfg: DictConfig, words: Iterable[str]) -> None:
    from hydra import compose

    arm, composed = cfg.arm, compose("config", overrides=list(words))
    for key in composed:
        cfg[key] = composed._get_node(key)
    cfg.arm = arm


def _set(cfg: DictConfig, key: str, value: Any) -> None:
    missing = object()
    try:
        if OmegaConf.select(cfg, key, default=missing, throw_on_missing=False) is missing:
            raise ConfigError(f"arm={cfg.arm}: {key}: no such key.")
        OmegaConf.update(cfg, key, value)
    except OmegaConfBaseException as error:
        raise ConfigError(f"arm={cfg.arm}: {key}: {str(error).splitlines()[0]}") from error


def single_unless_trained(arguments: Sequence[str]) -> list[str]:
    """An experiment's file is a sweep over its arms and seeds; a task other than training looks at one configuration.

    An explicit -m, --multirun or hydra.mode stays as it is. With task=reproduce, several arms or seeds are what the
    claim's sweep is over (`seed=0,1`), and not a sweep over tables.
    """
    words = [text.partition("=") for text in arguments]
    tasks = [value for key, _, value in words if key.lstrip("+") == "task"]
    explicit = any(key in ("-m", "--multirun", "hydra.mode") for key, _, _ in words)
    if not tasks or tasks[-1] == "train" or explicit:
        return list(arguments)
    if tasks[-1] == "reproduce":
        arguments = [
            f"++hydra.sweeper.params.{key}='{value}'" if key in ("arm", "seed") and "," in value else text
            for text, (key, _, value) in zip(arguments, words, strict=True)
        ]
    return [*arguments, "hydra.mode=RUN"]
