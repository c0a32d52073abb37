"""The study: Optuna's ask and tell, so that a search cut off anywhere goes on as if it had not been.

Every trial is drawn by a sampler that is made for it, seeded with the search's seed and the trial's number: what is
asked for depends on the seed and on what was told before, and not on how often the search was begun anew. (A sampler
that is seeded once would start again from its first numbers, and ask for the same settings twice.)

A trial that was asked for and not told when its process died is still RUNNING in the storage. It is taken up again,
under its number and with its values, so it is never counted twice.
"""

from __future__ import annotations

import contextlib
import os
import socket
import uuid
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from snnexp.atomic import write_atomically
from snnexp.collector import importing
from snnexp.errors import ConfigError
from snnexp.locks import file_lock
from snnexp.search.conf import DEFAULT_TRIALS, SearchConf, directions, sampler_name
from snnexp.search.space import Numbers, Space
from snnexp.tracking.address import engine_uri, sqlite_path
from snnexp.tracking.reasons import telling_line

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial

OWNER = "owner"  # of a trial: whose process it was asked for by
PLACE = "owner_place"  # and where that one keeps its name: machine, file, process
POPULATION = 10  # of NSGA-II; Optuna's 50 would leave most searches in their first, random generation
WAIT_S = 60  # for another process that is writing to the same SQLite file


def import_optuna() -> Any:
    """Optuna the way we want it: no line for every trial, no word about what is experimental in it."""
    with importing():
        import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna


@contextlib.contextmanager
def opened(address: str) -> Iterator[Any]:
    """Optuna's storage at a resolved address; the tables are made if they are missing, by one process at a time.

    Raises: ConfigError if it cannot be used.
    """
    optuna = import_optuna()
    path = sqlite_path(address)
    arguments = {"connect_args": {"timeout": WAIT_S}} if path is not None else {"pool_pre_ping": True}
    try:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(f"{path}.lock") if path is not None else contextlib.nullcontext():
            storage = optuna.storages.RDBStorage(engine_uri(address), engine_kwargs=arguments)
    except Exception as error:  # SQLAlchemy's, the driver's, Optuna's for a table of another version
        raise ConfigError(
            f"hydra.sweeper.storage={address}: {telling_line(error)}. Give the address of a database that you may "
            "write to, sqlite:///FILE or postgresql://USER@HOST/NAME, whose driver is installed."
        ) from error
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


def open_study(storage: Any, name: str, conf: SearchConf, max_epochs: int) -> Study:
    """The study of that name, made if it is missing."""
    optuna = import_optuna()
    study: Study = optuna.create_study(
        storage=storage,
        study_name=name,
        directions=directions(conf),
        pruner=make_pruner(conf, max_epochs),
        load_if_exists=True,
    )
    return study


def make_pruner(conf: SearchConf, max_epochs: int) -> Any:
    """Optuna's pruner; its steps are epochs."""
    pruners = import_optuna().pruners
    if conf.pruner == "median":
        return _made(pruners.MedianPruner, "pruner", {}, conf.pruner_kwargs)
    if conf.pruner == "hyperband":
        return _made(pruners.HyperbandPruner, "pruner", {"max_resource": max(max_epochs, 1)}, conf.pruner_kwargs)
    return pruners.NopPruner()


def make_sampler(conf: SearchConf, number: int) -> BaseSampler:
    """The sampler of the trial with this number."""
    samplers = import_optuna().samplers
    seed = int(np.random.SeedSequence([conf.seed, number]).generate_state(1)[0])
    name = sampler_name(conf)
    kinds: dict[str, tuple[Any, dict[str, Any]]] = {
        "tpe": (samplers.TPESampler, {}),
        "cmaes": (samplers.CmaEsSampler, {"warn_independent_sampling": False}),
        "nsga2": (samplers.NSGAIISampler, {"population_size": POPULATION}),
        "random": (samplers.RandomSampler, {}),
        "grid": (samplers.RandomSampler, {}),  # its points are enqueued
    }
    kind, ours = kinds[name]
    return _made(kind, "sampler", {**ours, "seed": seed}, conf.sampler_kwargs)  # type: ignore[no-any-return]


def _made(kind: Any, what: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Any:
    try:
        return kind(**{**ours, **theirs})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"hydra.sweeper.{what}_kwargs={dict(theirs)}: {kind.__name__}: {error}.") from error


@dataclass(frozen=True)
class Owner:
    """Under which name a folder's searches ask for trials, and where the name is kept: it is gone with `state_dir`."""

    name: str
    file: str = ""

    @classmethod
    def at(cls, file: Path) -> Owner:
        """The one whose name is in the file; it gets one if it has none."""
        if not file.is_file():
            write_atomically(file, uuid.uuid4().hex + "\n")
        return cls(file.read_text(encoding="utf-8").strip(), str(file.absolute()))

    def place(self) -> list[str]:
        """For a trial."""
        return [socket.gethostname(), self.file, str(os.getpid())]


def is_gone(trial: FrozenTrial) -> bool:
    """Whether nobody can go on with a trial as its owner: one of this machine, whose name and process are no more."""
    host, file, pid = trial.user_attrs.get(PLACE) or ("", "", "")
    if host != socket.gethostname():
        return False
    try:
        if Path(file).read_text(encoding="utf-8").strip() == trial.user_attrs.get(OWNER):
            return False
    except OSError:
        pass
    return not _lives(int(pid))


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


class Asking:
    """The one who asks a study: this process, which holds the search's lock."""

    def __init__(self, study: Study, conf: SearchConf, space: Space, owner: Owner) -> None:
        self.study, self.conf, self.space, self.owner = study, conf, space, owner
        self.grid = space.grid() if sampler_name(conf) == "grid" else None
        self.wanted = conf.n_trials or (DEFAULT_TRIALS if self.grid is None else len(self.grid))
        self.states = import_optuna().trial.TrialState
        self._check_options()
        self.left = self._left_running()
        self.failed_before = {t.number for t in study.get_trials(deepcopy=False, states=[self.states.FAIL])}
        # failed trials do not count: other settings are tried for them, once for each command
        self.new = max(0, self.wanted - self._counted())

    def _check_options(self) -> None:
        """Raises: ConfigError if glob(*) means other options now: to Optuna they would be another study's."""
        optuna = import_optuna()
        trials = self.study.get_trials(deepcopy=False)
        before: dict[str, Any] = {key: known for trial in trials for key, known in trial.distributions.items()}
        for key, distribution in self.space.distributions().items():
            try:
                optuna.distributions.check_distribution_compatibility(before.get(key, distribution), distribution)
            except ValueError as error:
                raise ConfigError(
                    f"{key}: its options are not those that this search was begun with, "
                    f"{', '.join(before[key].choices)}. "
                    f"Name them ({key}=A,B), which is another search, or go on with those."
                ) from error

    def _left_running(self) -> list[FrozenTrial]:
        """Trials that a dead process of ours was at. Another machine's, with a lock of its own, are left to it."""
        running = self.study.get_trials(deepcopy=False, states=[self.states.RUNNING])
        # without an owner: asked for a moment ago, by a process that died, or elsewhere by one that lives
        others = [t for t in running if OWNER in t.user_attrs and t.user_attrs[OWNER] != self.owner.name]
        alone = all(map(is_gone, others))
        ours = alone and self.owner.name
        return [t for t in running if t.user_attrs.get(OWNER, ours) == self.owner.name or is_gone(t)]

    def elsewhere(self) -> list[FrozenTrial]:
        """Trials that somebody else has asked for and not told of."""
        running = self.study.get_trials(deepcopy=False, states=[self.states.RUNNING])
        return [t for t in running if t.user_attrs.get(OWNER) not in (None, self.owner.name) and not is_gone(t)]

    def _counted(self) -> int:
        counted = (self.states.COMPLETE, self.states.PRUNED, self.states.RUNNING)
        return len(self.study.get_trials(deepcopy=False, states=counted))

    def batch(self, size: int) -> list[Trial]:
        """The next trials, `size` at most; none when the search is complete."""
        trial = import_optuna().trial.Trial
        if self.left:
            again, self.left = self.left[:size], self.left[size:]
            return [self._drawn(frozen.number, lambda f=frozen: trial(self.study, f._trial_id)) for frozen in again]  # type: ignore[misc]
        asked = []
        for _ in range(min(size, self.new)):
            if self.grid is not None and not self._enqueue():
                self.new = 0
                break
            self.new -= 1
            asked.append(self._drawn(len(self.study.get_trials(deepcopy=False)), self.study.ask))
        return asked

    def _drawn(self, number: int, begin: Any) -> Trial:
        """A trial with all its values: those that it has already stay as they are."""
        self.study.sampler = make_sampler(self.conf, number)
        trial: Trial = begin()
        trial.set_user_attr(OWNER, self.owner.name)
        trial.set_user_attr(PLACE, self.owner.place())
        for key, dimension in self.space.dimensions.items():
            distribution: Any = self.space.distributions()[key]
            if not isinstance(dimension, Numbers):
                trial.suggest_categorical(key, distribution.choices)
                continue
            suggest: Any = trial.suggest_int if dimension.whole else trial.suggest_float
            suggest(key, distribution.low, distribution.high, step=distribution.step, log=distribution.log)
        return trial

    def _enqueue(self) -> bool:
        """Put the next point of the grid into the queue that `ask` takes from; False if all have been asked for."""
        assert self.grid is not None
        seen = [
            trial.system_attrs.get("fixed_params") or trial.params
            for trial in self.study.get_trials(deepcopy=False)
            if trial.number not in self.failed_before
        ]
        waiting = self.study.get_trials(deepcopy=False, states=[self.states.WAITING])
        point = next((point for point in self.grid if point not in seen), None)
        if point is not None and not waiting:
            self.study.enqueue_trial(point)
        return point is not None or bool(waiting)

    def best(self) -> list[FrozenTrial]:
        """The best complete trial, or those of the Pareto front, by number."""
        complete = self.study.get_trials(deepcopy=False, states=[self.states.COMPLETE])
        if not complete:
            return []
        if len(self.study.directions) > 1:
            return sorted(self.study.best_trials, key=lambda trial: trial.number)
        sign = -1 if self.study.direction.name == "MAXIMIZE" else 1
        # of equal ones the first, as a sweep does; Optuna's database gives any of them
        return [min(complete, key=lambda trial: (sign * trial.values[0], trial.number))]
