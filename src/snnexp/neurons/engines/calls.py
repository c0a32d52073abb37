"""What a fused engine is asked to do: one pass forward or back over flat memory [T, M], M = batch x neurons."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from snnexp.neurons.equation import Dynamics


@dataclass(frozen=True)
class PoolGrid:
    """Where the windows of a pooling layer are in flat memory: columns are [outer, height, row], row = width * inner.

    channels_last maps have outer = B, inner = C; others outer = B * C, inner = 1.
    """

    kind: str  # max or avg
    size: int  # of the window, and its stride
    outer: int
    height: int
    row: int
    inner: int
    out_shape: tuple[int, ...]  # of one step, in the order of memory

    @property
    def columns(self) -> int:
        """Columns after pooling; an incomplete window at the end is left out."""
        return prod(self.out_shape)


@dataclass
class Taps:
    """What a convolution with stride 1 has in the place of its output's gradient: see `numba_taps.py`.

    Its input [T * B, C, H, W] is listed, as in `models.event_lists`.
    """

    first: NDArray[np.int32]
    entries: NDArray[np.int32]
    values: NDArray[Any]
    shape: tuple[int, ...]  # H, W, C, size and padding of the kernel, by how many bits entries are moved, and O
    line: int  # numbers in size * O, rounded up to whole vectors
    products: NDArray[np.float64] | None = None  # made by backward: [C, ky, kx from right to left] of 2 O + 1 each;
    # without a norm [C, ky, line], and [O] for the bias

    @property
    def frames(self) -> int:
        """How many are listed."""
        height, width = self.shape[:2]
        return self.first.size // (height * (width + 1))

    def taken(self) -> NDArray[np.float64] | None:
        """The products, if the engine made them; they are there once."""
        found, self.products = self.products, None
        return found


@dataclass
class InputNorm:
    """What batch norm leaves to the engine: its input is to be (x - mean) * scale + bias, values of a channel.

    The channel is the last dimension in memory. The gradient that comes back is that of the normalised input.
    """

    mean: NDArray[Any]  # [C] each, in x's precision
    scale: NDArray[Any]
    bias: NDArray[Any]
    summed: tuple[int, NDArray[np.float64]] | None = None  # a gradient's place in memory; sums of it, [2, C]
    taps: Taps | None = None  # nobody needs the gradient that comes back, but a convolution these products of it

    def sums_of(self, grad: Tensor) -> NDArray[np.float64] | None:
        """[2, C] sums of grad, and of grad * (x - mean), if the engine took them as it made just this gradient."""
        found, self.summed = self.summed, None
        return found[1] if found is not None and found[0] == grad.data_ptr() else None

    def products(self) -> NDArray[np.float64] | None:
        """Of `taps`, if the engine took them in the place of a gradient."""
        return None if self.taps is None else self.taps.taken()


@dataclass
class Near:
    """What an engine counts as it runs: how often |U - center| <= radius; and what it copies: U at some places.

    All in the order of memory, in which columns are [B, neurons]. Nobody has to write all membranes for that.
    """

    center: NDArray[Any]  # [1] or [neurons], in the precision computed in
    radius: NDArray[Any]  # as well
    totals: NDArray[np.int32]  # [threads, neurons]: added to, and it does not matter where
    places: NDArray[np.int64]  # [n + 1] in flat memory [T, B, neurons], ascending; the last one lies beyond it
    picked: NDArray[Any]  # out [n]: the membranes there


@dataclass
class ForwardCall:
    """One forward pass over flat tensors.

    Columns go in as they are before the first step, and come out as they are after the last, so that one pass over all
    steps and one pass for each step are the same.
    """

    dynamics: Dynamics
    names: tuple[str, ...]  # of the values
    wants: frozenset[str]  # values that get gradients
    x: Tensor  # [T, M]
    spk: Tensor  # [T, M], in x's dtype; not written unless spiking
    mem: Tensor  # [T, M], may share x's memory: see in_place; with `norm` it may be [0, M]: not written
    stored: dict[str, Tensor]  # like mem, each: what else backward needs; "x" is a recurrent layer's whole input
    values: dict[str, Tensor]  # [1] or [neurons] each
    columns: dict[str, Tensor]  # [M] each: see compiler.plan.Forward
    in_place: bool
    last: int  # number of the sample's last step
    time: int = 0  # number of this pass's first step
    counts: Tensor | None = None  # [M]: spikes over all steps, added to; with `near` put there
    pool: PoolGrid | None = None  # spk is then [T, pooled columns]
    noise: Tensor | None = None  # [T, M]: added to the membranes
    needed: Tensor | None = None  # out, uint8, like spk: where the gradient of spikes is (compiler.plan.where_needed)
    norm: InputNorm | None = None  # x is normalised by it
    near: Near | None = None  # with counts only
    local: tuple[str, ...] = ()  # columns that are not there: they begin at rest, and nobody asks for their end

    @property
    def unseen(self) -> bool:
        """Whether membranes, and what else backward might read, are not written."""
        return len(self.mem) == 0


@dataclass
class BackwardCall:
    """One backward pass over flat tensors; those that are None are not wanted or not there.

    As in `ForwardCall`, columns go in and out, here from the last step to the first: grad_<state> is what the step
    after passes back to a state, grad_<value> is added to and later summed over what shares a value.
    """

    dynamics: Dynamics
    names: tuple[str, ...]
    wants: frozenset[str]
    mem: Tensor  # [T, M]; with `norm` x, which it is worked out from again
    stored: dict[str, Tensor]  # [T, M] each
    grad_spk: Tensor | None  # [T, M]; [1, M] if it is the same at all steps; [T, pooled columns] with pooling
    grad_mem: Tensor | None
    grad_x: Tensor  # out [T, M], may share mem's memory: see in_place
    values: dict[str, Tensor]
    columns: dict[str, Tensor]  # [M] each: see compiler.plan.Backward
    last: int
    time: int = 0
    in_place: bool = False
    pool: PoolGrid | None = None
    norm: InputNorm | None = None  # gets the sums of grad_x, too
    taps: Taps | None = None  # gets its products, and grad_x is not written
    local: tuple[str, ...] = ()  # columns that are not there: they begin at 0, and nobody asks for their end
