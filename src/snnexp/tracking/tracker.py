"""What the training loop logs to, and its first half: the local record alone, as with tracking=off."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from snnexp import interrupts
from snnexp.tracking.local import LocalRecord
from snnexp.tracking.metrics_log import History
from snnexp.tracking.runs import RunFolder, Status

if TYPE_CHECKING:
    from snnexp.data.base import DataInfo


class Tracker(Protocol):
    """The record of one run. Nothing here raises because a store is away: see `mlflow_tracker`."""

    @property
    def run_id(self) -> str | None:
        """The MLflow run, or None with tracking=off."""
        ...

    def log_start(self, params: dict[str, Any], tags: dict[str, Any], data: DataInfo | None) -> None:
        """All that is known before the first epoch, in as few requests as MLflow allows."""
        ...

    def log_params(self, params: dict[str, Any]) -> None:
        """Parameters under dotted keys; what is there already is compared, not written again."""
        ...

    def log_tags(self, tags: dict[str, Any]) -> None:
        """Tags; a later value replaces an earlier one."""
        ...

    def log_dataset(self, info: DataInfo) -> None:
        """The data set's entry, and its split hash and counts as tags."""
        ...

    def log_epoch(self, step: int, metrics: dict[str, float]) -> None:
        """All metrics of an epoch in one call (0: before training); a (key, step) logged before is left as it is."""
        ...

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """A file, under `folder` in the store."""
        ...

    def log_text(self, text: str, name: str) -> None:
        """A text file called `name` (may contain /)."""
        ...

    def log_dict(self, values: dict[str, Any], name: str) -> None:
        """A JSON file called `name`."""
        ...

    def history(self) -> History:
        """All metrics so far by name, those before an interruption included."""
        ...

    def finish(self, status: Status) -> None:
        """Send what is missing and close the run. Call before `RunFolder.finish`."""
        ...

    def link(self) -> str | None:
        """Address of the run in MLflow's pages."""
        ...


class OffTracker:
    """tracking=off: everything stays in the run's folder, in the same files that MLflow would be filled from."""

    run_id: str | None = None

    def __init__(self, folder: RunFolder) -> None:
        self.local = LocalRecord(folder)

    def log_start(self, params: dict[str, Any], tags: dict[str, Any], data: DataInfo | None) -> None:
        """See `Tracker`."""
        self.local.add_params(params)
        self.local.add_tags(tags)
        if data is not None:
            self.local.add_dataset(data)

    def log_params(self, params: dict[str, Any]) -> None:
        """See `Tracker`."""
        self.local.add_params(params)

    def log_tags(self, tags: dict[str, Any]) -> None:
        """See `Tracker`."""
        self.local.add_tags(tags)

    def log_dataset(self, info: DataInfo) -> None:
        """See `Tracker`."""
        self.local.add_dataset(info)

    def log_epoch(self, step: int, metrics: dict[str, float]) -> None:
        """See `Tracker`."""
        self.local.add_metrics(step, metrics)

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """See `Tracker`."""
        self.local.add_file(path, folder)

    def log_text(self, text: str, name: str) -> None:
        """See `Tracker`."""
        self.local.add_text(text, name)

    def log_dict(self, values: dict[str, Any], name: str) -> None:
        """See `Tracker`."""
        import json

        self.log_text(json.dumps(values, indent=1) + "\n", name)

    def history(self) -> History:
        """See `Tracker`."""
        return self.local.history()

    def finish(self, status: Status) -> None:
        """See `Tracker`."""
        try:
            self.local.add_tags({"status": status})
        except OSError:  # a full disk: the error on its way says so
            if status == "FINISHED":
                raise

    def link(self) -> str | None:
        """See `Tracker`: there is none."""
        return None


@contextlib.contextmanager
def closed_if_cut_off(tracker: Tracker) -> Iterator[None]:
    """An interrupt in this block, before anybody else knows of the tracker, closes the record."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            interrupts.ending()
        tracker.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
