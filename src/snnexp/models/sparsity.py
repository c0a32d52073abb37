"""Whether a convolution follows the spikes of a batch: by their density, below a limit measured once per machine.

Where an event-driven convolution overtakes the dense one depends on the layer's shape and the processor. So the first
batch of a layer that is worth it measures both on random spikes, with the clock of one thread, which others on the
machine do not disturb, and keeps the limit in the user's cache. From then on each batch is judged by its own density
alone: a run that is continued makes the same choices, since its state holds the limits.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from snnexp import allocator, collectives, ranks
from snnexp.atomic import write_atomically
from snnexp.data.base import EventFrames
from snnexp.folders import user_cache
from snnexp.locks import file_lock
from snnexp.machine import processor_name
from snnexp.quiet import quiet

log = logging.getLogger(__name__)

LEAST_WORK = 3e7  # products of a batch's dense convolution, below which a Python call costs more than there is to gain
DENSITIES = (0.004, 0.01, 0.02, 0.035, 0.05, 0.07, 0.1, 0.14, 0.19, 0.25, 0.32, 0.4)  # that limits are rounded to
MEASURED = (0.02, 0.08, 0.25)  # between which time goes with density, nearly
MARGIN = 0.85  # of the dense one's time that it may take at the limit
MEASURED_WORK = 1e7  # products that are measured, at least
ENOUGH = 0.001  # seconds that following few spikes takes with as many frames as are measured; a call costs 0.1 ms
MANY = 3  # times what one frame takes that is, too
REPEATS, LONG = 4, 0.04  # rounds at most; seconds after which three will do
SUMMED = 1.5  # times what each spike adds to the weights' gradient, where the engine sums that up
METHOD = 5  # of measuring: what was kept by another one is not looked at


class Limits(NamedTuple):
    """Densities below which a layer follows the spikes."""

    training: float  # forward and in the weights' gradient
    evaluation: float  # forward; in training, too, with a dense gradient from the other limit on


UNMEASURED = Limits(0.05, 0.05)  # where no file can keep what was measured, and the next run would measure otherwise
ALWAYS = Limits(2.0, 2.0)


class Place(NamedTuple):
    """A convolution and its input, as far as its time depends on them."""

    channels: int
    outputs: int
    size: int
    stride: int
    pad: int
    height: int
    width: int
    frames: int
    dtype: str
    lists: bool = False  # the input comes as event lists
    summed: bool = False  # what is behind may let the engine sum the weights' gradient up (`numba_taps.py`)

    @property
    def pixels(self) -> int:
        """Of one frame's output."""
        high, wide = ((n + 2 * self.pad - self.size) // self.stride + 1 for n in (self.height, self.width))
        return max(high, 0) * max(wide, 0)

    @property
    def products(self) -> int:
        """Multiplications of one frame."""
        return self.pixels * self.channels * self.outputs * self.size**2


class Follows(NamedTuple):
    """Where a layer follows the spikes of a batch."""

    forward: bool
    gradient: bool  # in the weights' gradient


class Rule:
    """What one layer goes by. `limits` None: nothing has been measured yet."""

    def __init__(self, name: str, limits: Limits | None = None) -> None:
        self.name = name
        self.limits = limits
        self.told = ""  # what was chosen for the first batch of training

    def follows(self, x: Tensor | EventFrames, conv: nn.Conv2d, learns: bool) -> Follows:
        """Where `conv` should follow what is not zero in x, maps [N, C, H, W] or event lists."""
        from snnexp.models.event_lists import density  # numba takes 0.2 s to import

        place = _place(x, conv)
        if self.limits is not ALWAYS and _frames(x) * place.products < LEAST_WORK:
            return Follows(False, False)
        if self.limits is None:
            self.limits = limits_of(place)
        share, limits = density(x), self.limits
        both = share < (limits.training if learns else limits.evaluation)
        forward = share < limits.evaluation and isinstance(x, Tensor)  # a dense gradient would take a tensor of lists
        follows = Follows(both or forward, both)
        if learns and not self.told:
            self._say(share, follows, limits)
        return follows

    def _say(self, share: float, follows: Follows, limits: Limits) -> None:
        """Tell once what the rule chose, for the first batch."""
        kind = "event-driven" if follows.gradient else "event-driven forward" if follows.forward else "dense"
        why = f"event-driven below {100 * limits.training:g} %"
        if limits.evaluation > limits.training:
            why += f", forward below {100 * limits.evaluation:g} %"
        why = "model.sparse=always" if limits is ALWAYS else why
        self.told = f"{100 * share:.2f} % of its inputs are not 0 in the first batch: {kind} ({why})"
        log.info("%s: %s", self.name, self.told)


def _frames(x: Tensor | EventFrames) -> int:
    return x.num_steps * x.batch_size if isinstance(x, EventFrames) else x.shape[0]


def _place(x: Tensor | EventFrames, conv: nn.Conv2d) -> Place:
    (channels, height, width), frames = x.shape[-3:], _frames(x)
    if (mine := collectives.rows()) is not None:  # all processes measure the same
        frames = frames // len(range(mine.total)[mine.part]) * max(mine.counts)
    stride, pad = conv.stride[0], int(conv.padding[0])
    dtype = str(conv.weight.dtype).removeprefix("torch.")
    frames = 1 << (max(frames, 1).bit_length() - 1)
    size, lists = conv.kernel_size[0], isinstance(x, EventFrames)
    summed = bool(getattr(conv, "summed", False))
    return Place(channels, conv.out_channels, size, stride, pad, height, width, frames, dtype, lists, summed)


@cache
def limits_of(place: Place) -> Limits:
    """What was measured for this shape on this machine, now or earlier, by this process or another."""
    try:
        path = user_cache() / "convolutions" / f"{_key(place)}.json"
        if (kept := _kept(path)) is not None:
            return kept
        path.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(path.with_name("lock")):  # of several processes one measures, and all go by that
            if (kept := _kept(path)) is None:
                write_atomically(path, json.dumps(measure(place)))
                kept = _kept(path)
    except (OSError, NotImplementedError):  # the lock's word for a file system without locks
        return UNMEASURED
    return kept or UNMEASURED


def _kept(path: Path) -> Limits | None:
    with suppress(OSError, ValueError):
        found = json.loads(path.read_text())
        if (
            isinstance(found, list)
            and len(found) == 2
            and all(isinstance(x, (int, float)) and 0 <= x <= 1 for x in found)
        ):
            return Limits(*map(float, found))
    return None


def _key(place: Place) -> str:
    """Of all that the times depend on."""
    folder = Path(__file__).parents[1]
    sources = sorted(path for pattern in _SOURCES for path in folder.glob(pattern))
    kernels = b"".join(path.read_bytes() for path in sources)
    variables = [os.environ.get(name) for name in ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES", "ONEDNN_MAX_CPU_ISA")]
    machine = (torch.backends.cpu.get_cpu_capability(), torch.__version__, torch.backends.mkldnn.enabled, variables)
    given = (METHOD, place, machine, processor_name(), allocator.prepared)
    return hashlib.sha256(repr(given).encode() + kernels).hexdigest()[:24]


_SOURCES = (
    "vectors.py",
    *(f"models/{name}.py" for name in ("event_*", "needed", "pointwise", "winograd*", "blocks")),
)


def measure(place: Place) -> Limits:
    """Find the highest of DENSITIES at which following the spikes takes at most MARGIN of the dense time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False):
            _compile(place)
            with quiet():
                limits = _measured(place)
    finally:
        torch.set_num_threads(threads)
    name = f"{place.channels} to {place.outputs}, {place.height}x{place.width}, {place.size}x{place.size}"
    below = (100 * limits.training, 100 * limits.evaluation)
    log.info("convolution %s: measured to pay below %g %% of non-zero inputs, %g %% in evaluation", name, *below)
    return limits


class Trial:
    """A convolution on random spikes, to be timed both ways."""

    def __init__(self, place: Place) -> None:
        self.place, self.dtype = place, getattr(torch, place.dtype)
        self._rng = np.random.default_rng(0)  # torch's random numbers are the run's
        shape = (place.outputs, place.channels, place.size, place.size)
        self.weight = torch.from_numpy(self._rng.standard_normal(shape)).to(self.dtype).requires_grad_()

    def inputs(self, frames: int, shares: Sequence[float]) -> list[Tensor | EventFrames]:
        """Spikes of these densities."""
        drawn = self._rng.random((frames, self.place.height, self.place.width, self.place.channels), np.float32)
        if self.place.lists:
            return [_lists(drawn.transpose(0, 3, 1, 2) < share) for share in shares]
        return [torch.from_numpy(drawn < share).to(self.dtype).permute(0, 3, 1, 2) for share in shares]

    def times(self, x: Tensor | EventFrames, follows: bool) -> tuple[float, float]:
        """Of forward alone, and with the weights' gradient."""
        from snnexp.models.event_conv import event_conv
        from snnexp.models.event_lists import dense_maps
        from snnexp.models.needed import conv2d

        start, stride, pad = time.thread_time(), self.place.stride, self.place.pad
        if follows:
            y = event_conv(x, self.weight, None, stride, pad)
        else:
            maps = dense_maps(x, self.dtype) if isinstance(x, EventFrames) else x
            y = conv2d(maps, self.weight, None, stride, pad, None)
        middle = time.thread_time()
        torch.autograd.grad(y, self.weight, y.detach())
        return middle - start, time.thread_time() - start

    def dense_way(self, frames: int) -> tuple[bool, bool]:
        """Whether Winograd's algorithm makes output and weights' gradient of so many frames: it wants many pixels."""
        from snnexp.models import winograd

        size = (frames, self.place.channels, self.place.height, self.place.width)
        x = torch.empty(size, dtype=self.dtype, memory_format=torch.channels_last)  # only its shape is looked at
        given = (x, self.weight, self.place.stride, self.place.pad)
        if not winograd.fits(*given):
            return False, False
        return winograd.pays(*given), winograd.weight_gradient_pays(*given)


def _compile(place: Place) -> None:
    """Call both ways once, so that they are compiled before a process beside this one has to rest."""
    trial, frames = Trial(place), min(2, place.frames)
    way = trial.dense_way(place.frames)
    while frames < place.frames and (frames * place.products < MEASURED_WORK or trial.dense_way(frames) != way):
        frames *= 2
    (x,) = trial.inputs(frames, MEASURED[:1])
    for follows in (True, False):
        trial.times(x, follows)


def _measured(place: Place) -> Limits:
    from snnexp.models.event_conv import packing_of

    trial, few = Trial(place), MEASURED[:1]
    (x,) = trial.inputs(1, few)
    fixed = min(trial.times(x, True)[1] for _ in range(4))  # for the call and its weights; the first one compiles
    frames, way = min(2, place.frames), trial.dense_way(place.frames)
    while frames < place.frames:
        if frames * place.products >= MEASURED_WORK and trial.dense_way(frames) == way:
            taken = trial.times(trial.inputs(frames, few)[0], True)[1]
            if taken > max(ENOUGH, MANY * fixed):
                break
        frames *= 2
    inputs = trial.inputs(frames, MEASURED)
    ways = [*((x, True) for x in inputs), (inputs[0], False)]
    trial.times(*ways[-1])  # finds its memory
    rounds, start = list[list[tuple[float, float]]](), time.thread_time()
    while len(rounds) < 3 or (len(rounds) < REPEATS and time.thread_time() - start < LONG):
        rounds.append([trial.times(*way) for way in ways])  # in turns: a busy moment meets all
    seconds = np.array(rounds).min(0) * place.frames / frames
    forward, step = (seconds + _touching(place, way[0])).T
    gradient = step - forward
    if place.summed and packing_of(trial.weight, place.stride, place.pad).may_be_summed:
        gradient[:-1] = SUMMED * (gradient[-2] - gradient[0]) / (MEASURED[-1] - MEASURED[0]) * np.array(MEASURED)
    times = forward + gradient, forward, gradient
    whole, ahead, back = (_crossing(MEASURED, t[:-1], MARGIN * t[-1]) for t in times)
    return Limits(whole if place.lists else min(whole, back), ahead)


def _touching(place: Place, winograd: bool) -> NDArray[np.float64]:
    """Seconds that each way waits for the pages of an output so large that its memory does not stay (`allocator.py`).

    As a column, like the times of both outputs; our own kernels' blocks go from step to step.
    """
    size = place.frames * place.outputs * place.pixels * getattr(torch, place.dtype).itemsize
    ours = 0.0 if allocator.prepared else 1.0
    if size <= allocator.LARGEST_HEAP_BLOCK:
        return np.zeros((1, 1))
    waits = [[ours]] * len(MEASURED) + [[ours if winograd else 1.0]]
    seconds: NDArray[np.float64] = np.array(waits) * (size * _page_seconds())
    return seconds


@cache
def _page_seconds() -> float:
    """CPU seconds that a byte of fresh memory takes when it is first written to, beyond writing it, and let go."""
    size, found = 2 * allocator.LARGEST_HEAP_BLOCK, []
    for _ in range(3):
        block, start = torch.empty(size, dtype=torch.uint8), time.thread_time()
        block.fill_(1)
        middle = time.thread_time()
        block.fill_(1)
        again = time.thread_time() - middle
        del block
        found.append(time.thread_time() - start - 2 * again)
    return max(min(found), 0.0) / size


def _lists(spikes: NDArray[np.bool_]) -> EventFrames:
    """Event lists of spikes [N, C, H, W]."""
    flat = spikes.reshape(len(spikes), -1)
    offsets = np.concatenate([[0], np.cumsum(flat.sum(1))])
    indices = torch.from_numpy(flat.nonzero()[1].astype(np.int32))
    return EventFrames(indices, torch.from_numpy(offsets), None, 1, len(spikes), spikes.shape[1:])


def _crossing(shares: Sequence[float], seconds: Sequence[float], allowed: float) -> float:
    """The highest of DENSITIES at which lines through (shares, seconds) stay within `allowed`; 0: at none."""

    def at(share: float) -> float:
        i = max(1, min(int(np.searchsorted(shares, share)), len(shares) - 1))
        slope = (seconds[i] - seconds[i - 1]) / (shares[i] - shares[i - 1])
        return seconds[i] + slope * (share - shares[i])

    return max((share for share in DENSITIES if at(share) <= allowed), default=0.0)


def limits_in(network: nn.Module) -> dict[str, list[float]]:
    """What the layers of a network go by, as far as it has been measured; it belongs to a run's state."""
    return {rule.name: list(rule.limits) for rule in rules(network) if rule.limits not in (None, ALWAYS)}  # type: ignore[arg-type]


def go_by(network: nn.Module, limits: dict[str, list[float]]) -> None:
    """Go on with the limits of a run's state."""
    for rule in rules(network):
        if rule.name in limits and rule.limits is not ALWAYS:
            rule.limits = Limits(*limits[rule.name])


def agree(network: nn.Module) -> None:
    """Let all processes of a run go by the first one's limits, which are those that its state holds."""
    if ranks.several():
        go_by(network, ranks.from_first(lambda: limits_in(network)))


def tags(network: nn.Module) -> dict[str, str]:
    """What its layers chose, for the record."""
    return {f"sparse.{rule.name}": rule.told for rule in rules(network) if rule.told}


def rules(network: nn.Module) -> list[Rule]:
    """Those of its layers."""
    found = (getattr(module, "rule", None) for module in network.modules())
    return [rule for rule in found if isinstance(rule, Rule)]
