"""task=train: claim the run, assemble it, train, test once, and leave a complete record."""

from __future__ import annotations

import logging
from typing import Any

from omegaconf import DictConfig, OmegaConf

from snnexp.collector import importing
from snnexp.config import Config
from snnexp.tasks.environment import Environment, environment
from snnexp.tracking.links import ui_command
from snnexp.tracking.runs import RunFolder, Status, claim

log = logging.getLogger(__name__)


def train(conf: Config, cfg: DictConfig) -> float | None:
    """Run the whole experiment; returns the best validation accuracy, which a sweeper may maximise.

    The record is FINISHED, FAILED or KILLED whatever happens short of `kill -9`, and resumable unless FINISHED.
    """
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    env = environment(cfg)
    folder = claim(config, conf.state_dir, conf.trainer.resume, env.in_sweep)  # type: ignore[arg-type]
    if folder.action == "skip":
        print(folder.skip_reason, flush=True)
        log.info("%s", folder.skip_reason)
        if env.sweep is not None:
            env.sweep.record_skip(folder.record.mlflow_run_id)
        return None
    try:
        return _train(conf, config, env, folder)
    except KeyboardInterrupt:
        folder.finish("KILLED")
        raise
    finally:
        folder.finish("FAILED")  # does nothing if another status has been written
        if env.in_sweep:
            _forget_neurons()


def _train(conf: Config, config: dict[str, Any], env: Environment, folder: RunFolder) -> float | None:
    with importing(freeze=True):
        from snnexp.experiment import assemble
        from snnexp.tracking.store import open_tracker
        from snnexp.training.display import Display
        from snnexp.training.loop import fit
        from snnexp.training.outcome import close

    try:
        experiment = assemble(conf)  # wrong data or an impossible network stops here, before any record is made
    except BaseException:
        folder.discard()
        raise
    display = Display(conf.trainer.max_epochs)
    display.announce(experiment, folder)
    tracker = open_tracker(
        conf.tracking,
        folder,
        config,
        start_dir=env.start_dir,
        parent_run_id=env.sweep.parent_run_id if env.sweep else None,
        sweep_id=env.sweep.sweep_id if env.sweep else None,
        source_overrides=env.overrides,
    )
    status: Status = "FAILED"
    try:
        tracker.log_dataset(experiment.source.info)
        tracker.log_tags(experiment.tags())
        state = fit(experiment, folder, tracker, display, config)
        close(experiment, state, folder, tracker, display)
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        tracker.finish(status)
        folder.finish(status)
    display.farewell(tracker.link(), tracker.run_id, folder)
    store = folder.record.tracking_uri
    command = ui_command(store) if store and not env.in_sweep else None  # a sweep says it once, at its end
    if command:
        display.say(f"pages:  {command}")
    return state.best.accuracy


def _forget_neurons() -> None:
    """A sweep runs its jobs in one process, and snnTorch's class-level list would keep every model (snntorch#328)."""
    import gc
    import sys

    if "snntorch" in sys.modules:
        sys.modules["snntorch"].SpikingNeuron.init()
    gc.collect()
