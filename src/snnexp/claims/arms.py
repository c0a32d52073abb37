"""Arms of a claim: `arm=learned` stands for the words that the experiment's file lists under that name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from snnexp.config_files import FileResult
from snnexp.errors import ConfigError, unknown_choice
from snnexp.helptext import GROUPS


def arm_file(files: Iterable[FileResult], arm: str, chosen: Iterable[str]) -> tuple[FileResult, list[str]]:
    """What the arm `arm` of an experiment stands for: its values, as a file of their own, and the options it chooses.

    `files` are the experiment's, those that it builds on first; `chosen` are the groups that the command line
    chooses an option of, which the arm leaves alone.

    Raises: ConfigError if the experiment has no such arm.
    """
    names: list[str] = []
    options: dict[str, str] = {}
    found = FileResult("arm", "arm://", OmegaConf.create(), {"package": None}, file=f"arm={arm}")
    for file in files:
        arms = _arms(file)
        names += arms
        for key, value in (arms.get(arm) or {}).items():
            if key in GROUPS:
                options[key] = file.words.get(("claim", "arms", arm, key), str(value))
            else:
                OmegaConf.update(found.config, key, value)
                _keep_place(found, file, arm, key)
    if not names:
        raise ConfigError(f"arm={arm}: only an experiment with a claim has arms. Add +experiment=NAME.")
    if arm not in names:
        raise ConfigError(unknown_choice("arm", arm, list(dict.fromkeys(names))))
    return found, [f"{key}={value}" for key, value in options.items() if key not in set(chosen)]


def chosen_arm(files: Iterable[FileResult]) -> str | None:
    """The arm that an experiment's own files choose with `arm: NAME`, if any."""
    name = None
    for file in files:
        if isinstance(file.config, DictConfig) and file.config.get("arm") is not None:
            name = file.words.get(("arm",), str(file.config.arm))
    return name


def _arms(file: FileResult) -> dict[str, Any]:
    """The arms as they stand in the file; what is wrong with a claim's form is said where it is merged."""
    node: Any = OmegaConf.to_container(file.config)
    for key in ("claim", "arms"):
        node = node.get(key) if isinstance(node, dict) else None
    return {arm: values for arm, values in node.items() if isinstance(values, dict)} if isinstance(node, dict) else {}


def _keep_place(found: FileResult, file: FileResult, arm: str, key: str) -> None:
    """Lines and texts of an arm's key, for faults and words, as if the key stood at the top of a file."""
    at, path = ("claim", "arms", arm, key), tuple(key.split("."))
    found.file = file.file
    found.words |= {(*path, *old[4:]): text for old, text in file.words.items() if old[:4] == at}
    found.lines |= {(*path, *old[4:]): line for old, line in file.lines.items() if old[:4] == at}


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
