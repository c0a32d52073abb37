"""Opening the record of a run: MLflow or, with tracking=off, the local record alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snnexp import interrupts
from snnexp.commands import command_line, option_folders
from snnexp.secrets import mask
from snnexp.tracking.address import resolve_experiment, resolve_uri
from snnexp.tracking.local import flatten
from snnexp.tracking.provenance import code_tags
from snnexp.tracking.runs import RunFolder
from snnexp.tracking.tracker import OffTracker, Tracker, closed_if_cut_off

if TYPE_CHECKING:
    from snnexp.config import TrackingConf
    from snnexp.data.base import DataInfo

__all__ = ["OffTracker", "Tracker", "open_tracker", "resolve_uri"]


def open_tracker(
    conf: TrackingConf,
    folder: RunFolder,
    cfg: dict[str, Any],
    *,
    start_dir: str | Path,
    parent_run_id: str | None = None,
    sweep_id: str | None = None,
    source_overrides: Sequence[str] = (),
    data: DataInfo | None = None,
    more_tags: Mapping[str, Any] | None = None,
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
        data: the data set, for its entry in the store.
        more_tags: what else is known before the first epoch.
    Raises: TrackingError if the store cannot be used; before any training, within seconds.
    """
    from omegaconf import OmegaConf

    tracking = {"uri": conf.uri and mask(conf.uri), "experiment": resolve_experiment(conf.experiment)}
    cfg = {**cfg, "tracking": {**cfg["tracking"], **tracking}}  # the record is for everybody
    tags = {**code_tags(), "identity": folder.record.identity, "run_folder": str(folder.path), "status": "RUNNING"}
    if source_overrides:
        tags["overrides"] = " ".join(source_overrides)
    tags["command"] = command_line([*option_folders(), *source_overrides])
    if sweep_id is not None:
        tags["sweep_id"] = sweep_id
    tracker: Tracker
    if conf.name == "off":
        tracker = OffTracker(folder)
        tracker.log_tags(tags)
    else:
        from snnexp.tracking.mlflow_opening import open_mlflow  # mlflow takes 2 s to import

        uri = resolve_uri(conf.uri, start_dir)
        tracker = open_mlflow(conf, folder, cfg, uri, tags, parent_run_id)
    with closed_if_cut_off(tracker):
        tracker.log_start(flatten(cfg), dict(more_tags or {}), data)
        tracker.log_text(OmegaConf.to_yaml(OmegaConf.create(cfg)), "config.yaml")
        interrupts.hold()
    return tracker
