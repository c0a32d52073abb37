"""Input gradients that leave out what is zero, against dense ones: `python -m benchmarks.input_gradients`.

Two tables: by the share of the input's gradient that is needed (the masked way), and by the share of the output's that
is not zero (the listed way, convolutions alone). CPU time of one thread, the fastest of a few calls in turns, float32,
maps in channels_last; what is needed, or not zero, is random. A star: there the rule (`models/needed.py`) stays dense.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from snnexp.models.gradient_lists import listed_input_gradient
from snnexp.models.input_gradient import conv_input_gradient, linear_input_gradient
from snnexp.models.needed import Needed, dense_input_gradient

SHARES = (0.01, 0.03, 0.1, 0.2, 0.3, 0.4)
FILLED = (0.0, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
CONVOLUTIONS = [  # C, O, k, s, height and width, frames
    (12, 64, 5, 1, 17, 128),
    (128, 128, 3, 1, 17, 24),
    (64, 64, 3, 1, 32, 24),
    (32, 32, 3, 1, 32, 48),
    (256, 256, 3, 1, 8, 48),
    (64, 128, 3, 2, 32, 24),
    (16, 16, 3, 1, 32, 64),
    (24, 48, 5, 1, 14, 64),
    (64, 256, 1, 1, 16, 48),
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


def stays_dense(ask: Callable[[Needed], Tensor], mask: Tensor | None) -> str:
    """A star if the rule does: of a layer's backward pass that asks what it is given."""
    said: list[str] = []
    ask(Needed(mask, tell=said.append, zeros=mask is None))
    return "*" if not said or said[0].endswith("dense") else ""


class Convolution(NamedTuple):
    """One layer and its batch."""

    channels: int
    outputs: int
    size: int
    stride: int
    side: int
    frames: int

    def __str__(self) -> str:
        name = f"{self.channels} to {self.outputs}, {self.side}x{self.side}, {self.size}x{self.size}"
        return name + (f", stride {self.stride}" if self.stride > 1 else "")

    @property
    def shape(self) -> torch.Size:
        return torch.Size((self.frames, self.channels, self.side, self.side))

    def drawn(self, share: float = 1.0) -> tuple[Tensor, Tensor]:
        """The output's gradient, of which the share is not 0, and weights."""
        out = (self.side + 2 * (self.size // 2) - self.size) // self.stride + 1
        grad = torch.randn(self.frames, self.outputs, out, out)
        grad *= torch.rand(grad.shape) < share
        weight = torch.randn(self.outputs, self.channels, self.size, self.size)
        return grad.contiguous(memory_format=torch.channels_last), weight


def masked_row(layer: Convolution) -> str:
    """By the share of the input's gradient that is needed."""
    (grad, weight), cells = layer.drawn(), []
    at = (layer.stride, layer.size // 2)
    for share in SHARES:
        where = mask(*layer.shape, share=share)
        star = stays_dense(lambda asked: asked.input_gradient(grad, weight, layer.shape, *at), where)
        dense = partial(dense_input_gradient, grad, weight, layer.shape, *at)
        cells.append(f"{ratio(dense, partial(conv_input_gradient, grad, weight, *at, where, None)):.1f}x{star}")
    return f"| {layer} | {' | '.join(cells)} |"


def listed_row(layer: Convolution) -> str:
    """By the share of the output's gradient that is not 0."""
    cells = []
    for share in FILLED:
        given = (*layer.drawn(share), layer.shape, layer.stride, layer.size // 2)
        star = stays_dense(lambda asked, given=given: asked.input_gradient(*given), None)  # type: ignore[misc]
        cells.append(
            f"{ratio(partial(dense_input_gradient, *given), partial(listed_input_gradient, *given)):.1f}x{star}"
        )
    return f"| {layer} | {' | '.join(cells)} |"


def linear_row(inputs: int, outputs: int, rows: int) -> str:
    """By the share of the input's gradient that is needed."""
    (grad, weight), cells = (torch.randn(rows, outputs), torch.randn(outputs, inputs)), []
    for share in SHARES:
        where = mask(rows, inputs, share=share)
        star = stays_dense(lambda asked: asked.linear_input_gradient(grad, weight.t()), where)
        some = partial(linear_input_gradient, grad, weight.t(), where, None)
        cells.append(f"{ratio(lambda: grad @ weight, some):.1f}x{star}")
    return f"| fully connected, {inputs} to {outputs}, {rows:,} rows | {' | '.join(cells)} |"


def head(shares: tuple[float, ...]) -> str:
    """The first two lines of a table."""
    return f"| layer | {' | '.join(f'{share:.0%}' for share in shares)} |\n|---|{'---|' * len(shares)}"


def main() -> None:
    """Print the tables."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    layers = [Convolution(*numbers) for numbers in CONVOLUTIONS]
    print(f"Needed of the input's gradient\n\n{head(SHARES)}")
    for layer in layers:
        print(masked_row(layer), flush=True)
    for numbers in LINEARS:
        print(linear_row(*numbers), flush=True)
    print(f"\nNot zero in the output's gradient\n\n{head(FILLED)}")
    for layer in layers:
        print(listed_row(layer), flush=True)
    print(f"\ntorch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}", file=sys.stderr)


if __name__ == "__main__":
    main()
