"""A search without training: the real command line composed, the real study, and a launcher without processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode

pytest.importorskip("optuna")

from search_launcher import Launcher

from snnexp.config import register_schemas
from snnexp.folders import conf_dir


@pytest.fixture
def hydra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hydra is ready, and the command is given in an empty folder."""
    monkeypatch.chdir(tmp_path)
    register_schemas()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        yield


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds that most tests here need not spend."""
    monkeypatch.setattr("snnexp.search.closing.search_figure", lambda *about: None)
    monkeypatch.setattr("snnexp.search.closing.save_figure", lambda figure, stem: [stem])
    monkeypatch.setattr("snnexp.search.closing.importances", lambda *about: {})


@pytest.fixture
def search(hydra: None) -> Callable[..., list[Any]]:
    """Run `snnexp -m hydra/sweeper=optuna tracking=off WORDS` with a launcher; returns the study's trials."""
    from snnexp.search.preparing import prepare
    from snnexp.search.study import open_study, opened
    from snnexp.search.sweeper import run_search
    from snnexp.tracking.sweep import sweep_id_of

    def run(launcher: Launcher, *words: str, compose: bool = False) -> list[Any]:
        asked = ["hydra/sweeper=optuna", "tracking=off", "hydra.sweep.dir=sweep", *words]
        loader = GlobalHydra.instance().config_loader()
        config = loader.load_configuration("config", asked, RunMode.MULTIRUN)
        # what the program itself knows
        config.hydra.job.config_name = "config"
        try:
            run_search(config, launcher, lambda job: compose and loader.load_sweep_config(config, job))  # type: ignore[arg-type]
        finally:
            made = prepare(config, sweep_id_of(config))
            with opened(made.storage) as storage:
                trials = open_study(storage, made.study, made.conf, 1).get_trials()
        return trials

    return run
