"""task=evaluate run_id=...: the test accuracy of an earlier run's checkpoint, with that run's own configuration."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from snnexp.any_run import is_chosen_for_any_run
from snnexp.collector import importing
from snnexp.config import Config, structured
from snnexp.errors import ConfigError, DataError
from snnexp.helptext import GROUPS
from snnexp.own_code import CODE, refuse_untrusted, warn_of_changes
from snnexp.ranks import WORLD_SIZE
from snnexp.tracking.identity import identity_config
from snnexp.validation import validate, wrong_spreads

if TYPE_CHECKING:
    from snnexp.experiment import Experiment
    from snnexp.tasks.find import Found

# What the command itself is about, and where it is done: never taken from a checkpoint.
HERE = ("dataset.root", "dataset.download", "dataset.store", "dataset.keep_archives", "state_dir", "device", "tracking")
OWN_KEYS = ("task", "run_id", "checkpoint", "state_dir", "trust_code")


def evaluate(conf: Config, cfg: DictConfig) -> float:
    """Evaluate on the test split and print the closing table; nothing is added to the run's record.

    Keys given on this command line (dataset.root, device, dataset.limit_test, ...) win over those of the run.
    """
    with importing(freeze=True):
        from snnexp.training.display import Display
        from snnexp.training.outcome import results, test

    found, experiment = restore(conf, cfg)
    restored = experiment.conf
    facts = {key: value for key, value in found.facts.items() if key != "input"}
    epoch = int(facts.get("epoch", 0))
    display = Display(restored.trainer.max_epochs)
    display.say(f"{found.path}: {restored.dataset.name}, {restored.neuron.called}, weights of epoch {epoch}")
    outcome = test(experiment, display, epoch)
    display.closing_table(experiment, outcome.metrics, outcome.synops.graded)
    if HydraConfig.initialized():
        target = Path(HydraConfig.get().runtime.output_dir) / "results.json"
        target.write_text(json.dumps(results(experiment, outcome, facts), indent=1) + "\n", encoding="utf-8")
        display.say(f"written to {target}")
    return outcome.metrics["test/accuracy"]


def restore(conf: Config, cfg: DictConfig) -> tuple[Found, Experiment]:
    """The run that `run_id` and `checkpoint` name, assembled as it was trained, with its weights."""
    with importing(freeze=True):
        from snnexp.experiment import assemble
        from snnexp.tasks.environment import absolute_paths, environment
        from snnexp.tasks.find import found_checkpoint
        from snnexp.training.checkpoint import apply_weights

    env = environment(cfg)
    with found_checkpoint(conf, env.start_dir) as found:
        stored = as_trained(found, cfg, env.overrides)
        restored = validate(stored)
        absolute_paths(restored, stored)
        experiment = assemble(restored)
        apply_weights(experiment.network, found.weights, found.path, found.config)
    return found, experiment


def stored_config(found: Found) -> DictConfig:
    """The configuration in a file of weights, typed, with this version's defaults for what is never taken from there.

    Raises: DataError if it cannot be used.
    """
    trained = identity_config(found.config)
    for key in _interpolated(trained, ""):
        raise DataError(f"{found.path}: {key} in its configuration would have to be resolved. It is not snnexp's file.")
    for key in (CODE, WORLD_SIZE):
        trained.pop(key, None)
    if isinstance(trained.get("trainer"), dict):
        trained["trainer"].pop("init_from", None)
        trained["trainer"].pop("callbacks", None)
        if isinstance(steps := trained["trainer"].get("gradient_cutoff"), int):  # truncation, once
            trained["trainer"] |= {"truncate_steps": steps, "gradient_cutoff": None}
    try:
        stored: DictConfig = structured(trained)
    except (OmegaConfBaseException, KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{found.path}: its configuration is none that this version of snnexp reads ({str(error).splitlines()[0]})."
        ) from error
    for message in wrong_spreads(stored, ""):
        raise DataError(f"{found.path}: its configuration is none that this version of snnexp reads ({message}).")
    return stored


def as_trained(found: Found, cfg: DictConfig, overrides: tuple[str, ...]) -> DictConfig:
    """The run's configuration with the folders, device and store of this command, and the keys typed now.

    Anybody can have written the checkpoint: nothing of it that says where something lies is used, and a value that
    would be resolved (`${oc.env:...}`) is refused.

    Code that it names is imported only with trust_code=true, or if its key is typed now.

    Raises: DataError if the file's configuration cannot be used; ConfigError for a key that the run does not have, and
        for code that nobody trusts.
    """
    stored = stored_config(found)
    for key in HERE:
        if _has(stored, key) and _has(cfg, key):
            OmegaConf.update(stored, key, OmegaConf.select(cfg, key))
    for override in overrides:
        key = override.partition("=")[0].lstrip("+~")
        if key in GROUPS and key not in ("task", "tracking"):
            if is_chosen_for_any_run(override):
                continue
            raise ConfigError(f"{override}: task=evaluate takes {key} from the run. Leave it out, or train a new run.")
        if key in OWN_KEYS or key in GROUPS or key.startswith(("tracking.", "hydra.")):
            continue
        if not _has(stored, key):
            group = key.partition(".")[0]
            name = OmegaConf.select(stored, f"{group}.name")
            raise ConfigError(f"{override}: the run has {group}={name}, where there is no such key. Leave it out.")
        try:
            OmegaConf.update(stored, key, OmegaConf.select(cfg, key))
        except OmegaConfBaseException as error:
            raise ConfigError(f"{override}: {str(error).splitlines()[0]}") from error
    typed = {override.partition("=")[0].lstrip("+~") for override in overrides}
    trusted = bool(OmegaConf.select(cfg, "trust_code"))
    config = OmegaConf.to_container(stored)
    refuse_untrusted(config, str(found.path), trusted, typed)
    warn_of_changes(config, found.config.get(CODE) or {}, str(found.path))
    return stored


def _has(node: Any, key: str) -> bool:
    for part in key.split("."):
        if not isinstance(node, DictConfig) or part not in node:
            return False
        node = node._get_node(part)
    return True


def _interpolated(node: Any, prefix: str) -> Iterator[str]:
    """Dotted keys of values that OmegaConf would resolve."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _interpolated(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from _interpolated(value, f"{prefix}.{number}")
    elif isinstance(node, str) and ("${" in node or node == "???"):
        yield prefix
