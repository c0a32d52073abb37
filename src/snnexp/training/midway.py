"""Training states within an epoch (`trainer.checkpoint_minutes`), for epochs that are too long to be done again.

Between two batches a pass is its sums so far (loss, hits, each neuron's counts, gradients' norms), the network and the
optimizer, the states of all random generators, and what was decided as the epoch began (prices of a budget). All of it
goes into `midway.pt`, beside the state of the last finished epoch, which stays whole: `midway.pt` may be lost, and then
the epoch is done again, with the same bits.

When to save is the only thing that a clock decides, in `Midway.wanted`; no number depends on it.

Several processes save together, when the first one's clock says so: what each has counted, and its random generators.
"""

from __future__ import annotations

import logging
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from snnexp import collectives, interrupts, ranks
from snnexp.analysis.activity import ActivityMeter
from snnexp.errors import DataError
from snnexp.experiment import Experiment
from snnexp.models import sparsity
from snnexp.rescue.manager import Rescue
from snnexp.tracking.runs import RunFolder
from snnexp.training.budget import Budget
from snnexp.training.checkpoint import apply_weights, save_state
from snnexp.training.optimisation import load_optimizer
from snnexp.training.sealed import Damaged, read_sealed
from snnexp.training.seeding import generators, set_generators
from snnexp.training.tally import Tally

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """All that a training pass changes or draws from."""

    experiment: Experiment
    optimizer: torch.optim.Optimizer
    meter: ActivityMeter
    rescue: Rescue
    budget: Budget | None
    tally: Tally


class Midway:
    """The state within the epoch under way: taken up at its beginning, saved from time to time.

    Without a folder nothing is saved or taken up.

    Args:
        folder: of the run.
        minutes: trainer.checkpoint_minutes; None: only what an earlier attempt saved is taken up.
        epoch: the last finished one.
    """

    def __init__(self, folder: RunFolder | None = None, minutes: float | None = None, epoch: int = 0) -> None:
        self._folder = folder
        self._every = None if minutes is None or folder is None else 60 * minutes
        self._saved_at = time.monotonic()
        self._left = None if folder is None else ranks.from_first(lambda: self._found(folder, epoch))

    @property
    def begun(self) -> int:
        """How many batches of the epoch an earlier attempt has done."""
        return 0 if self._left is None else int(self._left["tally"]["batches"])

    def wanted(self) -> bool:
        """Whether to save now, between two batches: it is time, or a signal waits for it."""
        if self._every is None:
            return False
        due = (
            ranks.leads() and time.monotonic() - self._saved_at >= self._every
        )  # of several processes, the first's clock
        return collectives.in_any(interrupts.waits() or due)

    def deferring(self) -> AbstractContextManager[None]:
        """For the length of a training pass: a signal waits for the end of the batch, if it can be saved then."""
        return nullcontext() if self._every is None else interrupts.deferring()

    def save(self, epoch: int, parts: Parts, seconds: float, waited: float) -> None:
        """Write the state after a batch of `epoch`. Raises: KeyboardInterrupt if a signal has waited for it."""
        assert self._folder is not None
        state = {
            **_marks(self._folder, epoch),
            "network": parts.experiment.network.state_dict(),
            "sparse": sparsity.limits_in(parts.experiment.network),
            "optimizer": parts.optimizer.state_dict(),
            "meter": _each(parts.meter.pass_state()),
            "rescue": parts.rescue.state_dict(),
            "prices": None if parts.budget is None else parts.budget.prices,
            "tally": parts.tally.state_dict(),
            "generators": _each(generators(parts.experiment.device)),
            "seconds": seconds,
            "waited": waited,
        }
        if ranks.leads():
            save_state(self._folder.midway, state)
        self._saved_at = time.monotonic()
        self._say(epoch, parts)
        log.info("saved after batch %d of epoch %d", parts.tally.batches, epoch)
        interrupts.deliver()

    def take_up(self, epoch: int, parts: Parts) -> tuple[float, float]:
        """Bring everything to where an earlier attempt at this epoch saved it, if one did.

        Returns: seconds that it took, and of these the seconds it waited for batches.
        """
        state, self._left = self._left, None
        if state is None or self._folder is None:
            return 0.0, 0.0
        device = parts.experiment.device
        try:
            apply_weights(parts.experiment.network, state["network"], self._folder.midway)
            sparsity.go_by(parts.experiment.network, state.get("sparse") or {})
            load_optimizer(parts.optimizer, state["optimizer"])
            parts.meter.load_pass_state(_own(state["meter"]), device)
            parts.rescue.load_state_dict(state["rescue"])
            if parts.budget is not None:
                parts.budget.prices = {name: price.to(device) for name, price in state["prices"].items()}
            parts.tally.load_state_dict(state["tally"])
            set_generators(_own(state["generators"]), device)
            self._say(epoch, parts)
            return float(state["seconds"]), float(state["waited"])
        except (DataError, KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise DataError(
                f"{self._folder.midway} does not fit this version of snnexp ({error}). Delete it: epoch {epoch} is "
                "then done again from its beginning."
            ) from error

    def epoch_ended(self) -> None:
        """The state of the whole epoch is on the disk."""
        if self._folder is not None and ranks.leads():
            self._folder.midway.unlink(missing_ok=True)
        self._saved_at = time.monotonic()
        interrupts.keep("")

    def _say(self, epoch: int, parts: Parts) -> None:
        interrupts.keep(f"the end of batch {parts.tally.batches} of epoch {epoch}")

    def _found(self, folder: RunFolder, epoch: int) -> dict[str, Any] | None:
        """What an earlier attempt left of the epoch after `epoch`; anything else is of no use."""
        if not folder.midway.is_file():
            return None
        try:
            state, sealed = read_sealed(folder.midway)
            if not sealed:
                raise Damaged("its checksum is missing")
        except (Damaged, OSError) as error:
            log.warning("%s is damaged (%s): epoch %d is done again", folder.midway, error, epoch + 1)
            state = {}
        if isinstance(state, dict) and all(state.get(key) == value for key, value in _marks(folder, epoch + 1).items()):
            return dict(state)
        folder.midway.unlink(missing_ok=True)
        return None


def _each(value: Any) -> Any:
    """What is kept of a value that differs from process to process: of several processes, all of theirs."""
    return collectives.words_of_all(value) if ranks.several() else value


def _own(kept: Any) -> Any:
    """This process's of it."""
    world = ranks.world()
    return kept if world is None else kept[world.rank]


def _marks(folder: RunFolder, epoch: int) -> dict[str, Any]:
    return {"identity": folder.record.identity, "uid": folder.record.uid, "epoch": epoch}
