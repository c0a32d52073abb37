"""The command line, put in order and checked for what Hydra takes badly: flags between words, unknown or odd flags."""

from __future__ import annotations

import argparse
from pathlib import Path

from snnexp.errors import ConfigError, did_you_mean, unknown_choice

MODES = ("run", "multirun", "cfg", "info", "shell_completion")  # one at a time


def arranged(arguments: list[str]) -> list[str]:
    """Flags first, then overrides in the order in which they were typed: Hydra takes them in no other.

    Raises: ConfigError for unknown or incomplete flags, two modes at once, and bytes that are no text.
    """
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()
    flags: list[tuple[argparse.Action, str | None]] = []
    overrides: list[str] = []
    rest = [_as_text(argument) for argument in arguments]
    while rest:
        argument = rest.pop(0)
        if argument == "--":
            overrides += rest
            break
        if not argument.startswith("-"):
            overrides.append(argument)
            continue
        name, equals, value = argument.partition("=")
        action = _flag(parser, name)
        flags.append((action, value if equals else _value(action, name, rest)))
    _check(flags)
    return [*_written(flags), *overrides]


def _as_text(argument: str) -> str:
    """Python keeps bytes that are not UTF-8 as lone surrogates, which no file and no database takes."""
    if any("\ud800" <= sign <= "\udfff" for sign in argument):
        shown = argument.encode("utf-8", "surrogateescape")
        raise ConfigError(f"{shown!r}: these bytes are no text in this locale. With a UTF-8 locale: LC_ALL=C.UTF-8.")
    return argument


def _flag(parser: argparse.ArgumentParser, name: str) -> argparse.Action:
    known: dict[str, argparse.Action] = parser._option_string_actions
    if name in known:
        return known[name]
    beginnings = {id(known[flag]): known[flag] for flag in known if name.startswith("--") and flag.startswith(name)}
    if len(name) > 2 and len(beginnings) == 1:
        return next(iter(beginnings.values()))
    hint = did_you_mean(name, [flag for flag in known if flag.startswith("--")])
    raise ConfigError(f"{name}: no such flag.{hint} `snnexp --help` lists flags; keys are written KEY=VALUE.")


def _value(action: argparse.Action, name: str, rest: list[str]) -> str | None:
    """The value of a flag that takes one, which is then taken off `rest`."""
    if action.nargs == 0:
        return None
    if action.nargs == "?":  # --info: its own words only, so that an override may follow
        return rest.pop(0) if rest and rest[0] in (action.choices or ()) else None
    if not rest or rest[0].startswith("-"):
        raise ConfigError(f"{name}: a value is expected, as in {name} {_example(action)}.")
    return rest.pop(0)


def _example(action: argparse.Action) -> str:
    return str(next(iter(action.choices))) if action.choices else action.dest.rpartition("_")[2].upper()


def _check(flags: list[tuple[argparse.Action, str | None]]) -> None:
    given: dict[str, str | None] = {}
    for action, value in flags:
        name = action.option_strings[0]
        if action.nargs == 0 and value is not None:
            raise ConfigError(f"{name}={value}: this flag takes no value.")
        if action.choices and value is not None and value not in action.choices:
            raise ConfigError(unknown_choice(name, value, action.choices))
        if action.dest in given and value != given[action.dest]:
            way_out = "'hydra.searchpath=[file://DIR1,file://DIR2]'" if action.dest == "config_dir" else "one of them"
            raise ConfigError(f"{name} is given twice: {given[action.dest]} and {value}. Use {way_out}.")
        if action.dest == "config_dir" and value is not None and not Path(value).is_dir():
            raise ConfigError(f"{name} {value}: no such folder.")
        if action.dest == "experimental_rerun" and value is not None and not Path(value).is_file():
            raise ConfigError(f"{name} {value}: no such file.")
        given[action.dest] = value
    modes = [f"--{mode.replace('_', '-')}" for mode in MODES if mode in given]
    if len(modes) > 1:
        raise ConfigError(f"{' and '.join(modes)}: only one of these can be given.")
    if "resolve" in given and "cfg" not in given:
        raise ConfigError("--resolve: needs --cfg, as in --cfg job --resolve.")


def _written(flags: list[tuple[argparse.Action, str | None]]) -> list[str]:
    """As argparse reads them without doubt: `--config-dir=DIR`; --info without a word means all."""
    return [
        name if action.nargs == 0 else f"{name}={action.const if value is None else value}"
        for action, value in flags
        for name in action.option_strings[:1]
    ]
