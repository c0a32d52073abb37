"""How Hydra composes for us: the one place where single runs, the jobs of a sweep, and compose() get the same meaning.

Hydra merges `+experiment=e` last, so its values would win over those of `neuron=mine` beside it. Here the command line
wins over every file: the values of the options that were chosen in words are merged once more, behind the experiment.
What an option takes from the schemas is not, so the experiment keeps every key that the option's own files leave alone.
The arm of an experiment (`arm=learned`) is a part of its file: its values stand right behind the experiment's own.
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
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf

from snnexp import config_files, faults, words
from snnexp.claims.arms import arm_file, chosen_arm
from snnexp.config_files import FileResult
from snnexp.errors import ConfigError
from snnexp.faults import Repository
from snnexp.naming import path_word
from snnexp.secrets import mask_composed

EXPERIMENT = "experiment/"
FREE = {"params", "kwargs", "sampler_kwargs", "pruner_kwargs"}  # within these, keys of any name are legal
OWN = {"model": "model.module", "dataset": "dataset.reader"}  # groups -> keys that stand on an option `own`
ARM = "arm"  # in a composition, the path of what an arm stands for
MODE = "hydra.mode=RUN"  # what Hydra adds to the words of a single run


class Loader(ConfigLoaderImpl):
    """Hydra's loader, in which words are read as words, and the command line wins over an experiment's file."""

    # what the last command line said about where to look, for a sweeper that asks for all options (`glob`)
    search: tuple[str | None, list[str]] = (None, [])
    # of the composition under way, for its error message
    repo: Repository | None = None
    loaded: ConfigResult | None = None
    package: tuple[str, ...] = ()
    # options that the experiment's arm chooses, as overrides, once they are known
    arm_options: Sequence[str] = ()
    # what was composed last only to learn the mode, and of which words
    asked: tuple[str | None, list[str], DictConfig] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.schema = words.schema()
        _add_names(self.repository.get_sources())

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        """Hydra composes each single run twice, first to learn whether it is one; here the second is the first again.

        Not where the second has more to say: of options that nobody chose, and of values for a sweep.
        """
        asked, self.asked = self.asked, None
        if asked is not None and run_mode == RunMode.RUN and validate_sweep_overrides:
            name, before, cfg = asked
            if name == config_name and [*before, MODE] == overrides and _is_single(cfg, words.parse(implied(before))):
                cfg.hydra.mode = RunMode.RUN
                cfg.hydra.overrides.hydra.append(MODE)
                return cfg
        cfg = super().load_configuration(config_name, overrides, run_mode, from_shell, validate_sweep_overrides)
        if not validate_sweep_overrides:  # only `Hydra.get_mode` asks so, and it leaves what it gets as it is
            self.asked = config_name, list(overrides), cfg
        return cfg

    def _load_configuration_impl(
        self, config_name: str | None, overrides: list[str], *args: Any, **kw: Any
    ) -> DictConfig:
        install(*self.schema)  # a launcher may have brought this object into another process
        try:
            cfg = super()._load_configuration_impl(config_name, overrides, *args, **kw)
            if self.arm_options:  # composed anew, with them
                typed = cfg.hydra
                cfg = super()._load_configuration_impl(config_name, [*overrides, *self.arm_options], *args, **kw)
                cfg.hydra.overrides, cfg.hydra.job.override_dirname = typed.overrides, typed.job.override_dirname
            return mask_composed(cfg)  # type: ignore[no-any-return]
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
            self.arm_options = ()

    def _parse_overrides_and_create_caching_repo(
        self, config_name: str | None, overrides: list[str]
    ) -> tuple[list[Override], CachingConfigRepository]:
        parsed = words.parse(implied(overrides))
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
        _add_names(repo.get_sources())
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
            defaults, self.arm_options = command_line_last(defaults, repo, self.arm_options)
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


def _add_names(sources: list[ConfigSource]) -> None:
    """Look for options among the registry's names, too: behind all files, before the schemas, which stay last."""
    if not any(isinstance(source, config_files.NamedConfigSource) for source in sources):
        sources.insert(-1, config_files.NamedConfigSource())


def _is_single(cfg: DictConfig, overrides: Iterable[Override]) -> bool:
    """Whether a composition for no mode in particular is that of a single run."""
    if cfg.hydra.mode is not None or any(override.is_sweep_override() for override in overrides):
        return False
    choices = cfg.hydra.runtime.choices
    return not any(OmegaConf.is_missing(choices, group) for group in choices)


def implied(overrides: list[str]) -> list[str]:
    """A network or reader of one's own brings its option along: `model.module=x` alone means `model=own`, too."""
    keys = {override.lstrip("+").partition("=")[0] for override in overrides}
    if "run_id" in keys:  # about a run that has all its options
        return overrides
    added = [f"{group}=own" for group, key in OWN.items() if key in keys and group not in keys]
    return [*added, *overrides]


def command_line_last(
    defaults: list[ResultDefault], repo: Repository, arm_options: Sequence[str] = ()
) -> tuple[list[ResultDefault], Sequence[str]]:
    """The files in the order in which they are merged; behind the experiment its arm, then chosen options once more.

    `arm_options` are those of the arm that this composition chooses already, as overrides; returned with the files
    are those that it should choose.
    """
    experiments = _subtrees(defaults, lambda path: path.startswith(EXPERIMENT))
    end = max((index for index, inside in enumerate(experiments) if inside), default=-1) + 1
    of_arm = {option.replace("=", "/", 1) for option in arm_options}

    def again(chosen: set[str]) -> list[ResultDefault]:
        inside = _subtrees(defaults, lambda path: path in chosen and not path.startswith(EXPERIMENT))[:end]
        return [d for d, is_chosen in zip(defaults, inside, strict=False) if is_chosen and not _is_schema(d, repo)]

    arm: list[ResultDefault] = []
    loaded = [repo.load_config(str(d.config_path)) for d, inside in zip(defaults, experiments, strict=True) if inside]
    files = [file for file in loaded if isinstance(file, FileResult)]
    if name := repo.given.get("arm") or chosen_arm(files):
        typed = set(repo.given) - {option.partition("=")[0] for option in arm_options}
        repo.cache[f"config_path={ARM}"], arm_options = arm_file(files, name, typed)
        # its values may be keys of the options that it chooses: they wait until those are chosen
        if {option.replace("=", "/", 1) for option in arm_options} <= of_arm:
            arm = [ResultDefault(ARM, package="")]
    last = [*again(of_arm), *arm, *again(repo.chosen - of_arm)] if end else []
    return [*defaults[:end], *last, *defaults[end:]], arm_options


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


def open_schema(node: type) -> DictConfig:
    """A schema's configuration, open to keys of any name within those of `FREE`."""
    schema: DictConfig = OmegaConf.structured(node)
    for key in FREE & set(schema):
        OmegaConf.set_struct(schema[key], False)
    return schema


def install(main: type, options: Mapping[str, Mapping[str, type]]) -> None:
    """Make Hydra use this loader, our reading of words, and our reading of files. Again and again does no harm.

    Args: as for `words.install`.
    """
    words.install(main, options)
    config_files.install()
    OmegaConf.register_new_resolver("snnexp.path_word", path_word, replace=True)  # conf/hydra/job_logging
    hydra_main.ConfigLoaderImpl = Loader  # type: ignore[attr-defined]
