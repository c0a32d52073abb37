"""`hydra/launcher=joblib`: the jobs of a sweep side by side on this machine, in joblib's worker processes.

Each job's output goes into a file of its own, and this terminal gets one line for each job that ends. Where joblib
stands in the way of a true record, this file works around it: joblib kills its workers at the first exception, Ctrl-C
included, and gives up all jobs when one worker is killed. So an interrupt is handed on to the jobs, which close their
records and return; and jobs that went down with somebody else's worker are begun again, which continues them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from snnexp import interrupts
from snnexp.errors import ConfigError
from snnexp.launchers.base import SweepLauncher
from snnexp.launchers.outcomes import Outcome, broken_off, counted, ended, names, say
from snnexp.launchers.worker import Work, prepare_process

TRIES = 3  # starts of one job whose worker is killed, its own fault or not
PATIENCE = 3  # further signals until the jobs are left to joblib, which kills them
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STOP = "stop"


class JoblibLauncher(SweepLauncher):
    """See the module. n_jobs: at once; -1 is the number of cores."""

    def __init__(self, n_jobs: int = -1) -> None:
        super().__init__()
        self.n_jobs = n_jobs

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[Any]:
        """Do all jobs, and return how each ended. Raises: KeyboardInterrupt once the jobs have closed their records."""
        try:
            import joblib
        except ImportError as error:
            raise ConfigError("hydra/launcher=joblib needs joblib: pip install 'snnexp[sweep]'.") from error
        if not isinstance(self.n_jobs, int) or self.n_jobs == 0:
            raise ConfigError(f"hydra.launcher.n_jobs={self.n_jobs}: must be a number of jobs, or -1 for all cores.")
        bench = Bench(self.folder, joblib.effective_n_jobs(self.n_jobs))
        from snnexp.tracking.sweep_folder import note_jobs

        note_jobs(self.folder, len(job_overrides), [])
        for number, name in enumerate(names(job_overrides), initial_job_idx):
            say(f"#{number}: {name}")
        say(f"{counted(len(job_overrides))}, {bench.at_once} at a time. Output: {bench.outputs}/NUMBER.txt")
        work = Work(self.hydra_context, self.config, self.task_function)
        outcomes = bench.do(work, [list(words) for words in job_overrides], initial_job_idx)
        return self.ended(outcomes, bench.outputs)


class Bench:
    """The workers of one launch: `outputs` is the folder of what jobs print, `at_once` how many run."""

    def __init__(self, folder: Path, at_once: int) -> None:
        self.folder, self.at_once = folder, at_once
        self.outputs = folder / "joblib"
        self.outputs.mkdir(parents=True, exist_ok=True)
        (self.outputs / STOP).unlink(missing_ok=True)
        self._forget_workers()  # of a command that was killed: by now others may have their numbers
        self._signals = 0

    def do(self, work: Work, overrides: list[list[str]], first: int) -> list[Outcome]:
        """All jobs, whatever happens to some. Raises: KeyboardInterrupt, after all records are closed."""
        found: dict[int, Outcome] = {}
        called = names(overrides)
        with self._handing_on():
            for again in range(TRIES):
                numbers = [number for number in range(len(overrides)) if number not in found]
                if not numbers or self._signals:
                    break
                if again:
                    say(f"A worker process was killed; the {len(numbers)} jobs that are left go on.")
                self._round(work, overrides, first, numbers, found)
        from snnexp.tracking.healing import look_after

        if len(found) < len(overrides):
            look_after(self.folder)
        if self._signals:
            interrupts.ending()
            raise KeyboardInterrupt
        why = f"its worker process was killed {TRIES} times; out of memory? hydra.launcher.n_jobs=1 needs less"
        for n in set(range(len(overrides))) - set(found):
            found[n] = broken_off(first + n, called[n], overrides[n], "lost", why)
        return [found[n] for n in range(len(overrides))]

    def _round(
        self, work: Work, overrides: list[list[str]], first: int, numbers: list[int], found: dict[int, Outcome]
    ) -> None:
        from hydra.core.singleton import Singleton
        from joblib import Parallel, delayed
        from joblib.externals.loky.process_executor import BrokenProcessPool

        state = Singleton.get_state()
        calls = [delayed(in_worker)(work, overrides[n], n, first + n, str(self.outputs), state) for n in numbers]
        workers = Parallel(
            n_jobs=min(self.at_once, len(numbers)),
            backend="loky",
            batch_size=1,
            pre_dispatch="n_jobs",
            return_as="generator_unordered",
        )
        try:
            for number, done in workers(calls):
                if done is not None:
                    found[number] = ended(first + number, names(overrides)[number], done)
                    say(f"{found[number].line()}  [{len(found)}/{len(overrides)}]")
        except BrokenProcessPool:
            self._forget_workers()

    def _forget_workers(self) -> None:
        for marker in self.outputs.glob("*.pid"):
            marker.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _handing_on(self) -> Iterator[None]:
        """While jobs run, a signal to this process is theirs: they close their records, and none begins any more."""
        before = {number: signal.getsignal(number) for number in SIGNALS}
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, self._hand_on)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _hand_on(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1
        (self.outputs / STOP).touch()
        if self._signals > PATIENCE:
            raise KeyboardInterrupt
        if self._signals == 1:
            say("Stopping; the runs are closed and can be continued ...")
            for marker in self.outputs.glob("*.pid"):
                with contextlib.suppress(OSError, ValueError):
                    os.kill(int(marker.read_text()), signal.SIGTERM)


def in_worker(
    work: Work, overrides: list[str], position: int, number: int, outputs: str, singletons: dict[Any, Any]
) -> tuple[int, Any]:
    """One job, in a worker process: its position, and its JobReturn or None if it was interrupted."""
    prepare_process()
    folder = Path(outputs)
    marker = folder / f"{number}.pid"
    try:
        marker.write_text(str(os.getpid()))
        interrupts.release()  # a signal that came between two jobs
        if (folder / STOP).exists():
            return position, None
        with _printing_to(folder / f"{number}.txt"):
            return position, work(overrides, number, f"job_{number}", singletons)
    except (KeyboardInterrupt, SystemExit):
        return position, None
    finally:
        interrupts.hold()  # until the next job: in joblib's own code an interrupt would end the worker
        marker.unlink(missing_ok=True)


@contextlib.contextmanager
def _printing_to(path: Path) -> Iterator[None]:
    """Everything that this process prints goes to the file, from whatever library."""
    kept = [os.dup(number) for number in (1, 2)]
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        for number in (1, 2):
            os.dup2(file, number)
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        for number, old in zip((1, 2), kept, strict=True):
            os.dup2(old, number)
            os.close(old)
        os.close(file)
