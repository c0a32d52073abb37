"""Weights are what they say: flipped bits, swapped, missing and foreign files, and each message's advice to its end."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from composing import compose_words
from omegaconf import OmegaConf
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import snnexp.training.loop as loop
from snnexp.config import Config
from snnexp.errors import DataError
from snnexp.tasks.train import train
from snnexp.tracking.runs import claim, read_record
from snnexp.training.checkpoint import load_state, load_weights, save_state, save_weights
from snnexp.training.sealed import SEAL_BYTES
from snnexp.training.stored import load_stored
from snnexp.validation import validate

JOB = (
    "device=cpu",
    "tracking=off",
    "model.spec=FC8-SN-FC-SN",
    "trainer=smoke",
    "trainer.max_epochs=3",
    "trainer.plots=false",
    "dataset.num_steps=2",
)
TENSORS = {"fc1.weight": torch.arange(12.0).reshape(3, 4), "n": torch.tensor(3), "flag": torch.tensor(True)}
CONFIG = {
    "seed": 0,
    "state_dir": "/home/me/runs",
    "dataset": {"name": "digits", "root": "/home/me/data"},
    "tracking": {"name": "mlflow", "uri": "http://me:secret@host"},
}


@pytest.fixture(autouse=True)
def quiet(capsys: pytest.CaptureFixture[str]) -> None:
    """The display writes to the terminal."""


def configured(folder: Path, *overrides: str) -> tuple[Config, Any]:
    cfg = compose_words(*JOB, f"state_dir={folder}", *overrides)
    return validate(cfg), cfg


def run(folder: Path, *overrides: str) -> None:
    train(*configured(folder, *overrides))


def attempts(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/[0-9]*"))


def flip(path: Path, byte: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[byte] ^= 1 << bit
    path.write_bytes(data)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one finished run, to be copied."""
    folder = tmp_path_factory.mktemp("finished")
    run(folder)
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """Its copy."""
    shutil.copytree(finished, tmp_path / "runs")
    return tmp_path / "runs"


def cut_off(folder: Path) -> Path:
    """Make a finished run one that was killed before its test."""
    (attempt,) = attempts(folder)
    values = json.loads((attempt / "run.json").read_text())
    (attempt / "run.json").write_text(json.dumps({**values, "status": "KILLED"}))
    return attempt


# --- the files ----------------------------------------------------------------------------------------------------


def test_equal_weights_make_equal_files_that_others_read(tmp_path: Path) -> None:
    files = []
    for name in ("a", "b"):
        config = {**CONFIG, "state_dir": f"/{name}", "tracking": {"name": name, "uri": name}}
        tensors = dict(reversed(TENSORS.items())) if name == "b" else TENSORS
        save_weights(tmp_path / name, tensors, config, {"epoch": 1})
        files.append((tmp_path / name).read_bytes())
    assert files[0] == files[1]
    loaded = load_file(tmp_path / "a")
    assert all(loaded[key].equal(value) for key, value in TENSORS.items())
    assert b"secret" not in files[0] and b"/home/me" not in files[0]


def test_every_flipped_bit_in_weights_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_weights(path, TENSORS, CONFIG, {"epoch": 1, "role": "best"})
    whole = path.read_bytes()
    for position in range(0, len(whole), 3):
        flip(path, position, position % 8)
        with pytest.raises(DataError):
            load_weights(path)
        path.write_bytes(whole)
    assert load_weights(path)[2] == {"epoch": 1, "role": "best"}


def test_every_flipped_bit_in_a_state_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "001" / "state.pt"
    save_state(path, {"network": TENSORS})
    assert load_state(path)["network"]["n"] == 3
    assert torch.load(path, weights_only=True)["network"]["n"] == 3  # still a file of torch's
    whole = path.read_bytes()
    for position in range(0, len(whole), 7):
        flip(path, position, position % 8)
        with pytest.raises(DataError, match=r"state\.pt is damaged.*trainer\.resume=never.*or delete the folder .*001"):
            load_state(path)
        path.write_bytes(whole)
    for length in (0, 10, len(whole) - SEAL_BYTES, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match="damaged"):
            load_state(path)


def test_files_of_older_versions_load_and_say_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    metadata = {"config": json.dumps(CONFIG), "facts": '{"epoch": 4}', "snnexp": "0.1"}
    save_file(TENSORS, tmp_path / "old.safetensors", metadata=metadata)
    assert load_weights(tmp_path / "old.safetensors")[2] == {"epoch": 4}
    assert "has no digest" in caplog.text
    torch.save({"version": 1, "fit": {}}, tmp_path / "state.pt")
    assert load_state(tmp_path / "state.pt")["version"] == 1
    assert "has no checksum" in caplog.text
    torch.save({"version": 99}, tmp_path / "state.pt")
    with pytest.raises(DataError, match="another version"):
        load_state(tmp_path / "state.pt")


def test_files_are_readable_as_the_umask_says(folder: Path) -> None:
    (attempt,) = attempts(folder)
    modes = {path.name: path.stat().st_mode & 0o777 for path in attempt.rglob("*") if path.is_file()}
    assert {"state.pt", "best.safetensors", "last.safetensors", "run.json", "lock"} <= modes.keys()
    assert set(modes.values()) == {0o644}, modes


# --- the run that goes on -----------------------------------------------------------------------------------------

Harm = Callable[[Path], Any]


def another_runs_best(attempt: Path) -> None:
    save_weights(attempt / "best.safetensors", load_file(attempt / "best.safetensors"), CONFIG, {"epoch": 1})


HARMS: dict[str, Harm] = {
    "state flipped": lambda attempt: flip(attempt / "state.pt", 3000),
    "state cut": lambda attempt: (attempt / "state.pt").write_bytes((attempt / "state.pt").read_bytes()[:500]),
    "state empty": lambda attempt: (attempt / "state.pt").write_bytes(b""),
    "state missing": lambda attempt: (attempt / "state.pt").unlink(),
    "state of another version": lambda attempt: torch.save({"version": 99}, attempt / "state.pt"),
    "state without its parts": lambda attempt: save_state(attempt / "state.pt", {"network": {}}),
    "best missing": lambda attempt: (attempt / "best.safetensors").unlink(),
    "best flipped": lambda attempt: flip(attempt / "best.safetensors", -3),
    "best is last": lambda attempt: shutil.copy(attempt / "last.safetensors", attempt / "best.safetensors"),
    "best of another run": another_runs_best,
}


USUAL = ("state flipped", "state missing", "best missing", "best is last")


@pytest.mark.parametrize("harm", [h if h in USUAL else pytest.param(h, marks=pytest.mark.slow) for h in HARMS])
def test_damage_to_an_unfinished_run_is_named_and_the_advice_leads_out(folder: Path, harm: str) -> None:
    attempt = cut_off(folder)
    HARMS[harm](attempt)
    with pytest.raises(DataError, match=r"trainer\.resume=never.*or delete the folder") as error:
        run(folder)
    assert str(attempt) in str(error.value)
    assert [read_record(path).status for path in attempts(folder)] == ["FAILED"]  # type: ignore[union-attr]
    config: Any = OmegaConf.to_container(configured(folder)[1], resolve=True)
    if harm == "state flipped":
        shutil.rmtree(attempt)
        run(folder)
    elif harm == "best missing":
        run(folder, "trainer.resume=never")
    else:
        claim(config, folder, "never").finish("FINISHED")
    again = claim(config, folder)  # not back to the damaged one
    assert (again.action, again.attempt) == ("new", 2 if harm == "state flipped" else 3)
    again.finish("KILLED")


def test_a_state_of_another_attempt_is_refused(folder: Path) -> None:
    run(folder, "trainer.resume=never")
    first, second = attempts(folder)
    values = json.loads((second / "run.json").read_text())
    (second / "run.json").write_text(json.dumps({**values, "status": "KILLED"}))
    shutil.copy(first / "state.pt", second / "state.pt")
    with pytest.raises(DataError, match="the state of another run"):
        run(folder)


def test_two_runs_of_one_configuration_have_equal_files(folder: Path) -> None:
    run(folder, "trainer.resume=never")
    first, second = attempts(folder)
    for name in ("best.safetensors", "last.safetensors"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_a_kill_between_new_best_weights_and_the_state_loses_neither(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both sides of the moment: new weights that no state names yet, and named ones not yet in their place."""
    real, bests = loop.save_state, []
    for moment in ("before", "after"):
        named: list[str] = []

        def killed(path: Path, state: dict[str, Any], moment: str = moment, named: list[str] = named) -> None:
            digest = state["fit"]["best"]["digest"]
            named += [digest] * (digest not in named)
            if len(named) < 3 or moment == "after":  # no best epoch, the first, the second
                real(path, state)
            if len(named) == 3:
                raise KeyboardInterrupt

        monkeypatch.setattr(loop, "save_state", killed)
        job = (tmp_path / moment, "optimizer.lr=0.02", "trainer.max_epochs=6")
        with pytest.raises(KeyboardInterrupt):
            run(*job)
        monkeypatch.setattr(loop, "save_state", real)
        (attempt,) = attempts(tmp_path / moment)
        assert (attempt / "best.next.safetensors").is_file()
        run(*job)
        assert not (attempt / "best.next.safetensors").exists()
        bests.append((attempt / "best.safetensors").read_bytes())
    assert bests[0] == bests[1]


# --- weights of finished runs -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda a: shutil.copy(a / "last.safetensors", a / "best.safetensors"), "these are the last weights"),
        (lambda a: flip(a / "best.safetensors", -1), "its digest is wrong"),
        (lambda a: flip(a / "best.safetensors", 3), "damaged"),
        (lambda a: (a / "best.safetensors").unlink(), "no such checkpoint"),
    ],
)
def test_what_lies_in_a_run_folder_must_be_what_the_run_wrote(folder: Path, harm: Harm, message: str) -> None:
    (attempt,) = attempts(folder)
    assert load_stored(attempt / "best.safetensors")[2]["role"] == "best"
    harm(attempt)
    with pytest.raises(DataError, match=message):
        load_stored(attempt / "best.safetensors")


def test_init_from_reads_only_what_the_run_wrote(folder: Path) -> None:
    (attempt,) = attempts(folder)
    shutil.copy(attempt / "last.safetensors", attempt / "best.safetensors")
    with pytest.raises(DataError, match="these are the last weights") as refused:
        run(folder, f"trainer.init_from={attempt / 'best.safetensors'}", "seed=2")
    (way_out,) = re.findall(r"use (trainer\.init_from=\S+),", str(refused.value))
    assert "checkpoint=" not in str(refused.value)  # a key that training does not read
    run(folder, way_out, "seed=2")


def test_weights_of_another_epoch_or_run_are_named(folder: Path) -> None:
    (attempt,) = attempts(folder)
    best = attempt / "best.safetensors"
    with safe_open(best, framework="pt") as file:
        facts = json.loads(file.metadata()["facts"])
    weights, config, _ = load_weights(best)
    for wrong, message in (
        ({"epoch": 7}, "of epoch 7"),
        ({"identity": "f" * 12}, "another run"),
        ({}, "not the weights"),
    ):
        changed = weights if wrong else {key: value + 1 for key, value in weights.items()}
        save_weights(best, changed, config, {**facts, **wrong})
        with pytest.raises(DataError, match=message + ".*checkpoint=last.*trainer.resume=never"):
            load_stored(best)


def test_temporary_files_of_killed_writers_are_swept(tmp_path: Path) -> None:
    _, cfg = configured(tmp_path)
    plain = OmegaConf.to_container(cfg, resolve=True)
    first = claim(plain, tmp_path)  # type: ignore[arg-type]
    first.finish("KILLED")
    for resume in ("never", "auto"):
        for name in ("run.json.1.tmp", ".best.safetensors.2.tmp", "artifacts/note.txt.3.tmp"):
            (first.path / name).parent.mkdir(exist_ok=True)
            (first.path / name).write_text("")
        claim(plain, tmp_path, resume).finish("FINISHED")  # type: ignore[arg-type]
        assert not list(tmp_path.rglob("*.tmp"))
