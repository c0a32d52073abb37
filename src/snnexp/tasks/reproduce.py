"""task=reproduce +experiment=NAME: run what the claim still needs, then table, figure and verdict."""

from __future__ import annotations

import logging
import subprocess
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from snnexp.claims.collect import find_finished, on_the_same_data, read_run, runs_as_dicts, write_results
from snnexp.claims.conf import ClaimConf
from snnexp.claims.judge import Run, judge
from snnexp.claims.table import markdown
from snnexp.commands import command_line, option_folders
from snnexp.config import Config
from snnexp.errors import ConfigError, TrainingError
from snnexp.own_code import with_code
from snnexp.tasks.environment import absolute_paths, environment
from snnexp.tracking.identity import is_bookkeeping
from snnexp.validation import validate

log = logging.getLogger(__name__)

# Keys that change no number that a paper could have published, beside the bookkeeping: where it runs, and how often.
_HARMLESS = ("device", "neuron.engine", "seed", "arm", "hydra", "experiment")
# Where files lie on this computer: nobody else's command has that, and a file in results/ is for others.
_PLACES = ("state_dir", "dataset.root", "dataset.store")


@dataclass(frozen=True)
class Job:
    """One run that the claim needs."""

    arm: str
    seed: int
    config: dict[str, Any]
    state_dir: Path
    command: str


def reproduce(conf: Config, cfg: DictConfig) -> None:
    """Run the experiment's arms and seeds as the sweep that they are, and write results_dir/<name>.{json,md,png,pdf}.

    What is finished is not run again, what was cut off continues. Cut off with Ctrl-C, the table of what is there is
    written, and the same command goes on.

    Raises:
        ConfigError: no experiment, or one without a claim; or the runs' data are not there.
        TrainingError: a run failed; the table of the others has been written.
    """
    if conf.claim is None:
        raise ConfigError("task=reproduce: needs an experiment with a claim, as in task=reproduce +experiment=NAME.")
    env = environment(cfg)
    hydra = HydraConfig.get()
    experiment = str(hydra.runtime.choices["experiment"])
    overrides = [text for text in env.overrides if not _is_ours(text)]
    jobs = _jobs(experiment, overrides, conf.claim)
    code = 0
    try:
        if any(find_finished(job.config, job.state_dir) is None for job in jobs):
            code = _sweep(experiment, overrides, jobs, env.start_dir)
    finally:  # Ctrl-C as well: a table of what there is
        runs = [
            read_run(folder, job.arm, job.seed, job.command, conf.claim)
            for job in jobs
            if (folder := find_finished(job.config, job.state_dir)) is not None
        ]
        typed = [text for text in env.overrides if text.partition("=")[0] in ("seed", "arm")]
        _report(conf, experiment, [*overrides, *typed], on_the_same_data(runs), len(jobs), env.start_dir)
    if code == ConfigError.exit_code:
        raise ConfigError("the sweep could not run; its message is above. The table has what was there before.")
    if code:
        raise TrainingError(f"the sweep ended with exit code {code}; its messages are above. The same command goes on.")


def _is_ours(text: str) -> bool:
    """Overrides that choose the task or say where its results go, and the arms and seeds, which the jobs have."""
    key = text.partition("=")[0].lstrip("+~")
    return key in ("task", "experiment", "results_dir", "results_name", "arm", "seed") or key.startswith("hydra.")


def _jobs(experiment: str, overrides: list[str], claim: ClaimConf) -> list[Job]:
    """All runs of the claim, the arms of one seed together, so that a sweep cut off half-way has pairs."""
    hydra = HydraConfig.get()
    params = OmegaConf.to_container(hydra.sweeper.params) or {}
    assert isinstance(params, dict)
    typed = dict(text.split("=", 1) for text in hydra.overrides.task if text.startswith(("arm=", "seed=")))
    seeds = _words(typed.get("seed", params.get("seed", "0")))
    arms = _words(typed.get("arm", params.get("arm", ",".join(claim.arms))))
    jobs = []
    for seed in seeds:
        for arm in arms:
            words = [f"+experiment={experiment}", *overrides, f"seed={seed}", f"arm={arm}"]
            cfg = compose("config", overrides=words)
            conf = validate(cfg)
            absolute_paths(conf, cfg)
            config = OmegaConf.to_container(cfg, resolve=True)
            assert isinstance(config, dict)
            command = command_line([*_for_others(words), *option_folders()])
            jobs.append(Job(arm, int(seed), with_code(config), Path(conf.state_dir), command))  # type: ignore[arg-type]
    return jobs


def _for_others(words: list[str]) -> list[str]:
    """The words of a command that can be repeated on another computer."""
    return [text for text in words if text.partition("=")[0].lstrip("+") not in _PLACES]


def _words(text: Any) -> list[str]:
    return [word.strip() for word in str(text).split(",")]


def _sweep(experiment: str, overrides: list[str], jobs: list[Job], start_dir: Path) -> int:
    """Run the sweep as the command that a user would type, in a process of its own; returns its exit code."""
    seeds = ",".join(dict.fromkeys(str(job.seed) for job in jobs))
    arms = ",".join(dict.fromkeys(job.arm for job in jobs))
    words = ["-m", *option_folders(), f"+experiment={experiment}", *overrides, f"seed={seeds}", f"arm={arms}"]
    print(f"running: {command_line(words, printed=True)}", flush=True)
    process = subprocess.Popen([sys.executable, "-m", "snnexp", *words], cwd=start_dir)
    try:
        return process.wait()
    except KeyboardInterrupt:  # a terminal's Ctrl-C went to the sweep too; a lone SIGTERM to us did not
        process.terminate()
        process.wait()
        raise


def _report(conf: Config, experiment: str, overrides: list[str], runs: list[Run], wanted: int, start_dir: Path) -> None:
    """Write the JSON file, the table and the figure, and print the table."""
    assert conf.claim is not None
    changed = [text for text in overrides if not _is_harmless(text, conf.claim)]
    judgement = judge(conf.claim, runs, changed)
    words = [f"+experiment={experiment}", *_for_others(overrides), *option_folders()]
    content = {
        "experiment": experiment,
        "command": command_line(["task=reproduce", *words]),
        "changed": changed,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "runs_wanted": wanted,
        "claim": asdict(conf.claim),
        "judgement": judgement.as_dict(),
        "runs": runs_as_dicts(runs),
    }
    folder = (start_dir / Path(conf.results_dir).expanduser()).resolve()
    path = folder / f"{conf.results_name or experiment}.json"
    text = markdown(content, conf.claim, runs)
    write_results(path, content)
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text, flush=True)
    written = [path, path.with_suffix(".md")]
    if runs:
        from snnexp.claims.figure import draw

        written += draw(path.with_suffix(""), conf.claim, runs)
    print("written: " + ", ".join(str(file) for file in written), flush=True)


def _is_harmless(text: str, claim: ClaimConf) -> bool:
    """Whether the override changes nothing that was published; a claim with an epoch judges the number of epochs."""
    key = text.partition("=")[0].lstrip("+~")
    if key == "trainer.max_epochs":
        return claim.epoch is not None or claim.whole is not None
    return is_bookkeeping(key) or any(key == name or key.startswith(name + ".") for name in _HARMLESS)
