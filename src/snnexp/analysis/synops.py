"""Synaptic operations, multiply-accumulates and activation sparsity per sample, with NeuroBench's definitions.

    effective operation   a non-zero input meets a non-zero weight; no biases, normalisation, pooling, votes
    AC  (accumulate)      effective, in a layer whose inputs are all -1, 0 or 1: one "synaptic operation"
    MAC                   effective, in a layer with any other input (analog images, event counts, averaged spikes)
    dense                 every input times every weight, zero or not
    activation sparsity   share of zeros among all outputs of spiking layers

Sums run over all T steps and are means over samples. A convolution's fan-out is exact: an input at the border reaches
fewer outputs. An input that is the same at all T steps counts T times, as hardware that advances step by step pays it.
Whether a layer accumulates or multiplies is decided once per pass (NeuroBench decides per step and batch).

Source: Yik et al. 2025, doi:10.1038/s41467-025-56739-4, and the code of neurobench 2.3. What it costs: `energy.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snnexp import collectives, ranks
from snnexp.data.base import EventFrames
from snnexp.models.network import Network
from snnexp.models.observer import Firing
from snnexp.models.weights import Conv2d, Linear


@dataclass(frozen=True)
class Synops:
    """Operations per sample, and the share of zeros among spikes."""

    effective_acs: float
    effective_macs: float
    dense: float
    activation_sparsity: float
    dense_acs: float = 0.0  # of the dense ones, those of layers that accumulate
    graded: tuple[str, ...] = ()  # layers with weights that multiply: their input is not all -1, 0 or 1


class _Connection:
    """Non-zero inputs per position of one layer with weights, summed over a pass on the device."""

    def __init__(self, module: nn.Module, shape: torch.Size, device: torch.device) -> None:
        self.module = module
        self.nonzero = torch.zeros(shape, dtype=torch.float64, device=device)
        self.binary = torch.ones((), dtype=torch.bool, device=device)
        self.rows = 0  # inputs seen, samples times steps

    def add(self, x: Tensor | EventFrames, repeat: int) -> None:
        if isinstance(x, EventFrames):
            values = torch.ones_like(x.indices, dtype=torch.float64) if x.values is None else x.values
            counts = torch.bincount(x.indices, (values != 0).double(), minlength=self.nonzero.numel())
            self.rows += x.num_steps * x.batch_size
        else:
            values = x.detach()
            counts = values.count_nonzero(0).flatten()
            self.rows += x.shape[0] * repeat
        self.nonzero += counts.view_as(self.nonzero) * repeat
        self.binary &= ((values == 0) | (values.abs() == 1)).all()

    def join(self) -> None:
        """The counts of all processes."""
        graded = self.nonzero.new_tensor([float(not self.binary), self.rows])
        total = collectives.add_up(torch.cat([self.nonzero.flatten(), graded]))
        self.nonzero = total[:-2].view_as(self.nonzero)
        self.binary, self.rows = total[-2] == 0, int(total[-1])

    def operations(self) -> tuple[float, float, bool]:
        """Effective and dense operations in all, and whether they are accumulates."""
        weight = _acting(self.module)
        effective = (self.nonzero * self._fan_out((weight != 0).double())).sum()
        dense = self._fan_out(torch.ones_like(weight, dtype=torch.float64)).sum() * self.rows
        return float(effective), float(dense), bool(self.binary)

    def _fan_out(self, weight: Tensor) -> Tensor:
        """Number of (output, weight) pairs that each input position reaches, in the shape of the input."""
        if not isinstance(self.module, nn.Conv2d):
            return weight.sum(0).view_as(self.nonzero)
        conv = self.module
        apart = conv.dilation
        size = [d * (k - 1) + 1 for d, k in zip(apart, conv.kernel_size, strict=True)]  # of a window
        same = [(k - 1) // 2 if conv.padding == "same" else 0 for k in size]
        pad = same if isinstance(conv.padding, str) else conv.padding
        stride = conv.stride
        height, width = self.nonzero.shape[1:]
        outputs = [(n + 2 * p - k) // s + 1 for n, k, s, p in zip((height, width), size, stride, pad, strict=True)]
        covered = [(o - 1) * s - 2 * p + k for o, k, s, p in zip(outputs, size, stride, pad, strict=True)]
        rest = (height - covered[0], width - covered[1])  # pixels that no window reaches
        ones = torch.ones(1, weight.shape[0], *outputs, dtype=weight.dtype, device=weight.device)
        return F.conv_transpose2d(ones, weight, None, stride, pad, rest, conv.groups, apart)[0]


def fan_out(module: nn.Module, shape: torch.Size) -> Tensor:
    """How many non-zero weights an input at each position reaches, float64 in the shape of the input, flat."""
    weight = _acting(module)
    counted = _Connection(module, shape, weight.device)
    return counted._fan_out((weight != 0).double()).flatten()


def _acting(module: nn.Module) -> Tensor:
    """The weights that act; the recurrent matrix of an RFC is a plain nn.Linear."""
    return module.effective_weight() if isinstance(module, (Linear, Conv2d)) else module.get_parameter("weight")


class SynopsMeter:
    """Observer that counts operations over passes. It reads every layer's input once more: meant for the test set."""

    reads_spikes = reads_membranes = False

    def __init__(self, network: Network) -> None:
        self.network = network
        self.reset()

    def reset(self) -> None:
        """Start a pass."""
        self._connections: dict[str, _Connection] = {}
        self._spikes: Tensor | None = None
        self._outputs = 0
        self._joined = not ranks.several()  # with the counts of other processes

    def spiking(self, name: str, layer: nn.Module, firing: Firing) -> None:
        """Count non-zero outputs."""
        if collectives.absent():
            return
        count = firing.counts.sum(dtype=torch.float64).long()
        self._spikes = count if self._spikes is None else self._spikes + count
        self._outputs += firing.steps * firing.counts.numel()

    def connection(self, name: str, module: nn.Module, x: Tensor | EventFrames, repeat: int) -> None:
        """Count non-zero inputs."""
        with torch.no_grad():
            if name not in self._connections:
                device = x.indices.device if isinstance(x, EventFrames) else x.device
                shape = _features(module, x) if isinstance(x, EventFrames) else x.shape[1:]
                self._connections[name] = _Connection(module, shape, device)
            if not collectives.absent():
                self._connections[name].add(x, repeat)

    def _join(self) -> None:
        """Put the counts of all processes together, once after a pass."""
        for connection in self._connections.values():
            connection.join()
        own = [0 if self._spikes is None else int(self._spikes), self._outputs]
        spikes, outputs = collectives.add_up(torch.tensor(own, dtype=torch.int64))
        self._spikes, self._outputs, self._joined = spikes, int(outputs), True

    @torch.no_grad()
    def result(self) -> Synops:
        """Means over the samples since `reset`. Several processes ask for it together, when the pass has ended.

        Raises: ValueError if nothing ran.
        """
        if not self._connections:
            raise ValueError("no batch has run yet")
        if not self._joined:
            self._join()
        acs = macs = dense = dense_acs = 0.0
        graded = []
        for name, connection in self._connections.items():
            effective, full, binary = connection.operations()
            graded += [] if binary else [name]
            acs, macs, dense = acs + effective * binary, macs + effective * (not binary), dense + full
            dense_acs += full * binary
        samples = max(connection.rows for connection in self._connections.values()) / self.network.num_steps
        spikes = 0 if self._spikes is None else int(self._spikes)
        sparsity = 1 - spikes / self._outputs if self._outputs else 0.0
        return Synops(acs / samples, macs / samples, dense / samples, sparsity, dense_acs / samples, tuple(graded))

    def metrics(self, split: str) -> dict[str, float]:
        """The contract's metrics for the samples since `reset`."""
        result = self.result()
        return {
            f"{split}/synops": result.effective_acs,
            f"{split}/macs": result.effective_macs,
            f"{split}/activation_sparsity": result.activation_sparsity,
        }


def _features(module: nn.Module, x: EventFrames) -> torch.Size:
    """Shape of a layer's input that comes as event lists: features, or maps of a convolution."""
    return torch.Size([module.in_features]) if isinstance(module, nn.Linear) else torch.Size(x.shape)


def neurobench_results(network: Network, synops: Synops, accuracy: float) -> dict[str, Any]:
    """The run's complexity and correctness under NeuroBench's names, for results.json.

    Footprint is in bytes of parameters and buffers; ConnectionSparsity is the share of zero weights.
    """
    tensors = [*network.parameters(), *network.buffers()]
    weights = [p for name, p in network.named_parameters() if name.endswith("weight") and p.dim() >= 2]
    zeros = sum(int((w == 0).sum()) for w in weights)
    return {
        "Footprint": sum(t.numel() * t.element_size() for t in tensors),
        "ParameterCount": sum(p.numel() for p in network.parameters()),
        "ConnectionSparsity": zeros / max(sum(w.numel() for w in weights), 1),
        "ClassificationAccuracy": accuracy,
        "ActivationSparsity": synops.activation_sparsity,
        "SynapticOperations": {
            "Effective_MACs": synops.effective_macs,
            "Effective_ACs": synops.effective_acs,
            "Dense": synops.dense,
        },
    }
