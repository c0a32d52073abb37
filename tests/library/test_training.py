"""`snnexp.train` in somebody else's process: same record, nothing left behind, errors as exceptions."""

from __future__ import annotations

import logging
import signal
from pathlib import Path

import pytest
import torch
from library_jobs import JOB

import snnexp
from snnexp import interrupts
from snnexp.tasks.report import from_folders


def state_of_process() -> tuple[object, ...]:
    from hydra._internal import hydra as hydra_main
    from hydra.core.config_store import ConfigStore
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.override_parser import overrides_parser

    return (
        *(signal.getsignal(getattr(signal, name)) for name in ("SIGINT", "SIGTERM", "SIGHUP")),
        torch.get_num_threads(),
        torch.get_rng_state().tolist(),
        hydra_main.ConfigLoaderImpl,
        overrides_parser.HydraOverrideVisitor,
        sorted(ConfigStore.instance().repo),
        GlobalHydra().is_initialized(),
        HydraConfig.initialized(),
        interrupts._held,
        interrupts._ending,
        logging.raiseExceptions,
    )


def test_the_record_is_the_commands(run: snnexp.Run) -> None:
    assert run.run_id is not None and len(run.run_id) == 32
    assert 0 <= run.metrics["test/accuracy"] <= 1
    assert [epoch for epoch, _ in run.history["val/loss"]] == [0, 1]
    (row,) = snnexp.runs().to_dict("records")
    assert (row["run_id"], row["status"], row["folder"]) == (run.run_id, "FINISHED", str(run.folder))
    assert (row["dataset"], row["neuron"], row["seed"]) == ("digits", "fixed", 0)
    assert row["neuron.learn_threshold"] is False and row["neuron.beta"] == 0.9
    assert row["test/accuracy"] == run.metrics["test/accuracy"]
    assert "state_dir" not in row


def test_runs_of_folders_alone_have_the_same_columns(run: snnexp.Run, tmp_path: Path) -> None:
    stored, local = snnexp.runs(), snnexp.runs(tracking_uri="off")
    assert set(local.columns) == set(stored.columns)
    assert local.run_id.tolist() == [run.run_id]
    nothing = snnexp.runs(state_dir=tmp_path, tracking_uri=f"sqlite:///{tmp_path}/none.db")
    assert len(nothing) == 0 and "test/accuracy" in nothing


def test_nothing_is_left_behind_and_twice_is_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = state_of_process()
    monkeypatch.setattr("snnexp.tracking.runs._now", lambda: "2026-01-01T00:00:00+00:00")  # both in the same second
    words = [*JOB, "tracking=off", "trainer=smoke", f"state_dir={tmp_path}/runs"]
    first, second = snnexp.train(words), snnexp.train(words, progress=False)
    shown = capsys.readouterr().out
    assert "epoch 1/" in shown and shown.count("test: accuracy") == 1
    assert [r.folder.name for r in (first, second)] == ["001", "002"]
    losses = [[(e, v) for e, v in r.history["train/loss"]] for r in (first, second)]
    assert losses[0] == losses[1]
    assert state_of_process() == before
    table = snnexp.runs(state_dir=tmp_path / "runs", tracking_uri="off")
    assert table.run_id.tolist()[0].endswith("/002") and len(table) == 2
    reported, _ = from_folders(tmp_path / "runs")
    assert [result.run_id for result in reported] == table.run_id.tolist()


def test_errors_are_exceptions_with_the_commands_words() -> None:
    before = state_of_process()
    cases = {
        ("neuron.treshold=1",): "Did you mean neuron.threshold",
        ("dataset=digts",): "Did you mean digits",
        ("-m", "seed=0,1"): "flags are for the command line",
        ("seed=0,1",): "seed=0,1: several values. Call once",
        ("task=evaluate", "run_id=12345678"): "train",
        ("model.spec=c4k3-XX",): "unknown token XX",
        ("+experiment=rouser_fig6b",): "sweep over its arms and seeds",
    }
    for words, message in cases.items():
        with pytest.raises(snnexp.ConfigError, match=message):
            snnexp.train(list(words))
    assert state_of_process() == before


def test_ctrl_c_leaves_a_run_to_continue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal arrives within the second epoch, as a notebook's stop button sends it."""
    from snnexp.training import loop

    before = state_of_process()
    words = [*JOB, "tracking=off", "trainer.max_epochs=3", f"state_dir={tmp_path}/runs"]
    train_pass = loop.train_pass

    def interrupted(experiment, optimizer, epoch, *more):
        if epoch == 2:
            signal.raise_signal(signal.SIGINT)
        return train_pass(experiment, optimizer, epoch, *more)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "train_pass", interrupted)
        with pytest.raises(KeyboardInterrupt):
            snnexp.train(words, progress=False)
    assert state_of_process() == before
    assert snnexp.runs(state_dir=tmp_path / "runs", tracking_uri="off").status.tolist() == ["KILLED"]
    run = snnexp.train(words, progress=False)
    assert run.folder.name == "001" and [epoch for epoch, _ in run.history["train/loss"]] == [1, 2, 3]


def test_inside_a_hydra_program_its_own_state_stays(tmp_path: Path) -> None:
    from hydra import compose, initialize_config_dir

    (tmp_path / "theirs.yaml").write_text("a: 1\nday: 2026_11_25\n")
    with initialize_config_dir(str(tmp_path), version_base="1.2"):
        snnexp.open_data("digits", "test")
        assert compose("theirs", ["a=2026_11_25"]).a == 20261125  # Hydra's reading of words, not ours


def test_the_public_surface() -> None:
    import ast

    for name in snnexp.__all__:
        assert getattr(snnexp, name) is not None and (name.startswith("__") or getattr(snnexp, name).__doc__)
    assert set(snnexp.__all__) <= set(dir(snnexp))
    source = Path(snnexp.__file__)
    assert (source.parent / "py.typed").exists()
    imports = [node for node in ast.walk(ast.parse(source.read_text())) if isinstance(node, ast.ImportFrom)]
    typed = {alias.asname for node in imports for alias in node.names}
    assert set(snnexp.__all__) == typed - {None}  # what type checkers see is what there is
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        snnexp.laod  # noqa: B018
