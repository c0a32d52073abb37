"""Files that outlive a run: the training state (to continue) and weights with their configuration (to use).

Every file is written under a temporary name, flushed to the disk and renamed, so that a kill at any moment leaves the
old file or the new one and nothing between.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from snnexp import __version__
from snnexp.errors import DataError, TrainingError

STATE_VERSION = 1


def _write_atomically(path: Path, write: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError, SafetensorError) as error:
        # torch and safetensors wrap "no space left on device" in errors of their own
        temporary.unlink(missing_ok=True)
        raise TrainingError(
            f"{path} could not be written: {error}. The files of the last finished epoch are intact. "
            "Free some disk space (or set state_dir=DIR), then give the same command again to continue."
        ) from error


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write the full training state: plain containers, numbers, strings and tensors only."""
    _write_atomically(path, lambda temporary: torch.save({"version": STATE_VERSION, **state}, temporary))


def load_state(path: Path) -> dict[str, Any]:
    """Read a training state written by `save_state`, on the CPU.

    Raises:
        DataError: the file is damaged or of another version; the message says how to go on without it.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # truncated zips, bad pickles and wrong magic each raise something else
        raise DataError(
            f"{path} is damaged and cannot be continued from ({type(error).__name__}). "
            "Start this run afresh with trainer.resume=never, or delete its folder."
        ) from error
    if not isinstance(state, dict) or state.get("version") != STATE_VERSION:
        raise DataError(f"{path} was written by another version of snnexp. Start afresh with trainer.resume=never.")
    return state


def save_weights(path: Path, weights: Mapping[str, Tensor], config: dict[str, Any], facts: Mapping[str, Any]) -> None:
    """Write weights as safetensors, with the resolved configuration and facts such as the epoch in the header."""
    metadata = {"config": json.dumps(config), "facts": json.dumps(dict(facts)), "snnexp": __version__}
    contiguous = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights.items()}
    _write_atomically(path, lambda temporary: save_file(contiguous, temporary, metadata=metadata))


def load_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    """Read weights, configuration and facts written by `save_weights`.

    Raises:
        DataError: the file is missing, damaged or not ours.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such checkpoint.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} is damaged ({error}). Restore it, or train again.") from error
    try:
        return weights, json.loads(metadata["config"]), json.loads(metadata["facts"])
    except (KeyError, json.JSONDecodeError) as error:
        raise DataError(f"{path} has weights but no snnexp configuration in its header.") from error


def apply_weights(
    network: torch.nn.Module, weights: Mapping[str, Tensor], source: Path, config: Mapping[str, Any] | None = None
) -> None:
    """Load weights into a network of the same shape.

    config: the one that the weights were trained with, if this run's may differ (trainer.init_from, task=evaluate).
    A threshold or decay is then taken over only where both learn it in the same parametrisation; any other keeps the
    value that this run's configuration, and so its record, says.

    Raises:
        DataError: names or shapes differ; the message lists the first few.
    """
    own = network.state_dict()
    if config is not None:
        kept = {k: own[k] for k in own if k in weights and _is_set_here(network, k, config["neuron"])}
        weights = {**weights, **kept}
    wrong = [f"{k} (missing)" for k in own if k not in weights] + [f"{k} (unknown)" for k in weights if k not in own]
    wrong += [
        f"{k} ({list(weights[k].shape)} for {list(own[k].shape)})"
        for k in own
        if k in weights and own[k].shape != weights[k].shape
    ]
    if wrong:
        raise DataError(f"{source} does not fit this network: {', '.join(wrong[:5])}{' ...' if len(wrong) > 5 else ''}")
    network.load_state_dict(dict(weights))


def _is_set_here(network: torch.nn.Module, key: str, trained: Mapping[str, Any]) -> bool:
    """Whether `key` is a neuron's value that this run's configuration decides, not weights trained with `trained`."""
    from snnexp.neurons.layer import SpikingLayer

    path, _, name = key.rpartition(".")
    layer = network.get_submodule(path)
    if not isinstance(layer, SpikingLayer):
        return False
    quantity = name.removeprefix("raw_")
    form = trained["threshold_param" if quantity == "threshold" else "decay_param"]
    same = trained[f"learn_{quantity}"] and quantity in layer.learned() and getattr(layer, f"{quantity}_param") == form
    return not same
