"""What a fused engine is asked to do: one pass forward or back over flat memory [T, M], M = batch x neurons."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

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
class ForwardCall:
    """One forward pass over flat tensors.

    Everything of shape [M] goes in as it is before the first step, and comes out as it is after the last, so that one
    pass over all steps and one pass for each step are the same.
    """

    dynamics: Dynamics
    x: Tensor  # [T, M]
    spk: Tensor  # [T, M], in x's dtype; not written unless spiking
    mem: Tensor  # [T, M], may share x's memory: see in_place
    stored: Tensor | None  # [T, M]: the current of each step, if backward will need it
    threshold: Tensor  # [1] or [neurons]
    beta: Tensor
    alpha: Tensor | None
    kept: Tensor  # [M]: U', which the next step's beta multiplies
    removed: Tensor | None  # [M]: R of the next step (reset subtract)
    cur: Tensor | None
    fired: Tensor | None
    first: Tensor | None  # [M]: step of the first spike; -1 if before this sample's start, T if never (fire_once only)
    in_place: bool
    last: int  # number of the sample's last step
    time: int = 0  # number of this pass's first step
    counts: Tensor | None = None  # [M]: spikes over all steps, added to
    pool: PoolGrid | None = None  # spk is then [T, pooled columns]
    unpooled: Tensor | None = None  # [M]: scratch for spikes before pooling


@dataclass
class BackwardCall:
    """One backward pass over flat tensors; those that are None are not wanted or not there.

    As in `ForwardCall`, everything of shape [M] goes in and out, here from the last step to the first.
    """

    dynamics: Dynamics
    mem: Tensor  # [T, M]
    stored: Tensor | None  # [T, M]: I of each step
    grad_spk: Tensor | None  # [T, M]; [1, M] if it is the same at all steps; [T, pooled columns] with pooling
    grad_mem: Tensor | None
    grad_x: Tensor  # out [T, M], may share mem's memory: see in_place
    threshold: Tensor
    beta: Tensor
    alpha: Tensor | None
    first: Tensor | None
    grad_u: Tensor  # [M]: gradient of U of the step after; out, of the first step's U
    grad_cur: Tensor | None  # [M], out: gradient of the first step's I
    to_cur: Tensor | None  # [M]: what the step after passes back to I
    grad_threshold: Tensor | None  # [M], added to; to be summed over what shares a value
    grad_beta: Tensor | None
    grad_alpha: Tensor | None
    time: int = 0
    in_place: bool = False
    pool: PoolGrid | None = None
