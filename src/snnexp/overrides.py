"""What the command line means before Hydra reads it: `experiment=`, lists, and who wins over an experiment file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from snnexp.errors import ConfigError
from snnexp.helptext import GROUPS


def complete(arguments: list[str], conf: Path) -> list[str]:
    """Return the arguments for Hydra.

    `experiment=x` becomes `+experiment=x`. An option of another group that is given beside an experiment brings its
    values along, since Hydra lets the experiment's values win over those of `trainer=smoke`, and here the command line
    wins over every file. (A sweep over options, `neuron=a,b`, is left to Hydra: there the experiment's values win.)

    Raises:
        ConfigError: `neuron=[a,b]`, which Hydra would silently merge into one.
    """
    result, chosen = [], {}
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key in GROUPS and value.startswith("["):
            options = ",".join(word.strip() for word in value.strip("[]").split(","))
            raise ConfigError(f"{argument}: a list would merge these options into one. To sweep: -m {key}={options}")
        if key in GROUPS and key != "experiment":
            chosen[key] = value
        result.append(f"+{argument}" if key == "experiment" else argument)
    if any(argument.startswith("+experiment=") for argument in result):
        given = {argument.lstrip("+").partition("=")[0] for argument in result}
        for group, option in chosen.items():
            result += [text for key, text in _values(conf / group / f"{option}.yaml", group) if key not in given]
    return result


def _values(path: Path, group: str) -> Iterator[tuple[str, str]]:
    """Key and override for every value that an option's file sets; none if there is no such file (Hydra says so)."""
    from omegaconf import OmegaConf

    if not path.is_file():
        return
    content = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(content, dict)
    content.pop("defaults", None)
    is_global = path.read_text(encoding="utf-8").startswith("# @package _global_")
    for key, value in _flat(content, "" if is_global else f"{group}."):
        if key != group:  # task: the group's own name
            # quoted, so that Hydra's grammar leaves a model.spec with brackets alone
            yield key, f"{key}='{value}'" if isinstance(value, str) else f"{key}={_written(value)}"


def _flat(node: dict[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _written(value: Any) -> str:
    """A YAML number, truth value or null as the command line writes it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
