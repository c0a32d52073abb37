"""Convolutions that follow spikes against oneDNN's: python -m benchmarks.convolutions

Forward and the weights' gradient of single layers on random spikes of several densities, by the CPU time of one thread,
which others on the machine do not disturb; the fastest of some repeats, taken in turns. Ours includes making the lists.
oneDNN gets channels_last, its faster layout. The same as on a processor without AVX-512:
ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 NUMBA_CPU_NAME=haswell NUMBA_CPU_FEATURES= .
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import NamedTuple

from snnexp.allocator import prepare_allocator

prepare_allocator()  # before torch is imported

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor  # noqa: E402

from snnexp.models.event_conv import event_conv  # noqa: E402


class Layer(NamedTuple):
    """A convolution on square maps."""

    channels: int
    outputs: int
    side: int
    size: int
    pad: int
    what: str

    def __str__(self) -> str:
        return f"{self.channels} to {self.outputs}, {self.side}x{self.side}, {self.size}x{self.size} ({self.what})"


LAYERS = (
    Layer(12, 64, 17, 5, 2, "N-MNIST's second"),
    Layer(2, 12, 34, 5, 2, "N-MNIST's first"),
    Layer(128, 128, 17, 3, 1, "wide"),
    Layer(12, 64, 15, 5, 0, "W3's second"),
    Layer(2, 32, 64, 3, 1, "W4's first"),
    Layer(32, 32, 32, 3, 1, "W4's second"),
)
DENSITIES = (0.01, 0.03, 0.06, 0.12, 0.25)


def timed(x: Tensor, layer: Layer, weight: Tensor, convolve: Callable[..., Tensor]) -> tuple[float, float]:
    """CPU seconds of forward and of the weights' gradient."""
    start = time.thread_time()
    y = convolve(x, weight, None, 1, layer.pad)
    middle = time.thread_time()
    torch.autograd.grad(y, weight, y.detach())
    return middle - start, time.thread_time() - middle


def measured(layer: Layer, density: float, frames: int, repeats: int) -> list[float]:
    """Milliseconds: our forward, oneDNN's, our weights' gradient, oneDNN's."""
    rng = np.random.default_rng(0)
    spikes = rng.random((frames, layer.side, layer.side, layer.channels), np.float32) < density
    x = torch.from_numpy(spikes).float().permute(0, 3, 1, 2)
    shape = (layer.outputs, layer.channels, layer.size, layer.size)
    weight = torch.from_numpy(rng.standard_normal(shape, np.float32)).requires_grad_()
    rounds = [(timed(x, layer, weight, event_conv), timed(x, layer, weight, F.conv2d)) for _ in range(repeats + 1)][1:]
    return [1000 * min(r[who][what] for r in rounds) for what in (0, 1) for who in (0, 1)]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--densities", type=float, nargs="+", default=list(DENSITIES))
    given = parser.parse_args()
    torch.set_num_threads(1)
    names = " / ".join(f"{100 * d:g}" for d in given.densities)
    print(f"{torch.backends.cpu.get_cpu_capability()}, one thread, {given.frames} frames, non-zero {names} %\n")
    print("| layer | forward | ms | oneDNN, ms | weights' gradient | ms | oneDNN, ms |\n|---|---|---|---|---|---|---|")
    for layer in LAYERS:
        found = [measured(layer, density, given.frames, given.repeats) for density in given.densities]
        cells = [str(layer)]
        for ours, dense in ((0, 1), (2, 3)):
            cells.append(" / ".join(f"{row[dense] / row[ours]:.1f}" for row in found) + "x")
            cells.append(" / ".join(f"{row[ours]:.2f}" for row in found))
            cells.append(f"{min(row[dense] for row in found):.2f}")
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
