"""Commands about runs of the past: which data set and encoder a run has is known only once it is found.

Until then the command line takes the keys of every data set: Hydra composes the option `_any`, whose schema has them
all. The task refuses those that the run's own data set does not have.
"""

from __future__ import annotations

import dataclasses
from typing import Any, get_type_hints

from snnexp.config import DatasetConf, EncoderConf
from snnexp.schema.fields import AnyNames

ANY = "_any"
TASKS = ("evaluate", "export", "report", "probe", "diagnose")  # on runs that exist
BASES: dict[str, type[Any]] = {"dataset": DatasetConf, "encoder": EncoderConf}


def for_any_run(arguments: list[str]) -> list[str]:
    """Choose the option `_any` of each group that is not chosen, if the task is one about runs of the past."""
    given = dict(argument.lstrip("+").partition("=")[::2] for argument in arguments if "=" in argument)
    if not set(given.get("task", "train").split(",")) <= set(TASKS):
        return arguments
    from hydra.core.config_store import ConfigStore

    chosen = [f"{group}={ANY}" for group in BASES if group not in given and "experiment" not in given]
    for group, base in BASES.items():
        # here and not among the other schemas: it is no choice for anybody
        ConfigStore.instance().store(group=group, name=ANY, node=_with_all_keys(base))
    return [*arguments, *chosen]


def is_chosen_for_any_run(override: str) -> bool:
    """Whether `for_any_run` added the override."""
    return override.endswith(f"={ANY}")


def _with_all_keys(base: type[Any]) -> Any:
    """A schema like `base` with the keys of all its variants."""
    own = {f.name for f in dataclasses.fields(base)}
    annotations: dict[str, Any] = {}
    defaults: dict[str, Any] = {}
    for variant in _variants(base):
        types = get_type_hints(variant)
        for f in dataclasses.fields(variant):
            if f.name not in own and f.name not in annotations:
                copy = dataclasses.field(default=f.default, default_factory=f.default_factory, metadata=f.metadata)
                annotations[f.name], defaults[f.name] = types[f.name], copy
    body = {"__annotations__": annotations, "__module__": __name__, **defaults}
    schema: Any = type(f"Any{base.__name__}", (AnyNames, base), body)
    return dataclasses.dataclass(init=False, repr=False, eq=False)(schema)(name=ANY)


def _variants(base: type[Any]) -> list[type[Any]]:
    return [found for variant in base.__subclasses__() for found in (variant, *_variants(variant))]
