"""task=evaluate run_id=...: the test accuracy of an earlier run's checkpoint, with that run's own configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from snnexp.config import Config, structured
from snnexp.errors import ConfigError, DataError
from snnexp.helptext import GROUPS


def evaluate(conf: Config, cfg: DictConfig) -> float:
    """Evaluate on the test split and print the closing table; nothing is added to the run's record.

    Keys given on this command line (dataset.root, device, dataset.limit_test, ...) win over those of the run.
    """
    from snnexp.experiment import assemble
    from snnexp.tasks.environment import absolute_paths, environment
    from snnexp.training.checkpoint import apply_weights, load_weights
    from snnexp.training.display import Display
    from snnexp.training.outcome import results, test
    from snnexp.validation import validate

    env = environment(cfg)
    path = find_checkpoint(conf, env.start_dir)
    weights, config, facts = load_weights(path)
    stored = _with_overrides(structured(config), conf, env.overrides)
    restored = validate(stored)
    absolute_paths(restored, stored)
    experiment = assemble(restored)
    apply_weights(experiment.network, weights, path, config)
    display = Display(restored.trainer.max_epochs)
    display.say(f"{path}: {restored.dataset.name}, {restored.neuron.name}, weights of epoch {facts.get('epoch')}")
    outcome = test(experiment, display, int(facts.get("epoch", 0)))
    display.closing_table(experiment, outcome.metrics)
    if HydraConfig.initialized():
        target = Path(HydraConfig.get().runtime.output_dir) / "results.json"
        target.write_text(json.dumps(results(experiment, outcome, facts), indent=1) + "\n", encoding="utf-8")
        display.say(f"written to {target}")
    return outcome.metrics["test/accuracy"]


def _with_overrides(stored: DictConfig, conf: Config, overrides: tuple[str, ...]) -> DictConfig:
    """The run's configuration with this machine's folders and the keys typed now."""
    stored.dataset.root = conf.dataset.root
    stored.device = conf.device
    for override in overrides:
        key, _, value = override.partition("=")
        key = key.lstrip("+")
        if key in GROUPS and key != "task":
            raise ConfigError(f"{override}: task=evaluate takes {key} from the run. Leave it out, or train a new run.")
        if "." in key:
            OmegaConf.update(stored, key, OmegaConf.create(f"x: {value}").x, force_add=False)
    return stored


def find_checkpoint(conf: Config, start_dir: Path) -> Path:
    """The file of `run_id`: in the state folder of this machine, else fetched from the MLflow store.

    Raises:
        DataError: neither has it.
    """
    assert conf.run_id is not None  # validated
    name = f"{conf.checkpoint}.safetensors"
    for record in sorted(Path(conf.state_dir).glob("*/*/run.json")):
        try:
            values: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # a damaged record of another run is not this command's business
        if conf.run_id in (values.get("mlflow_run_id"), record.parent.name, record.parent.parent.name):
            path = record.parent / name
            if path.is_file():
                return path
    from snnexp.tracking.fetch import fetch_artifact

    fetched = fetch_artifact(conf.tracking, start_dir, conf.run_id, f"checkpoints/{name}")
    if fetched is None:
        raise DataError(
            f"run_id={conf.run_id}: no {name} for it under {conf.state_dir}, nor in the MLflow store. "
            "Give the full run id (the closing table prints it), and state_dir or tracking.uri if the run is elsewhere."
        )
    return fetched
