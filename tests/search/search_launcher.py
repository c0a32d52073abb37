"""A launcher that computes a number where another one would train."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hydra.core.utils import JobReturn, JobStatus

from snnexp.search.trial import Outcome

LR = "optimizer.lr=tag(log, interval(1e-4, 1e-1))"


class Launcher:
    """Says what each job is worth; `worth` may raise, or be None for a pruned one. `dies_at`: the launch it dies in."""

    def __init__(self, worth: Callable[[dict[str, str]], Any], dies_at: int | None = None) -> None:
        self.worth, self.dies_at = worth, dies_at
        self.launches: list[list[dict[str, str]]] = []
        self.numbers: list[int] = []

    def launch(self, jobs: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        if len(self.launches) == self.dies_at:
            raise KeyboardInterrupt
        values = [dict(word.partition("=")[::2] for word in job) for job in jobs]
        self.launches.append(values)
        self.numbers += range(initial_job_idx, initial_job_idx + len(jobs))
        return [self._job(job) for job in values]

    def _job(self, job: dict[str, str]) -> JobReturn:
        try:
            worth = self.worth(job)
        except Exception as error:
            return JobReturn(status=JobStatus.FAILED, _return_value=error)
        values = worth if isinstance(worth, tuple) or worth is None else (float(worth),)
        return JobReturn(status=JobStatus.COMPLETED, _return_value=Outcome(values, "folder", None, 1))

    @property
    def jobs(self) -> list[dict[str, str]]:
        """All that were launched."""
        return [job for launch in self.launches for job in launch]
