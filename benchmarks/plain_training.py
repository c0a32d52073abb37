"""A user's own training script with another library, for `time_to_accuracy`: it imports nothing of snnexp.

    python -m benchmarks.plain_training LIBRARY TASK.json

LIBRARY: snntorch, "snntorch, layers folded" or spikingjelly. The task names files, labels, initial weights and numbers.
Both read with tonic's reader and ToFrame into tonic's MemoryCachedDataset: each sample is read and binned once, and no
worker process has to be started. SpikingJelly's own data sets need torchvision and write every sample to disk twice.
Prints a line of JSON after each epoch. The network is conv-SN-pool, conv-SN-pool, FC and neurons that integrate and
never spike; the class with the highest membrane counts.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tonic
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.triangle import triangle

Task = dict[str, Any]
Frames = tuple[Tensor, Tensor]  # [T, B, 2, 34, 34] and labels


# --- data ---------------------------------------------------------------------------------------------------------


class Recordings(torch.utils.data.Dataset[tuple[Any, int]]):
    """Files read and binned one at a time; `tonic.datasets.NMNIST` does so too, but wants all 60,000 files."""

    def __init__(self, files: list[str], labels: list[int], num_steps: int, bin_us: int | None) -> None:
        self.files, self.labels, self.num_steps = files, labels, num_steps
        bins = {"n_event_bins": num_steps} if bin_us is None else {"time_window": bin_us, "include_incomplete": True}
        self.to_frame = tonic.transforms.ToFrame(sensor_size=(34, 34, 2), **bins)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> tuple[Any, int]:
        events = tonic.io.read_mnist_file(self.files[number], tonic.datasets.NMNIST.dtype)
        frames = np.zeros((self.num_steps, 2, 34, 34), np.float32)
        made = self.to_frame(events)[: self.num_steps]
        frames[: len(made)] = made
        return frames, self.labels[number]


def collate(samples: list[tuple[Any, int]]) -> Frames:
    """[T, B, ...] out of samples of equal length."""
    return torch.from_numpy(np.stack([frames for frames, _ in samples], 1)), torch.tensor([k for _, k in samples])


def batches(recordings: Any, size: int, order: Any = None) -> Iterator[Frames]:
    """Batches in the given order, or as the samples lie."""
    loader = torch.utils.data.DataLoader(recordings, batch_size=size, sampler=order, collate_fn=collate)
    yield from loader


def shifted(x: Tensor, shift: int, rng: np.random.Generator) -> Tensor:
    """Frames [T, B, C, H, W], each sample moved by up to `shift` pixels, as snnexp draws it; what leaves is lost."""
    height, width = x.shape[-2:]
    to_x, to_y = (rng.integers(-shift, shift + 1, x.shape[1]).tolist() for _ in range(2))
    moved = torch.zeros_like(x)
    for b, (dx, dy) in enumerate(zip(to_x, to_y, strict=True)):
        to, of = ((slice(max(s, 0), n + min(s, 0)) for s, n in ((dy * k, height), (dx * k, width))) for k in (1, -1))
        moved[:, b, :, *to] = x[:, b, :, *of]
    return moved


# --- networks -----------------------------------------------------------------------------------------------------


def layers(task: Task) -> nn.ModuleList:
    """The layers without state, with the initial weights that all libraries get; None stands where neurons are."""
    (first, second), bias = task["channels"], task["bias"]
    made = nn.ModuleList([
        nn.Conv2d(2, first, 5, bias=bias), nn.Conv2d(first, second, 5, bias=bias), nn.Linear(25 * second, 10, bias=bias)
    ])  # fmt: skip
    for layer, state in zip(made, torch.load(task["weights"], weights_only=True), strict=True):
        layer.load_state_dict(state)
    return made


class Network(nn.Module):
    """Convolutions and FC with a library's neurons behind; subclasses say how time passes. Membranes [T, B, 10]."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.conv1, self.conv2, self.fc = layers(task)
        self.neurons = nn.ModuleList([self.neuron(task) for _ in range(2)])
        self.beta = task["beta"]

    def integrate(self, x: Tensor) -> Tensor:
        """Leaky membranes without spikes: ten numbers per sample, plain torch in all libraries."""
        mem, out = torch.zeros(()), []
        for x_t in x.unbind(0):
            mem = self.beta * mem + x_t
            out.append(mem)
        return torch.stack(out)

    def neuron(self, task: Task) -> nn.Module:
        """One layer of the library's neurons."""
        raise NotImplementedError


def _snntorch_neuron(task: Task) -> nn.Module:
    import snntorch

    made: nn.Module = snntorch.Leaky(beta=task["beta"], spike_grad=triangle(1.0), reset_mechanism="zero")
    return made


class Stepwise(Network):
    """snnTorch as in its tutorials: all layers within the loop over time."""

    def neuron(self, task: Task) -> nn.Module:
        return _snntorch_neuron(task)

    def forward(self, x: Tensor) -> Tensor:
        mem1, mem2 = torch.zeros(()), torch.zeros(())
        lif1, lif2 = self.neurons
        out = []
        for x_t in x.unbind(0):
            spk, mem1 = lif1(self.conv1(x_t), mem1)
            spk, mem2 = lif2(self.conv2(F.max_pool2d(spk, 2)), mem2)
            out.append(self.fc(F.max_pool2d(spk, 2).flatten(1)))
        return self.integrate(torch.stack(out))


class Folded(Network):
    """Layers without state see all steps at once, in the faster memory layout; only neurons walk through time."""

    def neuron(self, task: Task) -> nn.Module:
        return _snntorch_neuron(task)

    def run(self, neuron: nn.Module, x: Tensor) -> Tensor:
        """Spikes for the input x [T, B, ...]."""
        mem, out = torch.zeros(()), []
        for x_t in x.unbind(0):
            spk, mem = neuron(x_t, mem)
            out.append(spk)
        return torch.stack(out)

    def forward(self, x: Tensor) -> Tensor:
        folded, over_time = (0, 1), x.shape[:2]
        lif1, lif2 = self.neurons
        x = self.conv1(x.flatten(*folded).contiguous(memory_format=torch.channels_last))
        x = F.max_pool2d(self.run(lif1, x.unflatten(0, over_time)).flatten(*folded), 2)
        x = F.max_pool2d(self.run(lif2, self.conv2(x).unflatten(0, over_time)).flatten(*folded), 2)
        return self.integrate(self.fc(x.flatten(1)).unflatten(0, over_time))


class SpikingJelly(Folded):
    """SpikingJelly's multi-step mode."""

    def neuron(self, task: Task) -> nn.Module:
        from spikingjelly.activation_based import neuron, surrogate

        made: nn.Module = neuron.LIFNode(
            tau=1 / (1 - task["beta"]), decay_input=False, surrogate_function=surrogate.PiecewiseQuadratic(1.0),
            detach_reset=True, step_mode="m",
        )  # fmt: skip
        return made

    def run(self, neuron: nn.Module, x: Tensor) -> Tensor:
        neuron.reset()  # type: ignore[operator]
        spikes: Tensor = neuron(x)
        return spikes


NETWORKS: dict[str, Callable[[Task], Network]] = {
    "snntorch": Stepwise,
    "snntorch, layers folded": Folded,
    "spikingjelly": SpikingJelly,
}


# --- training -----------------------------------------------------------------------------------------------------


def scores(mem: Tensor, reduce: str) -> Tensor:
    """Class scores [B, 10] out of membranes [T, B, 10]."""
    return mem[-1] if reduce == "last" else mem.mean(0)


def accuracy(network: nn.Module, recordings: Any, task: Task) -> float:
    """Share of samples whose class has the highest membrane."""
    right = 0
    with torch.no_grad():
        for x, labels in batches(recordings, task["batch_size"]):
            right += int((scores(network(x), task["reduce"]).argmax(1) == labels).sum())
    return right / len(recordings)


def main() -> None:
    """Train until the accuracy on the test files reaches the level, or the epochs are over."""
    library, task = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
    torch.set_flush_denormal(True)
    torch.set_num_threads(task["threads"])
    train, test = (tonic.MemoryCachedDataset(Recordings(*task[part])) for part in ("train", "test"))
    network = NETWORKS[library](task)
    optimizer = torch.optim.Adam(network.parameters(), lr=task["lr"], fused=True)
    for epoch in range(1, task["max_epochs"] + 1):
        order = np.random.default_rng([task["seed"], epoch]).permutation(len(train)).tolist()  # as snnexp's
        for number, (x, labels) in enumerate(batches(train, task["batch_size"], order)):
            x = shifted(x, task["shift"], np.random.default_rng([task["seed"], epoch, number]))
            loss = F.cross_entropy(scores(network(x), task["reduce"]), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        reached = accuracy(network, test, task)
        print(json.dumps({"epoch": epoch, "accuracy": reached, "loss": float(loss.detach())}), flush=True)
        if reached >= task["level"]:
            return


if __name__ == "__main__":
    main()
