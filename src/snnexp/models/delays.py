"""Learned delays: what comes in at step t goes on at step t + d, one d per channel or neuron (axonal).

    y[t] = sum_l k[l] x[t - l],   l = 0 to max,   x[t] = 0 before the sample; what would arrive after its end is lost

    gaussian  k[l] = exp(-(l - d)^2 / (2 sigma^2)) / sum     triangle  k[l] = max(0, 1 - |l - d| / sigma) / sum

In training k spreads over several steps, so that d has a gradient; sigma falls exponentially from wide, where far steps
are seen, to narrow, over the first epochs (`width`). Everywhere else d is rounded and k is a single 1: spikes stay
spikes, and a delay costs no operation. sigma follows from the epoch alone, so a resumed run needs no record of it.

Sources: Hammouamri, Khalfaoui-Hassani & Masquelier, arXiv:2306.17670 (DCLS-Delays: the Gaussian, its schedule, rounding
at the end; one delay per synapse there); Shrestha & Orchard 2018, arXiv:1810.08646 (SLAYER: one per axon).
"""

from __future__ import annotations

import logging
from math import ceil
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from snnexp import layout
from snnexp.config import DelayConf
from snnexp.data.base import EventFrames
from snnexp.models.flow import Flow
from snnexp.models.segments import joined, last_steps
from snnexp.neurons.surrogates import with_value

log = logging.getLogger(__name__)


class Delay(nn.Module):
    """Delays of 0 to `most` steps, one per channel of `shape` = [C, H, W], or per neuron of [N].

    Attributes:
        position: the delays d in steps, [C, 1, 1] or [N]; a parameter, or a buffer if they are not learned.
        sigma: the width in force (`set_epoch`); evaluation does not ask.
    """

    position: Tensor

    def __init__(self, shape: tuple[int, ...], most: int, conf: DelayConf) -> None:
        super().__init__()
        self.most, self.conf = most, conf
        self.learns = bool(conf.learn)
        position = torch.zeros(shape[0], *(1 for _ in shape[1:]))
        if conf.init == "uniform":
            position.uniform_(0, most)
        if self.learns:
            self.position = nn.Parameter(position)
        else:
            self.register_buffer("position", position.round())
        self.sigma = self.width(0)

    def width(self, progress: float) -> float:
        """sigma after this share of the training's epochs."""
        final = self.conf.sigma_final or (0.5 if self.conf.kernel == "gaussian" else 1.0)
        first = max(self.conf.sigma or self.most / 2, final)
        done = 1.0 if progress >= self.conf.sigma_share else progress / self.conf.sigma_share
        return float(first * (final / first) ** done)

    def set_epoch(self, epoch: int, epochs: int) -> None:
        """Take the width of epoch `epoch` = 1, 2, ... of a training of `epochs`."""
        self.sigma = self.width((epoch - 1) / max(epochs, 1))

    @torch.no_grad()
    def bound(self) -> None:
        """Put the delays back into 0..most, after a step of the optimizer."""
        self.position.clamp_(0, self.most)

    @property
    def interpolates(self) -> bool:
        """Whether the delays are spread now."""
        return self.training and self.learns

    def steps(self) -> Tensor:
        """The delays, rounded, int64, like `position`."""
        return self.position.detach().clamp(0, self.most).round().long()

    def kernel(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """k[l], [most + 1, *position.shape]; sums to 1 over l."""
        lags = torch.arange(self.most + 1, device=self.position.device).view(-1, *[1] * self.position.dim())
        if not self.interpolates:
            return (lags == self.steps()).to(dtype)
        position = self.position.to(dtype)
        distance = (lags - with_value(position.clamp(0, self.most), gradient_of=position)) / self.sigma
        if self.conf.kernel == "gaussian":
            return torch.softmax(-0.5 * distance * distance, 0)
        weight = (1 - distance.abs()).clamp(min=0)
        return weight / weight.sum(0)

    def forward(self, x: Tensor | EventFrames, tail: Tensor | EventFrames | None = None) -> Tensor | EventFrames:
        """Delay x [T, B, *shape] or event lists.

        tail: the input of the steps before x, at least `most` of them, if x is not the beginning (`tail_of`).
        Returns: the same form; event lists become [T, B, N] where the delays are spread.
        """
        start = 0
        if isinstance(x, EventFrames):
            if isinstance(tail, EventFrames):
                start, x = tail.num_steps, joined(tail, x)
            if not self.interpolates:
                return shift_events(x, self.steps().flatten(), start)
            kernel = self.kernel(self.position.dtype)
            return cast(Tensor, _SpreadEvents.apply(kernel, x, start))  # type: ignore[no-untyped-call]
        exact = x if x.dtype in (torch.float32, torch.float64) else x.float()
        if isinstance(tail, Tensor):
            start, exact = tail.shape[0], layout.joined([tail.to(exact.dtype), exact])
        y: Tensor = _Spread.apply(self.kernel(exact.dtype), exact, start)  # type: ignore[no-untyped-call]
        return y.to(x.dtype)

    def tail_of(self, x: Tensor | EventFrames, tail: Tensor | EventFrames | None) -> Tensor | EventFrames:
        """What the next time steps need of x and of the `tail` before it: the last `most` steps, or all there are."""
        if isinstance(x, EventFrames):
            return last_steps(joined(tail, x) if isinstance(tail, EventFrames) else x, self.most)
        steps = layout.joined([tail, x]) if isinstance(tail, Tensor) and x.shape[0] < self.most else x
        return layout.last_steps(steps, self.most).clone()  # a view would hold all of x

    def describe(self, epochs: int) -> str:
        """The delays as they are now, and what happens to their width, in words."""
        low, high = (int(f(self.steps())) for f in (torch.min, torch.max))
        text = f"{self.position.numel():,} delays of 0 to {self.most} steps, now {low} to {high}"
        if not self.learns:
            return f"{text}, fixed"
        falling = ceil(self.conf.sigma_share * epochs)
        return f"{text}; {self.conf.kernel}, sigma {self.width(0):g} to {self.width(1):g} over {falling} epochs"

    def announce(self, name: str, num_steps: int, lists: bool) -> None:
        """Log what the delays lose, and, if event lists come in, where they make them dense."""
        if self.most >= num_steps:
            message = "%s: delays of up to %d steps in samples of %d: what is delayed past the end is lost"
            log.warning(message, name, self.most, num_steps)
        if lists and self.learns:
            message = "%s: in training each event becomes up to %d weighted entries, and the product behind is dense; "
            log.info(message + "evaluation shifts the event lists and keeps them", name, self.most + 1)

    def extra_repr(self) -> str:
        learned = f", {self.conf.kernel}, sigma={self.sigma:g}" if self.learns else ", fixed"
        return f"{list(self.position.shape)}, 0 to {self.most} steps{learned}"


def run_delay(module: nn.Module, name: str, flow: Flow) -> None:
    """Run the delay layer `name` on the flow; event lists stay lists where delays are whole steps."""
    assert isinstance(module, Delay)
    memory, lists = flow.memory, isinstance(flow.x, EventFrames)
    x = flow.x if lists else flow.over_time()
    tail = memory.events.get(name) if lists else memory.traces.get(name)
    y = module(x, tail)
    if not flow.last:
        kept = module.tail_of(x, tail)
        if isinstance(kept, EventFrames):
            memory.events[name] = kept
        else:
            memory.traces[name] = kept
    flow.x = y.flatten(0, 1) if isinstance(y, Tensor) else y


def _lags(kernel: Tensor, steps: int) -> list[int]:
    """The lags that bring something within so many steps: on the CPU, a look at k costs less than what it saves."""
    within = range(min(kernel.shape[0], steps))
    if kernel.device.type != "cpu":
        return list(within)
    used = (kernel.detach() != 0).flatten(1).any(1).tolist()
    return [lag for lag in within if used[lag]]


class _Spread(torch.autograd.Function):
    """(k [L, *position], x [T, B, *shape], start) -> steps start..T-1 of y. One pass over x for each lag."""

    @staticmethod
    def forward(ctx: Any, kernel: Tensor, x: Tensor, start: int) -> Tensor:
        ctx.save_for_backward(kernel, x)
        ctx.start = start
        y = torch.zeros_like(x[start:])
        for lag in _lags(kernel, x.shape[0]):
            to, source = _overlap(x.shape[0], lag, start)
            y[to].addcmul_(x[source], kernel[lag])
        return y

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        kernel, x = ctx.saved_tensors
        grad_kernel = torch.zeros_like(kernel) if ctx.needs_input_grad[0] else None
        grad_x = torch.zeros_like(x) if ctx.needs_input_grad[1] else None
        for lag in _lags(kernel, x.shape[0]):  # where k is 0 for all, its derivative by d is 0, too
            to, source = _overlap(x.shape[0], lag, ctx.start)
            if grad_x is not None:
                grad_x[source].addcmul_(grad[to], kernel[lag])
            if grad_kernel is not None:
                grad_kernel[lag] = (grad[to] * x[source]).sum_to_size(kernel.shape[1:])
        return grad_kernel, grad_x, None


def _overlap(steps: int, lag: int, start: int) -> tuple[slice, slice]:
    """Which steps of the output, counted from `start`, a lag fills, and from which of the input."""
    first = max(lag - start, 0)
    return slice(first, None), slice(start + first - lag, steps - lag)


# --- event lists --------------------------------------------------------------------------------------------------


def shift_events(x: EventFrames, steps: Tensor, start: int = 0) -> EventFrames:
    """The lists with every event moved by steps[i] of its input i; from time step `start` on."""
    rows, features = x.num_steps * x.batch_size, steps.numel()
    index = x.indices.long()
    row = _rows(x) + steps[index] * x.batch_size - start * x.batch_size
    kept = ((row >= 0) & (row < rows - start * x.batch_size)).nonzero().squeeze(1)
    place, order = torch.sort(row[kept] * features + index[kept])
    kept = kept[order]
    offsets = torch.zeros(rows - start * x.batch_size + 1, dtype=torch.int64, device=index.device)
    counts = torch.bincount(place // features, minlength=offsets.numel() - 1)
    torch.cumsum(counts, 0, out=offsets[1:])
    values = None if x.values is None else x.values[kept]
    return EventFrames(x.indices[kept], offsets, values, x.num_steps - start, x.batch_size, x.shape)


def _rows(x: EventFrames) -> Tensor:
    """Row t*B + b of every event."""
    rows = torch.arange(x.offsets.numel() - 1, device=x.indices.device)
    return torch.repeat_interleave(rows, x.offsets.diff())


class _SpreadEvents(torch.autograd.Function):
    """(k [L, N], event lists, start) -> steps start..T-1 of y, dense [T - start, B, N]. Its cost follows the events.

    At one lag every event has a place of its own, so that nothing depends on an order of threads.
    """

    @staticmethod
    def forward(ctx: Any, kernel: Tensor, x: EventFrames, start: int) -> Tensor:
        ctx.save_for_backward(kernel)
        ctx.events = x, start
        y = kernel.new_zeros(x.num_steps - start, x.batch_size, kernel.shape[1])
        for lag, index, place, value in _SpreadEvents.pieces(kernel, x, start):
            weight = kernel[lag][index]
            flat = y.view(-1)
            flat[place] = flat[place] + (weight if value is None else weight * value)
        return y

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (kernel,) = ctx.saved_tensors
        x, start = ctx.events
        grad_kernel = torch.zeros_like(kernel)
        flat = grad.contiguous().view(-1)
        for lag, index, place, value in _SpreadEvents.pieces(kernel, x, start):
            found = flat[place]
            grad_kernel[lag].index_add_(0, index, found if value is None else found * value)
        return grad_kernel, None, None

    @staticmethod
    def pieces(kernel: Tensor, x: EventFrames, start: int) -> list[tuple[int, Tensor, Tensor, Tensor | None]]:
        """For each lag: the events that arrive in time, by their input, place in y and value."""
        index, features, batch = x.indices.long(), kernel.shape[1], x.batch_size
        place = _rows(x) * features + index
        begins = x.offsets[::batch].tolist()  # of each time step; on CUDA the only wait, once per batch
        values = None if x.values is None else x.values.to(kernel.dtype)
        found = []
        for lag in _lags(kernel, x.num_steps):
            some = slice(begins[max(start - lag, 0)], begins[x.num_steps - lag])
            shift = (lag - start) * batch * features
            found.append((lag, index[some], place[some] + shift, None if values is None else values[some]))
        return found
