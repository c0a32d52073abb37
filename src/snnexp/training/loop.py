"""The one training loop. Papers differ by configuration, never by a copy of this file.

Order within an epoch, and why: train; validate; select; write the training state (so that a kill from here on loses
nothing); then log. A state therefore never misses an epoch that the record has, and the tracker is given whatever the
record misses when the run continues.
"""

from __future__ import annotations

import logging
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from snnexp import collectives, ranks
from snnexp.analysis import voice
from snnexp.analysis.activity import ActivityMeter, counted_eps
from snnexp.analysis.causes import Explainer
from snnexp.analysis.diagnosis import diagnose
from snnexp.analysis.fates import record
from snnexp.analysis.weight_gradients import weight_norms
from snnexp.errors import DataError
from snnexp.experiment import Experiment
from snnexp.models import sparsity
from snnexp.rescue.manager import Rescue
from snnexp.search.trial import Trial
from snnexp.tracking.runs import RunFolder
from snnexp.tracking.store import Tracker
from snnexp.training.callbacks import Callbacks, Context
from snnexp.training.checkpoint import AFRESH, apply_weights, load_state, save_state, save_weights
from snnexp.training.curves import Curves
from snnexp.training.display import Display
from snnexp.training.midway import Midway
from snnexp.training.optimisation import advance, build_optimizer, build_scheduler, load_optimizer
from snnexp.training.passes import evaluation_pass, planned_batches, train_pass
from snnexp.training.state import Best, Fit
from snnexp.training.stored import load_stored, settle_best

log = logging.getLogger(__name__)


def fit(
    experiment: Experiment,
    folder: RunFolder,
    tracker: Tracker,
    display: Display,
    config: dict[str, Any],
    trial: Trial | None = None,
) -> Fit:
    """Train until trainer.max_epochs or early stopping; the best and the last weights are in `folder` afterwards.

    Continues from `folder.state` if there is one, and then ends with the same bits as an uninterrupted run. A `trial`
    of a search may be pruned after any epoch but the last.
    """
    conf, network = experiment.conf, experiment.network
    optimizer = build_optimizer(conf.optimizer, network.parameter_groups())
    scheduler = build_scheduler(conf.scheduler, optimizer, conf.trainer.max_epochs)
    rescue = Rescue.of(experiment, optimizer)
    callbacks = Callbacks(conf.trainer.callbacks)
    meters = {split: ActivityMeter(network, counted_eps(conf.trainer, split)) for split in ("train", "val")}
    validates = experiment.source.num_batches("val") > 0
    made_on = {
        "identity": folder.record.identity,
        "data_fingerprint": experiment.source.info.data_fingerprint,
        "input": experiment.source.info.as_input(),  # what the network needs to be built again without the data
    }

    # --- where training starts: the first of these that applies, so the order matters ---
    # 1. the unfinished run of this identity   2. trainer.init_from   3. fresh weights
    # (the start that 1. replaces is needed all the same where the way from it is measured)
    state = Fit()
    if conf.trainer.init_from is not None and (conf.trainer.weight_change or not folder.state.is_file()):
        path = Path(conf.trainer.init_from).expanduser()
        weights, trained_with, _ = load_stored(path, to_start_from=True)
        apply_weights(network, weights, path, trained_with)
    rescue.start()
    curves, explainer = Curves(experiment), Explainer(experiment)
    if resumed := ranks.from_first(folder.state.is_file):
        state = _restore(folder, experiment, optimizer, scheduler, meters, callbacks, rescue)
        for epoch in range(state.epoch + 1):  # what the record may have missed when the run was cut off
            tracker.log_epoch(epoch, {k: v for k, points in state.history.items() for e, v in points if e == epoch})
        tracker.log_tags({f"cause.{name}": claim for name, claim in state.causes.items()})
    else:
        if any(step > 0 for points in tracker.history().values() for step, _ in points):
            raise DataError(
                f"{folder.state} is missing, although epochs of this run are in its record. "
                + AFRESH.format(folder=folder.path)
            )
        _before_training(experiment, state, meters, tracker, display, validates, curves, rescue)
        _save(folder, state, experiment, optimizer, scheduler, meters, callbacks, config, rescue)

    midway = Midway(folder, conf.trainer.checkpoint_minutes, state.epoch)
    if resumed:
        where = f", at batch {midway.begun + 1} of the next" if midway.begun else ""
        display.say(f"Continuing after epoch {state.epoch} of {conf.trainer.max_epochs}{where}.")

    if trial is None:
        state.pruned = False  # by a search that was cut off; this is no trial of it
    else:
        trial.prunes(state.history, 0)  # refuses an objective that is not there before anything is trained
    context = Context(state.epoch, conf.trainer.max_epochs, network, optimizer, folder.path)
    callbacks.call("on_start", context)

    # --- epochs ---
    while state.epoch < conf.trainer.max_epochs and not (state.stopped_early or state.pruned):
        epoch, started = state.epoch + 1, time.perf_counter()
        collectives.same_everywhere(network)
        sparsity.agree(network)
        with display.epoch(epoch, planned_batches(experiment, "train")) as progress, midway.deferring():
            trained = train_pass(experiment, optimizer, epoch, meters["train"], progress, rescue, midway)
        metrics = trained.metrics("train") | meters["train"].metrics("train")
        if validates:
            with display.validation(epoch, planned_batches(experiment, "val")) as progress:
                validated = evaluation_pass(experiment, "val", meters["val"], epoch, progress)
            metrics |= validated.metrics("val") | meters["val"].metrics("val")
        metrics |= _learned(experiment, state, epoch) | curves(epoch)
        judged = validated if validates else trained
        advance(scheduler, judged.loss)

        # without a validation split the last epoch counts: nothing may be selected on training or test data
        improved = not validates or state.best.beaten_by(validated, conf.trainer.monitor)
        if improved:
            state.best = Best(epoch, judged.accuracy, judged.loss)
        state.epoch = epoch
        patience = conf.trainer.patience
        context.epoch, context.metrics = epoch, metrics
        callbacks.call("on_epoch", context)
        context.stop = ranks.from_first(lambda: context.stop)
        state.stopped_early = context.stop or (patience is not None and epoch - state.best.epoch >= patience)

        seconds = time.perf_counter() - started + trained.earlier_seconds
        state.seconds += seconds
        metrics["time/epoch_s"] = seconds
        metrics["time/samples_per_s"] = trained.samples / max(trained.seconds, 1e-9)
        metrics["time/data_wait_fraction"] = trained.wait_seconds / max(trained.seconds, 1e-9)

        if improved and ranks.leads():  # before the state, which names them, in their place after it: `settle_best`
            accuracy = {f"{'val' if validates else 'train'}_accuracy": state.best.accuracy}
            facts = {"epoch": epoch, "role": "best", **accuracy, **made_on}
            state.best.digest = save_weights(folder.next_best, network.final_state(), config, facts)
        asked = conf.trainer.diagnose or rescue.waits
        split = "val" if validates else "train"
        record(state.fates, epoch, meters[split].last)
        known = state.with_latest(epoch, metrics)
        causes = explainer.explain(meters[split], split, known) if conf.trainer.diagnose else {}
        findings = diagnose(network, meters[split], conf, causes) if asked else []
        if epoch < conf.trainer.max_epochs and not state.stopped_early:  # after the best weights: these were judged
            metrics |= rescue.between_epochs(epoch, meters["train"], findings)
        state.record(epoch, metrics)
        ends = state.stopped_early or epoch == conf.trainer.max_epochs
        state.pruned = trial is not None and trial.prunes(state.history, epoch) and not ends
        waits: set[str] = set()
        if not (ends or state.pruned):
            waits = voice.waiting(list(network.spiking_layers), causes, explainer.waking)
        claims = voice.tags(state.causes, causes, waits, epoch)
        _save(folder, state, experiment, optimizer, scheduler, meters, callbacks, config, rescue)
        midway.epoch_ended()
        if improved and ranks.leads():
            folder.next_best.replace(folder.best)
            folder.note_weights("best", epoch, state.best.digest)
        tracker.log_epoch(epoch, metrics)
        display.finish_epoch(epoch, metrics, improved)
        if conf.trainer.diagnose:
            display.forget(lambda key: voice.is_over(key, state.history))
            display.advise(voice.spoken(findings, causes, waits))
            tracker.log_tags(claims)
        if line := rescue.told(epoch):
            display.say(line)
    rescue.after_training()
    tracker.log_tags(rescue.tags() | sparsity.tags(network))
    callbacks.call("on_end", context)
    if ranks.leads():
        facts = {"epoch": state.epoch, "role": "last", **made_on}
        folder.note_weights("last", state.epoch, save_weights(folder.last, network.final_state(), config, facts))
    return state


def _before_training(
    experiment: Experiment,
    state: Fit,
    meters: dict[str, ActivityMeter],
    tracker: Tracker,
    display: Display,
    validates: bool,
    curves: Curves,
    rescue: Rescue,
) -> None:
    """Epoch 0: what the untrained network does; its dead neurons are what a rescue is measured against."""
    split = "val" if validates else "train"
    with display.validation(0, planned_batches(experiment, split)) as progress:
        result = evaluation_pass(experiment, split, meters[split], 0, progress)
    metrics = result.metrics(split) | meters[split].metrics(split) | _learned(experiment, state, 0) | curves(0)
    findings = diagnose(experiment.network, meters[split], experiment.conf) if rescue.waits else []
    metrics |= rescue.between_epochs(0, meters["train"], findings)
    state.record(0, metrics)
    record(state.fates, 0, meters[split].last)
    tracker.log_epoch(0, metrics)
    display.finish_epoch(0, metrics, improved=False)
    if line := rescue.told(0):
        display.say(line)


def _learned(experiment: Experiment, state: Fit, epoch: int) -> dict[str, float]:
    """min, mean and max of learned thresholds, decays and delays per layer; the values go into the distributions."""
    metrics = {}
    network = experiment.network
    learned = [(name, what, v) for name, layer in network.spiking_layers.items() for what, v in layer.learned().items()]
    learned += [(n, "threshold", layer.threshold) for n, layer in network.spiking_layers.items() if layer.follows_rate]
    for name, delay in network.delays.items():
        if delay.learns:
            learned.append((name, "delay", delay.position))
            metrics[f"delay/sigma/{name}"] = delay.sigma
    if experiment.conf.trainer.gradient_activity == "all":
        metrics |= {f"weights/norm/{name}": norm for name, norm in weight_norms(network).items()}
    for name, quantity, values in learned:
        values = values.detach().float().cpu().flatten()
        for statistic, value in (("min", values.min()), ("mean", values.mean()), ("max", values.max())):
            metrics[f"{quantity}/{statistic}/{name}"] = float(value)
        state.distributions.setdefault(quantity, {}).setdefault(name, []).append((epoch, values.clone()))
    return metrics


def _save(
    folder: RunFolder,
    state: Fit,
    experiment: Experiment,
    optimizer: torch.optim.Optimizer,
    scheduler: Any,
    meters: dict[str, ActivityMeter],
    callbacks: Callbacks,
    config: dict[str, Any],
    rescue: Rescue,
) -> None:
    if not ranks.leads():
        return
    save_state(
        folder.state,
        {
            "network": experiment.network.state_dict(),
            "sparse": sparsity.limits_in(experiment.network),
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict() if scheduler is not None else None,
            "meters": {split: meter.state_dict() for split, meter in meters.items()},
            "callbacks": callbacks.state_dict(),
            "rescue": rescue.state_dict(),
            "identity": folder.record.identity,
            "uid": folder.record.uid,
            "split_hash": experiment.source.info.split_hash,
            "data_fingerprint": experiment.source.info.data_fingerprint,
            "fit": {
                "epoch": state.epoch,
                "stopped_early": state.stopped_early,
                **({"pruned": True} if state.pruned else {}),
                "best": asdict(state.best),
                "seconds": state.seconds,
                "history": state.history,
                "distributions": state.distributions,
                "fates": state.fates,
                **({"causes": state.causes} if state.causes else {}),
            },
        },
    )


def _restore(
    folder: RunFolder,
    experiment: Experiment,
    optimizer: torch.optim.Optimizer,
    scheduler: Any,
    meters: dict[str, ActivityMeter],
    callbacks: Callbacks,
    rescue: Rescue,
) -> Fit:
    saved = ranks.from_first(lambda: load_state(folder.state))
    if any(
        saved.get(key, now) != now for key, now in (("identity", folder.record.identity), ("uid", folder.record.uid))
    ):
        raise DataError(f"{folder.state} is the state of another run. {AFRESH.format(folder=folder.path)}")
    info = experiment.source.info
    for what, now in (("split", info.split_hash), ("contents", info.data_fingerprint)):
        key = "split_hash" if what == "split" else "data_fingerprint"
        if saved.get(key, now) != now:
            # what was held out before the interruption may be in the training part now
            raise DataError(
                f"dataset={info.name}: the samples are not those that {folder.path} was trained on "
                f"({what} {now}, then {saved[key]}). Put the data back as it was, or start afresh with "
                "trainer.resume=never."
            )
    try:
        apply_weights(experiment.network, saved["network"], folder.state)
        sparsity.go_by(experiment.network, saved.get("sparse") or {})
        load_optimizer(optimizer, saved["optimizer"])
        if scheduler is not None:
            scheduler.load_state_dict(saved["scheduler"])
        for split, meter in meters.items():
            meter.load_state_dict(saved["meters"][split])
        callbacks.load_state_dict(saved.get("callbacks") or [])
        rescue.load_state_dict(saved.get("rescue") or {})
        values = dict(saved["fit"])
        history = {name: [(int(e), float(v)) for e, v in points] for name, points in values.pop("history").items()}
        state = Fit(**{**values, "best": Best(**values["best"]), "history": history})
    except (DataError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{folder.state} does not fit this version of snnexp ({error}). {AFRESH.format(folder=folder.path)}"
        ) from error
    if ranks.leads():
        settle_best(folder, state.best.epoch, state.best.digest)
    return state
