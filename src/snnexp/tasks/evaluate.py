"""task=evaluate run_id=...: the test accuracy of an earlier run's checkpoint, with that run's own configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from snnexp.collector import importing
from snnexp.config import Config, structured
from snnexp.errors import ConfigError, DataError
from snnexp.helptext import GROUPS


def evaluate(conf: Config, cfg: DictConfig) -> float:
    """Evaluate on the test split and print the closing table; nothing is added to the run's record.

    Keys given on this command line (dataset.root, device, dataset.limit_test, ...) win over those of the run.
    """
    with importing(freeze=True):
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
        if key not in ("task", "run_id", "checkpoint", "state_dir"):  # what the command itself is about
            OmegaConf.update(stored, key, OmegaConf.create(f"x: {value}").x, force_add=False)
    return stored


def find_checkpoint(conf: Config, start_dir: Path) -> Path:
    """The file of `run_id`: in the state folder of this machine, else fetched from the MLflow store.

    Raises:
        DataError: neither has it.
    """
    assert conf.run_id is not None  # validated
    name = f"{conf.checkpoint}.safetensors"
    found = [path for path in _folders_of(conf.run_id, Path(conf.state_dir)) if (path / name).is_file()]
    runs = sorted({str(path) for path in found})
    if len(runs) > 1:
        raise DataError(f"run_id={conf.run_id}: {len(runs)} runs begin like this. Give more of it.\n" + "\n".join(runs))
    if found:
        return found[0] / name
    from snnexp.tracking.fetch import fetch_artifact

    fetched = fetch_artifact(conf.tracking, start_dir, conf.run_id, f"checkpoints/{name}")
    if fetched is None:
        raise DataError(
            f"run_id={conf.run_id}: no {name} for it under {conf.state_dir}, nor in the MLflow store. "
            "Give the run id as a run's last lines print it, and state_dir or tracking.uri if it is elsewhere."
        )
    return fetched


def _folders_of(run_id: str, state_dir: Path) -> list[Path]:
    """Folders of the run: by the beginning of its MLflow id (8 digits or more), or by folder or folder/attempt."""
    newest: dict[Path, Path] = {}  # of each identity, the newest attempt
    matching = []
    for record in sorted(state_dir.glob("*/*/run.json"), key=lambda path: (path.parent.parent, int(path.parent.name))):
        folder, home = record.parent, record.parent.parent
        newest[home] = folder
        try:
            values: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # a damaged record of another run is not this command's business
        by_id = len(run_id) >= 8 and str(values.get("mlflow_run_id")).startswith(run_id)
        if by_id or run_id in (f"{home.name}/{folder.name}", str(folder)):
            matching.append(folder)
    return matching or [folder for home, folder in newest.items() if home.name == run_id]
