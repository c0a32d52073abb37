"""task=train: claim the run, assemble it, train, test once, and leave a complete record."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from omegaconf import DictConfig, OmegaConf

from snnexp import interrupts, ranks, waiting
from snnexp.ahead import Helper, compiling_ahead
from snnexp.collector import importing
from snnexp.commands import evaluate_command
from snnexp.config import Config
from snnexp.errors import SnnexpError
from snnexp.launchers.worker import job_tags
from snnexp.own_code import with_code
from snnexp.search.trial import Outcome
from snnexp.tasks.environment import Environment, environment
from snnexp.tracking.follower import SilentTracker, claimed_by_first
from snnexp.tracking.healing import after_job, before_job
from snnexp.tracking.links import ui_command
from snnexp.tracking.metrics_log import read_history
from snnexp.tracking.runs import RunFolder, Status, claim

if TYPE_CHECKING:
    from snnexp.data.base import DataSource
    from snnexp.experiment import Experiment
    from snnexp.tracking.store import Tracker

log = logging.getLogger(__name__)

LOADING = "loading PyTorch and what else training needs"


def train(conf: Config, cfg: DictConfig) -> float | Outcome | None:
    """Run the whole experiment; returns the best validation accuracy, which a sweeper may maximise.

    The trial of a search (`hydra/sweeper=optuna`) returns its objectives.

    The record is FINISHED, FAILED or KILLED whatever happens short of `kill -9`, and resumable unless FINISHED.
    """
    env = environment(cfg)
    waiting.begin(name_among_others(conf, env))
    if ranks.leads():
        before_job(conf.tracking, env.sweep, env.start_dir)
    try:
        folder, value = train_run(conf, cfg, env, ahead=env.alone)
        if env.trial is None:
            return value
        return env.trial.outcome(folder, _measured(conf, folder) if env.trial.lacks(folder) else None)
    finally:
        if ranks.leads():
            after_job(conf.tracking, env.sweep, env.start_dir)


def _measured(conf: Config, folder: RunFolder) -> dict[str, float]:
    """What a search needs of a run that was finished before it asked: from its best weights."""
    with waiting.telling(LOADING), importing(freeze=True):
        from snnexp.experiment import assemble
        from snnexp.training.checkpoint import apply_weights
        from snnexp.training.display import Display
        from snnexp.training.outcome import measure_best
        from snnexp.training.stored import load_stored

    experiment = assemble(conf)
    weights, _, facts = load_stored(folder.best)
    apply_weights(experiment.network, weights, folder.best)
    return measure_best(experiment, Display(conf.trainer.max_epochs), int(facts["epoch"]))


def name_among_others(conf: Config, env: Environment) -> str:
    """What each line begins with where several runs of a sweep print to one terminal; else empty."""
    return f"{env.number} {conf.dataset.name}-{conf.neuron.name}-s{conf.seed}" if env.beside_others else ""


def train_run(
    conf: Config, cfg: DictConfig, env: Environment, quiet: bool = False, ahead: bool = False
) -> tuple[RunFolder, float | None]:
    """The same, with the run's folder; `quiet` shows nothing on the way; ahead: another process may compile kernels."""
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    config.pop("claim", None)  # what a paper says is no parameter of the run
    config = ranks.with_size(with_code(config))
    data = _Data(conf)
    study = env.trial.study if env.trial else ""
    _meet(conf)
    folder = claimed_by_first(
        lambda: claim(config, conf.state_dir, conf.trainer.resume, env.in_sweep, data.fingerprint, study)  # type: ignore[arg-type]
    )
    try:
        interrupts.release()
        if folder.action == "skip":
            _skip(conf, env, folder)
            return folder, _value(folder)
        with compiling_ahead(conf, ahead) as helper:
            return folder, _train(conf, config, env, folder, data, helper, quiet)
    except KeyboardInterrupt:
        interrupts.ending()
        opened = not folder.finish("KILLED", told=False)
        if not opened and folder.left_running:
            from snnexp.tracking.unsent import tell_store

            tell_store(conf.tracking, folder, env.start_dir)
        raise
    finally:
        # does nothing if another status has been written, which is so wherever the store knows of the run
        with contextlib.suppress(OSError):  # on a full disk; the error on its way says so
            folder.finish("FAILED", told=False)
        if env.in_sweep:
            _forget_neurons()


def _meet(conf: Config) -> None:
    """Join the other processes of this run, if there are any."""
    if not ranks.several():
        return
    with waiting.telling(LOADING), importing(freeze=True):
        from snnexp.experiment import choose_device
    ranks.connect(choose_device(conf.device).type == "cuda")


def _skip(conf: Config, env: Environment, folder: RunFolder) -> None:
    """A sweep finds the run finished: nothing to compute, but the store must have its record."""
    from snnexp.tracking.unsent import restore_skipped

    print(folder.skip_reason, flush=True)
    log.info("%s", folder.skip_reason)
    restore_skipped(conf.tracking, folder, env.start_dir, env.sweep.parent_run_id if env.sweep else None)
    if env.sweep is not None:
        env.sweep.record_skip(folder.record.mlflow_run_id)


def _value(folder: RunFolder) -> float | None:
    """What a finished run returned when it was trained: a sweeper that optimises must not lose what it has already."""
    points = read_history(folder.metrics_path).get("best/val_accuracy")
    return points[-1][1] if points else None


class _Data:
    """The data of the run, opened once: early if an earlier attempt has to be compared with them."""

    _known: ClassVar[dict[str, str]] = {}  # a sweep that skips a hundred runs opens each data set once

    def __init__(self, conf: Config) -> None:
        self.conf = conf
        self.source: DataSource | None = None

    def fingerprint(self) -> str | None:
        """Of the data as they are now; None, and a warning, if they cannot be read. Nothing is fetched for it."""
        with waiting.telling(LOADING), importing(freeze=True):
            from snnexp.experiment import open_source

        key = repr(self.conf.dataset)
        if key not in self._known:
            try:
                self.source = open_source(replace(self.conf, dataset=replace(self.conf.dataset, download=False)))
            except SnnexpError as error:
                log.warning("the data cannot be compared with those of earlier runs: %s", error)
                return None
            self._known[key] = self.source.info.data_fingerprint
        return self._known[key]


def _train(
    conf: Config,
    config: dict[str, Any],
    env: Environment,
    folder: RunFolder,
    data: _Data,
    helper: Helper,
    quiet: bool,
) -> float | None:
    with waiting.telling(LOADING), importing(freeze=True):
        from snnexp.experiment import assemble, processor
        from snnexp.training.display import Display
        from snnexp.training.foresight import check_training, has_room_beside
        from snnexp.training.loop import fit
        from snnexp.training.outcome import close

    try:
        # wrong data, an impossible network or too little memory stop here, before any record is made
        waiting.watch_compilation()
        with waiting.telling("reading the data"):
            experiment = ranks.first_here_first(lambda: assemble(conf, data.source))
        if experiment.device.type == "cpu" and has_room_beside(experiment):
            helper.build(experiment.source.info.as_input())
        else:
            helper.end()
        check_training(experiment)
    except BaseException:
        folder.discard()
        raise
    _note_circumstances(folder, experiment.source.info.data_fingerprint, processor())
    name = name_among_others(conf, env)
    display = Display(conf.trainer.max_epochs, quiet=quiet or not ranks.leads(), name=name)
    display.announce(experiment, folder)
    tracker = _record(conf, config, env, folder, experiment) if ranks.leads() else SilentTracker()
    status: Status = "FAILED"
    try:
        try:
            interrupts.release()
            state = fit(experiment, folder, tracker, display, config, env.trial)
            close(experiment, state, folder, tracker, display, env.trial)
            interrupts.hold()  # from here on it is finished: a signal that comes now stops nothing
            status = "FINISHED"
        except Exception:
            interrupts.hold()  # an error's record must not be torn either
            raise
    except KeyboardInterrupt:
        interrupts.ending()
        status = "KILLED"
        raise
    finally:
        _close_record(tracker, folder, status)
    if env.in_sweep:
        interrupts.release()  # a signal that came in between ends the sweep
    else:
        interrupts.ending()  # all is written: what follows are a few lines for the user
    run = tracker.run_id[:12] if tracker.run_id else f"{folder.path.parent.name}/{folder.path.name}"
    display.farewell(tracker.link(), evaluate_command(run, conf, env.start_dir), folder)
    store = folder.record.tracking_uri
    command = ui_command(store) if store and not env.in_sweep else None  # a sweep says it once, at its end
    if command:
        display.command("pages: ", command)
    return state.best.accuracy


def _record(
    conf: Config, config: dict[str, Any], env: Environment, folder: RunFolder, experiment: Experiment
) -> Tracker:
    """The run's record, opened; signals are held afterwards, see `open_tracker`."""
    with waiting.telling("opening the record in MLflow"):
        from snnexp.tracking.store import open_tracker

        return open_tracker(
            conf.tracking,
            folder,
            config,
            start_dir=env.start_dir,
            parent_run_id=env.sweep.parent_run_id if env.sweep else None,
            sweep_id=env.sweep.sweep_id if env.sweep else None,
            source_overrides=env.overrides,
            data=experiment.source.info,
            more_tags={**experiment.tags(), **job_tags(), **(env.trial.tags() if env.trial else {})},
        )


def _close_record(tracker: Tracker, folder: RunFolder, status: Status) -> None:
    """Write how it ended on both sides. Raises OSError if the run folder's disk is full: then it has not FINISHED."""
    try:
        if status == "KILLED" and interrupts.will_be_requeued():
            tracker.log_tags(job_tags(once_more=True))
        tracker.finish(status)
        folder.finish(status)
    except OSError:
        if status == "FINISHED":
            tracker.finish("FAILED")
            with contextlib.suppress(OSError):
                folder.finish("FAILED")
            raise  # else the error that ended the run is on its way, and says more


def _note_circumstances(folder: RunFolder, fingerprint: str, processor: dict[str, str]) -> None:
    """Write into run.json what else the numbers depend on, and say where a continued run goes on differently."""
    record = folder.record
    before, now = (record.threads, record.cpu_capability), (int(processor["threads"]), processor["cpu_capability"])
    if record.threads and before != now:
        log.warning(
            "this run was begun with %d threads (%s) and continues with %d (%s): from here on its numbers may differ "
            "in their last bits, and so in time visibly, from those of an uninterrupted run",
            *before,
            *now,
        )
    folder.update(data_fingerprint=fingerprint, threads=now[0], cpu_capability=now[1])


def _forget_neurons() -> None:
    """A sweep runs its jobs in one process, and snnTorch's class-level list would keep every model (snntorch#328)."""
    import gc
    import sys

    if "snntorch" in sys.modules:
        sys.modules["snntorch"].SpikingNeuron.init()
    gc.collect()
