"""Files that outlive a run: the training state (to continue) and weights with their configuration (to use).

What is read is what was written, or an error says so: see `sealed.py` for the checksums. Beyond that a file of weights
says in its header which run (identity), role (best or last) and epoch it belongs to, and is compared with what the
reader expects (`Mark`).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from snnexp.errors import DataError
from snnexp.tracking.identity import BOOKKEEPING
from snnexp.training.sealed import Damaged, digest_of, read_sealed, write_sealed, write_tensors
from snnexp.version import __version__

log = logging.getLogger(__name__)

STATE_VERSION = 2
UNSEALED_VERSIONS = (1,)  # of states without a checksum
OLD_HEADER = {"config", "facts", "snnexp"}  # of weights without one

AFRESH = (
    "Start this run afresh with trainer.resume=never (of a sweep: this job by itself), or delete the folder {folder}."
)


@dataclass(frozen=True)
class Mark:
    """Which weights a file must hold; an empty digest or role, or no epoch, is not compared."""

    role: str = ""  # best or last
    epoch: int | None = None
    digest: str = ""
    identity: str = ""


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write the full training state: plain containers, numbers, strings and tensors only."""
    write_sealed(path, {"version": STATE_VERSION, **state})


def load_state(path: Path) -> dict[str, Any]:
    """Read a training state written by `save_state`, on the CPU.

    Raises:
        DataError: the file is damaged or of another version; the message says how to go on without it.
    """
    afresh = AFRESH.format(folder=path.parent)
    try:
        state, sealed = read_sealed(path)
        version = state.get("version") if isinstance(state, dict) else None
        if version == STATE_VERSION and not sealed:
            raise Damaged("its checksum is missing")
    except (Damaged, OSError) as error:
        raise DataError(f"{path} is damaged and cannot be continued from ({error}). {afresh}") from error
    if version not in (STATE_VERSION, *UNSEALED_VERSIONS):
        raise DataError(f"{path} was written by another version of snnexp. {afresh}")
    if not sealed:
        log.warning("%s is of an older version and has no checksum: damage would go unnoticed", path)
    return dict(state)


def save_weights(path: Path, weights: Mapping[str, Tensor], config: dict[str, Any], facts: Mapping[str, Any]) -> str:
    """Write weights as safetensors, with the configuration and facts such as the epoch in the header.

    Of the configuration the header keeps what can change a number: addresses, folders and names of the record are of
    no use to whoever reads the file, and equal runs shall have equal files. Returns: the digest.
    """
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights.items()}
    header = {
        "config": json.dumps(_without(config, BOOKKEEPING)),
        "facts": json.dumps(dict(facts)),
        "not_kept": json.dumps(BOOKKEEPING),
        "snnexp": __version__,
    }
    digest = digest_of(tensors, _counted(header))
    write_tensors(path, tensors, {**header, "digest": digest})
    return digest


def load_weights(
    path: Path, mark: Mark | None = None, advice: str = "Restore it from a copy, or train again."
) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    """Read weights, configuration and facts written by `save_weights`.

    The configuration is what the file says: nothing in it has been resolved, and no path in it may be followed.

    Args:
        mark: what the file must hold, as far as the caller knows.
        advice: the way out, at the end of each message.
    Raises:
        DataError: the file is missing, damaged, not ours, or not the one that `mark` describes.
    """
    weights, config, facts, digest = _read(path, advice)
    if mark is not None and (problem := _differs(facts, digest, mark)):
        raise DataError(f"{path}: {problem}. {advice}")
    return weights, config, facts


def digest_in(path: Path) -> str | None:
    """The digest of a whole file of weights, or None if it is missing or damaged."""
    try:
        return _read(path, "")[3]
    except DataError:
        return None


def _read(path: Path, advice: str) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any], str]:
    if not path.is_file():
        raise DataError(f"{path}: no such checkpoint. {advice}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except PermissionError as error:
        raise DataError(f"{path}: {error.strerror}. Make it readable for you.") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"{path} is damaged ({error}). {advice}") from error
    try:
        said = _counted(metadata)
        config, facts = json.loads(metadata["config"]), said["facts"]
        if not (isinstance(config, dict) and isinstance(facts, dict)):
            raise ValueError("not a table")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path} has weights but no snnexp configuration in its header.") from error
    digest = digest_of(weights, said)
    if set(metadata) == OLD_HEADER:
        log.warning("%s is of an older version and has no digest: damage would go unnoticed", path)
    elif metadata.get("digest") != digest:
        raise DataError(
            f"{path} is damaged or was changed: its digest is wrong, so the weights are not those written. {advice}"
        )
    return weights, _without(config, BOOKKEEPING), facts, digest


def _differs(facts: Mapping[str, Any], digest: str, mark: Mark) -> str | None:
    """How weights differ from what they should be; facts that older files lack are not compared."""
    if mark.role and facts.get("role", mark.role) != mark.role:
        return f"these are the {facts['role']} weights (epoch {facts.get('epoch')}), not the {mark.role} ones"
    if mark.identity and facts.get("identity", mark.identity) != mark.identity:
        return f"these are weights of another run (identity {facts['identity']}, not {mark.identity})"
    epoch = facts.get("epoch")
    if mark.epoch is not None and epoch != mark.epoch:
        return (
            f"these are weights of epoch {epoch}, but the run's {mark.role or 'own'} weights are of epoch {mark.epoch}"
        )
    if mark.digest and digest != mark.digest:
        return f"these are not the weights that the run wrote after epoch {epoch}"
    return None


def _without(config: Mapping[str, Any], keys: Any, prefix: str = "") -> dict[str, Any]:
    """The configuration with null for the values of `keys` (dotted; of a group: all in it)."""

    def kept(key: str, value: Any) -> Any:
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            return _without(value, [path + "." + k for k in value] if path in keys else keys, path + ".")
        return None if path in keys else value

    return {str(key): kept(str(key), value) for key, value in config.items()}


def _counted(header: Mapping[str, str]) -> dict[str, Any]:
    """What the digest is of: all that the header says but the digest itself and values that are never used."""
    said = {key: json.loads(header.get(key, "null")) for key in ("config", "facts", "not_kept")}
    return {**said, "config": _without(said["config"], said["not_kept"] or []), "snnexp": header.get("snnexp")}


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
        kept = {k: own[k] for k in own if k in weights and _is_set_here(network, k, config)}
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


def _is_set_here(network: torch.nn.Module, key: str, config: Mapping[str, Any]) -> bool:
    """Whether `key` is a neuron's value that this run's configuration decides, not weights trained with `config`."""
    from snnexp.neurons.layer import SpikingLayer

    path, _, name = key.rpartition(".")
    layer = network.get_submodule(path)
    if not isinstance(layer, SpikingLayer):
        return False
    quantity, trained = name.removeprefix("raw_"), config["neuron"]
    if quantity == "initial_mem":
        return False
    if quantity == "threshold" and layer.follows_rate and config.get("rescue", {}).get("name") == "homeostasis":
        return False
    if quantity in layer.params:
        return quantity not in layer.learned()
    form = trained["threshold_param" if quantity == "threshold" else "decay_param"]
    same = trained[f"learn_{quantity}"] and quantity in layer.learned() and getattr(layer, f"{quantity}_param") == form
    return not same
