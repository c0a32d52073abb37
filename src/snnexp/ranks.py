"""One run in several processes, as torchrun starts them: who this one is, what the first one says, how all end.

    torchrun --nproc-per-node 2 -m snnexp dataset=nmnist

Every process (rank) has the whole network and takes its rows of every batch; `collectives.py` joins what they found.
The first, rank 0, claims, tracks, draws, prints and writes; what it alone knows, `from_first` tells the others. They
wait for it by looking at torchrun's store, not within a collective: so they wait as long as it takes, and signals
reach them.

An error in one process ends all of them: it is noted in the store before the process ends, the others' collectives
break as its connections close, and they end with its exit code and say nothing, since one message is enough.

In a single process nothing of this is in use: `size()` is 1, and torch.distributed is not imported.
"""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

from snnexp import interrupts
from snnexp.errors import ConfigError, SnnexpError
from snnexp.machine import cores

log = logging.getLogger(__name__)

Value = TypeVar("Value")

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
TIMEOUT = timedelta(hours=4)  # of a collective: above what the first process may do between two of them
GRACE_S = 1.0  # for a process that ends to say why
CLOSING_S = 20.0  # for the first process to close the record: torchrun ends all once one has ended with an error
WORLD_SIZE = "world_size"  # key of a run's configuration, and a tag
FAILURE, CLOSED, PRESENT, TURN, OPENED = (f"snnexp/{w}" for w in ("failure", "closed", "present", "turn", "opened"))


@dataclass(frozen=True)
class World:
    """Which of how many processes this is; local: on this machine. node: the machine's number."""

    rank: int
    size: int
    local_rank: int = 0
    local_size: int = 1
    node: int = 0


@dataclass(frozen=True)
class Rows:
    """The samples of a batch that a process takes. One that gets none takes the first as a stand-in that counts for
    nothing, so that it makes every step that the others make, with tensors of the usual shapes."""

    start: int
    stop: int
    total: int  # samples of the whole batch
    counts: tuple[int, ...]  # of each process

    @property
    def absent(self) -> bool:
        """Whether there are none for this process."""
        return self.start == self.stop

    @property
    def part(self) -> slice:
        """Where they are in the batch; of an absent process, where its stand-in is."""
        return slice(0, 1) if self.absent else slice(self.start, self.stop)


class EndedElsewhere(SnnexpError):
    """Another process of the run ended first, and said why."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("another process of this run ended, and said why")
        self.exit_code = exit_code


_world: World | None = None
_alone = 0
_store: Any = None
_turns = _opened = 0


# --- who ----------------------------------------------------------------------------------------------------------


def announced(environment: Mapping[str, str] = os.environ) -> World | None:
    """The processes that torchrun started, by its variables; None if there is only this one.

    Raises: ConfigError if a variable is no number.
    """
    if any(name not in environment for name in VARIABLES):
        return None
    try:
        rank, size, local_rank, local_size = (int(environment[name]) for name in VARIABLES[:4])
        node = int(environment.get("GROUP_RANK", rank // max(local_size, 1)))
    except ValueError:
        shown = " ".join(f"{name}={environment[name]}" for name in VARIABLES[:4])
        raise ConfigError(f"{shown}: these are torchrun's numbers. Unset them, or start with torchrun.") from None
    return World(rank, size, local_rank, local_size, node) if size > 1 else None


def begin() -> None:
    """Take the place that torchrun gave this process: before torch is imported, for its number of threads."""
    global _world
    _world = announced()
    if _world is None:
        return
    if not _chosen_threads():
        os.environ["OMP_NUM_THREADS"] = str(max(cores() // _world.local_size, 1))
    if _world.rank > 0:
        logging.getLogger().addHandler(logging.NullHandler())
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.close(nowhere)


def _chosen_threads() -> bool:
    """Whether the user has set OMP_NUM_THREADS: torchrun sets it to 1 where nobody has."""
    if os.environ.get("OMP_NUM_THREADS", "1") != "1":
        return True
    try:  # what torchrun itself was started with
        return b"OMP_NUM_THREADS=" in Path(f"/proc/{os.getppid()}/environ").read_bytes()
    except OSError:
        return "OMP_NUM_THREADS" in os.environ


def quiet_words() -> list[str]:
    """Words of Hydra's for a process that writes nothing: no log, no dated folder."""
    if leads():
        return []
    folder = tempfile.mkdtemp(prefix="snnexp-rank-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return [
        "hydra/job_logging=disabled",
        "hydra/hydra_logging=disabled",
        "hydra.output_subdir=null",
        f"hydra.run.dir='{folder}'",
    ]


def world() -> World | None:
    """This process among the others, or None in a single process."""
    return _world


def several() -> bool:
    """Whether the run is done by several processes, and what is asked for concerns all of them (see `alone`)."""
    return _world is not None and _alone == 0


def size() -> int:
    """How many processes share a batch."""
    return _world.size if _world is not None and _alone == 0 else 1


def leads() -> bool:
    """Whether this process claims, tracks, draws, prints and writes."""
    return _world is None or _world.rank == 0


@contextmanager
def alone() -> Iterator[None]:
    """In this block the process works as if it were the only one: whole batches, and nothing is joined.

    For a look at the network that all processes take alike, or one of them by itself.
    """
    global _alone
    _alone += 1
    try:
        yield
    finally:
        _alone -= 1


def rows_of(total: int) -> Rows | None:
    """This process's rows of a batch of `total` samples, whether it works `alone` or not; None: all of them."""
    if _world is None:
        return None
    each, more = divmod(total, _world.size)
    counts = tuple(each + (rank < more) for rank in range(_world.size))
    start = sum(counts[: _world.rank])
    return Rows(start, start + counts[_world.rank], total, counts)


# --- together -----------------------------------------------------------------------------------------------------


def connect(cuda: bool) -> None:
    """Join the other processes, before anything else is done together; nothing in a single process.

    Raises: EndedElsewhere, KeyboardInterrupt: one of them ended before it came here.
    """
    import torch.distributed as dist

    if _world is None or dist.is_initialized():
        return
    join(_world, _meeting_place(), cuda)


def join(place: World, store: Any, cuda: bool = False) -> None:
    """The same with a store of one's own."""
    global _world, _store, _turns, _opened
    import torch.distributed as dist

    _world, _store, _turns, _opened = place, store, 0, 0
    store.add(PRESENT, 1)
    _wait(lambda: store.add(PRESENT, 0) >= place.size)
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.size, timeout=TIMEOUT)


def leave() -> None:
    """A single process again (tests)."""
    global _world, _store
    leave_others()
    _world = _store = None


def _meeting_place() -> Any:
    """torchrun's store, which outlives the processes that it started; of another launcher the first process's."""
    from torch.distributed.rendezvous import rendezvous

    store, _, _ = next(iter(rendezvous("env://", timeout=TIMEOUT)))  # type: ignore[no-untyped-call]
    return store


def from_first(make: Callable[[], Value]) -> Value:
    """What `make` returns in the first process, in all of them; it has to survive pickling. All must come here.

    Raises: what `make` raises; in the other processes EndedElsewhere.
    """
    global _turns
    if not several():
        return make()
    _turns += 1
    turn = _turns
    if leads():
        made = make()
        _store.set(TURN, str(turn))
        return broadcast(made)
    _wait(lambda: _store.check([TURN]) and int(_store.get(TURN)) >= turn)
    return broadcast(cast(Value, None))


def broadcast(value: Value) -> Value:
    """What the first process has, in all of them."""
    import torch
    import torch.distributed as dist

    box: list[Any] = [value]
    joined(lambda: dist.broadcast_object_list(box, src=0, device=torch.device("cpu")))
    return cast(Value, box[0])


def joined(what: Callable[[], Any]) -> None:
    """Do a collective. Raises: see `broken`."""
    try:
        what()
    except RuntimeError as error:
        raise broken(error) from error


def first_here_first(make: Callable[[], Value]) -> Value:
    """Call `make` in one process of each machine, and when it is done in the others: it may prepare files for them."""
    global _opened
    if not several() or _world is None:
        return make()
    _opened += 1
    key = f"{OPENED}/{_opened}/{_world.node}"
    if _world.local_rank > 0:
        _wait(lambda: _store.check([key]))
    made = make()
    if _world.local_rank == 0:
        _store.set(key, "1")
    return made


def _wait(there: Callable[[], bool]) -> None:
    """Wait until `there` says so, however long it takes. Raises: see `look_around`."""
    pause = 0.0005
    while not there():
        look_around()
        time.sleep(pause)
        pause = min(2 * pause, 0.05)


# --- the end ------------------------------------------------------------------------------------------------------


def look_around() -> None:
    """Raise EndedElsewhere if another process has ended with an error; KeyboardInterrupt if it was interrupted."""
    failure = _noted()
    if failure is None or _world is None or failure[0] == _world.rank:
        return
    if failure[1] == 130:
        raise KeyboardInterrupt
    raise EndedElsewhere(failure[1])


def broken(error: BaseException) -> SnnexpError:
    """What to raise when a collective has broken: another process is gone. Raises: see `look_around`."""
    interrupts.hold()  # torchrun sends SIGTERM to those that are left: the record is closed first
    until = time.monotonic() + GRACE_S
    while time.monotonic() < until:
        look_around()
        time.sleep(0.05)
    log.info("a collective broke", exc_info=error)
    return SnnexpError(
        "another process of this run ended without a word (kill -9, too little memory, a node that failed; torchrun "
        f"says which one). {str(error).splitlines()[0][:200]}\nThe same command continues from the last finished epoch."
    )


def note_failure(code: int) -> int | None:
    """Note that this process ends with `code`, for the others.

    Returns: None if it is the first to end: its message is the one to print. Else the code that all end with.
    """
    if _world is None:
        return None
    try:
        mine = f"{_world.rank} {code}"
        noted = _reached().compare_set(FAILURE, "", mine).decode()
        return None if noted == mine else int(noted.split()[1])
    except Exception:  # nobody is there to ask any more: better twice than not at all
        return None


def last_words(code: int) -> None:
    """The end of the process, with this exit code: the first one's record is closed before any other ends in error."""
    if _world is None or _store is None:
        return
    with suppress(Exception):
        if leads():
            _store.set(CLOSED, "1")
            return
        if code == 0:
            return
        leave_others()
        until = time.monotonic() + CLOSING_S
        while time.monotonic() < until and not _store.check([CLOSED]):
            time.sleep(0.05)


def leave_others() -> None:
    """Close the connections, so that others do not wait within a collective for a process that does not come."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def _noted() -> tuple[int, int] | None:
    """Rank and exit code of the process that ended first with an error, if one did."""
    with suppress(Exception):
        if _store.check([FAILURE]):
            rank, code = _store.get(FAILURE).decode().split()
            return int(rank), int(code)
    return None


def _reached() -> Any:
    """The store, also for a process that ends before it came to `connect`."""
    global _store
    if _store is None:
        _store = _meeting_place()
    return _store


def program() -> str:
    """How the command starts: `snnexp`, or torchrun before it."""
    if _world is None:
        return "snnexp"
    nodes = -(-_world.size // _world.local_size)
    several_nodes = f"--nnodes {nodes} " if nodes > 1 else ""
    return f"torchrun {several_nodes}--nproc-per-node {_world.local_size} -m snnexp"


def with_size(config: dict[str, Any]) -> dict[str, Any]:
    """A run's configuration, and under `world_size` the number of processes, which makes another run of it.

    A run of a single process is what it was without the key.
    """
    return config if _world is None else {**config, WORLD_SIZE: _world.size}


def refuse(task: str, sweeps: bool) -> None:
    """Raises: ConfigError for what several processes cannot do together, with a way out."""
    if _world is None:
        return
    if sweeps:
        raise ConfigError(
            "torchrun does one run in several processes, and this is a sweep of several runs. Start the sweep without "
            "torchrun (hydra/launcher=joblib or slurm does several runs at a time), or torchrun once for each run, of "
            "an experiment with arm=NAME seed=N."
        )
    if task != "train":
        raise ConfigError(f"task={task}: several processes can only train together. Give the command without torchrun.")
