"""The end of a search: what was found, the command that does it again, the figure, and the table of all trials."""

from __future__ import annotations

import csv
import io
import json
import logging
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from snnexp.analysis.drawing import save_figure
from snnexp.analysis.search_plots import Point, search_figure
from snnexp.atomic import write_atomically
from snnexp.commands import command_line, option_folders
from snnexp.search.conf import directions
from snnexp.search.preparing import Search
from snnexp.search.space import Numbers
from snnexp.search.study import PLACE
from snnexp.terminal import wrapped
from snnexp.tracking import sweep_folder

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from snnexp.search.study import Asking

log = logging.getLogger(__name__)

MOST_COMMANDS = 5  # of a Pareto front: the others are in trials.csv


def close(config: DictConfig, search: Search, asking: Asking) -> None:
    """Print the best trial with its command, draw the page of plots, and give all of it to the parent run."""
    trials = asking.study.get_trials(deepcopy=False)
    lines = _summary(config, search, asking, trials)
    (search.folder / "trials.csv").write_text(_table(search, trials), encoding="utf-8")
    paths = [search.folder / "trials.csv"]
    if any(trial.values for trial in trials):
        points = [
            Point(
                t.number,
                t.state.name,
                tuple(t.values) if t.values else None,
                {key: _shown(search, key, value) for key, value in t.params.items()},
            )
            for t in trials
        ]
        logs = {key for key, d in search.space.dimensions.items() if isinstance(d, Numbers) and d.log}
        best = {trial.number for trial in asking.best()}
        shares = importances(search, asking)
        figure = search_figure(points, search.conf.objectives, directions(search.conf), shares, logs, best)
        figures = save_figure(figure, search.folder / "search")
        lines.append(f"History, importance and parallel coordinates: {figures[0]} (and .pdf)")
        paths += figures
    print("\n".join(line if line.startswith("  ") else wrapped(line) for line in lines), flush=True)
    runs = [trial.user_attrs.get("run_id") for trial in asking.best()]
    write_atomically(search.folder / sweep_folder.SEARCH_NOTE, json.dumps({"lines": lines, "best": runs}) + "\n")
    _send(config, search.folder, paths)


def _summary(config: DictConfig, search: Search, asking: Asking, trials: Sequence[FrozenTrial]) -> list[str]:
    elsewhere = asking.elsewhere()
    counts = {word: sum(t.state.name == word for t in trials) for word in ("COMPLETE", "PRUNED", "FAIL", "RUNNING")}
    told = f"{counts['COMPLETE']} complete, {counts['PRUNED']} pruned, {counts['FAIL']} failed"
    if counts["RUNNING"] > len(elsewhere):
        told += f", {counts['RUNNING'] - len(elsewhere)} cut off"
    if elsewhere:
        told += f", {len(elsewhere)} running elsewhere"
    lines = [f"Search: {counts['COMPLETE'] + counts['PRUNED']} trials: {told}."]
    if counts["FAIL"]:
        lines.append("The same command tries other settings in the place of those that failed.")
    if counts["RUNNING"] > len(elsewhere):
        lines.append("The same command goes on with trials that were cut off.")
    lines += _elsewhere(search, elsewhere)
    best = asking.best()
    if len(search.conf.objectives) == 1:
        for trial in best:
            lines.append(f"Best: {_values(search, trial)} (trial {trial.number}). This does it again, to the last bit:")
            lines.append(f"  {command(config, search, trial)}")
    elif best:
        trials_are = "1 trial, which" if len(best) == 1 else f"{len(best)} trials, which"
        lines.append(f"The Pareto front: {trials_are} no other one beats in everything:")
        for trial in best[:MOST_COMMANDS]:
            lines += [f"trial {trial.number}: {_values(search, trial)}", f"  {command(config, search, trial)}"]
        if len(best) > MOST_COMMANDS:
            lines.append(f"and {len(best) - MOST_COMMANDS} more, in {search.folder / 'trials.csv'}")
    return lines


def _elsewhere(search: Search, trials: Sequence[FrozenTrial]) -> list[str]:
    """Who has asked for trials that are none of ours, and what to do if that one is no more."""
    lines = []
    for trial in trials:
        host, file, _ = trial.user_attrs.get(PLACE) or ("another machine or folder", "", "")
        where = f"{host}{f', {Path(file).parent.parent}' if file else ''}"
        lines.append(f"Trial {trial.number} was asked for on {where}. If nobody is at it any more, this lets it go:")
        words = ["--storage", search.storage, "--study-name", search.study, "--trial-number", str(trial.number)]
        lines.append("  " + shlex.join(["optuna", "tell", *words, "--state", "fail"]))
    return lines


def _values(search: Search, trial: FrozenTrial) -> str:
    return ", ".join(f"{name} {value:.6g}" for name, value in zip(search.conf.objectives, trial.values, strict=True))


def _shown(search: Search, key: str, value: Any) -> Any:
    """A parameter as a number where it is one."""
    return float(search.space.text(key, value)) if isinstance(search.space.dimensions[key], Numbers) else value


def command(config: DictConfig, search: Search, trial: FrozenTrial) -> str:
    """The command of one run that does what the trial did: the same configuration, so the same numbers."""
    words = search.space.overrides(trial.params)
    # an experiment's file may be a sweep
    mode = ["hydra.mode=RUN"] if any(w.startswith(("+experiment=", "experiment=")) for w in words) else []
    text = command_line([*option_folders(config.hydra), *words, *mode], printed=True)
    # another launcher's worker may have had another number of threads than a single run takes
    threads = trial.user_attrs.get("threads")
    if threads and "BasicLauncher" not in str(config.hydra.launcher.get("_target_")):
        text = f"SNNEXP_THREADS={threads} {text}"
    return text


def importances(search: Search, asking: Asking) -> dict[str, dict[str, float]]:
    """Objective -> key -> its share of what the objective depends on (fANOVA); empty where that cannot be said."""
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    def objective(index: int) -> Callable[[FrozenTrial], float]:
        return lambda trial: float(trial.values[index])

    found = {}
    for index, name in enumerate(search.conf.objectives):
        try:
            evaluator = FanovaImportanceEvaluator(seed=0)
            found[name] = get_param_importances(asking.study, evaluator=evaluator, target=objective(index))
        except (ValueError, RuntimeError, ZeroDivisionError) as error:  # too few trials, or all are equal
            log.debug("importance for %s: %s", name, error)  # the figure says that it is not known
    return found


def _table(search: Search, trials: Sequence[FrozenTrial]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    keys = list(search.space.dimensions)
    writer.writerow(["trial", "state", *search.conf.objectives, *keys, "run_id", "folder", "error"])
    for trial in trials:
        attrs: Mapping[str, Any] = trial.user_attrs
        values = trial.values or [""] * len(search.conf.objectives)
        params = [search.space.text(key, trial.params[key]) if key in trial.params else "" for key in keys]
        facts = [attrs.get(key, "") for key in ("run_id", "folder", "error")]
        writer.writerow([trial.number, trial.state.name, *values, *params, *facts])
    return text.getvalue()


def _send(config: DictConfig, folder: Path, paths: Sequence[Path]) -> None:
    """Files for the parent run, if there is one."""
    from snnexp.tracking.address import resolve_experiment, resolve_uri
    from snnexp.tracking.mlflow_store import connect

    parent = sweep_folder.read(folder).get("run_id")
    if parent is None:
        return  # tracking=off
    try:
        uri = resolve_uri(config.tracking.uri, config.hydra.runtime.cwd)
        store = connect(uri, resolve_experiment(config.tracking.experiment))
        assert store is not None  # create=True
        for path in paths:
            store.client.log_artifact(parent, str(path), "search")
    except Exception as error:  # the files are in the sweep's folder
        log.warning("the figure could not be given to the sweep's parent run: %s", error)
