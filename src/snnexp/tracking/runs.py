"""One stable folder per run: what is finished, what was cut off, what another process is working on.

    <state_dir>/<dataset>-<neuron>-<identity>/<attempt 001, 002, ...>/
        run.json            status, MLflow run id, store, process; written to a temporary name and renamed
        lock                held for as long as the process lives, so a free lock behind RUNNING means it was killed
        state.pt            training state of the last complete epoch
        midway.pt           within the epoch after it (trainer.checkpoint_minutes)
        best.safetensors    weights of the best epoch on validation;  last.safetensors: of the last one
        metrics.jsonl       every metric, one line per epoch, whatever happens to the store
        artifacts/          what is drawn or written beside the metrics

The lock is `flock`: it is released by the kernel with the process, `kill -9` included, and it works across machines on
file systems that carry flock (local disks, NFSv4, Lustre with -o flock).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import socket
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from filelock import Timeout

from snnexp import interrupts
from snnexp.atomic import write_atomically
from snnexp.errors import ConfigError, DataError
from snnexp.locks import Lock, file_lock
from snnexp.naming import path_word
from snnexp.tracking.identity import run_identity
from snnexp.version import __version__

log = logging.getLogger(__name__)

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]
Action = Literal["new", "resume", "skip"]

ATTEMPT = re.compile(r"[0-9]{3,18}")
CLAIM_TIMEOUT_S = 300.0  # a claim takes milliseconds; sending an old run's record to a slow store takes longer


@dataclass
class RunRecord:
    """What run.json holds."""

    identity: str
    status: Status = "RUNNING"
    tracking_uri: str | None = None  # null: tracking=off
    mlflow_run_id: str | None = None
    experiment: str | None = None  # the name it had when the run was last opened there
    unsent: bool = False  # the store could not be reached; the next run against it sends what is missing
    created: str = ""
    updated: str = ""
    version: str = __version__
    pid: int = 0
    host: str = ""
    data_fingerprint: str = ""  # of the data that it was begun on; empty: not assembled yet, or an older version's
    threads: int = 0  # torch's, and below the processor's instruction set: both change the last bits of a result
    cpu_capability: str = ""
    # role (best, last) -> epoch and digest of the weights written last: what the files must hold
    weights: dict[str, dict[str, Any]] = field(default_factory=dict)
    pruned: str = ""  # the search that ended it before its last epoch; such a run was never tested
    uid: str = (
        ""  # random; also a tag of the MLflow run, which can so be found if a kill came before its id was written
    )

    @property
    def whole(self) -> bool:
        """Whether it was trained to its end and tested."""
        return self.status == "FINISHED" and not self.pruned

    def is_of(self, data: str | None) -> bool:
        """Whether it was made on the data with this fingerprint, as far as one can tell (None, or none recorded)."""
        return data is None or self.data_fingerprint in ("", data)


def sweep_temporaries(folder: Path) -> None:
    """Remove what killed writers left in a run's folder. The caller holds the folder's lock: nobody is writing now."""
    for leftover in folder.rglob("*.tmp"):
        with contextlib.suppress(OSError):
            leftover.unlink()


def read_record(folder: Path, quiet: bool = False) -> RunRecord | None:
    """The record in `folder`, or None (and, unless `quiet`, a warning with its name) if it is missing or damaged."""
    path = folder / "run.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        known = {item.name for item in fields(RunRecord)}
        record = RunRecord(**{key: value for key, value in values.items() if key in known})
        if record.status not in ("RUNNING", "FINISHED", "FAILED", "KILLED"):
            raise ValueError(f"status is {record.status!r}")
        if not all(isinstance(marks, dict) for marks in (record.weights, *record.weights.values())):
            raise ValueError("weights is not a table")
    except FileNotFoundError:
        return None  # killed between making the folder and writing the record: nothing was lost
    except (OSError, ValueError, TypeError, AttributeError) as error:
        log.log(
            logging.DEBUG if quiet else logging.WARNING,
            "%s is damaged (%s); this attempt is left as it is and neither continued nor counted",
            path,
            error,
        )
        return None
    return record


@dataclass
class RunFolder:
    """A run's folder with the lock held: `action` says whether to start, to continue, or (in a sweep) to do nothing."""

    path: Path
    record: RunRecord
    action: Action
    _lock: Lock | None = field(default=None, repr=False)
    left_running: bool = False  # its last process was killed without a word, and the store may still say RUNNING

    @property
    def attempt(self) -> int:
        """1 for the first run of this identity."""
        return int(self.path.name)

    @property
    def state(self) -> Path:
        """Training state of the last complete epoch."""
        return self.path / "state.pt"

    @property
    def midway(self) -> Path:
        """Training state within the epoch after that."""
        return self.path / "midway.pt"

    @property
    def best(self) -> Path:
        """Weights of the best epoch on validation."""
        return self.path / "best.safetensors"

    @property
    def next_best(self) -> Path:
        """Weights of a new best epoch until the training state names them."""
        return self.path / "best.next.safetensors"

    @property
    def last(self) -> Path:
        """Weights of the last epoch."""
        return self.path / "last.safetensors"

    @property
    def metrics_path(self) -> Path:
        """Every metric, one JSON line per epoch."""
        return self.path / "metrics.jsonl"

    @property
    def artifacts(self) -> Path:
        """Plots, tables and texts; also what could not be sent yet."""
        return self.path / "artifacts"

    @property
    def skip_reason(self) -> str:
        """One line for a sweep's log when there is nothing to do."""
        where = f"MLflow run {self.record.mlflow_run_id} in {self.record.tracking_uri}"
        if self.record.mlflow_run_id is None:
            where = "it has no MLflow run (tracking=off)"
        return f"already finished: {self.path}; {where}. trainer.resume=never runs it again."

    def update(self, **values: Any) -> None:
        """Change fields of run.json, atomically."""
        for key, value in values.items():
            if not hasattr(self.record, key):
                raise AttributeError(f"run.json has no field {key}")
            setattr(self.record, key, value)
        self.record.updated = _now()
        write_atomically(self.path / "run.json", json.dumps(asdict(self.record), indent=1) + "\n")

    def note_weights(self, role: str, epoch: int, digest: str) -> None:
        """Write down which weights (best, last) the folder holds, so that whoever reads them can tell."""
        self.update(weights={**self.record.weights, role: {"epoch": epoch, "digest": digest}})

    def discard(self) -> None:
        """Remove the folder of a new run that never began; an older attempt stays as it is."""
        if self.action == "new" and self._lock is not None:
            shutil.rmtree(self.path, ignore_errors=True)
            self._lock.release()
            self._lock = None

    def finish(self, status: Status, told: bool = True) -> bool:
        """Write the final status and let go of the lock; a second call changes nothing and returns False.

        told: whether the store knows the status; else the next run that uses the store tells it.

        Call it after the tracker's `finish`: a kill between the two leaves a run that is finished once more, never a
        finished folder whose MLflow run says RUNNING for ever.
        """
        if self._lock is None:
            return False
        self.update(status=status, unsent=self.record.unsent or (not told and self.record.mlflow_run_id is not None))
        self._lock.release()
        self._lock = None
        return True


def claim(
    cfg: dict[str, Any],
    state_dir: str | Path,
    resume: Literal["auto", "never"] = "auto",
    in_sweep: bool = False,
    fingerprint: Callable[[], str | None] = lambda: None,
    search: str = "",
) -> RunFolder:
    """Decide what the command does with its identity, and hold the folder for it.

    resume=auto: continue the newest unfinished attempt (KILLED, FAILED, or RUNNING with nobody behind it) that no later
    attempt has finished; if there is none, start a new one, or skip inside a sweep whose identity has a finished
    attempt. resume=never: always a new one.
    A run is its data, too: what was finished on other data is not skipped, and what was begun on other data is not
    continued: a sweep begins it anew, a single run refuses, since a wrong dataset.root is the likely reason.
    Signals are held when it returns: the caller lets them in (`interrupts.release`) where it can finish the folder.

    Args:
        cfg: the resolved config in plain containers.
        state_dir: parent of all runs' folders; made if missing.
        fingerprint: gives that of the data as they are now, or None if they are not there; asked only where there are
            earlier attempts to compare with.
        search: the study of the search whose trial this is. What it pruned is finished for it, and for nobody else.
    Raises: ConfigError if another live process runs this identity (resume=auto), or the folder cannot be written;
        DataError if the unfinished run was begun on other data.
    """
    identity = run_identity(cfg)
    words = path_word(str(cfg["dataset"]["name"])), path_word(str(cfg["neuron"]["name"]))
    home = Path(state_dir).absolute() / "-".join((*words, identity))
    try:
        home.mkdir(parents=True, exist_ok=True)
        # asked before the lock is taken: data may have to be packed first
        data = fingerprint() if resume == "auto" and _attempts(home) else None
        with file_lock(home / "claim.lock", timeout=CLAIM_TIMEOUT_S):
            interrupts.hold()
            try:
                return _decide(home, identity, resume, in_sweep, data, search)
            except BaseException:
                interrupts.release()
                raise
    except Timeout:
        raise ConfigError(
            f"state_dir: {home}/claim.lock was held for {CLAIM_TIMEOUT_S:.0f} s by a process that hangs."
        ) from None
    except OSError as error:
        raise ConfigError(
            f"state_dir={state_dir}: cannot write there ({error.strerror or error}). "
            "Set state_dir to a folder that you may write to."
        ) from error


def run_folders(state_dir: Path) -> list[Path]:
    """Folders of all runs in a state folder, attempts of one identity oldest first, whatever else lies there."""
    try:
        homes = sorted(state_dir.iterdir())
    except OSError:
        return []
    return [path for home in homes for path in _attempts(home)]


def _attempts(home: Path) -> list[Path]:
    """Folders of all attempts, oldest first. Files, dangling links and what cannot be read are none."""
    return [path for _, path in _numbered(home) if _is_folder(path)]


def _numbered(home: Path) -> list[tuple[int, Path]]:
    """Whatever in the folder has an attempt's name."""
    try:
        return sorted((int(path.name), path) for path in home.iterdir() if ATTEMPT.fullmatch(path.name))
    except OSError:
        return []


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False


def _decide(home: Path, identity: str, resume: str, in_sweep: bool, data: str | None, search: str) -> RunFolder:
    attempts = _attempts(home)
    finished: RunFolder | None = None
    unfinished: RunFolder | None = None
    for path in attempts:  # oldest first: the newest of each kind stays
        try:
            lock = lock_folder(path)
        except OSError as error:
            log.warning("%s cannot be used (%s) and is left as it is", path, error.strerror or error)
            continue
        if lock is None:
            if resume == "never":
                continue
            _release(unfinished)
            record = read_record(path)
            who = f"process {record.pid} on {record.host}" if record else "another process"
            raise ConfigError(
                f"This very run is being done by {who}: {path}. Wait for it, stop it, or add trainer.resume=never "
                "to run it a second time beside it."
            )
        sweep_temporaries(path)
        record = None if resume == "never" else read_record(path)  # with the lock: its owner can no longer finish it
        if record is None:
            lock.release()
        elif record.status == "FINISHED":
            lock.release()
            if record.pruned not in ("", search):
                continue  # left as it is: what was pruned is no result of this configuration
            if record.is_of(data):
                finished = RunFolder(path, record, "skip")
                _release(unfinished)  # done by a later attempt: whoever began anew must not be led back to it
                unfinished = None
            elif in_sweep:
                log.warning("%s was finished on other data (%s, now %s)", path, record.data_fingerprint, data)
        else:
            _release(unfinished)
            unfinished = RunFolder(path, record, "resume", lock, left_running=record.status == "RUNNING")

    if in_sweep and finished is not None:
        _release(unfinished)
        return finished
    if unfinished is not None and not unfinished.record.is_of(data):
        _release(unfinished)
        _refuse_other_data(unfinished, data, in_sweep)
        unfinished = None
    if unfinished is None:
        return _start(home, identity)
    unfinished.update(status="RUNNING", pid=os.getpid(), host=socket.gethostname(), version=__version__)
    return unfinished


def _refuse_other_data(folder: RunFolder, data: str | None, in_sweep: bool) -> None:
    what = f"the samples are not those that {folder.path} was begun on ({folder.record.data_fingerprint}, now {data})"
    if not in_sweep:
        raise DataError(
            f"{what}. Put the data back as they were (is dataset.root right?), or start afresh with "
            "trainer.resume=never."
        )
    log.warning("%s: it is left as it is, and a new run begins", what)


def _start(home: Path, identity: str) -> RunFolder:
    taken = _numbered(home)
    path = home / f"{taken[-1][0] + 1 if taken else 1:03d}"
    path.mkdir()
    lock = lock_folder(path)
    if lock is None:  # we hold claim.lock and have just made the folder
        raise ConfigError(f"{path}/lock: another process took the lock of a new run; try again.")
    record = RunRecord(identity, created=_now(), pid=os.getpid(), host=socket.gethostname(), uid=uuid.uuid4().hex)
    folder = RunFolder(path, record, "new", lock)
    folder.update(status="RUNNING")
    return folder


def lock_folder(path: Path) -> Lock | None:
    """Take the lock of a run's folder, or return None at once if a live process has it."""
    # thread_local=False: the run may be finished by another thread than the one that claimed it
    lock = file_lock(path / "lock", timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        return None
    return lock


def _release(folder: RunFolder | None) -> None:
    if folder is not None and folder._lock is not None:
        folder._lock.release()
        folder._lock = None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
