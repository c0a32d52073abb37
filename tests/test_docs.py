"""The documentation: every command in it is legal (slow: and has run), every target exists, the site can be built."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from PIL import Image

from snnexp.any_run import for_any_run
from snnexp.claims.arms import single_unless_trained
from snnexp.cli import conf_dir
from snnexp.config import register_schemas
from snnexp.overrides import arranged
from snnexp.search.conf import search_of
from snnexp.search.space import parse_space
from snnexp.validation import validate

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
MADE = {"results.md"}  # by a command, of commands that have run
# Words that stand for a reader's own; a command with one of them is a pattern, not a command.
PLACEHOLDER = re.compile(r"\.\.\.|…|<[a-z]|\b(NAME|OPTION|GROUP|DIR|FILE|X|S|L|K|N)\b")
SMALL = ("trainer.max_epochs=1", "trainer.plots=false", "dataset.limit_train=24", "dataset.limit_val=12")
SMALL = (*SMALL, "dataset.limit_test=12", "model.spec=FC8-SN-FC-SN")
A_RUN = "0123abcd"  # stands where a page says `run_id=...`; for a test that runs the command, the reader's own run
# What a reader has written by then.
OWN = {
    "neuron/mine.yaml": "defaults: [/schema/neuron/base@_here_]\nname: mine\nthreshold: 0.7\n",
    "mine.py": "def step(x, mem, spk, *, spike, beta):\n    mem = beta * mem + x\n    return mem, spike(mem - 1)\n",
}


def commands() -> dict[str, str]:
    """Every `snnexp ...` of the pages, in blocks and between backticks: the command -> the page that has it."""
    found: dict[str, str] = {}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        blocks = re.findall(r"^ *```[^\n]*\n(.*?)^ *```", text, re.S | re.M)
        lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
        lines += re.findall(r"`(snnexp [^`\n]+)`", re.sub(r"^ *```.*?^ *```", "", text, flags=re.S | re.M))
        for line in (line.replace("run_id=...", f"run_id={A_RUN}") for line in lines):
            start = re.match(r"\s*(?:\$ )?(?:[\w./-]*/)?snnexp(?=\s|$)", line)
            if start is None or page.name in MADE or PLACEHOLDER.search(line.split(" #")[0]):
                continue
            words = shlex.split(line[start.end() :], comments=True)
            if all(re.match(r"-m$|--?[a-z-]+$|[+~]{0,2}[\w./@]+=", word) for word in words):  # no line of a table
                found.setdefault(shlex.join(words), page.name)
    return found


COMMANDS = commands()


@pytest.fixture(scope="session")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reader of the pages has by then: a neuron, recordings (made as docs/data.md does it), pictures."""
    folder = tmp_path_factory.mktemp("own")
    for name, text in OWN.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    block = re.search(r"^## Your own data.*?```python\n(.*?)```", page, re.S | re.M)
    assert block is not None
    with contextlib.chdir(folder):
        exec(block[1], {})
    for number in range(24):
        path = folder / "pictures" / ("a" if number % 2 else "b") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (28, 28), 10 * number).save(path)
    return folder


@pytest.fixture
def hydra(own: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Hydra is ready, started where a reader's own files are; the override that brings them in."""
    monkeypatch.chdir(own)
    register_schemas()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        yield f"hydra.searchpath=[file://{own}]"


def composed(words: list[str]) -> Iterator[DictConfig]:
    """The configurations of the jobs of a command; what `hydra.main` does between the words and the task."""
    loader = GlobalHydra.instance().config_loader()
    words = single_unless_trained(for_any_run(arranged(words)))
    if not {"-m", "--multirun"} & set(words):
        yield loader.load_configuration("config", words, RunMode.RUN)
        return
    words = [word for word in words if word not in ("-m", "--multirun")]
    master = loader.load_configuration("config", words, RunMode.MULTIRUN)
    params = OmegaConf.select(master, "hydra.sweeper.params") or {}
    if search_of(master) is not None:
        space = parse_space(list(master.hydra.overrides.task), params, loader)
        yield loader.load_sweep_config(master, space.overrides(space.first()))
        return
    asked = [f"{key}={value}" for key, value in params.items()] + list(master.hydra.overrides.task)
    parsed = OverridesParser.create(config_loader=loader).parse_overrides(asked)
    jobs = BasicSweeper.split_arguments(parsed, None)[0]
    for job in {str([w for w in job if not w.startswith("seed=")]): job for job in jobs}.values():  # one seed will do
        yield loader.load_sweep_config(master, job)


def test_there_are_commands() -> None:
    assert len(COMMANDS) >= 12
    assert {"dataset=dvs128 neuron=rouser", "-m neuron=fixed,rouser,plif,ttfs recipe=common seed=0,1,2"} <= set(
        COMMANDS
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_legal(command: str, hydra: str) -> None:
    words = shlex.split(command)
    if {"--help", "--version"} & set(words):
        return
    for cfg in composed([*words, hydra]):
        with open_dict(cfg):
            cfg.pop("hydra")
        validate(cfg)


def start(folder: Path, words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "snnexp", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_TRACKING")},
    )


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a reader has trained once."""
    folder = tmp_path_factory.mktemp("trained")
    done = start(folder, list(SMALL))
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_runs(
    command: str, tmp_path: Path, own: Path, real_data: Path, request: pytest.FixtureRequest
) -> None:
    shutil.copytree(own, tmp_path, dirs_exist_ok=True)
    words = shlex.split(command)
    of_a_run = f"run_id={A_RUN}" in words
    if of_a_run or "task=report" in words:
        shutil.copytree(request.getfixturevalue("trained"), tmp_path, dirs_exist_ok=True)
        (run,) = tmp_path.glob("runs/*/*/run.json")
        words = [f"run_id={run.parent.parent.name}" if word == f"run_id={A_RUN}" else word for word in words]
    elif not {"--help", "--version", "-sc"} & set(words):
        words += [
            *SMALL,
            f"hydra.searchpath=[file://{tmp_path}]",
            f"dataset.root={real_data}",
            "dataset.download=false",
        ]
    done = start(tmp_path, words)
    if done.returncode == 2 and ("is not there" in done.stderr or "files are missing below" in done.stderr):
        pytest.skip(done.stderr)  # the machine lacks this data set
    assert done.returncode == 0, done.stderr


def test_every_make_target_of_the_pages_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    named = {
        match
        for page in PAGES
        for match in re.findall(r"(?:^|`)make ([a-z][a-z-]*)\b(?!\w)", page.read_text(encoding="utf-8"), re.M)
    }
    assert {"run", "test"} <= named
    assert named <= targets


def test_every_extra_of_the_pages_exists() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = {
        extra
        for page in PAGES
        for extras in re.findall(r"(?:snnexp|\.|whl)\[([a-z0-9,]+)\]", page.read_text(encoding="utf-8"))
        for extra in extras.split(",")
    }
    assert named and named <= set(project["optional-dependencies"])
