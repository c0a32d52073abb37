"""What a run's own code is: in its identity, in its tags."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
from composing import compose_words
from omegaconf import OmegaConf

from snnexp.errors import ConfigError
from snnexp.own_code import code_of, code_tags, with_code
from snnexp.tracking.identity import run_identity


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mine.py").write_text("def fn(x):\n    return x\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "mine.py"


def composed(*overrides: str) -> dict[str, Any]:
    return OmegaConf.to_container(compose_words(*overrides), resolve=True)


@pytest.mark.parametrize("key", ["decoder.loss", "neuron.surrogate.name", "neuron.equation", "neuron.module"])
def test_a_changed_file_is_another_run(mine, key):
    config = composed(f"{key}=mine.py:fn")
    first = run_identity(with_code(config))
    assert run_identity(with_code(config)) == first
    mine.write_text(mine.read_text() + "# another thought\n")
    assert run_identity(with_code(config)) != first
    assert list(with_code(config)["code"]) == [key]
    mine.unlink()
    with pytest.raises(ConfigError, match=f"{key}=mine.py:fn: there is no file mine.py"):
        with_code(config)


def test_runs_without_code_of_their_own_are_what_they_were(monkeypatch):
    config = composed()
    assert with_code(config) is config and code_tags(config) == {}
    config = composed("neuron.module=snntorch.Leaky")  # snnTorch's: its version is in the record
    assert with_code(config) is config and code_tags(config) == {"code.neuron.module": "snntorch.Leaky"}


def test_the_record_has_hash_commit_and_dirty_flag_and_the_package(mine):
    config = composed("decoder.loss=mine.py:fn", "neuron.equation=mine:fn")
    digest = code_of(config)["decoder.loss"]
    assert code_tags(config)["code.decoder.loss"] == f"mine.py:fn sha256:{digest}"

    def git(*words: str) -> str:
        command = ["git", "-c", "user.name=n", "-c", "user.email=e", *words]
        return subprocess.run(command, cwd=mine.parent, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    assert "commit" not in code_tags(config)["code.decoder.loss"]
    git("add", "mine.py")
    git("commit", "-qm", "mine")
    commit = git("rev-parse", "HEAD")
    assert code_tags(config)["code.decoder.loss"] == f"mine.py:fn sha256:{digest} commit:{commit} dirty:false"
    mine.write_text("fn = None\n")
    assert code_tags(config)["code.neuron.equation"].endswith(f"commit:{commit} dirty:true")
    config = composed("decoder.loss=hydra.utils:call")
    assert " package:hydra-core 1.3" in code_tags(config)["code.decoder.loss"]
