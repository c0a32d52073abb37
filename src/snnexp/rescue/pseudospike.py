"""rescue=pseudospike: a neuron that stayed silent sends on, at the last step, how near it is to a spike.

    lateness   t = log_beta((u - theta) / (u - U[T-1])),  u = drive * theta
    S[T-1] += height * beta^t = height * (u - theta) / (u - U[T-1])        if the neuron is silent in this sample

Behind the end of the sample each membrane is driven towards u, above the threshold, by a constant current:
U(t) = u + (U[T-1] - u) beta^t. It spikes once t steps later, and counts as what a spike has left after so many steps of
decay: height right at the end, less the later it is, never nothing. That is smooth in U[T-1] and has its own, exact
gradient for any distance from the threshold. In training only; nothing is counted as a spike.

Source: Klos and Memmesheimer, arXiv:2309.14523: spikes of QIF neurons vanish and appear at the end of a trial only, and
pseudospikes go on smoothly behind it, driven by a current above threshold. Theirs are event-based and trained on spike
times, and hidden neurons act on each other behind the end like units of a rate network; this is that idea for LIF
neurons in discrete time with any loss.
"""

from __future__ import annotations

import torch
from torch import Tensor

from snnexp.layout import joined
from snnexp.neurons.engines import LayerRun
from snnexp.neurons.layer import SpikingLayer
from snnexp.rescue.cure import Cure


def nearness(mem: Tensor, threshold: Tensor, drive: float) -> Tensor:
    """beta^t of a membrane below its threshold: 1 at the threshold, 1 - 1/drive at rest, 0 far below."""
    threshold = threshold.clamp(min=1e-6)
    end = drive * threshold
    return (end - threshold) / (end - torch.where(mem <= threshold, mem, threshold))


class Pseudospike(Cure):
    """Spikes behind the end of the sample."""

    def begin(self, name: str, epoch: int) -> None:
        """Let a layer send them on."""
        super().begin(name, epoch)
        self.network.added_spikes[name] = self.add

    def add(self, neuron: SpikingLayer, out: LayerRun) -> Tensor:
        """Spikes [T, B, *shape] with pseudospikes at the last step."""
        assert out.counts is not None
        near = nearness(out.mem[-1], neuron.threshold.detach(), self.conf.drive)
        late = self.conf.height * (out.counts == 0) * near
        return joined([out.spk[:-1], (out.spk[-1] + late.to(out.spk.dtype)).unsqueeze(0)])
