"""What is searched: Hydra's words for sweeps, as Optuna's distributions, and back as words of the command line.

choice(a, b), a,b, glob(*)     one of these
range(1, 9), range(0, 1, 0.1)  evenly spaced numbers, without the stop, as Hydra counts
interval(0.1, 0.9)             any number between; whole numbers for a key that takes no others, or int(interval(...))
tag(log, interval(1e-4, 1))    evenly in the logarithm
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import FloatRange, IntervalSweep, Override, RangeSweep

from snnexp.errors import ConfigError
from snnexp.words import kinds_of

if TYPE_CHECKING:
    from hydra.core.config_loader import ConfigLoader
    from optuna.distributions import BaseDistribution

EXAMPLE = "'optimizer.lr=tag(log, interval(1e-4, 1e-1))'"
MOST_POINTS = 100_000  # of a grid


@dataclass(frozen=True)
class Numbers:
    """Numbers between two ends, both included; `values` if there are only these."""

    low: float
    high: float
    log: bool = False
    whole: bool = False
    values: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Texts:
    """One of these, as the command line spells them."""

    texts: tuple[str, ...]


Dimension = Numbers | Texts


@dataclass(frozen=True)
class Space:
    """Words of the command line in their order: those that stay as they are, and the keys that are searched."""

    words: tuple[tuple[str, str | None], ...]  # key as typed, with its +, and the value; None: searched
    dimensions: Mapping[str, Dimension]  # by the key as typed

    def overrides(self, params: Mapping[str, Any]) -> list[str]:
        """The words of one trial; numbers are written so that they are read back to the last bit."""
        return [
            f"{key}={value}" if value is not None else f"{key}={self.text(key, params[key])}"
            for key, value in self.words
        ]

    def text(self, key: str, value: Any) -> str:
        """A value of one dimension as the command line spells it."""
        dimension = self.dimensions[key]
        if isinstance(dimension, Texts):
            return str(value)
        if dimension.values is not None:  # Optuna has 0.1 + 2 * 0.1
            value = min(dimension.values, key=lambda v: abs(v - value))
        return repr(int(value) if dimension.whole else float(value))

    def distributions(self) -> dict[str, BaseDistribution]:
        """For Optuna, in the order of the words."""
        return {key: _distribution(dimension) for key, dimension in self.dimensions.items()}

    def first(self) -> dict[str, Any]:
        """The first of everything."""
        return {key: d.texts[0] if isinstance(d, Texts) else d.low for key, d in self.dimensions.items()}

    def grid(self) -> list[dict[str, Any]]:
        """Every combination, the last key fastest. Raises: ConfigError where there is no end of values."""
        points: list[dict[str, Any]] = [{}]
        for key, dimension in self.dimensions.items():
            values: Sequence[Any] | None
            values = dimension.texts if isinstance(dimension, Texts) else dimension.values
            if values is None:
                raise ConfigError(
                    f"hydra.sweeper.sampler=grid: {key} has no end of values. Give it range(...) or choice(...), or "
                    "use sampler=random."
                )
            if len(points) * len(values) > MOST_POINTS:
                raise ConfigError(f"hydra.sweeper.sampler=grid: more than {MOST_POINTS:,} points. Use sampler=random.")
            points = [{**point, key: value} for point in points for value in values]
        return points


def parse_space(words: Sequence[str], params: Mapping[str, Any] | None, loader: ConfigLoader) -> Space:
    """The space of a command: what a file's `hydra.sweeper.params` says, and the words typed, which win over it.

    Raises: ConfigError if nothing is searched, or something that cannot be.
    """
    texts = [*(f"{key}={value}" for key, value in (params or {}).items()), *words]
    parsed = OverridesParser.create(config_loader=loader).parse_overrides(texts)
    last = {override.get_key_element().lstrip("+"): override for override in parsed}
    found: list[tuple[str, str | None]] = []
    dimensions: dict[str, Dimension] = {}
    for name, override in last.items():
        key = override.get_key_element()
        if not override.is_sweep_override():
            found.append((key, override.get_value_string()))  # as it was typed
            continue
        _check_seed(name, override)
        dimension = _dimension(name, override)
        if isinstance(dimension, Texts) and len(dimension.texts) == 1:
            found.append((key, dimension.texts[0]))
            continue
        dimensions[key] = dimension
        found.append((key, None))
    if not dimensions:
        raise ConfigError(
            f"hydra/sweeper=optuna: nothing is searched. Give a key several values, such as {EXAMPLE}, choice(...) or "
            "range(...)."
        )
    return Space(tuple(found), dimensions)


def _check_seed(name: str, override: Override) -> None:
    if name == "seed":
        raise ConfigError(
            f"{override.input_line}: a search does not choose among seeds: the best of several is luck. Give one, and "
            "repeat what was found with several afterwards: -m seed=0,1,2 (hydra/sweeper=basic)."
        )


def _dimension(name: str, override: Override) -> Dimension:
    value: Any = override.value()
    tags = set(getattr(value, "tags", ()))  # glob(*) has none
    if tags - {"log"}:
        raise ConfigError(f"{override.input_line}: tag({', '.join(sorted(tags - {'log'}))}, ...): the one tag is log.")
    if isinstance(value, IntervalSweep):
        return _interval(name, override, value, "log" in tags)
    if isinstance(value, RangeSweep):
        return _range(override, value, "log" in tags)
    if tags:
        raise ConfigError(f"{override.input_line}: log is for interval(...) and range(...), not for a choice.")
    texts = tuple(dict.fromkeys(override.sweep_string_iterator()))
    if not texts:
        raise ConfigError(f"{override.input_line}: there is nothing to choose from.")
    return Texts(texts)


def _interval(name: str, override: Override, value: IntervalSweep, log: bool) -> Dimension:
    low, high = float(value.start or 0), float(value.end or 0)
    kinds = kinds_of(name.split("."))
    whole = isinstance(value.start, int) or (bool(kinds) and all(_is_int(kind) for kind in kinds))
    if whole:
        low, high = math.ceil(low), math.floor(high)
    _check_ends(override, low, high, log)
    return Numbers(low, high, log, whole)


def _range(override: Override, value: RangeSweep, log: bool) -> Dimension:
    span = value.range()
    whole = not isinstance(span, FloatRange)
    # 0.3 as it is meant, and not Hydra's 0.1 + 0.1 + 0.1, which may also fall short of the stop
    counted = [number if whole else float(f"{number:.12g}") for number in span]
    values = tuple(sorted(number for number in counted if number != value.stop))
    if not values:
        raise ConfigError(f"{override.input_line}: there is no number in it.")
    _check_ends(override, values[0], values[-1], log)
    if log and not (whole and set(values) == set(range(int(values[0]), int(values[-1]) + 1))):
        raise ConfigError(f"{override.input_line}: log goes with whole numbers one by one, or with interval(...).")
    return Numbers(values[0], values[-1], log, whole, values)


def _check_ends(override: Override, low: float, high: float, log: bool) -> None:
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise ConfigError(f"{override.input_line}: the first end must be the smaller one, and both must be numbers.")
    if log and low <= 0:
        raise ConfigError(f"{override.input_line}: there is no logarithm of {low:g}. Start above 0.")


def _is_int(kind: Any) -> bool:
    return kind is int or set(getattr(kind, "__args__", ())) == {int, type(None)}


def _distribution(dimension: Dimension) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(dimension, Texts):
        return CategoricalDistribution(dimension.texts)
    if dimension.values is None or len(dimension.values) == 1:
        kind: Any = IntDistribution if dimension.whole else FloatDistribution
        return kind(dimension.low, dimension.high, dimension.log)  # type: ignore[no-any-return]
    # the step as it is meant: 0.1, and not 0.09999999999999998
    step = float(f"{(dimension.high - dimension.low) / (len(dimension.values) - 1):.12g}")
    if dimension.whole:
        return IntDistribution(int(dimension.low), int(dimension.high), dimension.log, int(step))
    return FloatDistribution(dimension.low, dimension.high, step=step)
