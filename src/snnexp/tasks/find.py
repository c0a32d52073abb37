"""The weights that `run_id=` and `checkpoint=` name: in a run's folder, or else in the MLflow store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from snnexp.config import Config
from snnexp.errors import DataError
from snnexp.tracking.fetch import fetched_artifact
from snnexp.tracking.runs import RunRecord, read_record, run_folders
from snnexp.training.checkpoint import Mark, load_weights
from snnexp.training.stored import load_stored


@dataclass(frozen=True)
class Found:
    """Whole weights of a run. Nothing in `config` is resolved or to be followed: anybody can have written the file."""

    path: Path
    weights: dict[str, Tensor]
    config: dict[str, Any]
    facts: dict[str, Any]


@contextmanager
def found_checkpoint(conf: Config, start_dir: Path) -> Iterator[Found]:
    """The weights of `run_id`, read and checked; a fetched file is gone again after the block.

    Raises:
        DataError: there are none, or they are not what the run wrote.
    """
    assert conf.run_id is not None  # validated
    name, state_dir = f"{conf.checkpoint}.safetensors", Path(conf.state_dir)
    folders = _folders_of(conf.run_id, state_dir)
    holding = {path: record for path, record in folders.items() if (path / name).is_file()}
    if len(holding) > 1:
        listed = "\n".join(sorted(map(str, holding)))
        raise DataError(f"run_id={conf.run_id}: {len(holding)} runs begin like this. Give more of it.\n{listed}")
    for path in holding:
        yield Found(path / name, *load_stored(path / name))
        return
    ids = [record.mlflow_run_id for record in folders.values() if record.mlflow_run_id] or [conf.run_id]
    with fetched_artifact(conf.tracking, start_dir, ids[0], f"checkpoints/{name}") as fetched:
        if fetched is None:
            raise DataError(_not_found(conf, folders, state_dir))
        copy, tags = fetched
        advice = f"The file in the store of MLflow run {ids[0]} is not the one that was sent: train again."
        yield Found(copy, *load_weights(copy, _mark(conf.checkpoint, tags), advice))


def _mark(role: str, tags: dict[str, str]) -> Mark:
    """What the tags of an MLflow run say about its weights: `weights.best` is epoch and digest."""
    epoch, _, digest = tags.get(f"weights.{role}", "").partition(" ")
    if not digest and role == "best":  # older runs
        epoch = tags.get("best_epoch", "")
    return Mark(role, int(epoch) if epoch.isdecimal() else None, digest, tags.get("identity", ""))


def _not_found(conf: Config, folders: dict[Path, RunRecord], state_dir: Path) -> str:
    store = "" if conf.tracking.name == "off" else ", nor in the MLflow store"
    if len(folders) == 1:
        (folder,) = folders
        other = "last" if conf.checkpoint == "best" else "best"
        if (folder / f"{other}.safetensors").is_file():
            way = f"Use checkpoint={other}, or train again with trainer.resume=never."
        else:
            way = "It has not come that far: give its command again to continue it."
        return f"run_id={conf.run_id}: there is no {conf.checkpoint}.safetensors in {folder}{store}. {way}"
    if len(str(conf.run_id)) < 8:
        return f"run_id={conf.run_id}: too short for the beginning of a run's id. Give 8 digits of it or more."
    return (
        f"run_id={conf.run_id}: no {conf.checkpoint}.safetensors for it under {state_dir}{store}. "
        "Give the run id as a run's last lines print it, and state_dir or tracking.uri if it is elsewhere."
    )


def _folders_of(run_id: str, state_dir: Path) -> dict[Path, RunRecord]:
    """Folders of the run: by the beginning of its MLflow id (8 digits or more), or by folder or folder/attempt."""
    newest: dict[Path, tuple[Path, RunRecord]] = {}  # of each identity, the newest attempt
    matching: dict[Path, RunRecord] = {}
    wanted = run_id.rstrip("/")
    for folder in run_folders(state_dir):
        record = read_record(folder, quiet=True)  # a damaged record of another run is not this command's business
        if record is None:
            continue
        home = folder.parent
        newest[home] = folder, record
        by_id = len(run_id) >= 8 and str(record.mlflow_run_id).startswith(run_id)
        if by_id or wanted in (f"{home.name}/{folder.name}", str(folder)):
            matching[folder] = record
    return matching or dict(pair for home, pair in newest.items() if wanted in (home.name, str(home)))
