"""What is wrong with the choice of an option, and which file is to blame, with the line."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from hydra._internal.config_repository import CachingConfigRepository, IConfigRepository
from hydra.core.default_element import ConfigDefault, GroupDefault
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import MissingConfigException
from omegaconf import DictConfig

from snnexp.composition import explain, wrong_key
from snnexp.config_files import FileConfigSource, FileResult
from snnexp.errors import ConfigError
from snnexp.helptext import GROUPS
from snnexp.words import schema


class Repository(CachingConfigRepository):
    """The files of one composition, with the options that were chosen in words."""

    def __init__(self, delegate: IConfigRepository, overrides: Sequence[Override]) -> None:
        super().__init__(delegate)
        given = ((override.key_or_group, override.value()) for override in overrides)
        self.given = {key: value for key, value in given if isinstance(value, str)}
        self.chosen = {f"{group}/{option}" for group, option in self.given.items()}

    def files(self) -> dict[str, FileResult]:
        """What has been read so far, by config path."""
        found = {key.removeprefix("config_path="): result for key, result in self.cache.items()}
        return {path: result for path, result in found.items() if isinstance(result, FileResult)}

    def last_file(self) -> str:
        """The defaults list that was read last."""
        return list(self.files().values())[-1].place(["defaults"])


def blame_file(error: Exception, repo: Repository) -> None:
    """Raise a ConfigError that names the file whose defaults list is wrong, unless the command line is."""
    place = _place(error, repo)
    if place is not None:
        raise ConfigError(f"{place}: {explain(error)}") from error
    if isinstance(error, MissingConfigException):
        _refuse_no_file(error.missing_cfg_file or "", repo)


def blame_values(error: Exception, result: FileResult, package: tuple[str, ...]) -> None:
    """Raise a ConfigError that names the file, and the line of the key that cannot be merged; it lies in `package`."""
    key = [part for part in wrong_key(error).split(".") if part]
    inside = len(package) if tuple(key[: len(package)]) == package else 0
    if not key:
        _refuse_option_as_value(result)
    raise ConfigError(f"{result.place(key[inside:])}: {explain(error)}") from error


def _place(error: Exception, repo: Repository) -> str | None:
    """The file whose defaults list is to blame, with the line of the list; None for words of the command line."""
    files = repo.files()
    named = re.match(r"In '?([^':]+)'?:|Duplicate _self_ defined in (.*)", str(error))
    found: FileResult | None = None
    if isinstance(error, MissingConfigException) and error.missing_cfg_file in repo.chosen:
        return None
    if isinstance(error, MissingConfigException):
        found = next((result for result in files.values() if _mentions(result, error.missing_cfg_file or "")), None)
    elif named is not None:
        found = files.get(named.group(1) or named.group(2))
    elif several := re.match(r"Multiple values for ([\w/]+)", str(error)):
        found = next((f for path, f in files.items() if "/" in path and _sets(f, several.group(1))), None)
    return None if found is None else found.place(["defaults"])


def _mentions(result: FileResult, option: str) -> bool:
    group, _, name = option.rpartition("/")
    return any(
        (isinstance(default, GroupDefault) and default.value == name and (default.group or "").strip("/") == group)
        or (isinstance(default, ConfigDefault) and (default.path or "").strip("/") in (option, name))
        for default in result.defaults_list or ()
    )


def _sets(result: FileResult, group: str) -> bool:
    return any(
        isinstance(d, GroupDefault) and not d.override and (d.group or "").strip("/") == group
        for d in result.defaults_list or ()
    )


def _refuse_option_as_value(result: FileResult) -> None:
    """`neuron: rouser` among the values of a file."""
    for key in map(str, result.config) if isinstance(result.config, DictConfig) else ():
        if key in schema().options and not isinstance(result.config._get_node(key), DictConfig):
            raise ConfigError(
                f"{result.place([str(key)])}: {key} has KEY: VALUE lines here. To choose an option of it, write "
                f"override /{key}: OPTION into the defaults list."
            )


def _refuse_no_file(option: str, repo: Repository) -> None:
    """An option whose file is a folder, or a link to nothing."""
    for source in repo.get_sources():
        path = Path(source.path) / f"{option}.yaml"
        if isinstance(source, FileConfigSource) and os.path.lexists(path):
            raise ConfigError(f"{path}: is {'a folder' if path.is_dir() else 'a link to nothing'}, not a file.")


def check_choice(override: Override) -> None:
    """Refuse what Hydra would do to a group without a word.

    Raises: ConfigError for `neuron=[a,b]`, which would merge the two, for `~neuron`, and for a path instead of a name.
    """
    group, value = override.key_or_group, override.value()
    if not group:
        raise ConfigError(f"{override.input_line}: not an override. Write KEY=VALUE.")
    if override.is_delete() and not override.is_hydra_override():
        instead = f"choose another: {group}=NAME" if group in GROUPS else f"give it another value: {group}=VALUE"
        raise ConfigError(f"{override.input_line}: a configuration has no gaps. Leave it out, or {instead}.")
    if group not in GROUPS:
        return
    if isinstance(value, list):
        names = ",".join(str(name) for name in value)
        raise ConfigError(
            f"{override.input_line}: a list would merge these options into one. To sweep: -m {group}={names}"
        )
    if isinstance(value, str) and (".." in value.split("/") or value.startswith("/")):
        raise ConfigError(
            f"{override.input_line}: an option has a name, not a path. To add your own: --config-dir DIR."
        )


def check_glob(override: Override, repo: IConfigRepository) -> None:
    """A sweep over no option at all would end well without a run."""
    value = override.value()
    if isinstance(value, Glob):
        options = repo.get_group_options(override.key_or_group)
        if not value.filter(options):
            raise ConfigError(f"{override.input_line}: no option matches. Valid: {', '.join(options)}.")
