"""The search itself: ask, launch, tell, until there are as many trials as were wanted.

Jobs are those of any sweep, with any launcher, under the same parent run. Whatever kills this process or a job, the
same command goes on: runs that are finished are skipped and say what they were worth, those cut off are continued.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from filelock import Timeout
from hydra.core.utils import JobStatus
from omegaconf import DictConfig, OmegaConf

from snnexp.errors import ConfigError, SnnexpError
from snnexp.launchers.slurm import parallelism
from snnexp.launchers.worker import JobLost
from snnexp.locks import file_lock
from snnexp.machine import cores
from snnexp.search.closing import close
from snnexp.search.conf import SearchConf, sampler_name
from snnexp.search.preparing import Search, prepare
from snnexp.search.study import Asking, Owner, open_study, opened
from snnexp.search.trial import OBJECTIVES, Outcome
from snnexp.tracking.sweep import sweep_id_of

if TYPE_CHECKING:
    from hydra.core.utils import JobReturn
    from hydra.plugins.launcher import Launcher
    from optuna.trial import Trial

GIVE_UP_AFTER = 3  # trials that all failed, before any came to an end: so will the others

Results = dict[tuple[str, ...], "Outcome | BaseException"]


def run_search(config: DictConfig, launcher: Launcher, compose: Callable[[list[str]], None]) -> list[Any]:
    """Do what is left of the search, and say what was found. Returns what the launcher returned.

    Raises: ConfigError for what cannot work; the first trial's error if none came to an end, a lost job's included.
    """
    search = prepare(config, sweep_id_of(config))
    search.folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(config, search.folder / "multirun.yaml")
    returned: list[Any] = []
    with _alone(search) as owner, opened(search.storage) as storage:
        study = open_study(storage, search.study, search.conf, search.max_epochs)
        asking = Asking(study, search.conf, search.space, owner)
        _announce(search, asking)
        errors: list[BaseException] = []
        hopeless = None
        while hopeless is None and (trials := asking.batch(_size(config, search.conf))):
            results = _launched(search, trials, launcher, compose, returned)
            for trial in trials:
                _tell(search, asking, trial, results[_words(search, trial)], errors)
            hopeless = _hopeless(asking, errors)
        if hopeless is not None and not asking.best():
            raise hopeless
        close(config, search, asking)
        if hopeless is not None or (errors and not asking.best()):
            raise hopeless or errors[0]
    return returned


@contextlib.contextmanager
def _alone(search: Search) -> Iterator[Owner]:
    """Hold the search's lock; gives the name under which this folder's trials are asked for.

    Raises: ConfigError if another process does this very search.
    """
    search.lock.mkdir(parents=True, exist_ok=True)
    try:
        with file_lock(search.lock / "lock", timeout=0):
            yield Owner.at(search.lock / "owner")
    except Timeout:
        raise ConfigError(
            f"This very search is being done by another process ({search.lock}). Wait for it or stop it. More at once: "
            "hydra.sweeper.n_jobs with a launcher that runs jobs side by side."
        ) from None


def _size(config: DictConfig, conf: SearchConf) -> int:
    """Trials that are asked for together: as many as the launcher runs side by side, unless the user says it."""
    if conf.n_jobs is not None:
        return conf.n_jobs
    launcher = config.hydra.launcher
    if "array_parallelism" in launcher and "executor" in launcher:
        return parallelism(launcher)
    jobs = launcher.get("n_jobs") or 1
    return int(jobs) if int(jobs) > 0 else cores()


def _announce(search: Search, asking: Asking) -> None:
    done = asking.wanted - asking.new - len(asking.left)
    parts = [f"{asking.wanted} trials"]
    if done > 0:
        parts.append(f"{done} done")
    if asking.left:
        parts.append(f"{len(asking.left)} cut off and continued")
    print(f"Search by {sampler_name(search.conf)}: {', '.join(parts)}.", flush=True)
    print(f"Study {search.study} in {search.storage}", flush=True)


def _words(search: Search, trial: Trial) -> tuple[str, ...]:
    return tuple(search.space.overrides(trial.params))


def _launched(
    search: Search,
    trials: Sequence[Trial],
    launcher: Launcher,
    compose: Callable[[list[str]], None],
    returned: list[Any],
) -> Results:
    """What came of each setting of a batch; equal ones are run once, since two processes cannot do the same run."""
    results: Results = {}
    jobs: dict[tuple[str, ...], list[str]] = {}
    for trial in trials:
        words = _words(search, trial)
        ours = [f"hydra.sweeper.study={search.study}", f"hydra.sweeper.trial={trial.number}"]
        if words not in jobs and words not in results:
            try:
                compose([*words, *ours])
                jobs[words] = [*words, *ours]
            except Exception as error:  # values that do not go together
                results[words] = error
    if jobs:
        # a trial's number is its job's wherever the batch is without gaps; no two jobs of one command get the same
        done: Sequence[JobReturn] = launcher.launch(list(jobs.values()), initial_job_idx=trials[0].number)
        returned += done
        for words, job in zip(jobs, done, strict=True):
            results[words] = _result(job)
    return results


def _result(job: JobReturn) -> Outcome | BaseException:
    value = job._return_value
    if job.status == JobStatus.COMPLETED and isinstance(value, Outcome):
        return value
    return value if isinstance(value, BaseException) else SnnexpError("the job ended without a result")


def _tell(search: Search, asking: Asking, trial: Trial, result: Outcome | BaseException, errors: list[Any]) -> None:
    """Tell the study, and say in a line what the trial was worth."""
    study, states = asking.study, asking.states
    name = f"Trial {trial.number}"
    if isinstance(result, JobLost):  # the same command continues it
        errors.append(result)
        print(f"{name} was cut off: {result}", flush=True)
        return
    if isinstance(result, BaseException):
        from snnexp.composition import explain

        errors.append(result)
        reason = explain(result) if isinstance(result, Exception) else None
        reason = reason or (str(result) if isinstance(result, SnnexpError) else f"{type(result).__name__}: {result}")
        trial.set_user_attr("error", reason[:1000])
        study.tell(trial, state=states.FAIL)
        print(f"{name} failed: {reason}", flush=True)
        return
    for key in ("folder", "run_id", "threads"):
        trial.set_user_attr(key, getattr(result, key))
    if result.values is None:
        study.tell(trial, state=states.PRUNED)
        print(f"{name} pruned.{_best_so_far(search, asking)}", flush=True)
        return
    study.tell(trial, list(result.values))
    values = ", ".join(f"{n} {v:.4f}" for n, v in zip(search.conf.objectives, result.values, strict=True))
    print(f"{name}: {values}.{_best_so_far(search, asking)}", flush=True)


def _best_so_far(search: Search, asking: Asking) -> str:
    best = asking.best()
    if not best:
        return ""
    if len(search.conf.objectives) > 1:
        return f" On the front: {len(best)}."
    return f" Best so far: {best[0].value:.4f} (trial {best[0].number})."


def _hopeless(asking: Asking, errors: list[Any]) -> BaseException | None:
    """The last error, if nothing else will come of the trials that are left."""
    if errors and str(errors[-1]).startswith(OBJECTIVES):  # the next one would fail in the same way
        return errors[-1]  # type: ignore[no-any-return]
    if len(errors) >= GIVE_UP_AFTER and not asking.best():
        pruned = asking.study.get_trials(deepcopy=False, states=[asking.states.PRUNED])
        if not pruned:
            what = "were cut off" if all(isinstance(e, JobLost) for e in errors) else "failed"
            print(f"The first {len(errors)} trials {what}, so the search ends here.", flush=True)
            return errors[-1]  # type: ignore[no-any-return]
    return None
