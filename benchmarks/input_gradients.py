"""Input gradients only where they are needed, against dense ones: `python -m benchmarks.input_gradients`.

CPU time of one thread, the fastest of a few calls in turns, float32, maps in channels_last; what is needed is random.
A star: there the rule (`pays` in `models/input_gradient.py`) stays dense.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from snnexp.models import input_gradient
from snnexp.models.needed import dense_input_gradient

SHARES = (0.01, 0.03, 0.1, 0.2, 0.3, 0.4)
CONVOLUTIONS = [  # C, O, k, s, height and width, frames
    (12, 64, 5, 1, 17, 128),
    (128, 128, 3, 1, 17, 24),
    (64, 64, 3, 1, 32, 24),
    (32, 32, 3, 1, 32, 48),
    (256, 256, 3, 1, 8, 48),
    (64, 128, 3, 2, 32, 24),
    (16, 16, 3, 1, 32, 64),
]
LINEARS = [(500, 500, 2560), (700, 256, 2560), (2312, 128, 2560), (2048, 2048, 1280)]  # in, out, rows
REPEATS = 5


def ratio(dense: Callable[[], Tensor], ours: Callable[[], Tensor | None]) -> float:
    """Time of the dense one over ours."""
    fastest = [float("inf")] * 2
    for _ in range(REPEATS):
        for which, run in enumerate((dense, ours)):
            start = time.process_time()
            run()
            fastest[which] = min(fastest[which], time.process_time() - start)
    return fastest[0] / fastest[1]


def mask(*shape: int, share: float) -> Tensor:
    """Where it is needed."""
    kind = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    return (torch.rand(shape) < share).to(torch.uint8).contiguous(memory_format=kind)


def row(name: str, dense: Callable[[], Tensor], compute: Callable[..., Tensor | None], shape: tuple[int, ...]) -> str:
    """A row of the table."""
    cells, rule = [], input_gradient.pays
    for share in SHARES:
        where = mask(*shape, share=share)
        stays = "" if compute(where, share) is not None else "*"
        input_gradient.pays = lambda *_: True  # whatever the rule says
        cells.append(f"{ratio(dense, lambda w=where, s=share: compute(w, s)):.1f}x{stays}")  # type: ignore[misc]
        input_gradient.pays = rule
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"| layer | {' | '.join(f'{share:.0%}' for share in SHARES)} |\n|---|{'---|' * len(SHARES)}")
    for channels, outputs, size, stride, side, frames in CONVOLUTIONS:
        pad, shape = size // 2, (frames, channels, side, side)
        out = (side + 2 * pad - size) // stride + 1
        grad = torch.randn(frames, outputs, out, out).contiguous(memory_format=torch.channels_last)
        weight = torch.randn(outputs, channels, size, size)

        def dense(g: Tensor = grad, w: Tensor = weight, at: Any = shape, s: int = stride) -> Tensor:
            return dense_input_gradient(g, w, torch.Size(at), s, w.shape[2] // 2)

        def ours(where: Tensor, share: float, g: Tensor = grad, w: Tensor = weight, s: int = stride) -> Tensor | None:
            return input_gradient.conv_input_gradient(g, w, s, w.shape[2] // 2, where, share)

        name = f"{channels} to {outputs}, {side}x{side}, {size}x{size}" + (f", stride {stride}" if stride > 1 else "")
        print(row(name, dense, ours, shape), flush=True)
    for inputs, outputs, rows in LINEARS:
        grad, weight = torch.randn(rows, outputs), torch.randn(outputs, inputs)

        def product(g: Tensor = grad, w: Tensor = weight) -> Tensor:
            return g @ w

        def some(where: Tensor, share: float, g: Tensor = grad, w: Tensor = weight) -> Tensor | None:
            return input_gradient.linear_input_gradient(g, w.t(), where, share)

        print(row(f"fully connected, {inputs} to {outputs}, {rows:,} rows", product, some, (rows, inputs)), flush=True)
    print(f"\ntorch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}", file=sys.stderr)


if __name__ == "__main__":
    main()
