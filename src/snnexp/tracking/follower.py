"""What the other processes of a run hold in the place of its folder and record, which the first one alone writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snnexp import ranks
from snnexp.tracking.metrics_log import History
from snnexp.tracking.runs import RunFolder, Status

if TYPE_CHECKING:
    from snnexp.data.base import DataInfo


class Follower(RunFolder):
    """A run's folder that another process holds: it is looked at, and nothing in it is changed."""

    def update(self, **values: Any) -> None:
        """Change what is known of the record here."""
        for key, value in values.items():
            setattr(self.record, key, value)

    def discard(self) -> None:
        """The first process does."""

    def finish(self, status: Status, told: bool = True) -> bool:
        """The first process does."""
        return False


def claimed_by_first(claim: Callable[[], RunFolder]) -> RunFolder:
    """The folder that the first process claims; the others follow it. Raises: what `claim` raises."""
    if not ranks.several():
        return claim()
    held: list[RunFolder] = []

    def claims() -> tuple[Path, Any, Any]:
        held.append(claim())
        return held[0].path, held[0].record, held[0].action

    path, record, action = ranks.from_first(claims)
    return held[0] if held else Follower(path, record, action)


class SilentTracker:
    """The record of a run that another process keeps."""

    run_id: str | None = None

    def log_start(self, params: dict[str, Any], tags: dict[str, Any], data: DataInfo | None) -> None:
        """See `Tracker`."""

    def log_params(self, params: dict[str, Any]) -> None:
        """See `Tracker`."""

    def log_tags(self, tags: dict[str, Any]) -> None:
        """See `Tracker`."""

    def log_dataset(self, info: DataInfo) -> None:
        """See `Tracker`."""

    def log_epoch(self, step: int, metrics: dict[str, float]) -> None:
        """See `Tracker`."""

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """See `Tracker`."""

    def log_text(self, text: str, name: str) -> None:
        """See `Tracker`."""

    def log_dict(self, values: dict[str, Any], name: str) -> None:
        """See `Tracker`."""

    def history(self) -> History:
        """See `Tracker`: nothing is kept here."""
        return {}

    def finish(self, status: Status) -> None:
        """See `Tracker`."""

    def link(self) -> str | None:
        """See `Tracker`: there is none."""
        return None
