"""One pass over a split: training or evaluation. Nothing here waits for the device more than a few times a second."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from snnexp import collectives, interrupts, ranks
from snnexp.analysis.activity import ActivityMeter
from snnexp.data.base import Batch
from snnexp.errors import TrainingError
from snnexp.experiment import Experiment
from snnexp.models.network import Output
from snnexp.models.observer import Firing, Observer
from snnexp.models.sums import Sums
from snnexp.rescue.manager import Rescue
from snnexp.training.budget import Budget
from snnexp.training.midway import Midway, Parts
from snnexp.training.seeding import derive_seed, seed_everything
from snnexp.training.tally import Tally

REFRESH_S = 0.25  # how often the display may ask the device for numbers

Progress = Callable[[int, int, float, float], None]  # batches done, samples done, mean loss, accuracy


@dataclass(frozen=True)
class PassResult:
    """What a pass gives: means over its samples, and where its time went."""

    loss: float
    accuracy: float
    samples: int
    seconds: float
    wait_seconds: float  # waiting for the next batch
    earlier_seconds: float = 0.0  # of `seconds`, those before the pass was taken up in its middle

    def metrics(self, split: str) -> dict[str, float]:
        """Loss and accuracy under the contract's names."""
        return {f"{split}/loss": self.loss, f"{split}/accuracy": self.accuracy}


class _Clock:
    """Times how long an iterator makes its consumer wait."""

    def __init__(self, batches: Iterator[Batch], limit: int | None, done: int = 0, wait: float = 0.0) -> None:
        self.batches, self.limit, self.done, self.wait = batches, limit, done, wait

    def __iter__(self) -> Iterator[Batch]:
        done = self.done
        while self.limit is None or done < self.limit:
            interrupts.check()
            start = time.perf_counter()
            batch = next(self.batches, None)
            self.wait += time.perf_counter() - start
            if batch is None:
                return
            yield batch
            done += 1


def planned_batches(experiment: Experiment, split: str) -> int:
    """Batches of a pass, after trainer.smoke_steps."""
    total = experiment.source.num_batches(split)
    limit = experiment.conf.trainer.smoke_steps
    return total if limit is None else min(total, limit)


def planned_samples(experiment: Experiment, split: str) -> int:
    """Samples of a pass, after trainer.smoke_steps."""
    data = experiment.conf.dataset
    size = data.batch_size if split == "train" else data.eval_batch_size or data.batch_size
    return min(experiment.source.info.counts[split], planned_batches(experiment, split) * size)


def train_pass(
    experiment: Experiment,
    optimizer: torch.optim.Optimizer,
    epoch: int,
    meter: ActivityMeter,
    progress: Progress | None = None,
    rescue: Rescue | None = None,
    midway: Midway | None = None,
) -> PassResult:
    """Train for one epoch, or for what is left of it (`midway`).

    Raises:
        TrainingError: the loss is not finite; names the epoch, the batch and the first layer that is not finite.
    """
    conf, network = experiment.conf, experiment.network
    seed_everything(derive_seed(conf.seed, "train", epoch))
    network.train()
    network.set_epoch(epoch, conf.trainer.max_epochs)
    if rescue is None:
        rescue = Rescue()
    rescue.before_epoch(epoch)
    observer = rescue.watched(meter)
    budget = Budget(experiment) if conf.decoder.synops is not None else None
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    midway = midway or Midway()
    tally = Tally(experiment.device)
    parts = Parts(experiment, optimizer, meter, rescue, budget, tally)
    earlier, waited = midway.take_up(epoch, parts)
    start, shown = time.perf_counter() - earlier, 0.0
    batches = experiment.source.batches("train", epoch, conf.seed, tally.batches)
    clock = _Clock(batches, conf.trainer.smoke_steps, tally.batches, waited)
    on_cpu = experiment.device.type == "cpu"
    for batch in clock:
        wished = rescue.sums()
        sums = wished if budget is None else Sums(prices=budget.prices).joined(wished)
        output, loss = experiment.trained_on(batch, observer, sums)
        if sums is not None and wished is not None:
            loss = loss + rescue.term(sums)
        if sums is not None and budget is not None:
            loss = loss + budget.term(sums, len(batch.labels))
        if on_cpu and not math.isfinite(loss.item()):  # on the CPU this look costs nothing, and names the batch
            raise _non_finite(experiment, batch, epoch, tally.batches + 1)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        collectives.add_up_gradients(parameters)
        meter.after_backward()
        if conf.trainer.grad_clip is not None:
            torch.nn.utils.clip_grad_norm_(parameters, conf.trainer.grad_clip)
        optimizer.step()
        network.bound()
        rescue.after_step()
        tally.add(loss, experiment.predict(output), batch.labels)
        if (now := time.perf_counter()) - shown > REFRESH_S:
            shown = now
            # several processes must not part by the clock: for them the end of the pass is soon enough
            if not math.isfinite(_report(progress, tally)) and not ranks.several():
                raise _non_finite(experiment, batch, epoch, tally.batches)
        if midway.wanted():
            midway.save(epoch, parts, time.perf_counter() - start, clock.wait)
    collectives.set_rows(None)
    mean_loss, accuracy = collectives.numbers_of_first(*tally.means())  # waits for the device: the clock is honest
    # a membrane that is nan never reaches its threshold: rate losses stay finite over weights that are lost
    if not math.isfinite(mean_loss) or _non_finite_parameter(network):
        raise _non_finite(experiment, batch, epoch, tally.batches)
    return PassResult(mean_loss, accuracy, tally.samples, time.perf_counter() - start, clock.wait, earlier)


@torch.no_grad()
def evaluation_pass(
    experiment: Experiment,
    split: str,
    observer: Observer,
    epoch: int,
    progress: Progress | None = None,
    keep: Callable[[Batch, Output, Tensor], None] | None = None,
) -> PassResult:
    """Evaluate on one split; `keep` sees every batch with its output and predictions.

    Raises:
        TrainingError: the loss is not finite, and so selects nothing; on the test split it is reported as it is.
    """
    # a random encoder draws the same test set each time
    seed_everything(derive_seed(experiment.conf.seed, split, epoch))
    experiment.network.eval()
    tally, start, shown = Tally(experiment.device), time.perf_counter(), 0.0
    clock = _Clock(experiment.source.batches(split), experiment.conf.trainer.smoke_steps)
    for batch in clock:
        output = experiment.forward(batch, observer)
        predicted = experiment.predict(output)
        tally.add(experiment.loss(output, batch.labels), predicted, batch.labels)
        if keep is not None:
            keep(batch, output, predicted)
        if (now := time.perf_counter()) - shown > REFRESH_S:
            shown = now
            _report(progress, tally)
    collectives.set_rows(None)
    mean_loss, accuracy = collectives.numbers_of_first(*tally.means())
    if split != "test" and not math.isfinite(mean_loss):
        raise _non_finite(experiment, batch, epoch, tally.batches)
    return PassResult(mean_loss, accuracy, tally.samples, time.perf_counter() - start, clock.wait)


def _report(progress: Progress | None, tally: Tally) -> float:
    """Fetch the sums from the device, show them, and return the mean loss."""
    mean_loss, accuracy = tally.means()
    if progress is not None:
        progress(tally.batches, tally.samples, mean_loss, accuracy)
    return mean_loss


def _non_finite(experiment: Experiment, batch: Batch, epoch: int, number: int) -> TrainingError:
    """Find the first layer that is not finite, in the parameters or else in the activity of this batch."""
    culprit = _non_finite_parameter(experiment.network)
    if culprit is None:
        finder = _NonFiniteFinder()
        with torch.no_grad(), ranks.alone():
            experiment.forward(batch, finder)
        culprit = next(filter(None, collectives.words_of_all(finder.found)), "the loss itself")
    return TrainingError(
        f"epoch {epoch}, batch {number}: the loss or a parameter is not finite; first seen in {culprit}. "
        "The last finished epoch is kept. Try a lower optimizer.lr or optimizer.lr_threshold, or trainer.grad_clip=1."
    )


def _non_finite_parameter(network: torch.nn.Module) -> str | None:
    """The first parameter with a nan or an infinity in it."""
    lost = (name for name, p in network.named_parameters() if not torch.isfinite(p).all())
    return next((f"parameter {name}" for name in lost), None)


class _NonFiniteFinder:
    """Observer that remembers the first layer whose membrane or input is not finite."""

    reads_spikes, reads_membranes = False, True

    def __init__(self) -> None:
        self.found: str | None = None

    def spiking(self, name: str, layer: object, firing: Firing) -> None:
        if self.found is None and not torch.isfinite(firing.membranes()).all():
            self.found = f"layer {name} (its membrane)"

    def connection(self, name: str, module: object, x: object, repeat: int) -> None:
        if self.found is None and isinstance(x, Tensor) and not torch.isfinite(x).all():
            self.found = f"the input of layer {name}"
