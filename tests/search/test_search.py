"""A search asks, launches and tells; killed anywhere, it goes on as if it had not been."""

from __future__ import annotations

import contextlib
import csv
import math
import shlex
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.types import Override
from search_launcher import LR, Launcher

from snnexp.errors import ConfigError, TrainingError
from snnexp.launchers.worker import JobLost
from snnexp.search.conf import SearchConf, directions
from snnexp.search.trial import ObjectiveError, value_of
from snnexp.tracking.sweep import SweepParent

Searching = Callable[..., list[Any]]


def near(job: dict[str, str]) -> float:
    """Best at a learning rate of 0.01."""
    return -abs(math.log10(float(job["optimizer.lr"])) + 2)


def states(trials: list[Any]) -> Counter[str]:
    return Counter(trial.state.name for trial in trials)


def test_the_best_is_printed_with_its_command(search: Searching, capsys: pytest.CaptureFixture[str]) -> None:
    launcher = Launcher(near)
    trials = search(launcher, LR, "neuron=fixed,plif", "trainer.max_epochs=3", "hydra.sweeper.n_trials=6")
    assert states(trials) == {"COMPLETE": 6}
    assert launcher.numbers == list(range(6))
    best = max(launcher.jobs, key=near)
    out = capsys.readouterr().out
    [command] = [line for line in out.splitlines() if line.startswith("  ") and "optimizer.lr=" in line]
    words = dict(word.partition("=")[::2] for word in shlex.split(command) if "=" in word)
    # every bit of the number, and what was typed besides
    assert words == {key: best[key] for key in ("optimizer.lr", "neuron")} | {
        "trainer.max_epochs": "3",
        "tracking": "off",
    }
    assert float(words["optimizer.lr"]) == max(trials, key=lambda t: t.value).params["optimizer.lr"]
    assert all(Path("sweep", name).is_file() for name in ("search.png", "search.pdf"))
    rows = list(csv.DictReader(Path("sweep/trials.csv").read_text().splitlines()))
    assert [row["optimizer.lr"] for row in rows] == [job["optimizer.lr"] for job in launcher.jobs]


@pytest.mark.parametrize("sampler", ["tpe", "cmaes"])
def test_killed_and_continued_is_as_if_it_had_not_been(search: Searching, undrawn: None, sampler: str) -> None:
    few = "hydra.sweeper.sampler_kwargs={n_startup_trials: 3}"  # that are drawn at random, before it looks at results
    words = (LR, f"hydra.sweeper.sampler={sampler}", few, "hydra.sweeper.n_trials=8")
    whole = search(Launcher(near), *words, "hydra.sweeper.storage=sqlite:///whole.db", "state_dir=whole")
    launches = []
    for dies_at in (2, 3, None):
        launcher = Launcher(near, dies_at)
        with contextlib.suppress(KeyboardInterrupt):
            trials = search(launcher, *words)
        launches += launcher.jobs
    assert states(trials) == {"COMPLETE": 8}
    assert len(launches) == 8  # nothing was done twice
    assert [t.params for t in trials] == [t.params for t in whole]
    assert [t.values for t in trials] == [t.values for t in whole]
    assert len({t.params["optimizer.lr"] for t in trials}) == 8  # a sampler that is seeded anew would repeat itself
    more = Launcher(near)
    assert states(search(more, *words[:-1], "hydra.sweeper.n_trials=9")) == {"COMPLETE": 9}
    assert len(more.jobs) == 1


def test_without_its_folder_a_search_goes_on(
    search: Searching, undrawn: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """state_dir was deleted, the study was kept: nobody else can be at its trials, unless the process lives."""
    words = (LR, "hydra.sweeper.n_jobs=2", "hydra.sweeper.n_trials=4", "state_dir=states")
    with pytest.raises(KeyboardInterrupt):
        search(Launcher(near, dies_at=1), *words)
    shutil.rmtree("states")
    assert states(search(Launcher(near), *words)) == {"COMPLETE": 2, "RUNNING": 2}
    said = capsys.readouterr().out
    assert "2 complete, 0 pruned, 0 failed, 2 running elsewhere" in said
    assert "Trial 2 was asked for on " in said and "--trial-number 2 --state fail" in said
    shutil.rmtree("states")
    monkeypatch.setattr("snnexp.search.study._lives", lambda pid: False)
    again = Launcher(near)
    assert states(search(again, *words)) == {"COMPLETE": 4}
    assert again.numbers == [2, 3]


def test_of_equal_trials_the_first_is_the_best(
    search: Searching, undrawn: None, capsys: pytest.CaptureFixture[str]
) -> None:
    search(Launcher(lambda job: float(job["hydra.sweeper.trial"] != "0")), LR, "hydra.sweeper.n_trials=4")
    assert "Best: val/accuracy 1 (trial 1)" in capsys.readouterr().out


def test_trials_are_launched_together(search: Searching, undrawn: None) -> None:
    launcher = Launcher(near, dies_at=1)
    words = (LR, "hydra.sweeper.n_jobs=3", "hydra.sweeper.n_trials=7")
    with pytest.raises(KeyboardInterrupt):
        search(launcher, *words)
    again = Launcher(near)
    assert states(search(again, *words)) == {"COMPLETE": 7}
    assert [len(launch) for launch in launcher.launches + again.launches] == [3, 3, 1]
    assert launcher.numbers + again.numbers == list(range(7))


def test_the_same_setting_of_one_batch_is_run_once(search: Searching, undrawn: None) -> None:
    launcher = Launcher(lambda job: 1.0)
    trials = search(launcher, "neuron=fixed,plif", "hydra.sweeper.n_jobs=6", "hydra.sweeper.n_trials=6")
    assert states(trials) == {"COMPLETE": 6}
    assert len(launcher.jobs) == 2


def test_a_grid_is_done_once_whatever_happens(search: Searching, undrawn: None) -> None:
    words = ("neuron=fixed,plif", "neuron.beta=range(0.1, 0.4, 0.1)", "hydra.sweeper.sampler=grid")
    first = Launcher(lambda job: float(job["neuron.beta"]), dies_at=2)
    with pytest.raises(KeyboardInterrupt):
        search(first, *words)
    second = Launcher(lambda job: float(job["neuron.beta"]))
    assert states(search(second, *words)) == {"COMPLETE": 6}
    done = [(job["neuron"], job["neuron.beta"]) for job in first.jobs + second.jobs]
    # 0.3 and not 0.30000000000000004
    assert sorted(done) == [(n, b) for n in ("fixed", "plif") for b in ("0.1", "0.2", "0.3")]
    assert states(search(Launcher(lambda job: 0.0), *words)) == {"COMPLETE": 6}


def test_a_failed_trial_does_not_end_the_search_and_is_made_up_for(search: Searching, undrawn: None) -> None:
    def worth(job: dict[str, str]) -> float:
        if job["hydra.sweeper.trial"] == "1":
            raise TrainingError("the loss is not finite")
        return near(job)

    words = (LR, "hydra.sweeper.n_trials=4")
    trials = search(Launcher(worth), *words)
    assert states(trials) == {"COMPLETE": 3, "FAIL": 1}
    assert "not finite" in trials[1].user_attrs["error"]
    assert states(search(Launcher(worth), *words)) == {"COMPLETE": 4, "FAIL": 1}


def test_values_that_do_not_go_together_fail_alone(search: Searching, undrawn: None) -> None:
    trials = search(Launcher(lambda job: 1.0), "neuron=fixed,nosuchneuron", "hydra.sweeper.sampler=grid", compose=True)
    assert [trial.state.name for trial in trials] == ["COMPLETE", "FAIL"]
    assert "nosuchneuron" in trials[1].user_attrs["error"]


def test_a_value_that_is_not_finite_fails_its_trial_alone(search: Searching, undrawn: None) -> None:
    def worth(job: dict[str, str]) -> float:
        value = math.nan if job["hydra.sweeper.trial"] == "1" else near(job)
        return value_of("val/own", {"val/own": [(1, value)]}, {})

    assert states(search(Launcher(worth), LR, "hydra.sweeper.n_trials=3")) == {"COMPLETE": 2, "FAIL": 1}


def test_options_that_glob_did_not_mean_before(
    search: Searching, undrawn: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    search(Launcher(lambda job: 0.5), "neuron=glob(*)", "hydra.sweeper.n_trials=1")
    known = Override.sweep_string_iterator
    monkeypatch.setattr(Override, "sweep_string_iterator", lambda word: [*known(word), "mine"])
    with pytest.raises(ConfigError, match="neuron: its options are not those that this search was begun with, adlif"):
        search(Launcher(lambda job: 0.5), "neuron=glob(*)", "hydra.sweeper.n_trials=2")


@pytest.mark.parametrize(("name", "direction"), [("time/samples_per_s", "maximize"), ("time/epoch_s", "minimize")])
def test_the_direction_by_the_name(name: str, direction: str) -> None:
    assert directions(SearchConf(objectives=[name])) == [direction]


def test_where_all_fail_the_search_ends(search: Searching, undrawn: None) -> None:
    def worth(job: dict[str, str]) -> float:
        raise TrainingError("the data are not there")

    launcher = Launcher(worth)
    with pytest.raises(TrainingError):
        search(launcher, LR)
    assert len(launcher.jobs) == 3

    def no_metric(job: dict[str, str]) -> float:
        raise ObjectiveError("hydra.sweeper.objectives: no metric")

    launcher = Launcher(no_metric)
    with pytest.raises(ObjectiveError):
        search(launcher, LR, "hydra.sweeper.objectives=[val/nothing]")
    assert len(launcher.jobs) == 1

    def lost(job: dict[str, str]) -> float:
        raise JobLost("out of memory")

    launcher = Launcher(lost)
    with pytest.raises(JobLost):
        search(launcher, LR, "hydra.sweeper.n_trials=8")
    assert len(launcher.jobs) == 3


def test_what_was_found_is_said_although_the_objective_is_missing_later(
    search: Searching, undrawn: None, capsys: pytest.CaptureFixture[str]
) -> None:
    def worth(job: dict[str, str]) -> float:
        if job["hydra.sweeper.trial"] == "1":
            raise ObjectiveError("hydra.sweeper.objectives: threshold/mean/sn1 is no metric of this run.")
        return near(job)

    with pytest.raises(ObjectiveError):
        search(Launcher(worth), LR, "hydra.sweeper.n_trials=4")
    assert "Best: val/accuracy" in capsys.readouterr().out


def test_a_lost_job_is_continued_by_the_same_command(search: Searching, undrawn: None) -> None:
    def lost(job: dict[str, str]) -> float:
        if job["hydra.sweeper.trial"] == "1":
            raise JobLost("its node failed")
        return near(job)

    words = (LR, "hydra.sweeper.n_trials=3")
    first, second = Launcher(lost), Launcher(near)
    assert states(search(first, *words)) == {"COMPLETE": 2, "RUNNING": 1}
    assert states(search(second, *words)) == {"COMPLETE": 3}
    assert second.jobs == [first.jobs[1]]


def test_pruned_trials_count(search: Searching, undrawn: None) -> None:
    launcher = Launcher(lambda job: None if job["hydra.sweeper.trial"] == "1" else near(job))
    trials = search(launcher, LR, "hydra.sweeper.pruner=median", "hydra.sweeper.n_trials=3")
    assert states(trials) == {"COMPLETE": 2, "PRUNED": 1}


def test_several_objectives_have_a_front(search: Searching, capsys: pytest.CaptureFixture[str]) -> None:
    objectives = "hydra.sweeper.objectives=[val/accuracy,val/synops]"
    beta = "neuron.beta=0.5,0.6,0.7"
    worth = {"0.5": (0.5, 10.0), "0.6": (0.6, 20.0), "0.7": (0.4, 30.0)}
    search(Launcher(lambda job: worth[job["neuron.beta"]]), beta, objectives, "hydra.sweeper.sampler=grid")
    out = capsys.readouterr().out
    assert "The Pareto front: 2 trials, which no other one beats in everything:" in out
    assert "neuron.beta=0.5" in out and "neuron.beta=0.6" in out and out.count("neuron.beta=0.7") == 0
    assert Path("sweep/search.png").is_file()


def test_one_process_at_a_time(search: Searching, undrawn: None) -> None:
    def worth(job: dict[str, str]) -> float:
        with pytest.raises(ConfigError, match="another process"):
            search(Launcher(near), LR, "hydra.sweeper.n_trials=2")
        return near(job)

    launcher = Launcher(worth)
    assert states(search(launcher, LR, "hydra.sweeper.n_trials=2")) == {"COMPLETE": 2}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["seed=0"], "nothing is searched"),
        ([LR, "seed=0,1"], "does not choose among seeds"),
        ([LR, "hydra.sweeper.objectives=[test/accuracy]"], "Use val/accuracy"),
        ([LR, "hydra.sweeper.objectives=[test/synops]"], "Use val/synops"),
        ([LR, "hydra.sweeper.objectives=[test_curve/accuracy]"], "must not look at the test split"),
        ([LR, "hydra.sweeper.objectives=[acuracy]"], "Did you mean val/accuracy"),
        ([LR, "hydra.sweeper.directions=[maximize,minimize]"], "one is needed for each"),
        ([LR, "hydra.sweeper.directions=[up]"], "Valid: maximize, minimize"),
        ([LR, "hydra.sweeper.sampler=tpa"], "Did you mean tpe"),
        ([LR, "hydra.sweeper.sampler=grid"], "no end of values"),
        ([LR, "hydra.sweeper.n_trials=0"], "must be 1 or more"),
        ([LR, "hydra.sweeper.sampler_kwargs={nothing: 1}"], "sampler_kwargs"),
        ([LR, "hydra.sweeper.objectives=[val/accuracy,val/loss]", "hydra.sweeper.pruner=median"], "one objective"),
        ([LR, "hydra.sweeper.objectives=[val/synops]", "hydra.sweeper.pruner=median"], "at the end of a run"),
        (["optimizer.lrr=interval(0, 1)"], "Did you mean optimizer.lr"),
        ([LR, "task=evaluate"], "task=train"),
        ([LR, "hydra.sweeper.storage=postgresql://u@127.0.0.1:1/x"], "hydra.sweeper.storage"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_made(
    search: Searching, undrawn: None, words: list[str], says: str
) -> None:
    launcher = Launcher(near)
    with pytest.raises(ConfigError) as error:
        search(launcher, *words)
    assert says in str(error.value)
    assert launcher.jobs == [] and not Path("optuna.db").exists()


def test_without_optuna_one_line_says_how_to_get_it(
    search: Searching, undrawn: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("snnexp.search.conf.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'snnexp\[hpo\]'"):
        search(Launcher(near), LR)


def test_a_search_with_jobs_that_are_left_is_not_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    parent = SweepParent()
    closed: list[bool] = []
    monkeypatch.setattr(parent, "_close", lambda complete: closed.append(complete))
    parent.count(3, 1)
    parent.on_multirun_end(None)
    parent.count(3, 0, left=1)
    parent.on_multirun_end(None)
    assert closed == [True, False]
