"""task=diagnose run_id=...: why are the neurons of a finished run silent? The causes in words, and a page."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from snnexp.collector import importing
from snnexp.config import Config
from snnexp.errors import DataError


def diagnose(conf: Config, cfg: DictConfig) -> None:
    """Run the network over the validation split (training, if there is none), and say what is wrong with which layer.

    With the run's own folder at hand, its history is looked at, too; weights that came from the store have none, so
    nothing is said about when a layer was killed. Nothing is added to the run's record.
    """
    with importing(freeze=True):
        from snnexp.analysis.activity import ActivityMeter
        from snnexp.analysis.causes import Explainer
        from snnexp.analysis.diagnosis import diagnose as find
        from snnexp.tasks.evaluate import restore
        from snnexp.training.display import Display
        from snnexp.training.passes import evaluation_pass, planned_batches

    found, experiment = restore(conf, cfg)
    restored, epoch = experiment.conf, int(found.facts.get("epoch", 0))
    split = "val" if experiment.source.num_batches("val") else "train"
    display = Display(restored.trainer.max_epochs)
    display.say(f"{found.path}: {restored.dataset.name}, {restored.neuron.called}, weights of epoch {epoch}")
    meter = ActivityMeter(experiment.network, restored.trainer.gradient_eps)
    with display.validation(epoch, planned_batches(experiment, split)) as progress:
        result = evaluation_pass(experiment, split, meter, epoch, progress)
    meter.metrics(split)
    history, fates = _past(found.path.parent / "state.pt", epoch, display)
    causes = Explainer(experiment).explain(meter, split, history)
    findings = find(experiment.network, meter, restored, causes)
    for _, text in findings:
        display.say(f"  ! {text}", hang=2)
    if not findings:
        display.say(f"  No layer is mostly dead, saturated or without a gradient ({split} split).")
    if HydraConfig.initialized():
        folder = Path(HydraConfig.get().runtime.output_dir)
        content = {
            "split": split,
            "samples": result.samples,
            "epoch": epoch,
            "causes": {name: asdict(verdict) for name, verdict in causes.items()},
            "findings": dict(findings),
        }
        target = folder / "diagnosis.json"
        target.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        page = _page(experiment, meter, split, epoch, history, fates, findings, folder, result.samples)
        display.say(f"written to {target} and {page}")


def _past(path: Path, epoch: int, display: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The run's history up to an epoch and what became of its neurons, from its training state; empty without one."""
    from snnexp.training.checkpoint import load_state

    if not path.is_file():
        return {}, {}
    try:
        fit = load_state(path)["fit"]
        history = {k: [(int(e), float(v)) for e, v in points if e <= epoch] for k, points in fit["history"].items()}
    except (DataError, KeyError, TypeError, ValueError) as error:
        display.say(f"  its history cannot be read ({error})")
        return {}, {}
    fates = fit.get("fates") or {}
    until = {
        kind: {n: values if kind == "sizes" else [p for p in values if p[0] <= epoch] for n, values in layers.items()}
        for kind, layers in fates.items()
    }
    return history, until


def _page(
    experiment: Any,
    meter: Any,
    split: str,
    epoch: int,
    history: dict[str, Any],
    fates: dict[str, Any],
    findings: list[tuple[str, str]],
    folder: Path,
    samples: int,
) -> Path:
    from snnexp.analysis.drawing import save_figure
    from snnexp.analysis.fate_plots import diagnosis_page
    from snnexp.analysis.fates import record

    record(fates, epoch, meter.last)
    words = dict.fromkeys(meter.last, "It is not mostly dead, saturated or without a gradient.")
    for key, text in findings:
        name = key.partition(" ")[0]
        if name in words:
            words[name] = text.partition(": ")[2]
    info, conf = experiment.source.info, experiment.conf
    about = f"{info.name}, {conf.neuron.called}, seed {conf.seed}, epoch {epoch}, n = {samples:,} {split} samples"
    page, _ = save_figure(diagnosis_page(history, split, fates, words, about), folder / "diagnosis")
    return page
