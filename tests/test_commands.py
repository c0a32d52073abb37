"""Commands to copy: they start this environment's programs, hold what the run needs, and survive a shell."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from snnexp.any_run import for_any_run
from snnexp.cli import conf_dir
from snnexp.commands import command_line, evaluate_command, folder_words, option_folders, program
from snnexp.config import Config, register_schemas
from snnexp.helptext import fitted, help_text
from snnexp.overrides import arranged
from snnexp.tracking.links import ui_command
from snnexp.validation import validate


def composed(*words: str) -> Config:
    register_schemas()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return validate(compose("config", overrides=for_any_run(arranged(list(words)))))


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to start in, with an environment in it, a python that is a link and both programs."""
    scripts = tmp_path / "my env" / "bin"
    scripts.mkdir(parents=True)
    for name in ("snnexp", "mlflow"):
        (scripts / name).write_text("#!/bin/sh\n")
        (scripts / name).chmod(0o755)
    (scripts / "python").symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(scripts / "python"))
    monkeypatch.setenv("SNNEXP_START_DIR", str(tmp_path))
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("SNNEXP_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_program_is_named_as_this_shell_finds_it(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert program() == "'my env/bin/snnexp'"  # `.venv/bin/snnexp` after `make run`
    assert shlex.split(program("mlflow", anywhere=True)) == [str(elsewhere / "my env" / "bin" / "mlflow")]
    other = elsewhere / "other"
    other.mkdir()
    (other / "snnexp").write_text("#!/bin/sh\n")
    (other / "snnexp").chmod(0o755)
    monkeypatch.setenv("PATH", str(other))
    assert program() == "'my env/bin/snnexp'"  # the one on PATH is another environment's
    monkeypatch.setenv("PATH", str(elsewhere / "my env" / "bin"))
    assert program() == "snnexp"
    assert ui_command("sqlite:////x/mlflow.db") == "mlflow ui --backend-store-uri sqlite:////x/mlflow.db --workers 1"
    (elsewhere / "my env" / "bin" / "snnexp").unlink()
    assert program() == f"{shlex.quote(sys.executable)} -m snnexp"


def test_a_shell_reads_the_words_that_were_typed() -> None:
    words = ["dataset.kwargs={first_saccade_only: true}", "tracking.experiment=it's $HOME", "seed=0"]
    line = command_line(words).replace("snnexp", "printf '%s\\n'", 1)
    assert subprocess.run(["sh", "-c", line], capture_output=True, text=True).stdout.splitlines() == words


@pytest.mark.parametrize(
    ("typed", "wanted"),
    [
        ([], []),
        (["seed=3", "tracking=off", "tracking.experiment=x", "dataset.download=false"], []),
        (["state_dir=states"], ["state_dir=states"]),
        (["state_dir=/somewhere/else"], ["state_dir=/somewhere/else"]),
        (["state_dir=./runs"], []),
        (
            ["dataset=nmnist", "dataset.root=my data", "dataset.store=packed"],
            ["dataset.root=my data", "dataset.store=packed"],
        ),
    ],
)
def test_what_lies_elsewhere_is_said(typed: list[str], wanted: list[str], elsewhere: Path) -> None:
    assert folder_words(composed(*typed), elsewhere) == wanted
    line = shlex.split(evaluate_command("0123abcd", composed(*typed), elsewhere))[1:]
    assert line == ["task=evaluate", "run_id=0123abcd", *wanted]
    assert folder_words(composed(*line), elsewhere) == wanted  # Hydra reads them so, too


def test_data_where_the_variable_says_need_no_word(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SNNEXP_DATA", "/data")
    assert folder_words(composed("dataset=mnist"), elsewhere) == []
    assert folder_words(composed("dataset=mnist", "dataset.root=data"), elsewhere) == ["dataset.root=data"]


def test_options_of_ones_own_come_with_the_command() -> None:
    sources = [{"provider": "main", "path": "/ours"}, {"provider": "command-line", "path": "/my options"}]
    typed = ["hydra.mode=MULTIRUN", "hydra.searchpath=[file:///more]"]
    hydra = OmegaConf.create({"runtime": {"config_sources": sources}, "overrides": {"hydra": typed}})
    words = option_folders(hydra)
    assert words == ["--config-dir=/my options", "hydra.searchpath=[file:///more]"]
    assert command_line([*words, "neuron=mine"]) == (
        "snnexp '--config-dir=/my options' 'hydra.searchpath=[file:///more]' neuron=mine"
    )
    assert option_folders() == []  # outside a job


def test_help_fits_the_terminal_word_for_word() -> None:
    text = help_text(conf_dir())
    lines = fitted(text, 80).splitlines()
    assert max(map(len, lines)) <= 80 and " ".join(lines).split() == text.split()
    commands = [line for line in text.splitlines() if line.startswith("  snnexp ")]
    assert len(commands) >= 4 and set(commands) <= set(fitted(text, 40).splitlines())  # to be copied
