"""What would end a run in its middle and can be known before it begins: batches of one, and too little memory."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from math import prod

import torch

from snnexp import ranks
from snnexp.errors import ConfigError
from snnexp.experiment import Experiment
from snnexp.machine import free_memory
from snnexp.models.spec import LayerPlan, constant_layers, why_not_in_segments
from snnexp.training.callbacks import Callbacks
from snnexp.training.optimisation import build_optimizer, build_scheduler

log = logging.getLogger(__name__)

# The estimate of a step is right within a quarter or so: what is a little too large is tried, with a warning.
REFUSED_ABOVE = 1.25
WARNED_ABOVE = 0.9
FITS_BELOW = 0.8  # share of what is available that an advised batch size may need


def check_training(experiment: Experiment) -> None:
    """Raise what would go wrong later.

    Raises: ConfigError, with values that work.
    """
    for problem in (small_batch(experiment), *memory(experiment, available_bytes(experiment.device))):
        if problem is not None:
            raise ConfigError(problem)
    conf = experiment.conf
    optimizer = build_optimizer(conf.optimizer, experiment.network.parameter_groups())
    build_scheduler(conf.scheduler, optimizer, conf.trainer.max_epochs)
    Callbacks(conf.trainer.callbacks)


# --- batches ------------------------------------------------------------------------------------------------------


def small_batch(experiment: Experiment) -> str | None:
    """Why a training batch is too small for batch norm, which needs two values per channel; None if none is."""
    conf = experiment.conf
    size, count = conf.dataset.batch_size, experiment.source.info.counts["train"]
    batches = -(-count // size)
    last = count - (batches - 1) * size
    planned = min(batches, conf.trainer.smoke_steps or batches)
    if conf.trainer.max_epochs == 0 or 1 not in (min(size, count), last if planned == batches else 0):
        return None
    layer = _norm_over_batch(experiment, conf.model.bn_per_step)
    if layer is None:
        return None
    ways = []
    fitting = next((new for new in _around(size, count) if count % new != 1), None)
    if fitting is not None:
        ways.append(f"dataset.batch_size={fitting}")
    if size > 1 and count > 1:
        ways.append(f"dataset.limit_train={count - 1}")
    over_time = conf.trainer.checkpoint_steps is None and _norm_over_batch(experiment, per_step=False) is None
    if conf.model.bn_per_step and over_time:
        ways.append("model.bn_per_step=false (statistics over all time steps)")
    ways.append("LN in place of BN in model.spec")
    which = f"the last of {batches:,} training batches has one sample" if size > 1 else "a batch has one sample"
    return (
        f"dataset.batch_size={size}: {which} (of {count:,}), and {layer.name} ({layer.token.text}) normalises by the "
        f"statistics of a batch: one value per channel has none. Use {', or '.join(ways)}."
    )


def _norm_over_batch(experiment: Experiment, per_step: bool) -> LayerPlan | None:
    """The first batch norm that sees as many values per channel as there are samples in the batch."""
    network = experiment.network
    same_at_each_step = constant_layers(network.layers) if experiment.conf.encoder.name == "direct" else 0
    for index, layer in enumerate(network.layers):
        steps = 1 if per_step or index < same_at_each_step else network.num_steps
        if layer.kind == "batch_norm" and steps * prod(layer.in_shape[1:]) == 1:
            return layer
    return None


def _around(size: int, count: int) -> Iterator[int]:
    """Batch sizes near `size`, nearest first."""
    for step in range(1, max(size, count)):
        yield from (new for new in (size + step, size - step) if 2 <= new <= max(count, 2))


# --- memory -------------------------------------------------------------------------------------------------------


def memory(experiment: Experiment, available: int | None) -> list[str]:
    """Why a training step will not fit into `available` bytes, by the estimate of task=inspect.

    Empty if it fits, if nobody knows what is available, or if it is so close that only a warning is given.
    """
    conf, info = experiment.conf, experiment.source.info
    size = min(conf.dataset.batch_size, info.counts["train"])
    needed = step_bytes(experiment, size)
    if available is None or conf.trainer.max_epochs == 0 or needed <= WARNED_ABOVE * available:
        return []
    ways = []
    smaller = size
    while smaller > 1 and step_bytes(experiment, smaller) > FITS_BELOW * available:
        smaller //= 2
    if smaller < size and step_bytes(experiment, smaller) <= FITS_BELOW * available:
        ways.append(f"dataset.batch_size={smaller} needs about {as_size(step_bytes(experiment, smaller))}")
    if (steps := _fitting_segment(experiment, size, available)) is not None:
        ways.append(f"trainer.checkpoint_steps={steps} keeps the activations of {steps} steps at once")
    ways.append(f"fewer dataset.num_steps (now {info.num_steps}) or a smaller model.spec need less")
    message = (
        f"dataset.batch_size={conf.dataset.batch_size}: a training step needs about {as_size(needed)} (the estimate of "
        f"task=inspect), and {as_size(available)} of memory are available on {experiment.device}. What helps: "
        + "; ".join(ways)
        + "."
    )
    if needed > REFUSED_ABOVE * available:
        return [message]
    log.warning("%s", message)
    return []


def step_bytes(experiment: Experiment, batch_size: int) -> int:
    """Estimated memory of a training step on the device; on the CPU with the loader's batches.

    Of several processes on a machine: of all that share the device.
    """
    world = ranks.world()
    needed = experiment.network.step_memory_bytes(batch_size if world is None else -(-batch_size // world.size))
    if world is not None and experiment.device.type == "cpu":
        needed *= world.local_size
    if experiment.device.type == "cpu":
        share = min(1.0, batch_size / max(experiment.conf.dataset.batch_size, 1))
        needed += int(share * experiment.source.info.max_batch_bytes)
    return needed


def _fitting_segment(experiment: Experiment, size: int, available: int) -> int | None:
    """The longest segment of time (of half the steps, a quarter, ...) with which a step fits."""
    network = experiment.network
    constant = experiment.conf.encoder.name == "direct"
    if why_not_in_segments(network.layers, network.bn_per_step, constant) is not None:
        return None
    before, steps = network.checkpoint_steps, network.checkpoint_steps or network.num_steps
    try:
        while steps > 1:
            steps = network.checkpoint_steps = (steps + 1) // 2
            if step_bytes(experiment, size) <= FITS_BELOW * available:
                return steps
    finally:
        network.checkpoint_steps = before
    return None


def available_bytes(device: torch.device) -> int | None:
    """Memory that a run may still take on the device, or None if nobody can tell."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    return free_memory()


def has_room_beside(experiment: Experiment) -> bool:
    """Whether training leaves most of the memory to others: a step takes a quarter of it at most."""
    size = min(experiment.conf.dataset.batch_size, experiment.source.info.counts["train"])
    available = available_bytes(experiment.device)
    return available is None or 4 * step_bytes(experiment, size) <= available


def as_size(count: float) -> str:
    """Bytes in words: 1.5 GiB."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
