"""task=report: what is one setting, and its mean over seeds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

import snnexp.tasks.environment as environment_module
from snnexp.config import Config, TrackingConf
from snnexp.errors import ConfigError
from snnexp.tasks.report import Result, group_runs, mean_and_sd, report, rows
from snnexp.tracking.mlflow_store import connect


def result(run_id: str, test: float | None = 0.9, val: float | None = 0.95, **params: str) -> Result:
    return Result(run_id, params, test, val)


def test_mean_and_sample_deviation() -> None:
    assert mean_and_sd([0.25, 0.75]) == "0.5000 ± 0.3536"  # sqrt(((0.25)**2 * 2) / 1)
    assert mean_and_sd([0.25]) == "0.2500"
    assert mean_and_sd([]) == "-"


def test_seeds_of_one_setting_are_one_group() -> None:
    runs = [result(f"r{seed}", test=0.5 + 0.1 * seed, neuron="plif", seed=str(seed)) for seed in (2, 1, 0)]
    header, cells = rows(group_runs(runs))
    assert header == ["n", "test/accuracy", "best val/accuracy", "seeds", "run ids"]
    assert cells == [["3", "0.6000 ± 0.1000", "0.9500 ± 0.0000", "0,1,2", "r0 r1 r2"]]


def test_only_what_tells_settings_apart_is_shown() -> None:
    def run(neuron: str, threshold: str, lr: str, seed: str) -> Result:
        params = {"neuron": neuron, "neuron.name": neuron, "neuron.threshold": threshold, "optimizer.lr": lr}
        return result(f"{neuron}{lr}{seed}", 0.9 if neuron == "plif" else 0.5, seed=seed, dataset="digits", **params)

    runs = [run("plif", "1.0", "0.1", "0"), run("fixed", "0.5", "0.1", "0"), run("fixed", "0.5", "0.2", "0")]
    groups = group_runs(runs)
    assert [group.values for group in groups] == [
        {"neuron": "plif", "optimizer.lr": "0.1"},
        {"neuron": "fixed", "optimizer.lr": "0.1"},
        {"neuron": "fixed", "optimizer.lr": "0.2"},
    ]


def test_bookkeeping_makes_no_new_setting() -> None:
    runs = [result("a", seed="0", **{"dataset.root": "/a"}), result("b", seed="1", **{"dataset.root": "/b"})]
    assert len(group_runs(runs)) == 1


def test_of_a_repeated_seed_the_newest_run_counts() -> None:
    [group] = group_runs([result("new", 0.8, seed="0"), result("old", 0.2, seed="0"), result("b", 0.6, seed="1")])
    assert {seed: run.run_id for seed, run in group.runs.items()} == {"0": "new", "1": "b"}


def test_a_key_that_older_runs_lack_is_a_difference() -> None:
    groups = group_runs([result("new", seed="0", **{"model.gain": "2.0"}), result("old", seed="0")])
    assert sorted(group.values["model.gain"] for group in groups) == ["-", "2.0"]


def test_runs_without_a_test_result_are_not_counted() -> None:
    _, cells = rows(group_runs([result("a", None, None, seed="0"), result("b", 0.5, None, seed="1")]))
    assert cells == [["1", "0.5000", "-", "0,1", "a b"]]


@pytest.fixture
def conf(start_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.chdir(start_dir)
    return Config(tracking=TrackingConf(name="mlflow"))


def test_report_reads_the_store(conf: Config, start_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = connect(f"sqlite:///{start_dir}/mlflow.db", "snnexp")
    assert store is not None
    client = store.client

    def add(neuron: str, seed: int, tests: float, status: str = "FINISHED", **tags: str) -> str:
        run: Any = client.create_run(store.experiment_id, tags=tags)
        for key, value in {"neuron": neuron, "seed": seed, "tracking.uri": seed}.items():
            client.log_param(run.info.run_id, key, value)
        for epoch, value in enumerate((0.99, 0.7, 0.6)):  # epoch 0 is the untrained network and does not count
            client.log_metric(run.info.run_id, "val/accuracy", value, step=epoch)
        client.log_metric(run.info.run_id, "test/accuracy", tests, step=2)
        client.set_terminated(run.info.run_id, status)
        return str(run.info.run_id)[:8]

    ids = [add("plif", 0, 0.25), add("plif", 1, 0.75), add("fixed", 0, 0.125)]
    add("plif", 2, 0.0, status="FAILED")
    add("sweep", 0, 0.75, **{"snnexp.role": "sweep"})
    report(conf, OmegaConf.create({}))
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "neuron\tn\ttest/accuracy\tbest val/accuracy\tseeds\trun ids",
        f"plif\t2\t0.5000 ± 0.3536\t0.7000 ± 0.0000\t0,1\t{ids[0]} {ids[1]}",
        f"fixed\t1\t0.1250\t0.7000\t0\t{ids[2]}",
    ]
    assert "1 runs that are not finished" in err


def test_nothing_to_report(conf: Config, start_dir: Path) -> None:
    with pytest.raises(ConfigError, match=r"no finished run of tracking\.experiment=snnexp"):
        report(conf, OmegaConf.create({}))
    (start_dir / "mlflow.db").unlink()
    with pytest.raises(ConfigError, match="Train first"):
        report(conf, OmegaConf.create({}))
    assert not (start_dir / "mlflow.db").exists()
    conf.tracking.name = "off"
    with pytest.raises(ConfigError, match=r"no finished run of .*runs\. Train first, or set state_dir"):
        report(conf, OmegaConf.create({}))


def test_words_beside_the_task_choose_among_the_runs(
    conf: Config, start_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def typed(*overrides: str) -> None:
        from snnexp.tasks.environment import Environment

        values = {"dataset": {"name": "digits"}, "neuron": {"name": "plif", "threshold": 1.0}, "seed": 1}
        monkeypatch.setattr(environment_module, "environment", lambda _: Environment(start_dir, overrides, False, None))
        report(conf, OmegaConf.create(values))

    conf.tracking.name = "off"  # from the folders: the choice is the same
    conf.state_dir = str(start_dir / "runs")
    runs = (("digits", 0, 0.5), ("digits", 1, 0.7), ("mnist", 1, 0.9), ("digits", 1, 0.0))
    for number, (dataset, seed, test) in enumerate(runs):
        status = "FINISHED" if test else "KILLED"
        folder = start_dir / "runs" / f"{dataset}-plif-{number:012d}" / "001"
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps({"identity": "x", "status": status}))
        params = {"dataset": dataset, "seed": str(seed), "neuron": "plif", "neuron.threshold": "1.0"}
        tags = {"git.commit": f"{number}a" * 20, "git.dirty": "false"}
        (folder / "record.json").write_text(json.dumps({"params": params, "tags": tags}))
        entry = {"step": 1, "time": 0, "metrics": {"test/accuracy": test, "val/accuracy": 0.5}}
        (folder / "metrics.jsonl").write_text(json.dumps(entry) + "\n")
    foreign = start_dir / "runs" / "digits-plif-000000000000"
    (foreign / "002").write_text("a file")
    (foreign / "003").symlink_to("nowhere")
    (foreign / "notes").mkdir()
    typed("task=report", "tracking=off", "dataset=digits")
    out, err = capsys.readouterr()
    assert [line.split("\t")[:3] for line in out.splitlines()[1:]] == [["2", "0.6000 ± 0.1414", "0.5000 ± 0.0000"]]
    assert "made by different code: 0a0a0a0a0a, 1a1a1a1a1a" in err and "1 runs that are not finished" in err
    typed("dataset=digits", "seed=1", "neuron.threshold=1.0", "dataset.root=/x")
    assert capsys.readouterr().out.splitlines()[1].split("\t")[0] == "1"
    with pytest.raises(ConfigError, match=r"has seed=1 and neuron\.name=plif\. There are: seed 0, 1; neuron\.name -"):
        typed("seed=1", "neuron.name=plif")
    with pytest.raises(ConfigError, match="filters by groups and keys"):
        typed("+experiment=rouser_fig6b")
