"""What the training loop logs to: `open_tracker` gives MLflow or, with tracking=off, the local record alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from snnexp import interrupts
from snnexp.secrets import mask
from snnexp.tracking.address import resolve_experiment, resolve_uri
from snnexp.tracking.local import LocalRecord, config_params
from snnexp.tracking.metrics_log import History
from snnexp.tracking.provenance import code_tags
from snnexp.tracking.runs import RunFolder, Status

if TYPE_CHECKING:
    from snnexp.config import TrackingConf
    from snnexp.data.base import DataInfo


class Tracker(Protocol):
    """The record of one run. Nothing here raises because a store is away: see `mlflow_tracker`."""

    @property
    def run_id(self) -> str | None:
        """The MLflow run, or None with tracking=off."""
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


def open_tracker(
    conf: TrackingConf,
    folder: RunFolder,
    cfg: dict[str, Any],
    *,
    start_dir: str | Path,
    parent_run_id: str | None = None,
    sweep_id: str | None = None,
    source_overrides: Sequence[str] = (),
) -> Tracker:
    """Open the record of a claimed run: the resolved config, the code's version and the identity are logged here.

    Signals are held when it returns: the caller lets them in (`interrupts.release`) where it can close the record.

    Args:
        conf: the group `tracking`; `name: off` keeps everything in the run's folder.
        folder: the claimed run; a resumed one continues its MLflow run.
        cfg: the resolved config in plain containers.
        start_dir: the folder that the command was started in.
        parent_run_id, sweep_id: see `sweep.current_sweep`.
        source_overrides: what the user typed, for the run's note.
    Raises: TrackingError if the store cannot be used; before any training, within seconds.
    """
    from omegaconf import OmegaConf

    tracking = {"uri": conf.uri and mask(conf.uri), "experiment": resolve_experiment(conf.experiment)}
    cfg = {**cfg, "tracking": {**cfg["tracking"], **tracking}}  # the record is for everybody
    tags = {**code_tags(), "identity": folder.record.identity, "run_folder": str(folder.path), "status": "RUNNING"}
    if source_overrides:
        tags["overrides"] = " ".join(source_overrides)
    if sweep_id is not None:
        tags["sweep_id"] = sweep_id
    tracker: Tracker
    if conf.name == "off":
        tracker = OffTracker(folder)
        tracker.log_tags(tags)
    else:
        from snnexp.tracking.mlflow_tracker import open_mlflow  # mlflow takes 2 s to import

        uri = resolve_uri(conf.uri, start_dir)
        tracker = open_mlflow(conf, folder, cfg, uri, tags, parent_run_id)
    with closed_if_cut_off(tracker):
        tracker.log_params(config_params(cfg))
        tracker.log_text(OmegaConf.to_yaml(OmegaConf.create(cfg)), "config.yaml")
        interrupts.hold()
    return tracker


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
