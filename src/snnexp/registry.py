"""One door for everything that has a name: our own losses, surrogates, encoders, readers, ..., and a user's.

A thing is named by a word of ours, by the word under which an installed package registered it (an entry point), or by
where it lies: `package.module:name` or `file.py:name`. Nothing is imported before it is used, and nothing here imports
torch: `--help`, completion and the configuration's checks read the same tables.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import logging
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from snnexp.blame import line_of, said
from snnexp.errors import ConfigError, did_you_mean, unknown_choice

log = logging.getLogger(__name__)

_KNOWN = ("snnexp", "snntorch", "torch")


@dataclass(frozen=True)
class Kind:
    """One kind of named thing.

    Attributes:
        key: of the configuration, where its name stands.
        group: of entry points, under which packages register their own.
        contract: how it is called, in one line, for messages and documentation.
        ours: our own words, and where each of them lies (`module:name`).
    """

    key: str
    group: str
    contract: str
    ours: Mapping[str, str]

    def names(self) -> tuple[str, ...]:
        """Every word that may stand at the key: ours, then those of installed packages."""
        return (*self.ours, *(name for name in registered(self.group) if name not in self.ours))


def _in(module: str, *names: str) -> dict[str, str]:
    return {name: f"{module}:{name}" for name in names}


_SNNTORCH = (
    *("SFS", "SSO", "atan", "fast_sigmoid", "heaviside", "sigmoid", "spike_rate_escape"),
    *("straight_through_estimator", "triangular"),
)  # functions of snntorch.surrogate that need no argument and work (in 1.0.0 LSO raises)

READERS = Kind(
    "dataset.reader",
    "snnexp.readers",
    "open_reader(conf) -> an object with shape, class_names and recordings()",
    {
        name: f"snnexp.data.readers.{module}:open_reader"
        for name, module in {
            **{name: name for name in ("nmnist", "dvs128", "cifar10dvs", "randman", "motion", "folder", "own")},
            "shd": "heidelberg",
            "ssc": "heidelberg",
            "tonic": "tonic_set",
        }.items()
    },
)
LOSSES = Kind(
    "decoder.loss",
    "snnexp.losses",
    "loss(spk, mem, labels) -> scalar; spk and mem [T, B, classes], labels [B]",
    _in(
        "snnexp.decoders",
        *("cross_entropy", "mse", "mse_step", "ce_step", "tet", "ce_temporal", "mse_temporal"),
    ),
)
SURROGATES = Kind(
    "neuron.surrogate.name",
    "snnexp.surrogates",
    "derivative(x) of the step, for x = membrane - threshold of any shape",
    _in(
        "snnexp.neurons.surrogates",
        *("atan", "fast_sigmoid", "sigmoid", "triangular", "rectangular", "exponential"),
    )
    | {f"snntorch:{name}": f"snntorch.surrogate:{name}" for name in _SNNTORCH},
)
EQUATIONS = Kind(
    "neuron.equation",
    "snnexp.equations",
    "step(x, mem, spk, *states, *, spike, values) -> (mem, spk, *states)",
    {},
)
NEURON_MODULES = Kind("neuron.module", "snnexp.neurons", "a torch.nn.Module: forward(x, *states) of one step", {})

ENCODERS = Kind(
    "encoder.name",
    "snnexp.encoders",
    "encode(x, num_steps) of images x [B, C, H, W] in 0..1 -> input over time [T, B, C, H, W]",
    _in("snnexp.encoders", "direct", "rate", "latency", "delta") | {"none": "snnexp.encoders:none"},
)
# torch.optim's, but for those that need more than gradients: LBFGS (a closure), SparseAdam (sparse gradients)
OPTIMIZERS = Kind(
    "optimizer.name",
    "snnexp.optimizers",
    "a torch.optim.Optimizer: Optimizer(parameter groups, lr=, **kwargs)",
    {"adam": "torch.optim:Adam", "adamw": "torch.optim:AdamW", "sgd": "torch.optim:SGD"}
    | _in(
        "torch.optim",
        *("ASGD", "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Rprop"),
        "SGD",
    ),
)
# those that numbers are enough to make
SCHEDULERS = Kind(
    "scheduler.name",
    "snnexp.schedulers",
    "a scheduler of torch.optim.lr_scheduler, or what makes one: make(optimizer, **kwargs)",
    {"none": "snnexp.training.optimisation:constant"}
    | {"cosine": "torch.optim.lr_scheduler:CosineAnnealingLR", "step": "torch.optim.lr_scheduler:StepLR"}
    | _in(
        "torch.optim.lr_scheduler",
        *("ConstantLR", "CosineAnnealingLR", "CosineAnnealingWarmRestarts", "CyclicLR", "ExponentialLR", "LinearLR"),
        *("MultiStepLR", "OneCycleLR", "PolynomialLR", "ReduceLROnPlateau", "StepLR"),
    ),
)
CALLBACKS = Kind(
    "trainer.callbacks",
    "snnexp.callbacks",
    "a class with any of on_start(context), on_epoch(context), on_end(context)",
    {},
)
MODELS = Kind(
    "model.module",
    "snnexp.models",
    "a torch.nn.Module: forward(x [T, B, C, H, W]) -> spikes [T, B, classes], or spikes and membranes",
    {},
)

KINDS: dict[str, Kind] = {
    kind.key: kind
    for kind in (
        *(READERS, LOSSES, SURROGATES, EQUATIONS, NEURON_MODULES),
        *(ENCODERS, OPTIMIZERS, SCHEDULERS, CALLBACKS, MODELS),
    )
}

# Groups of the configuration in which `group=word` may name such a thing, with the option that it stands on.
OPTIONS: dict[str, tuple[Kind, str]] = {
    "encoder": (ENCODERS, "/schema/encoder/base"),
    "optimizer": (OPTIMIZERS, "/schema/optimizer/base"),
    "scheduler": (SCHEDULERS, "/schema/scheduler/base"),
    "model": (MODELS, "own"),
    "dataset": (READERS, "own"),
}


# --- names --------------------------------------------------------------------------------------------------------


def registered(group: str) -> Mapping[str, tuple[metadata.EntryPoint, ...]]:
    """What installed packages register in a group, by name; one with damaged metadata is left out, with a warning."""
    return scanned().get(group, {})


@functools.cache
def scanned() -> dict[str, dict[str, tuple[metadata.EntryPoint, ...]]]:
    """All that installed packages register, by group and name: looked at once, and only by who needs it."""
    groups = {kind.group for kind in KINDS.values()}
    found: dict[str, dict[str, dict[str, metadata.EntryPoint]]] = {}
    for package in metadata.distributions():
        try:
            for point in package.entry_points:
                if point.group not in groups:
                    continue
                if re.fullmatch(r"[\w.]+:\w+", point.value):
                    names = found.setdefault(point.group, {}).setdefault(point.name, {})
                    names.setdefault(f"{_package_of(point)} {point.value}", point)
                else:
                    wrong = f"{point.group}: {point.name}={point.value}"
                    log.warning("%s registers %s: that is no package.module:name", _package_of(point), wrong)
        except Exception as error:  # somebody else's package: runs that do not use it go on
            log.warning("the entry points of the package in %s cannot be read: %s", _place(package), error)
    return {
        group: {name: tuple(points.values()) for name, points in sorted(names.items())}
        for group, names in found.items()
    }


def registered_names() -> list[tuple[str, str, str]]:
    """Key, name and package of everything that installed packages register."""
    return [
        (kind.key, name, " and ".join(map(_package_of, points)))
        for kind in KINDS.values()
        for name, points in registered(kind.group).items()
    ]


def _place(package: metadata.Distribution) -> str:
    return str(getattr(package, "_path", "?"))


def _package_of(point: metadata.EntryPoint) -> str:
    dist = getattr(point, "dist", None)
    return "?" if dist is None else str(dist.name)


def is_reference(word: str) -> bool:
    """Whether a word says where something lies, and is no mere name."""
    return re.fullmatch(r"[^:]+[:.]\w+", word) is not None and not word.startswith("snntorch:")


def is_known_module(reference: str) -> bool:
    """Whether a reference lies in a package that a run needs anyway, and not in a file of that name."""
    place = reference.partition(":")[0]
    return is_reference(reference) and not place.endswith(".py") and place.partition(".")[0] in _KNOWN


def reference_of(kind: Kind, word: str) -> str:
    """`module:name` or `file.py:name` of what a word means, without importing it.

    Raises: ConfigError for a name that nobody has, or that two packages have.
    """
    if word in kind.ours:
        return kind.ours[word]
    if is_reference(word):
        return word
    points = registered(kind.group).get(word, ())
    if len(points) > 1:
        packages = " and ".join(sorted(f"{_package_of(p)} ({p.value})" for p in points))
        raise ConfigError(f"{kind.key}={word}: {packages} have this name. Write which one: package.module:name.")
    if points:
        return points[0].value
    if not kind.names() or ":" in word:
        raise ConfigError(f"{kind.key}={word}: write package.module:name or path/to/file.py:name.")
    raise ConfigError(
        f"{unknown_choice(kind.key, word, kind.names())} Your own: {kind.key}=package.module:name or file.py:name."
    )


def problem(kind: Kind, word: str) -> str | None:
    """Say what is wrong with a word, as far as that can be known without importing what it names."""
    try:
        reference = reference_of(kind, word)
        if word not in kind.ours and (place := reference.rpartition(":")[0]).endswith(".py"):
            _file(place)
    except ConfigError as error:
        text = str(error)
        return text if text.startswith(f"{kind.key}=") else f"{kind.key}={word}: {text}"
    return None


# --- loading ------------------------------------------------------------------------------------------------------


def load(kind: Kind, word: str) -> Any:
    """Import what a word means.

    Raises: ConfigError that says what is missing or failed: the name, the file, the module, a line in it.
    """
    if word in kind.ours:
        module, _, name = kind.ours[word].partition(":")
        return getattr(importlib.import_module(module), name)
    try:
        return load_object(kind.key, reference_of(kind, word))
    except ConfigError as error:
        points = () if is_reference(word) else registered(kind.group).get(word, ())
        if not points:
            raise
        said = str(error).partition(": ")[2]
        raise ConfigError(f"{kind.key}={word} (registered by the package {_package_of(points[0])}): {said}") from error


def load_object(key: str, reference: str) -> Any:
    """Load what `package.module:name`, `package.module.name` or `path/to/file.py:name` names.

    Files and modules are looked for in the folder that the command was started in, in --config-dir, and beside it.

    Raises: ConfigError that says what is missing: the file, the module or the name; or what failed, with its line.
    """
    place, _, name = reference.rpartition(":" if ":" in reference else ".")
    if not place or not name.isidentifier() or reference.endswith(".py"):
        raise ConfigError(f"{key}={reference}: write package.module:name or path/to/file.py:name.")
    try:
        module = _file_module(place) if place.endswith(".py") else _named_module(place)
    except ConfigError as error:
        raise ConfigError(f"{key}={reference}: {error}") from error
    except Exception as error:
        where = line_of(error, lambda file: not file.startswith("<") and file != __file__)
        raise ConfigError(f"{key}={reference}: loading {place} failed: {where}{said(error)}") from error
    if not hasattr(module, name):
        public = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise ConfigError(f"{key}={reference}: {place} has no `{name}`.{did_you_mean(name, public)}")
    return getattr(module, name)


def folders() -> list[Path]:
    """Where a user's files and modules may lie: the start folder, then the folders of configuration and beside them."""
    found = [Path.cwd()]
    hydra = sys.modules.get("hydra.core.hydra_config")
    if hydra is not None and hydra.HydraConfig.initialized():
        runtime = hydra.HydraConfig.get().runtime
        found.insert(0, Path(runtime.cwd))
        sources = [Path(s.path) for s in runtime.config_sources if s.schema == "file" and s.provider != "main"]
        found += [folder for source in sources for folder in (source.resolve(), source.resolve().parent)]
    return list(dict.fromkeys(found))


def _named_module(name: str) -> ModuleType:
    with _on_path([] if name.partition(".")[0] in _KNOWN else folders()):
        return importlib.import_module(name)


@contextmanager
def _on_path(extra: list[Path]) -> Iterator[None]:
    places = [str(folder) for folder in extra]
    sys.path[:0] = places
    importlib.invalidate_caches()
    try:
        yield
    finally:
        for place in places:
            sys.path.remove(place)


def _file(place: str) -> Path:
    """The file of that name. Raises: ConfigError with the folders in which it is not."""
    tried = [folder / Path(place).expanduser() for folder in folders()]
    for path in tried:
        if path.is_file():
            return path.resolve()
    if Path(place).expanduser().is_absolute():
        raise ConfigError(f"there is no file {place}.")
    raise ConfigError(f"there is no file {place} in {' or '.join(str(folder) for folder in folders())}.")


def _file_module(place: str) -> ModuleType:
    path = _file(place)
    return _loaded(path, path.stat().st_mtime_ns)


@functools.cache
def _loaded(path: Path, _: int) -> ModuleType:
    name = f"snnexp_user_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look there
    try:
        with _on_path([path.parent, *folders()]):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def source_file(kind: Kind, word: str) -> Path | None:
    """The file that a word's code lies in, without running it; None if it has none (compiled, built in).

    The packages around a module are imported on the way, as Python does to find it.

    Raises: ConfigError if there is no such file or module.
    """
    reference = reference_of(kind, word)
    place = reference.rpartition(":" if ":" in reference else ".")[0]
    try:
        if place.endswith(".py"):
            return _file(place)
        with _on_path(folders()):
            spec = importlib.util.find_spec(place)
    except ConfigError as error:
        raise ConfigError(f"{kind.key}={word}: {error}") from error
    except Exception as error:
        raise ConfigError(f"{kind.key}={word}: loading {place} failed: {said(error)}") from error
    if spec is None:
        raise ConfigError(f"{kind.key}={word}: loading {place} failed: ModuleNotFoundError: No module named {place!r}")
    return Path(spec.origin) if spec.origin and Path(spec.origin).is_file() else None
