"""Weights that lie in a run's folder: read, and compared with what the run's record says that they must be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from snnexp.tracking.runs import RunFolder, RunRecord, read_record
from snnexp.training.checkpoint import AFRESH, Mark, digest_in, load_weights

Loaded = tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]

ROLES = ("best", "last")


def load_stored(path: Path, to_start_from: bool = False) -> Loaded:
    """Weights from any file; if it is one of a run's own, they must be those that run.json names.

    `to_start_from`: another run wants them (trainer.init_from), so the ways out are other than those of the run itself.
    Raises: DataError, with a way out.
    """
    role = path.name.removesuffix(".safetensors")
    record = read_record(path.parent) if role in ROLES else None
    if record is None:
        return load_weights(path)
    return load_weights(path, _mark(path, role, record), advice(path, role, record, to_start_from))


def _mark(path: Path, role: str, record: RunRecord) -> Mark:
    noted = record.weights.get(role)
    if noted is None or (record.status != "FINISHED" and _is_newer(path, noted)):
        return Mark(role, identity=record.identity)
    return Mark(role, noted.get("epoch"), str(noted.get("digest", "")), record.identity)


def _is_newer(path: Path, noted: dict[str, Any]) -> bool:
    """Whether a run was cut off between new best weights and the note of them in its record."""
    epoch = load_weights(path)[2].get("epoch")
    return isinstance(epoch, int) and epoch > int(noted.get("epoch") or 0)


def advice(path: Path, role: str, record: RunRecord, to_start_from: bool = False) -> str:
    """What to do about weights that are not what they should be."""
    other = "last" if role == "best" else "best"
    ways = [f"Restore {path} from a copy"]
    if to_start_from:
        if (beside := path.with_name(f"{other}.safetensors")).is_file():
            ways.append(f"use trainer.init_from={beside}")
        return ", ".join(ways) + ", or train the run that it belongs to again, with trainer.resume=never."
    if record.mlflow_run_id is not None:
        ways.append("delete it, so that task=evaluate and export fetch it from the MLflow store")
    if (path.parent / f"{other}.safetensors").is_file():
        ways.append(f"use checkpoint={other}")
    return ", ".join(ways) + ", or train again with trainer.resume=never."


def settle_best(folder: RunFolder, epoch: int, digest: str) -> None:
    """Bring the best weights in line with the training state, which names their epoch and digest.

    New best weights wait beside the old ones until the state that names them is on the disk: a kill in between leaves
    weights that are not to be used, or not yet renamed.

    Raises: DataError if the weights that the state names are missing, damaged or others.
    """
    afresh = AFRESH.format(folder=folder.path)
    if folder.next_best.is_file():
        if digest and digest_in(folder.next_best) == digest:
            folder.next_best.replace(folder.best)
        else:
            folder.next_best.unlink()
    if epoch > 0 and (digest or not folder.best.is_file()):  # older states have no digest
        load_weights(folder.best, Mark("best", epoch, digest), afresh)
