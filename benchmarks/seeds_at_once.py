"""python -m benchmarks.seeds_at_once: does one process that trains K seeds at once beat K processes?

A prototype of `trainer.seeds_at_once`, of training steps only. "alone" steps through K networks one after the other, as
K processes do between them; "batched" is one network of K groups: grouped convolutions, batched matrix products, one
call of each neuron kernel, one optimizer. CPU time of one thread, so that a busy machine does not matter: two
processes on two cores do twice as many steps in the same time, and so do the two threads of one process at best.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable
from typing import Any

from snnexp.allocator import prepare_allocator

prepare_allocator()

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from benchmarks.harness import interleave  # noqa: E402
from snnexp.config import NeuronConf  # noqa: E402
from snnexp.neurons.layer import SpikingLayer  # noqa: E402

# name -> (channels, height, width of a step's input, T, batch, hidden layers: widths of FC, or channels of conv blocks)
NETWORKS: dict[str, tuple[tuple[int, int, int], int, int, tuple[int, ...], bool]] = {
    "digits FC128-SN-FC-SN, T 8, batch 32": ((1, 8, 8), 8, 32, (128,), False),
    "MNIST FC500-SN-FC-SN, T 8, batch 64": ((1, 28, 28), 8, 64, (500,), False),
    "SHD 700-256-SN-FC-SN, T 100, batch 128": ((1, 1, 700), 100, 128, (256,), False),
    "digits c16k3-BN-SN-MP2-c32k3-BN-SN-MP2-FC-SN, T 8, batch 32": ((1, 8, 8), 8, 32, (16, 32), True),
    "N-MNIST c32k3-BN-SN-MP2-c32k3-BN-SN-MP2-FC-SN, T 10, batch 32": ((2, 34, 34), 10, 32, (32, 32), True),
}
CLASSES = 10


class Groups(nn.Module):
    """K networks in one: every layer has K groups that do not touch. K = 1 is an ordinary network."""

    def __init__(self, k: int, shape: tuple[int, int, int], hidden: tuple[int, ...], conv: bool) -> None:
        super().__init__()
        self.k, self.conv = k, conv
        channels, height, width = shape
        neuron = NeuronConf(name="fixed", beta=0.9)
        self.convs, self.norms, self.neurons = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        if conv:
            for out in hidden:
                self.convs.append(nn.Conv2d(k * channels, k * out, 3, padding=1, bias=False, groups=k))
                self.norms.append(nn.BatchNorm2d(k * out))
                self.neurons.append(SpikingLayer(neuron, (k * out, height, width), f"sn{len(self.neurons) + 1}"))
                channels, height, width = out, height // 2, width // 2
        features = channels * height * width
        for out in (*(() if conv else hidden), CLASSES):
            bound = features**-0.5
            self.weights.append(nn.Parameter(torch.empty(k, features, out).uniform_(-bound, bound)))
            self.biases.append(nn.Parameter(torch.zeros(k, 1, out)))
            # the neurons of all groups, side by side in the batch
            self.neurons.append(SpikingLayer(neuron, (out,), f"sn{len(self.neurons) + 1}"))
            features = out

    def forward(self, x: Tensor) -> Tensor:
        """x: [T, B, k, C, H, W], each group's own samples. Returns counts of output spikes, [k, B, classes]."""
        steps, batch, k = x.shape[:3]
        neurons = iter(self.neurons)
        if self.conv:
            x = x.flatten(2, 3)
            for conv, norm in zip(self.convs, self.norms, strict=True):
                y = norm(conv(x.flatten(0, 1)))
                spk = next(neurons)(y.view(steps, batch, *y.shape[1:]))[0]
                x = torch.max_pool2d(spk.flatten(0, 1), 2)
                x = x.view(steps, batch, *x.shape[1:])
            x = x.view(steps, batch, k, -1)
        h = x.flatten(3).permute(2, 0, 1, 3).reshape(k, steps * batch, -1)
        for weight, bias in zip(self.weights, self.biases, strict=True):
            y = torch.baddbmm(bias, h, weight)
            # time first for the kernel, groups first for the product: free for one group, a copy for more
            y = y.view(k, steps, batch, -1).transpose(0, 1).reshape(steps, k * batch, -1)
            spk = next(neurons)(y)[0]
            h = spk.view(steps, k, batch, -1).transpose(0, 1).reshape(k, steps * batch, -1)
        return h.view(k, steps, batch, -1).sum(1)


def stepper(k: int, name: str) -> Callable[[], float]:
    """A training step of k groups: forward, backward, Adam."""
    shape, steps, batch, hidden, conv = NETWORKS[name]
    torch.manual_seed(0)
    network = Groups(k, shape, hidden, conv)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3, fused=True)
    x = (torch.rand(steps, batch, k, *shape) < 0.1).float()
    labels = torch.randint(CLASSES, (k * batch,))

    def step() -> float:
        counts = network(x)
        loss = nn.functional.cross_entropy(counts.flatten(0, 1), labels) * k  # each group its own mean
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return float(loss)

    return step


def same_bits(name: str, k: int, steps: int = 3) -> bool:
    """Whether each group ends with the bits of a network of its own after some steps from the same weights."""
    shape, length, batch, hidden, conv = NETWORKS[name]
    torch.manual_seed(0)
    x = (torch.rand(length, batch, k, *shape) < 0.1).float()
    labels = torch.randint(CLASSES, (k, batch))
    together = Groups(k, shape, hidden, conv)
    ends = []
    for group in range(k):
        alone = Groups(1, shape, hidden, conv)
        for mine, all_groups in zip(alone.parameters(), together.parameters(), strict=True):
            mine.data.copy_(all_groups.data.chunk(k)[group])
        ends.append(_trained(alone, x[:, :, group : group + 1], labels[group : group + 1], steps))
    found = _trained(together, x, labels, steps)
    return all(torch.equal(torch.cat(parts), whole) for *parts, whole in zip(*ends, found, strict=True))


def _trained(network: Groups, x: Tensor, labels: Tensor, steps: int) -> list[Tensor]:
    optimizer = torch.optim.Adam(network.parameters(), 1e-3, fused=True)
    for _ in range(steps):
        losses = nn.functional.cross_entropy(network(x).flatten(0, 1), labels.flatten(), reduction="none")
        optimizer.zero_grad(set_to_none=True)
        losses.view(len(labels), -1).mean(1).sum().backward()
        optimizer.step()
    return [parameter.data for parameter in network.parameters()]


def measure(name: str, k: int, rounds: int, budget_s: float) -> dict[str, Any]:
    """CPU milliseconds of a step of all k seeds, alone and batched."""
    single = [stepper(1, name) for _ in range(k)]
    runs = {"alone": lambda: [step() for step in single], "batched": stepper(k, name)}
    times = interleave(runs, torch.device("cpu"), rounds, budget_s=budget_s, clock="cpu")
    alone, batched = times["alone"].median, times["batched"].median
    return {
        "network": name,
        "K": k,
        "alone_ms": 1000 * alone,
        "batched_ms": 1000 * batched,
        "gain": alone / batched,
        "same_bits": same_bits(name, k),
    }


def main() -> None:
    """Prints a line of JSON per network and K, and the table of docs/benchmarks.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--budget", type=float, default=20.0, help="seconds for each line")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_flush_denormal(True)
    torch.set_num_threads(1)
    rows = []
    for name in NETWORKS:
        for k in (2, 4, 8):
            rows.append(measure(name, k, options.rounds, options.budget))
            print(json.dumps(rows[-1]), flush=True)
    print("\n| network | K | alone, ms | batched, ms | alone / batched | same bits |\n|---|---|---|---|---|---|")
    for row in rows:
        print("| {network} | {K} | {alone_ms:.1f} | {batched_ms:.1f} | {gain:.2f} | {same_bits} |".format(**row))


if __name__ == "__main__":
    main()
