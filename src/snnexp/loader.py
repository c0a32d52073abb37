"""How Hydra composes for us: the one place where single runs, the jobs of a sweep, and compose() get the same meaning.

Hydra merges `+experiment=e` last, so its values would win over those of `neuron=mine` beside it. Here the command line
wins over every file: the values of the options that were chosen in words are merged once more, behind the experiment.
What an option takes from the schemas is not, so the experiment keeps every key that the option's own files leave alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from hydra._internal import hydra as hydra_main
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository, IConfigRepository
from hydra.core.default_element import ResultDefault
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, MissingConfigException
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, ListConfig, OmegaConf

from snnexp import config_files, faults, words
from snnexp.config_files import FileResult
from snnexp.errors import ConfigError
from snnexp.faults import Repository
from snnexp.naming import path_word
from snnexp.secrets import mask_composed

EXPERIMENT = "experiment/"


class Loader(ConfigLoaderImpl):
    """Hydra's loader, in which words are read as words, and the command line wins over an experiment's file."""

    # what the last command line said about where to look, for a sweeper that asks for all options (`glob`)
    search: tuple[str | None, list[str]] = (None, [])
    # of the composition under way, for its error message
    repo: Repository | None = None
    loaded: ConfigResult | None = None
    package: tuple[str, ...] = ()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.schema = words.schema()

    def _load_configuration_impl(self, *args: Any, **kwargs: Any) -> DictConfig:
        install(*self.schema)  # a launcher may have brought this object into another process
        try:
            return mask_composed(super()._load_configuration_impl(*args, **kwargs))  # type: ignore[no-any-return]
        except RecursionError as error:
            place = self.repo.last_file() if self.repo is not None else "A configuration file"
            raise ConfigError(f"{place}: a defaults list leads back to its own file.") from error
        except (ValueError, AssertionError) as error:  # Hydra's own for files and words that it did not foresee
            raise ConfigCompositionException(str(error) or "This configuration cannot be composed.") from error
        except (ConfigCompositionException, MissingConfigException) as error:
            if self.repo is not None:
                faults.blame_file(error, self.repo)
            raise
        finally:
            self.repo = self.loaded = None  # launchers pickle this object

    def _parse_overrides_and_create_caching_repo(
        self, config_name: str | None, overrides: list[str]
    ) -> tuple[list[Override], CachingConfigRepository]:
        parsed = words.parse(overrides)
        for override in parsed:
            faults.check_choice(override)
        self.search = config_name, [text for text in overrides if text.startswith("hydra.searchpath=")]
        repo = Repository(self.repository, parsed)
        self._process_config_searchpath(config_name, parsed, repo)
        for override in parsed:
            faults.check_glob(override, repo)
        self.repo = repo
        return parsed, repo

    def _process_config_searchpath(
        self, config_name: str | None, parsed_overrides: list[Override], repo: CachingConfigRepository
    ) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of a folder that is not there: an error, below
            super()._process_config_searchpath(config_name, parsed_overrides, repo)
        for source in repo.get_sources():
            if source.provider.startswith("hydra.searchpath") and not source.available():
                raise ConfigError(f"hydra.searchpath: no such folder or package: {source.full_path()}")

    def get_group_options(
        self,
        group_name: str,
        results_filter: ObjectType | None = ObjectType.CONFIG,
        config_name: str | None = None,
        overrides: list[str] | None = None,
    ) -> list[str]:
        """Options of a group, also those on the search path that this command was given."""
        config_name, overrides = self.search if overrides is None else (config_name, overrides)
        return super().get_group_options(group_name, results_filter, config_name, overrides)

    def _compose_config_from_defaults_list(self, defaults: list[ResultDefault], repo: IConfigRepository) -> DictConfig:
        if isinstance(repo, Repository):
            defaults = command_line_last(defaults, repo)
        try:
            return super()._compose_config_from_defaults_list(defaults, repo)
        except ConfigCompositionException as error:
            if isinstance(self.loaded, FileResult):  # the last: each file is merged right after it is loaded
                faults.blame_values(error, self.loaded, self.package)
            raise

    def _load_single_config(self, default: ResultDefault, repo: IConfigRepository) -> ConfigResult:
        assert default.config_path is not None
        self.loaded = loaded = repo.load_config(default.config_path)
        result = super()._load_single_config(default, repo)
        package = (default.package or "").removeprefix("_global_").strip(".")
        self.package = tuple(package.split(".")) if package else ()
        if isinstance(loaded, FileResult):
            _put_words(result.config, [((*self.package, *path), text) for path, text in loaded.words.items()])
        return result


def command_line_last(defaults: list[ResultDefault], repo: Repository) -> list[ResultDefault]:
    """The files in the order in which they are merged; those of chosen options once more behind the experiment."""
    experiments = _subtrees(defaults, lambda path: path.startswith(EXPERIMENT))
    if not any(experiments):
        return defaults
    end = max(index for index, inside in enumerate(experiments) if inside) + 1
    chosen = _subtrees(defaults, lambda path: path in repo.chosen and not path.startswith(EXPERIMENT))
    again = [d for d, inside in zip(defaults[:end], chosen, strict=False) if inside and not _is_schema(d, repo)]
    return [*defaults[:end], *again, *defaults[end:]]


def _subtrees(defaults: Sequence[ResultDefault], is_root: Callable[[str], bool]) -> list[bool]:
    """For each entry, whether it is a root or was brought in by one, through any number of defaults lists."""
    parents: dict[str, set[str]] = {}
    for default in defaults:
        if default.config_path is not None and default.parent is not None:
            parents.setdefault(default.config_path, set()).add(default.parent)

    def inside(path: str | None, seen: frozenset[str]) -> bool:
        if path is None or path in seen:
            return False
        return is_root(path) or any(inside(parent, seen | {path}) for parent in parents.get(path, ()))

    return [
        default.config_path is not None
        and (is_root(default.config_path) or inside(default.parent, frozenset({default.config_path})))
        for default in defaults
    ]


def _is_schema(default: ResultDefault, repo: IConfigRepository) -> bool:
    assert default.config_path is not None
    loaded = repo.load_config(default.config_path)
    return loaded is None or loaded.is_schema_source


def _put_words(config: Any, texts: Iterable[tuple[tuple[str, ...], str]]) -> None:
    """Put a file's own text back where the schema wants a word."""
    for path, text in texts:
        if not words.is_word(words.kinds_of(path)):
            continue
        node = config
        for part in path[:-1]:
            node = node._get_node(int(part) if isinstance(node, ListConfig) else part)
        node[int(path[-1]) if isinstance(node, ListConfig) else path[-1]] = text


def install(main: type, options: Mapping[str, Mapping[str, type]]) -> None:
    """Make Hydra use this loader, our reading of words, and our reading of files. Again and again does no harm.

    Args: as for `words.install`.
    """
    words.install(main, options)
    config_files.install()
    OmegaConf.register_new_resolver("snnexp.path_word", path_word, replace=True)  # conf/hydra/job_logging
    hydra_main.ConfigLoaderImpl = Loader  # type: ignore[attr-defined]
