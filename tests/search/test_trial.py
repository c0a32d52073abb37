"""The side of a job: what it tells, when it is pruned, and what its run then is for others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("optuna")

from snnexp.errors import TrainingError
from snnexp.library.borrowed import borrowed_process
from snnexp.library.composing import composed
from snnexp.search.conf import SearchConf
from snnexp.search.pruning import report_and_ask
from snnexp.search.study import import_optuna, open_study, opened
from snnexp.search.trial import ObjectiveError, Outcome, Trial, value_of
from snnexp.tasks.environment import Environment, absolute_paths
from snnexp.tasks.report import from_folders
from snnexp.tasks.train import train_run
from snnexp.tracking.queries import is_whole
from snnexp.tracking.runs import RunFolder, claim

CONFIG: dict[str, Any] = {"seed": 0, "dataset": {"name": "digits"}, "neuron": {"name": "fixed"}}
WORDS = ("dataset=digits", "tracking=off", "trainer.plots=false", "trainer.max_epochs=3", "trainer.smoke_steps=1")
WORDS = (*WORDS, "model.spec=FC8-SN-FC-SN", "dataset.batch_size=16", "neuron.engine=reference")


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    conf = SearchConf(study="search-a", trial=0, pruner="median")
    return Trial("search-a", 0, conf, f"sqlite:///{tmp_path}/optuna.db", 3)


def test_what_a_search_pruned_is_finished_for_it_and_for_nobody_else(tmp_path: Path) -> None:
    first = claim(CONFIG, tmp_path)
    first.update(pruned="search-a")
    first.finish("FINISHED")
    assert not first.record.whole
    again = claim(CONFIG, tmp_path, in_sweep=True, search="search-a")
    assert (again.action, again.path) == ("skip", first.path)
    for in_sweep, search in ((True, "search-b"), (True, ""), (False, "")):
        other = claim(CONFIG, tmp_path, in_sweep=in_sweep, search=search)
        assert other.action == "new"
        other.discard()


def test_a_pruned_run_is_in_no_mean() -> None:
    def run(status: str, **tags: str) -> Any:
        return SimpleNamespace(info=SimpleNamespace(status=status), data=SimpleNamespace(tags=tags))

    assert is_whole(run("FINISHED")) and is_whole(run("FINISHED", pruned=""))
    assert not is_whole(run("FINISHED", pruned="2")) and not is_whole(run("KILLED"))


def test_the_value_is_that_of_the_weights_that_are_kept() -> None:
    history = {
        "val/accuracy": [(0, 0.1), (1, 0.9), (2, 0.8)],
        "val/loss": [(1, 0.5), (2, 0.4)],
        "best/epoch": [(2, 1.0)],
    }
    assert value_of("val/accuracy", history, {}) == 0.9
    assert value_of("val/loss", history, {}) == 0.5
    assert value_of("val/synops", {**history, "val/synops": [(2, 7.0)]}, {}) == 7.0  # measured once, at the end
    assert value_of("val/synops", history, {"val/synops": 8.0}) == 8.0
    with pytest.raises(ObjectiveError, match="has no value"):
        value_of("val/loss", {}, {})
    with pytest.raises(TrainingError, match="val/loss is nan"):  # of this trial only
        value_of("val/loss", {"val/loss": [(1, float("nan"))]}, {})


def test_an_objective_that_is_not_there_is_said_before_training(trial: Trial) -> None:
    asks = replace(trial, conf=replace(trial.conf, objectives=["val/dead_neuron"], pruner="none"))
    with pytest.raises(ObjectiveError, match=r"no metric of this run. Did you mean val/dead_neurons\?"):
        asks.prunes({"val/accuracy": [(0, 0.1)], "val/dead_neurons": [(0, 3.0)]}, 0)
    with pytest.raises(ObjectiveError, match="no validation split"):
        trial.prunes({"train/accuracy": [(0, 0.1)]}, 0)
    of_training = replace(trial, conf=replace(trial.conf, objectives=["train/loss"], pruner="none"))
    assert not of_training.prunes({"val/accuracy": [(0, 0.1)]}, 0)  # there is none before the first epoch
    with pytest.raises(ObjectiveError):
        of_training.prunes({"val/accuracy": [(1, 0.1)]}, 1)


def test_the_median_prunes_from_any_process_and_hears_each_epoch_once(trial: Trial) -> None:
    states = import_optuna().trial.TrialState
    with opened(trial.storage) as storage:
        study = open_study(storage, trial.study, trial.conf, 3)
        for value in (0.5, 0.6, 0.7, 0.8, 0.9):
            good = study.ask()
            good.report(value, 1)
            study.tell(good, value)
        numbers = [study.ask().number for _ in range(2)]
    for number, value, pruned in zip(numbers, (0.1, 0.95), (True, False), strict=True):
        conf = replace(trial.conf, trial=number)
        for _ in range(2):  # one that was killed before its state was written tells its epoch again
            assert report_and_ask(conf, trial.storage, 3, [(1, value)]) is pruned
    with opened(trial.storage) as storage:
        trials = open_study(storage, trial.study, trial.conf, 3).get_trials()
    assert [t.intermediate_values for t in trials[-2:]] == [{1: 0.1}, {1: 0.95}]
    assert {t.state for t in trials[-2:]} == {states.RUNNING}


def test_a_study_that_is_away_prunes_nothing(trial: Trial, caplog: pytest.LogCaptureFixture) -> None:
    assert not report_and_ask(trial.conf, "sqlite:////dev/null/optuna.db", 3, [(1, 0.5)])
    assert "goes on" in caplog.text


class Pruning(Trial):
    """Pruned after the second epoch."""

    def prunes(self, history: Any, epoch: int) -> bool:
        return epoch == 2


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Train as a trial, or (None) as a run of its own; returns the folder."""
    monkeypatch.chdir(tmp_path)

    def run(trial: Trial | None, *more: str) -> RunFolder:
        with borrowed_process():
            conf, cfg = composed([*WORDS, *more], None)
            absolute_paths(conf, cfg)
            return train_run(conf, cfg, Environment(tmp_path, (), trial is not None, None, trial=trial), quiet=True)[0]

    yield run


def metrics(folder: RunFolder) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for line in folder.metrics_path.read_text().splitlines():
        entry = json.loads(line)
        for name in entry["metrics"]:
            found.setdefault(name, []).append(entry["step"])
    return found


def test_a_pruned_run_is_finished_and_not_tested(train: Any, trial: Trial, tmp_path: Path) -> None:
    pruning = Pruning(trial.study, 0, trial.conf, trial.storage, 3)
    folder = train(pruning)
    found = metrics(folder)
    assert found["val/accuracy"] == [0, 1, 2]
    assert not any(name.startswith("test/") for name in found)
    tags = json.loads((folder.path / "record.json").read_text())["tags"]
    assert (tags["pruned"], tags["status"], tags["trial"]) == ("2", "FINISHED", "0")
    assert pruning.outcome(folder) == Outcome(None, str(folder.path), None, folder.record.threads)
    assert train(pruning).action == "skip"
    assert from_folders(tmp_path / "runs")[0] == []  # no result

    whole = train(None)  # the same configuration, by somebody else
    assert whole.path != folder.path and metrics(whole)["val/accuracy"] == [0, 1, 2, 3]
    assert "test/accuracy" in metrics(whole) and len(from_folders(tmp_path / "runs")[0]) == 1

    synops = replace(trial, conf=replace(trial.conf, objectives=["val/accuracy", "val/synops"], pruner="none"))
    assert synops.lacks(whole)  # it was no trial of a search for that
    measured = train(synops, "seed=1")
    assert not synops.lacks(measured)
    accuracy, operations = synops.outcome(measured).values or (-1.0, -1.0)
    assert 0 <= accuracy <= 1 and operations > 0
