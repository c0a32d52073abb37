"""task=probe run_id=...: does the result use time? The trained network's accuracy with time taken away."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from snnexp.collector import importing
from snnexp.config import Config

RETRAINED_EPOCHS = 5  # at most; trainer.max_epochs=N on the command line wins


def probe(conf: Config, cfg: DictConfig) -> None:
    """Print and write five accuracies on the test split, and whether they say that the result uses time.

    The fifth is that of two short trainings from the start, as the run's own configuration has it, with and without
    gradients that go back in time. Nothing is added to the run's record.
    """
    with importing(freeze=True):
        from snnexp.analysis.timing import Timing, redrawn, shuffled, verdict
        from snnexp.models.spec import why_not_in_segments
        from snnexp.tasks.environment import environment
        from snnexp.tasks.evaluate import restore
        from snnexp.training.display import Display

    found, experiment = restore(conf, cfg)
    restored, env = experiment.conf, environment(cfg)
    display, timing = Display(restored.trainer.max_epochs), Timing(experiment)
    display.say(
        f"{found.path}: {restored.dataset.name}, {restored.neuron.called}, T = {experiment.source.info.num_steps}"
    )
    rows: dict[str, float] = {}

    def tell(name: str, accuracy: float, meaning: str) -> None:
        rows[name] = accuracy
        display.say(f"  {name:<16} {accuracy:.4f}   {meaning}")

    tell("intact", timing.intact(), "the test split as it is")
    tell("shuffled", timing.changed(shuffled), "a sample's time bins in a random order")
    tell("redrawn", timing.changed(redrawn), "the same values of each input, in time bins drawn anew")
    tell("state cut", timing.state_cut(), "the network forgets everything between two steps")

    typed = any(text.startswith("trainer.max_epochs=") for text in env.overrides)
    epochs = restored.trainer.max_epochs if typed else min(restored.trainer.max_epochs, RETRAINED_EPOCHS)
    direct = restored.encoder.name == "direct"
    problem = why_not_in_segments(experiment.network.layers, restored.model.bn_per_step, direct, "truncate_steps")
    if problem is not None:
        display.say(f"  gradients cut    not done: {problem}")
    else:
        for name, cutoff in (("retrained", None), ("gradients cut", 1)):
            trainer = replace(restored.trainer, max_epochs=epochs, truncate_steps=cutoff, checkpoint_steps=None)
            meaning = "no gradient goes back in time" if cutoff else "for comparison with the next"
            accuracy = _trained(replace(restored, trainer=trainer), experiment.source)
            tell(name, accuracy, f"{epochs} epochs from the start; {meaning}")
    uses, why = verdict(rows["intact"], rows["shuffled"], rows["redrawn"], timing.samples)
    display.say(f"uses time: {why}")
    if HydraConfig.initialized():
        content: dict[str, Any] = {"accuracy": rows, "samples": timing.samples, "uses_time": uses, "why": why}
        target = Path(HydraConfig.get().runtime.output_dir) / "probe.json"
        target.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        display.say(f"written to {target}")


def _trained(conf: Config, source: Any) -> float:
    """Test accuracy after a short training from fresh weights; the last epoch's, so that nothing is selected."""
    from snnexp.analysis.activity import ActivityMeter
    from snnexp.analysis.diagnosis import diagnose
    from snnexp.analysis.timing import Timing
    from snnexp.experiment import assemble
    from snnexp.rescue.manager import Rescue
    from snnexp.training.optimisation import build_optimizer, build_scheduler
    from snnexp.training.passes import train_pass

    experiment = assemble(conf, source)
    optimizer = build_optimizer(conf.optimizer, experiment.network.parameter_groups())
    scheduler = build_scheduler(conf.scheduler, optimizer, conf.trainer.max_epochs)
    rescue, meter = Rescue.of(experiment, optimizer), ActivityMeter(experiment.network)
    rescue.start()
    for epoch in range(1, conf.trainer.max_epochs + 1):
        train_pass(experiment, optimizer, epoch, meter, rescue=rescue)
        meter.metrics("train")
        rescue.between_epochs(epoch, meter, diagnose(experiment.network, meter, conf) if rescue.waits else [])
        if scheduler is not None:
            scheduler.step()
    return Timing(experiment).intact()
