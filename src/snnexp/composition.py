"""Hydra's and OmegaConf's composition errors, said in the user's words with the nearest valid name."""

from __future__ import annotations

import re
from collections.abc import Iterator

from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from snnexp.errors import did_you_mean
from snnexp.helptext import GROUPS


def explain(error: BaseException) -> str | None:
    """A message for an error of composition or override parsing; None if the error is of another kind."""
    if isinstance(error, MissingConfigException):
        return _missing_option(error)
    if isinstance(error, OverrideParseException):
        return _bad_override(error)
    if isinstance(error, ConfigCompositionException | OmegaConfBaseException):
        return _bad_key_or_value(error)
    if isinstance(error, HydraException):
        return str(error).strip()
    return None


def _bad_override(error: OverrideParseException) -> str:
    key, equals, value = error.override.partition("=")
    if not equals:
        return f"{error.override}: not an override. Write KEY=VALUE. ({str(error).splitlines()[0]})"
    # brackets, commas and colons mean something to Hydra; two pairs of quotes, since the shell takes one away
    return f"{error.override}: the value has signs with a meaning of their own. Quote it twice: '{key}=\"{value}\"'"


def _missing_option(error: MissingConfigException) -> str:
    group, _, option = (error.missing_cfg_file or "").rpartition("/")
    if not error.options:
        return str(error).splitlines()[0]
    options = [o for o in error.options if not o.startswith("schema")]
    if group == "":
        return f"{option}: no such configuration file.{did_you_mean(option, options)}"
    return f"{group}={option}: no such option.{did_you_mean(option, options)} Valid: {', '.join(options)}."


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _bad_key_or_value(error: BaseException) -> str:
    text = str(error)
    override = re.search(r"(?:merging override|override) '?([^'\s]+)'?", text)
    given = override.group(1).rstrip(".") if override else ""
    for cause in _chain(error):
        if isinstance(cause, ConfigKeyError | ConfigAttributeError):
            return _no_such_key(cause, given)
    group = re.search(r"Could not override '([^']+)'", text)
    if group:
        return _no_such_group(group.group(1))
    ambiguous = re.search(r"Ambiguous value for argument '([^']+)'", text)
    if ambiguous:
        return f"{ambiguous.group(1)}: several values. To run one after the other: -m {ambiguous.group(1)}"
    for cause in _chain(error):
        if isinstance(cause, OmegaConfBaseException):
            return f"{given + ': ' if given else ''}{str(cause).splitlines()[0]}."
    return text.splitlines()[0]


def _no_such_key(cause: ConfigKeyError | ConfigAttributeError, given: str) -> str:
    name = (cause.full_key or given.partition("=")[0] or str(cause.key)).lstrip("+~")
    parent = cause.parent_node
    keys = [str(key) for key in parent] if parent is not None and hasattr(parent, "keys") else []
    if "." not in name:
        return _no_such_group(name, keys)
    prefix, _, key = name.rpartition(".")
    hint = did_you_mean(f"{prefix}.{key}", [f"{prefix}.{valid}" for valid in keys])
    listed = f" Valid keys: {', '.join(sorted(keys))}." if keys else ""
    return f"{name}: no such key.{hint}{listed}"


def _no_such_group(name: str, keys: list[str] | None = None) -> str:
    groups = [group for group in GROUPS if group != "experiment"]
    others = sorted(set(keys or ("seed", "device", "run_id")) - set(groups) - {"hydra"})
    hint = did_you_mean(name, [*groups, *others])
    return f"{name}: no such group or key.{hint} Groups: {', '.join(groups)}. Keys: {', '.join(others)}."
