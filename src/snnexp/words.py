"""Which keys take words, and how a word arrives as it was typed.

Hydra's grammar and YAML type a value before any schema sees it: `run_id=1234e567` is infinity to the one, `2026_11_25`
a number to both, `off` a truth value to the other. Here the schema is asked first: where it wants a string, the text
counts. Choices of a group are words, too: `tracking=false` names an option, if one that does not exist.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

from hydra.core.override_parser import overrides_parser
from hydra.core.override_parser.overrides_visitor import HydraOverrideVisitor
from hydra.core.override_parser.types import Override, OverrideType, Quote, QuotedString
from hydra.errors import HydraException

from snnexp.helptext import GROUPS

Kinds = frozenset[Any]  # the types that the schemas of a group's options give to one key
NOTHING: Kinds = frozenset()
WORD: Kinds = frozenset({str})

# Functions of Hydra's grammar whose arguments are values of the key; `range(1,3)` counts, `int(5)` says what it wants.
_KEEPS_WORDS = ("choice", "shuffle", "sort", "tag")


class Schema(typing.NamedTuple):
    """What is legal: dataclasses of the whole configuration, and by group and option."""

    main: type
    options: Mapping[str, Mapping[str, type]]


_installed: list[Schema] = []  # `config.register_schemas` hands it over: what reads words needs no import of it


def schema() -> Schema:
    """The schema that words are read by."""
    return _installed[0]


def kinds_of(path: Sequence[str]) -> Kinds:
    """The types that the schemas give to the key at `path`; nothing for a key that no schema has."""
    if list(path[:3]) == ["hydra", "sweeper", "params"] and len(path) == 4:
        key = path[3].lstrip("+")
        return WORD if is_group(key) or is_word(kinds_of(key.split("."))) else NOTHING
    if path and path[0] == "hydra":
        from hydra.conf import HydraConf

        path = path[1:]
        found: Kinds = frozenset({HydraConf})
    else:
        found = frozenset({schema().main})
    for index, part in enumerate(path):
        found = child(found, part)
        if index == 0 and part in schema().options:
            found |= frozenset(schema().options[part].values())
    return found


def child(kinds: Kinds, key: str) -> Kinds:
    """The types of what lies under `key` in a value of one of these types."""
    found: set[Any] = set()
    for kind in map(_without_none, kinds):
        if dataclasses.is_dataclass(kind):
            hint = _hints(typing.cast(type, kind)).get(key)
            found |= set() if hint is None else {hint}
        elif typing.get_origin(kind) in (list, dict):
            found.add(typing.get_args(kind)[-1])
    return frozenset(found)


def is_word(kinds: Kinds) -> bool:
    """Whether a key of these types takes text as it stands."""
    return bool(kinds) and all(_without_none(kind) is str for kind in kinds)


def is_group(key: str) -> bool:
    """Whether `key=value` chooses an option."""
    return key in GROUPS or "/" in key or key.partition("@")[0] in GROUPS


@cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _without_none(kind: Any) -> Any:
    """T for `T | None`."""
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        others = [option for option in typing.get_args(kind) if option is not type(None)]
        return others[0] if len(others) == 1 else kind
    return kind


def all_keys() -> list[str]:
    """Every key of every schema, dotted, in alphabetical order."""
    return sorted(set(_leaves(frozenset({schema().main}), "")))


def _leaves(kinds: Kinds, prefix: str) -> Iterator[str]:
    for kind in map(_without_none, kinds):
        if not dataclasses.is_dataclass(kind):
            yield prefix.rstrip(".")
            continue
        options = schema().options
        for key, hint in _hints(typing.cast(type, kind)).items():
            known = frozenset(options[key].values()) if not prefix and key in options else frozenset({hint})
            yield from _leaves(known, f"{prefix}{key}.")


class WordVisitor(HydraOverrideVisitor):
    """Reads an override, leaving words alone; `experiment=x` is read as `+experiment=x`."""

    def __init__(self, functions: Any) -> None:
        super().__init__(functions)
        self.kinds = NOTHING  # of the value that is being read
        self.chooses = False  # it names an option of a group

    def visitOverride(self, ctx: Any) -> Override:
        override = super().visitOverride(ctx)
        if override.key_or_group == "experiment" and override.type == OverrideType.CHANGE:
            override.type = OverrideType.ADD  # the defaults list of conf/config.yaml has no experiment to change
        return override

    def visitKey(self, ctx: Any) -> Any:
        key = super().visitKey(ctx)
        self.kinds, self.chooses = kinds_of(key.key_or_group.split(".")), is_group(key.key_or_group)
        return key

    def visitPrimitive(self, ctx: Any) -> Any:
        value = super().visitPrimitive(ctx)
        if self.chooses:
            return ctx.getText().strip() if value is None or isinstance(value, bool | int | float) else value
        return ctx.getText().strip() if is_word(self.kinds) and isinstance(value, bool | int | float) else value

    def visitListContainer(self, ctx: Any) -> Any:
        with self._reading(self.kinds if self.chooses else child(self.kinds, "0"), self.chooses):
            return super().visitListContainer(ctx)

    def visitDictKeyValuePair(self, ctx: Any) -> Any:
        with self._reading(child(self.kinds, str(self.visitDictKey(ctx.getChild(0)))), False):
            return super().visitDictKeyValuePair(ctx)

    def visitFunction(self, ctx: Any) -> Any:
        keeps = ctx.getChild(0).getText() in _KEEPS_WORDS
        with self._reading(self.kinds if keeps else NOTHING, self.chooses and keeps):
            return super().visitFunction(ctx)

    @contextmanager
    def _reading(self, kinds: Kinds, chooses: bool) -> Iterator[None]:
        before = self.kinds, self.chooses
        self.kinds, self.chooses = kinds, chooses
        try:
            yield
        finally:
            self.kinds, self.chooses = before


def parse(overrides: list[str]) -> list[Override]:
    """Overrides as this program reads them.

    Raises: OverrideParseException.
    """
    _take_over()
    return overrides_parser.OverridesParser.create().parse_overrides(overrides)


_parse_rule = overrides_parser.OverridesParser.parse_rule


def _parse_words(parser: overrides_parser.OverridesParser, text: str, rule: str) -> Any:
    """Hydra's rule; a word that its grammar has no letters for (`~/data`, `a=b`, `größe`) is taken as it stands."""
    try:
        return _parse_rule(parser, text, rule)
    except HydraException:
        quoted = _in_quotes(text) if rule == "override" else None
        if quoted is None:
            raise
        override = _parse_rule(parser, quoted, rule)
        override.input_line = text
        return override


def _in_quotes(text: str) -> str | None:
    """The override with its word, or each of its words, in quotes; None if brackets or quotes say something else."""
    parts = re.fullmatch(r"((?:\+\+?)?([\w.$/@-]+))=(.*)", text, re.DOTALL)
    if parts is None or re.search(r"[()\[\]{}'\"]", parts[3]):
        return None
    if not (is_group(parts[2]) or is_word(kinds_of(parts[2].split(".")))):
        return None
    return f"{parts[1]}={','.join(QuotedString(word, Quote.double).with_quotes() for word in parts[3].split(','))}"


def install(main: type, options: Mapping[str, Mapping[str, type]]) -> None:
    """Let Hydra read every override in this way: typed, swept, from a file's sweep parameters, or through compose().

    Args:
        main: dataclass of the whole configuration.
        options: group -> option -> dataclass.
    """
    _installed[:] = [Schema(main, options)]
    _take_over()


def _take_over() -> None:
    overrides_parser.HydraOverrideVisitor = WordVisitor  # type: ignore[attr-defined]
    overrides_parser.OverridesParser.parse_rule = _parse_words  # type: ignore[assignment, method-assign]
