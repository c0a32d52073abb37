"""What our launchers share: Hydra's objects, the sweep's folder, and the words and counts at the end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.plugins.launcher import Launcher

from snnexp.launchers.outcomes import Outcome, say, summary


class SweepLauncher(Launcher):
    """A launcher that collects how every job ended and tells the sweep's parent. A subclass has `launch`."""

    def __init__(self) -> None:
        self.config: Any = None
        self.hydra_context: Any = None
        self.task_function: Any = None

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        """Hydra's."""
        self.config, self.hydra_context, self.task_function = config, hydra_context, task_function

    @property
    def folder(self) -> Path:
        """The sweep's."""
        return Path(self.config.hydra.runtime.cwd) / str(self.config.hydra.sweep.dir)

    def ended(self, outcomes: Sequence[Outcome], output: Path) -> list[Any]:
        """Say how the jobs ended, whose output lies in `output`, and count them; returns what Hydra is given back."""
        for line in summary(outcomes, str(output)):
            say(line)
        self.count(outcomes)
        return [outcome.done for outcome in outcomes]

    def count(self, outcomes: Sequence[Outcome]) -> None:
        """Tell the sweep's parent how many jobs failed, and how many are left for the same command."""
        from snnexp.tracking.sweep import SweepParent

        failed = sum(outcome.how == "failed" for outcome in outcomes)
        left = sum(outcome.how in ("killed", "lost") for outcome in outcomes)
        for callback in self.hydra_context.callbacks.callbacks:
            if isinstance(callback, SweepParent):
                callback.count(len(outcomes), failed, left)
