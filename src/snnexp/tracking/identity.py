"""Which configs are the same run: everything that can change a number is in the identity, nothing else is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

# Bookkeeping: keys that say where, how visibly or for what a run is done, and cannot change a number in its record.
# What only *should* not change numbers stays in (engine, device, deterministic, channels_last, checkpoint_steps,
# dataset.sparse, eval_batch_size): they change the last bits or the batch-wise metrics, and a resumed run promises the
# same bits.
BOOKKEEPING = (
    "dataset.root",  # where the files lie; what is in them is in the record as the split's hash
    "dataset.download",  # how they got there
    "dataset.store",  # where the packed copy lies; it holds the same events
    "dataset.keep_archives",  # what is left on the disk afterwards
    "state_dir",  # where training states lie
    "tracking",  # where the record goes and what it is called
    "task",  # evaluate or export look at the run that train made
    "run_id",  # the same
    "show",  # inspect prints it
    "checkpoint",  # the same
    "format",  # of what export writes
    "trust_code",  # whether what that run names may be imported
    "trainer.resume",  # whether to continue, not what
    "trainer.checkpoint_minutes",  # how much of an epoch is done again
    "trainer.plots",  # drawn from numbers that are logged anyway
    "results_dir",  # where task=reproduce writes
    "results_name",  # the same
    "claim",  # what a paper says; the arms are in it
    "recipe",  # what it sets is in the configuration
    "arm",  # the values that it stands for are in the configuration
    "trainer.diagnose",  # words about numbers that are logged anyway
)

# Keys that came later, at the values at which a run is what it was before there were any.
LATER: dict[str, Any] = {
    "encoder.kwargs": {},
    "optimizer.kwargs": {},
    "scheduler.kwargs": {},
    "trainer.callbacks": [],
    "model.module": None,
    "model.kwargs": {},
    "trainer.gradient_activity": "all",
    "trainer.gradient_eps": 0.01,
    "trainer.truncate_steps": None,
    "rescue": {"name": "none"},
    "decoder.synops": None,
    "decoder.synops_weight": 1.0,
}

NAME_LENGTH = 80  # longer names are cut in MLflow's lists anyway


def is_bookkeeping(key: str) -> bool:
    """Whether the dotted `key` (or the group it lies in) cannot change a number."""
    return any(key == name or key.startswith(name + ".") for name in BOOKKEEPING)


def identity_config(cfg: dict[str, Any]) -> dict[str, Any]:
    """The resolved config (plain containers) without bookkeeping and later keys at rest, as a new nested dict."""

    def keep(node: dict[str, Any], prefix: str) -> dict[str, Any]:
        kept = {}
        for key, value in node.items():
            path = f"{prefix}{key}"
            if is_bookkeeping(path) or (path in LATER and value == LATER[path]):
                continue
            kept[str(key)] = keep(value, path + ".") if isinstance(value, dict) else value
        return kept

    return keep(cfg, "")


def _canonical(value: Any) -> Any:
    """1 and 1.0 are one value: a YAML file and a typed schema spell the same number differently."""
    if isinstance(value, dict):
        return {str(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def run_identity(cfg: dict[str, Any]) -> str:
    """12 hex digits of the SHA-256 of the config that counts; independent of the order of keys and of bookkeeping."""
    text = json.dumps(_canonical(identity_config(cfg)), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def run_name(cfg: dict[str, Any], overrides: Sequence[str] = ()) -> str:
    """The name people see: `tracking.run_name`, else `<dataset>-<neuron>-s<seed>` and what else was chosen.

    `dvs128-rouser-s0`, or `digits-fixed-s0 threshold=50` after `neuron.threshold=50`: in lists and legends, runs that
    differ must not look the same. MLflow's own names come from Python's `random`: seeded first, as here, all runs would
    get the same one.
    """
    chosen = (cfg.get("tracking") or {}).get("run_name")
    if chosen:
        return str(chosen)
    name = f"{cfg['dataset']['name']}-{cfg['neuron']['name']}-s{cfg['seed']}"
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        if key in ("arm", "recipe") or (key not in ("dataset", "neuron", "seed", "device") and not is_bookkeeping(key)):
            name += f" {key.rpartition('.')[2]}={value}"
    return name if len(name) <= NAME_LENGTH else name[: NAME_LENGTH - 3] + "..."
