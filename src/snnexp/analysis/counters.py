"""Running sums of a pass over a split, on the device: what each spiking layer did, and samples without input.

Several processes count what their rows did. At the end of the pass `join` adds that up; only the neurons that were
silent in a batch are put together while it goes on, since a share of each batch is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from snnexp import collectives, ranks
from snnexp.analysis.in_memory import KernelSums, flat_in, order_of
from snnexp.analysis.reach import SERIAL_BELOW, NearCounter
from snnexp.data.base import EventFrames
from snnexp.layout import largest
from snnexp.models.observer import Firing
from snnexp.neurons.layer import SpikingLayer
from snnexp.neurons.module_layer import ModuleLayer
from snnexp.neurons.reach import Reach
from snnexp.parallel import run_parallel

SUMS, NUMBERS = ("spikes", "shares", "peaks", "thresholds"), ("batches", "samples", "steps")  # of a `Counter`
JOINED = 16  # batches whose silent neurons several processes put together at a time


class Counter:
    """Running sums of one layer, on the device. float64 holds counts exactly up to 2**53."""

    def __init__(self, layer: nn.Module, neurons: int, device: torch.device, reach: Reach | None) -> None:
        self._spikes = torch.zeros(neurons, dtype=torch.float64, device=device)
        self._host = KernelSums()  # more of them, counted by kernels
        # sums of batch shares, of silent pairs of neuron and sample, of samples without a spike
        self.shares = torch.zeros(3, dtype=torch.float64, device=device)
        self.peaks = torch.full_like(self._spikes, -torch.inf, dtype=torch.float32)
        self.thresholds = torch.full_like(self.peaks, torch.nan)
        # now: they may be learned while the pass goes on
        if isinstance(layer, SpikingLayer) and (level := layer.effective("threshold")) is not None:
            self.thresholds = level.detach().expand(layer.shape).flatten().float().clone()
        self.batches = self.samples = self.steps = 0
        self._fired: list[Tensor] = []  # which neurons did in this process's rows, of batches not yet joined
        self._so_far: Tensor | None = None  # spikes [B, neurons] of a batch whose last time steps are still to come
        self.near = None if reach is None else NearCounter(reach, neurons, device)
        ones = isinstance(layer, SpikingLayer) and not isinstance(layer, ModuleLayer) and not layer.dynamics.high_spikes
        self._layer = layer if ones else None  # whose spikes are whole numbers

    @property
    def spikes(self) -> Tensor:
        """Of each neuron, flat."""
        total = self._host.total()
        return self._spikes if total is None else self._spikes + total

    def add(self, firing: Firing) -> None:
        if self.near is not None:
            self.near.add(firing, self._so_far)
        if self.batches == 0:
            self.peaks = torch.maximum(self.peaks, largest(firing.membranes()).flatten().float())
        self.steps += firing.steps * len(firing.counts)
        by_kernel = self._layer is not None and self._layer.engine == "numba"
        if by_kernel and firing.last and self._so_far is None and collectives.rows() is None:
            self._add_by_kernel(firing)
        else:
            self._add_by_torch(firing)

    def _add_by_torch(self, firing: Firing) -> None:
        """Any device, rows of a batch, segments."""
        counts = firing.counts.flatten(1)
        if self._so_far is not None:
            counts = self._so_far + counts
        self._so_far = None if firing.last else counts
        if not firing.last:
            return
        per_neuron = counts.sum(0)
        self._spikes += per_neuron
        silent = counts == 0
        in_batch = (per_neuron == 0).double().mean()
        if collectives.rows() is not None:
            in_batch = self._silent_in_all(per_neuron != 0)
        self.shares += torch.stack((in_batch, silent.double().sum(), silent.all(1).double().sum()))
        self.batches += 1
        self.samples += counts.shape[0]

    def _add_by_kernel(self, firing: Firing) -> None:
        """A whole batch, in the order of memory."""
        from snnexp.analysis.counting_kernels import count_spikes  # numba takes 0.2 s to import

        counts, order = firing.counts, order_of(firing.counts.unsqueeze(0))
        samples, neurons = len(counts), counts[0].numel()
        sums = self._host.parts(order, tuple(counts.shape[1:]), 1, firing.steps * samples)[0]
        parts = torch.get_num_threads() if counts.numel() >= SERIAL_BELOW else 1
        silent, loud = np.zeros((parts, 2), np.int64), np.zeros((parts, samples), np.int32)
        run_parallel(partial(count_spikes, flat_in(order, counts), sums, silent, loud), parts, parts)
        batch, pairs = silent.sum(0).tolist()
        quiet = samples - np.count_nonzero(loud.any(0))
        self.shares += torch.tensor([batch / neurons, pairs, quiet], dtype=torch.float64)
        self.batches += 1
        self.samples += samples

    def add_nothing(self, last: bool) -> None:
        """A batch of which other processes have all samples; `last`: their last time steps."""
        if last:
            self.shares[0] += self._silent_in_all(torch.zeros_like(self._spikes, dtype=torch.bool))
            self.batches += 1

    def _silent_in_all(self, fired: Tensor) -> Tensor:
        """Keep which neurons fired in this process's rows of a batch; returns the sum of shares of silent neurons over
        the batches that are joined now, in the first process: a sum over all processes follows."""
        self._fired.append(fired)
        return self._joined_batches() if len(self._fired) == JOINED else self.shares.new_zeros(())

    def _joined_batches(self) -> Tensor:
        if not self._fired:
            return self.shares.new_zeros(())
        fired = collectives.largest(torch.stack(self._fired).to(torch.uint8))
        self._fired = []
        return (fired == 0).double().mean(1).sum() * ranks.leads()

    def join(self) -> None:
        """The sums of all processes, at the end of a pass."""
        self.shares[0] += self._joined_batches()
        own = [self.spikes, self.shares, self.shares.new_tensor([self.samples, self.steps])]
        total = collectives.add_up(torch.cat(own))
        self._spikes, self.shares, counts = torch.split(total, [len(self._spikes), 3, 2])
        self._host = KernelSums()
        self.samples, self.steps = (int(count) for count in counts)
        collectives.largest(self.peaks)
        if self.near is not None:
            self.near.join()

    def near_parts(self) -> tuple[Tensor, ...]:
        """What there is to fetch of the gradient's reach."""
        return () if self.near is None else (self.near.near,)

    def state_dict(self) -> dict[str, Any]:
        """All sums, between two batches."""
        near = None if self.near is None else self.near.state_dict()
        fired = {"fired": list(self._fired)} if self._fired else {}
        return {**{key: getattr(self, key) for key in (*SUMS, *NUMBERS)}, "near": near, **fired}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        for key, mine in zip(SUMS, (self._spikes, self.shares, self.peaks, self.thresholds), strict=True):
            mine.copy_(state[key])
        for key in NUMBERS:
            setattr(self, key, int(state[key]))
        self._fired = [fired.to(self.spikes.device) for fired in state.get("fired", [])]
        if self.near is not None and state["near"] is not None:
            self.near.load_state_dict(state["near"])


class InputCounter:
    """Counts the samples that reach the network as zeros throughout, on the device.

    The input of the first layer with weights comes before anybody has said how many samples it holds; the spiking
    layer behind it knows.
    """

    def __init__(self) -> None:
        self._rows: Tensor | None = None  # which rows [T*B] have an input, not yet taken apart into steps and samples
        self._so_far: Tensor | None = None  # which samples [B] had one in the segments before
        self.silent: Tensor | None = None
        self.samples = 0

    def see(self, x: Tensor | EventFrames) -> None:
        if isinstance(x, EventFrames):
            self._rows = x.offsets.diff() > 0
        else:
            each = tuple(range(1, x.dim()))
            self._rows = (x.amax(each) != 0) | (x.amin(each) != 0)  # half the time of `any`; nan is no zero

    def join(self) -> None:
        """The sums of all processes, at the end of a pass."""
        own = [0 if self.silent is None else int(self.silent), self.samples]
        silent, samples = collectives.add_up(torch.tensor(own, dtype=torch.int64))
        self.silent, self.samples = silent if samples else None, int(samples)

    def take_apart(self, batch_size: int, last: bool) -> None:
        seen = self._so_far
        if self._rows is not None:
            now = self._rows.view(-1, batch_size).any(0)
            seen, self._rows = now if seen is None else seen | now, None
        if seen is None:
            return
        self._so_far = None if last else seen
        if last:
            silent = (~seen).sum()
            self.silent = silent if self.silent is None else self.silent + silent
            self.samples += batch_size
