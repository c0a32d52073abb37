"""task=evaluate and task=export: which weights they take, whose words win, and what no checkpoint makes them do."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from composing import compose_words
from omegaconf import OmegaConf
from safetensors import safe_open
from safetensors.torch import save_file

from snnexp.any_run import for_any_run
from snnexp.config import Config, EventDatasetConf
from snnexp.errors import ConfigError, DataError
from snnexp.own_code import asks_for_trust, code_of
from snnexp.registry import KINDS, LOSSES, Kind
from snnexp.tasks.environment import Environment
from snnexp.tasks.evaluate import as_trained, evaluate
from snnexp.tasks.export import export
from snnexp.tasks.find import Found, found_checkpoint
from snnexp.tasks.train import train
from snnexp.tracking.metrics_log import read_history
from snnexp.training.checkpoint import load_weights
from snnexp.validation import validate

JOB = (
    "device=cpu",
    "tracking=off",
    "dataset=randman",
    "dataset.test_per_class=4",
    "model.spec=FC8-SN-FC-SN",
    "trainer=smoke",
    "trainer.max_epochs=1",
    "trainer.plots=false",
    "dataset.num_steps=4",
)

NOT_USED_AGAIN = {"trainer.callbacks"}  # by commands about runs that exist


def composed(*overrides: str) -> Any:
    return compose_words(*for_any_run(list(overrides)))


def about(run_id: object, state_dir: Path, *overrides: str) -> tuple[Config, Any, tuple[str, ...]]:
    typed = ("task=evaluate", f"run_id={run_id}", f"state_dir={state_dir}", "device=cpu", *overrides)
    cfg = composed(*typed)
    return validate(cfg), cfg, tuple(for_any_run(list(typed)))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    cfg = composed(*JOB, f"state_dir={folder}")
    train(validate(cfg), cfg)
    return folder


@pytest.fixture
def runs(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "runs")
    return tmp_path / "runs"


def only(runs: Path) -> Path:
    (record,) = runs.glob("*/*/run.json")
    return record.parent


def rewritten(runs: Path, change: Any) -> Path:
    """The best weights as a file of somebody else's, with no digest and another configuration."""
    best = only(runs) / "best.safetensors"
    with safe_open(best, framework="pt") as file:
        metadata = {key: value for key, value in file.metadata().items() if key in ("config", "facts", "snnexp")}
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    config = json.loads(metadata["config"])
    change(config)
    path = runs.parent / "foreign.safetensors"
    save_file(tensors, path, {**metadata, "config": json.dumps(config)})
    return path


def restored(path: Path, runs: Path, *overrides: str) -> Any:
    _, cfg, typed = about("x", runs, *overrides)
    return as_trained(Found(path, *load_weights(path)), cfg, typed)


def test_a_cutoff_in_steps_is_what_the_key_meant_once(runs: Path) -> None:
    stored = restored(rewritten(runs, lambda config: config["trainer"].update(gradient_cutoff=2)), runs)
    assert (stored.trainer.truncate_steps, stored.trainer.gradient_cutoff) == (2, None)


def test_keys_of_the_runs_own_data_set_win(runs: Path) -> None:
    best = only(runs) / "best.safetensors"
    stored = restored(
        best, runs, "dataset.sparse=never", "dataset.store=/elsewhere", "dataset.num_steps=8", "tracking=off"
    )
    assert (stored.dataset.sparse, stored.dataset.store, stored.dataset.num_steps) == ("never", "/elsewhere", 8)
    assert (stored.dataset.test_per_class, stored.tracking.name, stored.model.spec) == (4, "off", "FC8-SN-FC-SN")
    for wrong, message in (
        ("encoder.gain=2", "encoder.gain=2: the run has encoder=none, where there is no such key"),
        ("neuron=plif", "neuron=plif: task=evaluate takes neuron from the run"),
        ("dataset=digits", "dataset=digits: task=evaluate takes dataset from the run"),
    ):
        with pytest.raises(ConfigError, match=message):
            restored(best, runs, wrong)


def test_nothing_is_followed_out_of_a_checkpoint(runs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PLANTED", "secret")
    away = str(tmp_path / "away")

    def plant(config: dict[str, Any]) -> None:
        config["state_dir"] = config["dataset"]["root"] = config["dataset"]["store"] = away
        config["tracking"] = {"name": "mlflow", "uri": f"sqlite:///{away}/mlflow.db", "run_name": "${oc.env:PLANTED}"}
        config["trainer"]["init_from"] = f"{away}/weights.safetensors"
        config |= {"run_id": "${oc.env:PLANTED}", "task": "${oc.env:PLANTED}", "checkpoint": "last", "device": "cuda"}

    stored = restored(rewritten(runs, plant), runs)
    text = OmegaConf.to_yaml(stored, resolve=True)
    assert away not in text and "secret" not in text and "PLANTED" not in text
    assert (stored.device, stored.task) == ("cpu", "train") and not Path(away).exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config["neuron"].update(name="${oc.env:HOME}"),
        lambda config: config["optimizer"].update(betas=["${oc.env:HOME}", 0.5]),
        lambda config: config["model"].update(spec="???"),
        lambda config: config["model"].update(no_such_key=1),
        lambda config: config.update(dataset="digits"),
        lambda config: config.pop("dataset"),
        lambda config: config["neuron"].update(threshold="much"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_the_files_fault(runs: Path, change: Any) -> None:
    path = rewritten(runs, change)
    with pytest.raises(DataError, match=r"foreign\.safetensors.*configuration"):
        restored(path, runs)


def test_foreign_things_among_the_runs_stop_nothing(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    attempt = only(runs)
    for name in ("notes", "002x", "-1"):
        (attempt.parent / name).mkdir()
        (attempt.parent / name / "run.json").write_text("{}")
    (attempt.parent / "002").write_text("a file")
    (attempt.parent / "003").symlink_to("nowhere")
    (attempt.parent / "004").mkdir()
    (attempt.parent / "004" / "run.json").mkdir()
    (runs / "README").write_text("mine")
    (runs / "link").symlink_to("nowhere")
    (runs / "photos" / "001").mkdir(parents=True)
    (runs / "photos" / "001" / "run.json").write_text("\x00")
    conf, cfg, _ = about(attempt.parent.name, runs)
    assert 0 <= evaluate(conf, cfg) <= 1
    assert "weights of epoch 1" in capsys.readouterr().out
    cfg = composed(*JOB, f"state_dir={runs}")
    train(validate(cfg), cfg)  # 005: names that are taken are passed over
    assert (attempt.parent / "005" / "best.safetensors").is_file()


def test_evaluate_and_export_hand_on_only_what_the_run_wrote(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    attempt = only(runs)
    run_id = f"{attempt.parent.name}/001"
    conf, cfg, _ = about(run_id, runs)
    export(conf, cfg)
    copy = tmp_path / f"{attempt.parent.name}-001-best.safetensors"
    assert copy.read_bytes() == (attempt / "best.safetensors").read_bytes()
    best = attempt / "best.safetensors"
    shutil.copy(attempt / "last.safetensors", best)
    copy.unlink()
    for task in (evaluate, export):
        with pytest.raises(DataError, match=r"these are the last weights.*checkpoint=last"):
            task(conf, cfg)
    assert not copy.exists()
    best.unlink()
    with pytest.raises(DataError, match=r"there is no best\.safetensors in .*001.*Use checkpoint=last"):
        evaluate(conf, cfg)
    conf, cfg, _ = about(run_id, runs, "checkpoint=last", "tracking=off")
    assert 0 <= evaluate(conf, cfg) <= 1


def test_fetched_weights_are_compared_with_the_runs_tags(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from contextlib import contextmanager

    import snnexp.tasks.find as find

    attempt = only(runs)
    record = json.loads((attempt / "run.json").read_text())
    noted, identity = record["weights"]["best"], record["identity"]
    path = shutil.move(attempt / "best.safetensors", tmp_path / "best.safetensors")
    good = {"weights.best": f"{noted['epoch']} {noted['digest']}", "identity": identity, "best_epoch": "1"}
    for tags, message in (
        (good, None),
        ({**good, "weights.best": f"1 {'0' * 64}"}, "not the weights"),
        ({**good, "identity": "0" * 12}, "of another run"),
        ({"best_epoch": "7"}, "the run's best weights are of epoch 7"),
    ):

        @contextmanager
        def fetched(*_: object, tags: dict[str, str] = tags) -> Any:
            yield path, tags

        monkeypatch.setattr(find, "fetched_artifact", fetched)
        conf, _, _ = about("0" * 32, runs)
        if message is None:
            with found_checkpoint(conf, tmp_path) as found:
                assert found.facts["role"] == "best" and isinstance(next(iter(found.weights.values())), torch.Tensor)
            continue
        with pytest.raises(DataError, match=message), found_checkpoint(conf, tmp_path):
            pass


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.key)
def test_code_that_a_checkpoint_names_is_not_imported_without_the_users_word(
    kind: Kind, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    canary = tmp_path / "imported"
    for name in ("canary.py", "torch.py", "nest/__init__.py", "nest/bird.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"open({str(canary)!r}, 'a').close()\nfn = None\n")
    one = kind is LOSSES  # the other keys go the same way
    for word in ("canary.py:fn", "torch.py:fn", "nest.bird:fn") if one else ("nest.bird:fn",):

        def name_it(config: dict[str, Any], word: str = word) -> None:
            if kind.key == "dataset.reader":
                shared = {f.name for f in fields(EventDatasetConf)}
                config["dataset"] = {key: v for key, v in config["dataset"].items() if key in shared} | {"name": "own"}
            *groups, last = kind.key.split(".")
            for group in groups:
                config = config[group]
            config[last] = [word] if isinstance(config.get(last), list) else word

        path = rewritten(runs, name_it)
        # what a run's last line says about itself is what is asked for here
        config = json.loads(safe_open(path, framework="pt").metadata()["config"])
        assert asks_for_trust(config) is (kind.key not in NOT_USED_AGAIN)
        if kind.key in NOT_USED_AGAIN:
            restored(path, runs)
        else:
            with pytest.raises(ConfigError, match=rf"foreign.safetensors: .*{kind.key}={word}.*trust_code=true"):
                restored(path, runs)
            assert not canary.exists(), word
            for said in ("trust_code=true", f"{kind.key}={word}") if one else ():
                assert OmegaConf.select(restored(path, runs, said), kind.key) == word


def test_a_trusted_file_that_has_changed_is_told_apart(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("def fn(spk, mem, labels):\n    return spk.mean()\n")
    path = rewritten(runs, lambda config: config["decoder"].update(loss="mine.py:fn"))
    config = json.loads(safe_open(path, framework="pt").metadata()["config"])
    monkeypatch.setitem(config, "code", code_of(config))
    path = rewritten(runs, lambda stored: stored.update(config))
    assert "code" not in restored(path, runs, "trust_code=true") and "is not the code" not in caplog.text
    (tmp_path / "mine.py").write_text("def fn(spk, mem, labels):\n    return spk.sum()\n")
    restored(path, runs, "trust_code=true")
    assert "decoder.loss is not the code that made this run" in caplog.text


def test_a_sweep_gets_the_value_of_a_run_that_it_skips(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def in_a_sweep(cfg: Any) -> Environment:
        return Environment(Path.cwd(), (), in_sweep=True, sweep=None)

    monkeypatch.setattr("snnexp.tasks.train.environment", in_a_sweep)
    cfg = composed(*JOB, f"state_dir={runs}")
    before = read_history(only(runs) / "metrics.jsonl")["best/val_accuracy"][-1][1]
    assert train(validate(cfg), cfg) == before
    assert len(list(runs.glob("*/*/run.json"))) == 1  # nothing was trained
