"""The record of a run on the local disk: complete by itself, and what a store that was away is brought up to date from.

metrics.jsonl   every metric
record.json     parameters, tags, data set, and which files go where in the store
artifacts/      the files
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from snnexp.atomic import write_atomically
from snnexp.tracking.metrics_log import Entry, History, MetricsLog
from snnexp.tracking.runs import RunFolder

if TYPE_CHECKING:
    from snnexp.data.base import DataInfo

log = logging.getLogger(__name__)

MAX_KEY = 250  # MLflow's limits: longer keys are refused, longer parameters are cut off silently
MAX_PARAM = 6000
MAX_TAG = 8000


def legal_key(key: str) -> str:
    """`key` in the letters that MLflow takes: `layers[0]` becomes `layers.0`, `epochs_to/90%` `epochs_to/90`."""
    key = re.sub(r"\[(\w+)\]", r".\1", key).replace("%", "")
    return re.sub(r"[^\w\-. :/]", "_", key, flags=re.ASCII)[:MAX_KEY]


def as_text(value: Any) -> str:
    """A value as the user would type it on the command line: null, true, false, numbers, words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def flatten(config: dict[str, Any] | list[Any], prefix: str = "") -> dict[str, str]:
    """Dotted keys for a nested config, list items by their number: `betas.0`; an empty list or dict keeps its key."""
    flat: dict[str, str] = {}
    for key, value in config.items() if isinstance(config, dict) else enumerate(config):
        path = f"{prefix}{key}"
        if isinstance(value, dict | list | tuple) and value:
            flat.update(flatten(value if isinstance(value, dict) else list(value), path + "."))
        else:
            flat[path] = as_text(value)
    return flat


def with_group_names(params: Mapping[str, str]) -> dict[str, str]:
    """A run's parameters, and each group's name under the group's own word as well: `neuron` for `neuron.name`.

    The words of the command line: `task=report neuron=plif`, the columns of tables. (Earlier versions stored both.)
    """
    groups = {key.removesuffix(".name"): value for key, value in params.items() if key.endswith(".name")}
    return {**{group: value for group, value in groups.items() if "." not in group}, **params}


class LocalRecord:
    """Reads and writes the record of one run folder."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.metrics = MetricsLog(folder.metrics_path)
        self.params: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.dataset: dict[str, Any] | None = None
        self.files: dict[str, str] = {}  # path in the store -> path inside the run folder
        self.unsent_files: set[str] = set()
        self._path = folder.path / "record.json"
        if self._path.exists():
            self._load()

    def _load(self) -> None:
        try:
            values = json.loads(self._path.read_text(encoding="utf-8"))
            self.params, self.tags = dict(values["params"]), dict(values["tags"])
            self.dataset, self.files = values["dataset"], dict(values["files"])
            self.unsent_files = set(values["unsent_files"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s is damaged (%s) and written anew; the metrics are in metrics.jsonl", self._path, error)

    def save(self) -> None:
        """Write record.json, atomically."""
        values = {
            "params": self.params,
            "tags": self.tags,
            "dataset": self.dataset,
            "files": self.files,
            "unsent_files": sorted(self.unsent_files),
        }
        write_atomically(self._path, json.dumps(values, indent=1) + "\n")

    def add_params(self, params: dict[str, Any]) -> dict[str, str]:
        """Keep parameters; returns them as text under legal keys, cut to MLflow's length with a mark where cut."""
        new = {legal_key(key): _cut(as_text(value), MAX_PARAM) for key, value in params.items()}
        self.params.update(new)
        self.save()
        return new

    def add_tags(self, tags: dict[str, Any]) -> dict[str, str]:
        """Keep tags; later values win."""
        new = {legal_key(key): _cut(as_text(value), MAX_TAG) for key, value in tags.items()}
        self.tags.update(new)
        self.save()
        return new

    def add_dataset(self, info: DataInfo) -> dict[str, str]:
        """Keep the data set's entry; returns what is known about it as tags."""
        self.dataset = {
            "name": info.name,
            # who is in the split, and what is in them; the store's limit is 36
            "digest": "-".join(part[:16] for part in (info.split_hash, info.data_fingerprint) if part),
            "source": info.source,
            "profile": {
                "kind": info.kind,
                "shape": list(info.shape),
                "num_steps": info.num_steps,
                "num_classes": info.num_classes,
                "counts": dict(info.counts),
                "complete": info.complete,
                "variant": info.variant,
                "split_hash": info.split_hash,
                "data_fingerprint": info.data_fingerprint,
                "empty_samples": dict(info.empty_samples),
                "events": info.events,
                "dropped_events": dict(info.dropped_events),
                **({"understood": list(info.understood)} if info.understood else {}),
            },
        }
        tags: dict[str, Any] = {"split_hash": info.split_hash, "complete": info.complete}
        if info.data_fingerprint:
            tags["data_fingerprint"] = info.data_fingerprint
        tags.update({f"samples.{split}": count for split, count in info.counts.items()})
        tags.update({f"empty_samples.{split}": count for split, count in info.empty_samples.items()})
        if info.kind == "events":
            tags["dropped_events"] = sum(info.dropped_events.values())
        if info.variant is not None:
            tags["dataset_variant"] = info.variant
        if info.understood:
            tags["dataset_understood"] = "; ".join(info.understood)
        if info.notes:
            tags["dataset_notes"] = "; ".join(info.notes)
        return self.add_tags(tags)

    def add_file(self, path: Path, folder: str | None = None) -> str:
        """Keep a file, by a copy under artifacts/ unless it lies in the run folder; returns its path in the store."""
        path = Path(path).absolute()
        name = str(PurePosixPath(folder or "") / path.name)
        if not path.is_relative_to(self.folder.path):
            copy = self.folder.artifacts / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
            path = copy
        return self._add(name, path)

    def add_text(self, text: str, name: str) -> str:
        """Write a text file under artifacts/; returns its path in the store, `name`."""
        path = self.folder.artifacts / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)
        return self._add(name, path)

    def _add(self, name: str, path: Path) -> str:
        self.files[name] = path.relative_to(self.folder.path).as_posix()
        self.save()
        return name

    def file(self, name: str) -> Path:
        """Where the file for `name` in the store lies."""
        return self.folder.path / self.files[name]

    def add_metrics(self, step: int, metrics: dict[str, float]) -> Entry:
        """Write one epoch's metrics to the disk; returns the new ones."""
        return self.metrics.append(step, {legal_key(key): value for key, value in metrics.items()})

    def history(self) -> History:
        """All metrics so far, those before an interruption included."""
        return self.metrics.history()


def read_local(folder: Path) -> tuple[dict[str, str], dict[str, str]] | None:
    """Parameters and tags of a run's record, or None if it is missing or damaged."""
    try:
        values = json.loads((folder / "record.json").read_text(encoding="utf-8"))
        return dict(values["params"]), dict(values["tags"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _cut(text: str, limit: int) -> str:
    mark = " [cut; the whole is in config.yaml]"
    return text if len(text) <= limit else text[: limit - len(mark)] + mark
