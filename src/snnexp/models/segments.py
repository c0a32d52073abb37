"""Segments of time: what one hands to the next, and how backward gets the activations of one back without keeping them.

Full backpropagation through time keeps every layer's output of all T steps. In segments of K steps the forward pass
keeps only the state between two of them; backward goes from the last segment to the first, runs each forward once more
from its kept state, and takes its gradients (Chen et al. 2016, arXiv:1604.06174, along time). The gradient is that of
all T steps, nothing is truncated. Memory falls from O(T) to O(K + T/K), for at most one more forward pass; the last
segment is never repeated, since backward starts there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from snnexp.data.base import EventFrames
from snnexp.encoders import ConstantInput, Input
from snnexp.neurons.equation import State


@dataclass
class Memory:
    """What layers remember at a moment between two time steps, by their names; empty before the first step."""

    neurons: dict[str, State] = field(default_factory=dict)
    traces: dict[str, Tensor] = field(default_factory=dict)  # NeuNorm's, and what delays hold back
    events: dict[str, EventFrames] = field(default_factory=dict)  # what delays of event lists hold back
    masks: dict[str, Tensor] = field(default_factory=dict)  # of dropout with one mask for all steps

    def remember(self, name: str, state: State) -> None:
        """Keep a copy of an engine's last state: the state itself is a view that would hold all steps before it."""
        copies = {"mem": state.mem.clone(), "spk": state.spk.clone()}
        self.neurons[name] = state._replace(**copies)

    def tensors(self) -> list[Tensor]:
        """Everything that gradients pass through; who has fired, what is dropped and events are constants."""
        states = [t for state in self.neurons.values() for _, t in _parts(state)]
        return [*states, *self.traces.values()]

    def with_tensors(self, tensors: Sequence[Tensor]) -> Memory:
        """The same memory with other values for `tensors()`."""
        values = iter(tensors)
        neurons = {
            name: state._replace(**{part: next(values) for part, _ in _parts(state)})
            for name, state in self.neurons.items()
        }
        traces = {name: next(values) for name in self.traces}
        return Memory(neurons, traces, dict(self.events), dict(self.masks))

    def hollow(self) -> Memory:
        """A copy without the values of `tensors()`."""
        return self.with_tensors([tensor.new_empty(0) for tensor in self.tensors()])


def _parts(state: State) -> list[tuple[str, Tensor]]:
    """What gradients pass through in a state, of our equation or a user's."""
    return [(name, t) for name, t in state._asdict().items() if t is not None and name != "fired"]


def segment_lengths(num_steps: int, most: int) -> list[int]:
    """As few segments of at most `most` steps as there can be, of nearly equal length, the longest last."""
    count = -(-num_steps // most)
    return [(num_steps + i) // count for i in range(count)]


def split_time(x: Input, most: int) -> list[Input]:
    """Cut an input [T, B, ...] into pieces of at most `most` steps: views, or one frame for each number of steps."""
    if isinstance(x, Tensor):
        return list(torch.split(x, segment_lengths(x.shape[0], most)))
    lengths = segment_lengths(x.num_steps, most)
    if isinstance(x, ConstantInput):
        return [ConstantInput(x.frame, steps) for steps in lengths]
    return [*_cut(x, list(accumulate(lengths, initial=0)))]


def last_steps(x: EventFrames, steps: int) -> EventFrames:
    """The lists of the last `steps` time steps, or all there are, in memory of their own."""
    cut = _cut(x, [max(x.num_steps - steps, 0), x.num_steps])[0]
    return replace(cut, indices=cut.indices.clone(), values=None if cut.values is None else cut.values.clone())


def joined(first: EventFrames, second: EventFrames) -> EventFrames:
    """Event lists of the same samples, one after the other in time."""
    offsets = torch.cat([first.offsets, second.offsets[1:] + first.offsets[-1]])
    values = None
    if first.values is not None and second.values is not None:
        values = torch.cat([first.values, second.values])
    indices = torch.cat([first.indices, second.indices])
    return EventFrames(indices, offsets, values, first.num_steps + second.num_steps, second.batch_size, second.shape)


def _cut(x: EventFrames, steps: list[int]) -> list[EventFrames]:
    """The pieces between these time steps, as views."""
    rows = [step * x.batch_size for step in steps]
    events = x.offsets[rows].tolist()  # on CUDA the only wait for the device, once per batch
    return [
        EventFrames(
            x.indices[first:end],
            x.offsets[start : stop + 1] - first,
            None if x.values is None else x.values[first:end],
            (stop - start) // x.batch_size,
            x.batch_size,
            x.shape,
        )
        for (start, stop), (first, end) in zip(pairwise(rows), pairwise(events), strict=True)
    ]


# Runs a segment: its input, the memory before it, and whether it is repeated -> what it gives, and the memory after it
Run = Callable[[Input, Memory, bool], tuple[tuple[Tensor, ...], Memory]]


def recomputed(network: nn.Module, run: Run, x: Input, memory: Memory) -> tuple[tuple[Tensor, ...], Memory]:
    """`run(x, memory, False)` without keeping its activations: backward calls `run(x, memory, True)` and goes on there.

    The repetition sees the same random numbers and the same autocast, and leaves running statistics alone. All
    parameters of `network` get their gradients.
    """
    segment = _Segment(network, run, x, memory)
    tensors = [t for t in (_frames(x),) if t is not None] + memory.tensors()
    results = _Recomputed.apply(segment, len(tensors), *tensors, *network.parameters())  # type: ignore[no-untyped-call]
    return results[: segment.outputs], segment.after.with_tensors(results[segment.outputs :])


class _Segment:
    """One segment: how to run it, and the circumstances under which it ran first."""

    def __init__(self, network: nn.Module, run: Run, x: Input, memory: Memory) -> None:
        self.network, self.run, self.x, self.before = network, run, x, memory.hollow()
        device = next(network.parameters()).device
        self.devices = [device] if device.type == "cuda" else []
        self.random = [torch.get_rng_state(), *(torch.cuda.get_rng_state(d) for d in self.devices)]
        kind = device.type
        self.autocast = (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
        self.outputs = 0
        self.after = Memory()  # hollow: this object must not hold what the graph's node returns, which holds it

    def first(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Run it; `_Recomputed.forward` makes no graph."""
        results, after = self._run(tensors, False)
        self.outputs, self.after = len(results), after.hollow()
        return (*results, *after.tensors())

    def again(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Run it once more, with a graph."""
        with torch.enable_grad(), self._same_random_numbers(), torch.autocast(*self.autocast), self._no_statistics():
            results, after = self._run(tensors, True)
        return (*results, *after.tensors())

    def _run(self, tensors: Sequence[Tensor], repeated: bool) -> tuple[tuple[Tensor, ...], Memory]:
        x = self.x
        if isinstance(x, ConstantInput):
            x, tensors = ConstantInput(tensors[0], x.num_steps), tensors[1:]
        elif isinstance(x, Tensor):
            x, tensors = tensors[0], tensors[1:]
        return self.run(x, self.before.with_tensors(tensors), repeated)

    @contextmanager
    def _same_random_numbers(self) -> Iterator[None]:
        with torch.random.fork_rng(self.devices):
            torch.set_rng_state(self.random[0])
            for device, state in zip(self.devices, self.random[1:], strict=True):
                torch.cuda.set_rng_state(state, device)
            yield

    @contextmanager
    def _no_statistics(self) -> Iterator[None]:
        norms = [m for m in self.network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        tracking = [norm for norm in norms if norm.track_running_stats and norm.training]
        try:
            for norm in tracking:
                norm.track_running_stats = False
            yield
        finally:
            for norm in tracking:
                norm.track_running_stats = True


def _frames(x: Input) -> Tensor | None:
    """The tensor of an input, which may want a gradient: of the layers before, if it is constant."""
    return x.frame if isinstance(x, ConstantInput) else x if isinstance(x, Tensor) else None


class _Recomputed(torch.autograd.Function):
    """(segment, n, its n input tensors, parameters) -> what it gives, and the tensors of the memory after it."""

    @staticmethod
    def forward(ctx: Any, segment: _Segment, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.segment, ctx.count = segment, count
        ctx.save_for_backward(*tensors)  # the parameters, too: torch then says so if they changed before backward
        ctx.set_materialize_grads(False)
        return segment.first(tensors[:count])

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        inputs = [t.detach().requires_grad_(t.requires_grad) for t in tensors[: ctx.count]]
        results = ctx.segment.again(inputs)
        pairs = [(r, g) for r, g in zip(results, grads, strict=True) if g is not None and r.requires_grad]
        leaves = [*inputs, *tensors[ctx.count :]]
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        outputs, towards = [r for r, _ in pairs], [g for _, g in pairs]
        found = iter(torch.autograd.grad(outputs, wanted, towards, allow_unused=True))
        return (None, None, *(next(found) if leaf.requires_grad else None for leaf in leaves))
