"""The end of a run: the one test pass with the best weights, the closing metrics, results.json and the plots."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from snnexp import ranks
from snnexp.analysis.activity import ActivityMeter, counted_eps
from snnexp.analysis.causes import Explainer
from snnexp.analysis.diagnosis import diagnose
from snnexp.analysis.energy import energy_metrics, energy_results
from snnexp.analysis.synops import SynopsMeter, neurobench_results
from snnexp.analysis.tested import Outcome
from snnexp.claims.conf import ClaimConf
from snnexp.data.base import Batch
from snnexp.decoders import first_spike_time
from snnexp.experiment import Experiment
from snnexp.models.network import Output
from snnexp.models.observer import Firing, Observers
from snnexp.search.trial import Trial
from snnexp.tracking.metrics_log import History
from snnexp.tracking.note import SUMMARY
from snnexp.tracking.runs import RunFolder
from snnexp.tracking.store import Tracker
from snnexp.training.checkpoint import AFRESH, Mark, apply_weights, load_weights
from snnexp.training.display import Display
from snnexp.training.passes import evaluation_pass, planned_batches, planned_samples
from snnexp.training.state import Fit
from snnexp.waiting import telling

log = logging.getLogger(__name__)

MILESTONES = (50, 60, 70, 80, 90, 95, 96, 98, 99)  # per cent of validation accuracy, for epochs_to/<percent>


class _Raster:
    """Observer that keeps every layer's spikes of the first sample of the first batch."""

    reads_membranes = False

    def __init__(self) -> None:
        self.spikes: dict[str, Tensor] = {}
        self._segments: dict[str, list[Tensor]] = {}

    @property
    def reads_spikes(self) -> bool:
        return not self.spikes

    def spiking(self, name: str, layer: object, firing: Firing) -> None:
        if name in self.spikes or firing.spk is None:
            return
        segments = self._segments.setdefault(name, [])
        segments.append(firing.spk[:, 0].detach().flatten(1).float().cpu())
        if firing.last:
            self.spikes[name] = torch.cat(segments)

    def connection(self, name: str, module: object, x: object, repeat: int) -> None:
        """Inputs of layers are not drawn."""


def test(experiment: Experiment, display: Display, epoch: int, history: History | None = None) -> Outcome:
    """Run the network once over the test split, with every observer there is; history: of the run, if known."""
    network, eps = experiment.network, counted_eps(experiment.conf.trainer, "test")
    activity, synops, raster = ActivityMeter(network, eps), SynopsMeter(network), _Raster()
    classes = experiment.source.info.num_classes
    confusion = torch.zeros(classes * classes, dtype=torch.int64, device=experiment.device)
    first: list[tuple[int, int]] = []
    decided = torch.zeros(
        2, dtype=torch.float64, device=experiment.device
    )  # steps until the first output spike, samples
    by_time = experiment.conf.decoder.name in ("first_spike", "temporal_weight")

    def keep(batch: Batch, output: Output, predicted: Tensor) -> None:
        if by_time:
            steps = (first_spike_time(output.spk).amin(1) + 1).clamp(max=output.spk.shape[0])
            decided.add_(torch.stack([steps.double().sum(), torch.ones_like(steps).double().sum()]))
        confusion.add_(torch.bincount(batch.labels * classes + predicted, minlength=classes * classes))
        if not first:
            first.append((int(batch.labels[0]), int(predicted[0])))

    observers = Observers([activity, synops, raster])
    with display.testing(planned_batches(experiment, "test")) as progress:
        result = evaluation_pass(experiment, "test", observers, epoch, progress, keep)
    metrics = result.metrics("test") | activity.metrics("test") | synops.metrics("test")
    metrics |= energy_metrics(experiment.network, synops.result())
    if by_time and float(decided[1]) > 0:
        metrics["test/decision_steps"] = float(decided[0] / decided[1])
    label, prediction = first[0] if first else (0, 0)
    matrix = confusion.view(classes, classes).cpu()
    until = {key: [point for point in points if point[0] <= epoch] for key, points in (history or {}).items()}
    causes = Explainer(experiment).explain(activity, "test", until) if experiment.conf.trainer.diagnose else {}
    return Outcome(
        metrics,
        synops.result(),
        matrix,
        raster.spikes,
        label,
        prediction,
        activity.rates(),
        diagnose(experiment.network, activity, experiment.conf, causes),
        causes,
    )


def measure_best(experiment: Experiment, display: Display, epoch: int) -> dict[str, float]:
    """Operations per sample of the network as it is now, on the validation split: val/synops, val/macs, ..."""
    synops = SynopsMeter(experiment.network)
    with display.validation(epoch, planned_batches(experiment, "val")) as progress:
        evaluation_pass(experiment, "val", Observers([synops]), epoch, progress)
    return synops.metrics("val")


def close(
    experiment: Experiment,
    state: Fit,
    folder: RunFolder,
    tracker: Tracker,
    display: Display,
    trial: Trial | None = None,
) -> None:
    """Test the best weights once, and complete the record: metrics, results.json, checkpoints, plots.

    A `trial` of a search may want more of its best weights, measured on the validation split; one that was pruned is
    not tested.
    """
    if trial is not None and state.pruned:
        _close_pruned(state, folder, tracker, display, trial)
        return
    if folder.record.pruned:  # by a search that was cut off before it told so
        folder.update(pruned="")
        tracker.log_tags({"pruned": ""})
    has_best = state.best.epoch > 0  # max_epochs=0 has no best epoch: the untrained network is what there is
    if has_best:
        mark = Mark("best", state.best.epoch, state.best.digest, folder.record.identity)
        weights, _, _ = ranks.from_first(lambda: load_weights(folder.best, mark, AFRESH.format(folder=folder.path)))
        apply_weights(experiment.network, weights, folder.best)
    measured = measure_best(experiment, display, state.best.epoch) if trial is not None and trial.at_the_end else {}
    outcome = test(experiment, display, state.best.epoch, state.history)
    if not ranks.leads():
        return
    reached = epochs_to(state, milestones(experiment.conf.claim))
    firsts = {f"epochs_to/{percent:g}": float(epoch) for percent, epoch in reached.items() if epoch is not None}
    metrics = outcome.metrics | firsts | measured
    if "val/accuracy" in state.history:
        metrics |= {"best/val_accuracy": state.best.accuracy, "best/epoch": float(state.best.epoch)}
    tracker.log_epoch(state.epoch, metrics)
    tracker.log_tags({"best_epoch": str(state.best.epoch), "test_runs": "1"})
    facts = {"epoch": state.best.epoch, "seed": experiment.conf.seed}
    told = {f"{percent:g}": "not reached" if epoch is None else epoch for percent, epoch in reached.items()}
    tracker.log_dict(results(experiment, outcome, {**facts, "epochs_to": told}), "results.json")
    for path in (folder.best, folder.last) if has_best else (folder.last,):
        tracker.log_artifact(path, "checkpoints")
    tracker.log_tags({f"weights.{role}": f"{m['epoch']} {m['digest']}" for role, m in folder.record.weights.items()})
    summary = display.closing_table(experiment, metrics, outcome.synops.graded, state)
    tracker.log_text(summary + "\n", SUMMARY)
    if experiment.conf.trainer.diagnose and outcome.findings:
        display.repeat(outcome.findings)
        tracker.log_text("\n".join(text for _, text in outcome.findings) + "\n", "diagnosis.txt")
    if experiment.conf.trainer.plots:
        with telling("drawing the plots"):
            _draw(experiment, state, outcome, folder, tracker)
    causes = {f"cause.{name}": str(verdict.cause) for name, verdict in outcome.causes.items()}
    tracker.log_tags({"diagnosis": ", ".join(key for key, _ in outcome.findings) or "none", **causes})


def _close_pruned(state: Fit, folder: RunFolder, tracker: Tracker, display: Display, trial: Trial) -> None:
    """Complete the record of a run that its search has seen enough of. It is not tested."""
    folder.update(pruned=trial.study)
    if "val/accuracy" in state.history:
        best = {"best/val_accuracy": state.best.accuracy, "best/epoch": float(state.best.epoch)}
        tracker.log_epoch(state.epoch, best)
    tracker.log_tags({"best_epoch": str(state.best.epoch), "test_runs": "0", "pruned": str(state.epoch)})
    objective = trial.conf.objectives[0]
    value = state.history[objective][-1][1]
    display.say(f"Pruned after epoch {state.epoch}: {objective} {value:.4f} is not among the better ones. Not tested.")


def _draw(experiment: Experiment, state: Fit, outcome: Outcome, folder: RunFolder, tracker: Tracker) -> None:
    from snnexp.analysis.plots import save_run_plots

    info = experiment.source.info
    samples = {split: planned_samples(experiment, split) for split in info.counts}
    about = f"{info.name}, {experiment.conf.neuron.called}, seed {experiment.conf.seed}"
    for path in save_run_plots(
        folder.path / "plots",
        state.history,
        state.distributions,
        outcome,
        info.class_names,
        samples,
        about,
        state.fates,
    ):
        tracker.log_artifact(path, "plots")


def results(experiment: Experiment, outcome: Outcome, facts: dict[str, Any]) -> dict[str, Any]:
    """results.json: NeuroBench's key names where it has them, and what one needs to compare numbers."""
    info = experiment.source.info
    return {
        **neurobench_results(experiment.network, outcome.synops, outcome.metrics["test/accuracy"]),
        "Energy": energy_results(experiment.network, outcome.synops),
        "parameters": sum(p.numel() for p in experiment.network.parameters()),
        "samples": info.counts,
        "complete": info.complete,
        "split_hash": info.split_hash,
        "data_fingerprint": info.data_fingerprint,
        "empty_samples": info.empty_samples,
        "dropped_events": info.dropped_events,
        "variant": info.variant,
        "num_steps": info.num_steps,
        "protocol": "selected on validation, test run once",
        **facts,
        "confusion": outcome.confusion.tolist(),
    }


def milestones(claim: ClaimConf | None) -> list[float]:
    """Percentages of validation accuracy whose first epoch is logged: ours, and those that the claim asks for."""
    asked = [] if claim is None else [claim.level, *(v.level for v in claim.values), *(c.level for c in claim.compare)]
    return sorted({*map(float, MILESTONES), *(100 * level for level in asked if level is not None)})


def epochs_to(state: Fit, percentages: Sequence[float]) -> dict[float, int | None]:
    """First epoch whose validation accuracy reached each percentage; None: not reached."""
    points = state.history.get("val/accuracy", [])
    return {p: min((e for e, v in points if v >= p / 100), default=None) for p in percentages}
