"""Hydra's and OmegaConf's composition errors, said in the user's words with the nearest valid name."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Iterator

from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from snnexp.errors import did_you_mean
from snnexp.folders import conf_dir
from snnexp.helptext import GROUPS, options
from snnexp.words import all_keys, is_word, kinds_of


def explain(error: BaseException) -> str | None:
    """A message for an error of composition or override parsing; None if the error is of another kind."""
    if isinstance(error, MissingConfigException):
        return _missing_option(error)
    if isinstance(error, OverrideParseException):
        return _bad_override(error)
    if isinstance(error, ConfigCompositionException | OmegaConfBaseException):
        return _bad_key_or_value(error)
    if isinstance(error, HydraException):
        return _of_sweeps(str(error).strip())
    return None


def _of_sweeps(said: str) -> str:
    """Hydra's words about a sweep that it cannot do, with the flag or the sweeper that can."""
    if flagless := re.search(r"Sweep parameters '(.+)' requires --multirun", said, re.DOTALL):
        return f"{flagless[1]}: several values. To run one after the other: -m {flagless[1]}"
    if "does not support sweep type : INTERVAL" in said:
        return (
            "interval(...) is for a search, which needs a sweeper of its own: -m hydra/sweeper=optuna (docs/search.md)."
        )
    return said


def _bad_override(error: OverrideParseException) -> str:
    key, equals, value = error.override.partition("=")
    if not key.strip("+~ "):
        return f"{error.override!r}: not an override. Write KEY=VALUE."
    if not equals:
        return f"{error.override}: not an override. Write KEY=VALUE.{_meant_by(key)}"
    if re.search(r"[^\w.@/$+~-]", key):
        return f"{error.override}: {key} cannot be a key. Write KEY=VALUE; a key has dots between its parts."
    # brackets, commas and colons mean something to Hydra; two pairs of quotes, since the shell takes one away
    command = shlex.quote(f"{key}={QuotedString(value, Quote.double).with_quotes()}")
    return f"{error.override}: the value has signs with a meaning of their own. Quote it twice: {command}"


def _meant_by(word: str) -> str:
    """What somebody may have meant who typed an option or a key alone."""
    groups = [group for group in GROUPS if word in options(conf_dir(), group)]
    if groups:
        return f" Did you mean {' or '.join(f'{group}={word}' for group in groups)}?"
    return f" Did you mean {word}=...?" if word in GROUPS or word in all_keys() else ""


def _missing_option(error: MissingConfigException) -> str:
    group, _, option = (error.missing_cfg_file or "").rpartition("/")
    if not error.options:
        return str(error).splitlines()[0]
    options = [o for o in error.options if not o.startswith("schema")]
    valid = sorted(options, key=lambda o: o[:1].isupper())  # our words before torch's classes
    if group == "":
        return f"{option}: no such configuration file.{did_you_mean(option, valid)}"
    nothing = next((o for o in valid if o in ("none", "off")), None)
    if nothing is not None and option.lower() in ("null", "none", "false", "no", "off", ""):
        hint = f" Did you mean {nothing}?"
    else:
        hint = did_you_mean(option, valid)
    return f"{group}={option}: no such option.{hint} Valid: {', '.join(valid)}."


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def wrong_key(error: BaseException) -> str:
    """The dotted key that OmegaConf stumbled over, or an empty string."""
    for cause in _chain(error):
        if isinstance(cause, OmegaConfBaseException) and cause.full_key:
            return str(cause.full_key)
    return ""


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
    several = re.search(r"Multiple values for ([\w/]+).*'override ([^:]+: [^']+)'", text)
    if several:
        return (
            f"{several.group(1)} is chosen a second time. On the command line leave out the +; in a file write "
            f"override /{several.group(2)}."
        )
    for cause in _chain(error):
        if isinstance(cause, OmegaConfBaseException):
            return _wrong_value(cause, given)
    return re.sub(r"^In '?[^':]+'?: *", "", text.strip()).replace("\n", " ")


def _wrong_value(cause: OmegaConfBaseException, given: str) -> str:
    said = str(cause).splitlines()[0]
    key = str(cause.full_key or given.partition("=")[0].lstrip("+"))
    if "is not Optional" in said or "Incompatible value 'None'" in said:
        word = f"; for the word null itself: '{key}=\"null\"'" if given and is_word(kinds_of(key.split("."))) else ""
        return f"{key}: null is no value for it. Leave {key} out{word}."
    value = re.search(r"Merge error: \w+ is not a subclass of \w+\. value: (.*)", said)
    if value:
        return f"{key + ': ' if key else ''}{value.group(1)}: KEY: VALUE lines are expected here."
    return f"{given or key}: {said}." if given or key else f"{said}."


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
    name = name.partition("@")[0] if "/" in name else name
    if name.rpartition("/")[2] in GROUPS and "/" in name:  # `override neuron: x` in a file that lies in a group
        return f"{name}: no such group. In a defaults list write override /{name.rpartition('/')[2]}: OPTION."
    groups = [group for group in GROUPS if group != "experiment"]
    others = sorted(set(keys or ("seed", "device", "run_id")) - set(groups) - {"hydra"})
    hint = _names_like(name, [*groups, *others])
    return f"{name}: no such group or key.{hint} Groups: {', '.join(groups)}. Keys: {', '.join(others)}."


def _names_like(name: str, top: list[str]) -> str:
    """Of groups, keys and the last parts of keys what is `name` or comes close to it: `lr` is optimizer.lr."""
    if "." in name:
        return did_you_mean(name, [*top, *all_keys()])
    full: dict[str, list[str]] = {word: [word] for word in top}
    for key in all_keys():
        if "." in key:
            full.setdefault(key.rpartition(".")[2], []).append(key)
    same = [word for word in (name, f"max_{name}", f"num_{name}") if word in full]
    found = [key for word in same or difflib.get_close_matches(name, full, n=1, cutoff=0.6) for key in full[word]]
    return f" Did you mean {', '.join(found[:-1])}{' or ' if found[1:] else ''}{found[-1]}?" if found else ""
