"""How a YAML file becomes values: every file that Hydra composes is read here, so faults get their file and line.

Besides the values, a file keeps the text of each number and truth value that it has without quotes. `loader.py` puts
the text back where the schema wants a word (`run_name: 1e5`); only there is it known where the file's keys end up.
"""

from __future__ import annotations

import builtins
import codecs
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources

import yaml
from hydra._internal.core_plugins import file_config_source, importlib_resources_config_source
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from omegaconf import OmegaConf
from omegaconf._utils import get_yaml_loader
from yaml.resolver import BaseResolver

from snnexp import registry
from snnexp.errors import ConfigError

TEXT = BaseResolver.DEFAULT_SCALAR_TAG
TYPED = {f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "bool")}
MAX_DEPTH = 50
Path = tuple[str, ...]


@dataclass
class FileResult(ConfigResult):
    """Hydra's result, with what only the file itself knows."""

    file: str = ""
    words: dict[Path, str] = field(default_factory=dict)  # text of what stands there as a number or truth value
    lines: dict[Path, int] = field(default_factory=dict)  # where each key stands

    def place(self, key: Sequence[str] = ()) -> str:
        """`FILE, line N` for a key, or for the nearest one above it that the file has."""
        path = tuple(key)
        while path and path not in self.lines:
            path = path[:-1]
        return f"{self.file}, line {self.lines[path]}" if path else self.file


# Named as Hydra's own: when its plugins are looked for again, as in a launcher's worker process, a class of that name
# stays, and one of another name is an error.
class FileConfigSource(file_config_source.FileConfigSource):
    """Configuration files in a folder: conf/, --config-dir, hydra.searchpath=[file://...]."""

    def load_config(self, config_path: str) -> ConfigResult:
        path = os.path.realpath(os.path.join(self.path, self._normalize_file_name(config_path)))
        if not os.path.exists(path):
            raise ConfigLoadError(f"Config not found : {path}")
        try:
            with open(path, "rb") as file:
                data = file.read()
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}.") from error
        return read(data, path, config_path, self.provider, f"{self.scheme()}://{self.path}")


class ImportlibResourcesConfigSource(importlib_resources_config_source.ImportlibResourcesConfigSource):
    """Configuration files in an importable package: hydra.searchpath=[pkg://...], and Hydra's own."""

    def load_config(self, config_path: str) -> ConfigResult:
        name = self._normalize_file_name(config_path)
        found = resources.files(self.path).joinpath(name)
        if not found.is_file():
            raise ConfigLoadError(f"Config not found : {name}")
        source = f"{self.scheme()}://{self.path}"
        return read(found.read_bytes(), f"{source}/{name}", config_path, self.provider, source)


class NamedConfigSource(ConfigSource):
    """Options without a file: what a group's names and references of the registry stand for."""

    def __init__(self) -> None:
        super().__init__("registry", "registry://")

    @staticmethod
    def scheme() -> str:
        return "registry"

    def available(self) -> bool:
        return True

    def is_group(self, config_path: str) -> bool:
        return config_path in registry.OPTIONS

    def is_config(self, config_path: str) -> bool:
        group, _, word = config_path.partition("/")
        if group not in registry.OPTIONS or not word:
            return False
        kind, _ = registry.OPTIONS[group]
        return word in kind.ours or (":" in word and registry.is_reference(word)) or word in kind.names()

    def list(self, config_path: str, results_filter: ObjectType | None) -> builtins.list[str]:
        if config_path not in registry.OPTIONS or results_filter == ObjectType.GROUP:
            return []
        return list(registry.OPTIONS[config_path][0].names())

    def load_config(self, config_path: str) -> ConfigResult:
        group, _, word = config_path.partition("/")
        kind, base = registry.OPTIONS[group]
        leaf = kind.key.rpartition(".")[2]
        text = f"defaults: [{base}@_here_]\n{leaf}: {json.dumps(word)}\n"
        return read(text.encode(), f"{group}={word}", config_path, self.provider, "registry://")


def install() -> None:
    """Let Hydra read files through this module."""
    Plugins.instance()  # registers Hydra's own sources, once
    for source in (FileConfigSource, ImportlibResourcesConfigSource):
        SourcesRegistry.instance().types[source.scheme()] = source


def read(data: bytes, path: str, config_path: str, provider: str, source: str) -> FileResult:
    """The values of a file's bytes.

    A file in experiment/ is for all groups, with `# @package _global_` or without.

    Raises: ConfigError with file and line if it is not UTF-8 (or UTF-16 with a mark), YAML, and KEY: VALUE lines.
    """
    text = _decoded(data, path)
    loader = get_yaml_loader()
    try:
        stream = loader(text)
        node = stream.get_single_node()
        if node is not None:
            _expect_keys(node, path)
            _keep_words_of_keys(node, 0)
            _keep_words_of_defaults(node, path)
        values = {} if node is None or _is_null(node) else stream.construct_document(node)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(f"{path}, line {line}: a sign that YAML does not allow ({error.reason}).") from error
    except yaml.MarkedYAMLError as error:
        raise ConfigError(_fault(error, path, text)) from error
    except ValueError as error:  # !!int "x", an alias inside its own anchor
        raise ConfigError(f"{path}: {error}.") from error
    header = _header(text, path)
    if header["package"] is None and config_path.startswith("experiment/"):
        header["package"] = "_global_"
    result = FileResult(provider, source, OmegaConf.create(values), header, file=path)
    if node is not None:
        _look_up(node, (), result)
    return result


def _decoded(data: bytes, path: str) -> str:
    marks = (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16")
    encoding = next((name for mark, name in marks if data.startswith(mark)), "utf-8")
    try:
        return data.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path}, line {line}: byte 0x{data[error.start]:02x} is not UTF-8. Save the file as UTF-8 "
            f"(if it is Latin-1: iconv -f LATIN1 -t UTF-8)."
        ) from error


def _fault(error: yaml.MarkedYAMLError, path: str, text: str) -> str:
    """What is wrong, where, and the line itself."""
    mark = error.problem_mark or error.context_mark
    if error.context_mark is not None and "stream" in (error.problem or "") and "end" in (error.problem or ""):
        mark = error.context_mark  # what was never closed, not the end of the file
    line = (mark.line if mark is not None else 0) + 1
    lines = text.split("\n")
    # a tab is found where it ends the token before it, which may be a line above
    tab = next((n for n in (line, line + 1) if n <= len(lines) and re.match(r" *\t", lines[n - 1])), None)
    if tab is not None:
        return f"{path}, line {tab}: a tab. YAML indents with spaces.\n  {lines[tab - 1].strip()}"
    problem = re.sub(r"^found duplicate key (.*)$", r"the key \1 is there a second time", error.problem or "not YAML")
    if problem.startswith("but "):
        problem = f"{error.context}, {problem}"
    if "expected <block end>" in problem or "mapping values are not allowed" in problem:
        problem += " (is it indented like its neighbours?)"
    shown = lines[line - 1].strip() if line <= len(lines) else ""
    return f"{path}, line {line}: {problem}.\n  {shown}".rstrip()


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"


def _at(node: yaml.Node, path: str) -> str:
    return f"{path}, line {node.start_mark.line + 1}"


def _expect_keys(node: yaml.Node, path: str) -> None:
    if not isinstance(node, yaml.MappingNode) and not _is_null(node):
        kind = "a list" if isinstance(node, yaml.SequenceNode) else "a single value"
        raise ConfigError(f"{_at(node, path)}: {kind}, where KEY: VALUE lines are expected.")


def _keep_words_of_keys(node: yaml.Node, depth: int) -> None:
    """Keys are words, also `on:` and `10:`."""
    if depth > MAX_DEPTH:
        raise ValueError("an anchor contains itself, or the file is too deep")
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            key.tag = TEXT if key.tag in TYPED else key.tag
            _keep_words_of_keys(value, depth + 1)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _keep_words_of_keys(value, depth + 1)


def _keep_words_of_defaults(node: yaml.Node, path: str) -> None:
    """Names of groups and options are words: YAML reads the `off` of `override /tracking: off` as false."""
    if not isinstance(node, yaml.MappingNode):
        return
    for key, defaults in node.value:
        if key.value != "defaults" or _is_null(defaults):
            continue
        where, example = _at(defaults, path), "for example: defaults: [override /neuron: rouser, _self_]"
        if not isinstance(defaults, yaml.SequenceNode):
            raise ConfigError(f"{where}: defaults must be a list, {example}.")
        for item in defaults.value:
            pairs = item.value if isinstance(item, yaml.MappingNode) else [(item, item)]
            if isinstance(item, yaml.SequenceNode) or len(pairs) != 1 or _is_null(item):
                raise ConfigError(f"{_at(item, path)}: one group and one option are expected here, {example}.")
            for part in pairs[0]:
                names = part.value if isinstance(part, yaml.SequenceNode) else [part]
                if not all(isinstance(name, yaml.ScalarNode) for name in names):
                    raise ConfigError(f"{_at(part, path)}: the name of an option is expected here, {example}.")
                overriding = str(pairs[0][0].value).startswith("override ")  # without it null means: nothing yet
                for name in names:
                    name.tag = TEXT if name.tag in TYPED or (overriding and _is_null(name)) else name.tag


def _look_up(node: yaml.Node, at: Path, result: FileResult) -> None:
    """Fill in the texts of numbers and truth values without quotes, and the lines of all keys."""
    if isinstance(node, yaml.ScalarNode) and node.tag in TYPED:
        result.words[at] = node.value
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            result.lines[(*at, str(key.value))] = key.start_mark.line + 1
            _look_up(value, (*at, str(key.value)), result)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _look_up(value, (*at, str(index)), result)


def _header(text: str, path: str) -> dict[str, str | None]:
    """The directives (`# @package _global_`) among the comments and blank lines before the first value."""
    header: dict[str, str | None] = {"package": None}
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            break
        directive = re.fullmatch(r"\s*#\s*@(\w+)\s*(.*?)\s*", line)
        if directive is None:
            continue
        key, value = directive.groups()
        if key == "package" and not re.fullmatch(r"(?!_)\S+|_(global|here|group)_\S*", value):
            raise ConfigError(f"{path}, line {number}: {line.strip()}: expected # @package _global_ or a group.")
        header[key] = value
    return header
