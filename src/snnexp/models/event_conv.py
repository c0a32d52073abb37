"""A 2-D convolution that follows the spikes: its cost goes with what is not zero in its input, on the CPU.

    y[n, o, oy, ox] = b[o] + sum over the entries (c, iy, ix, v) of frame n in the window of (oy, ox) of
                      v W[o, c, iy - s oy + p, ix - s ox + p]

Two of the three products follow the spikes: forward, and the weights' gradient. Maps are in channels_last. Weights are
packed as [tiles, ky, kx, c, tile] (O cut into tiles), so that what one spike adds to the outputs of a pixel is one
piece of memory, and the entries of a window's row (x C + c) are its rows, up to a shift. A window makes four vectors of
sums: of one pixel, or of 2 or 4 neighbours if a pixel has few outputs; then the columns kx go on with zeros to both
sides, for spikes that only a neighbour sees. Sums run in the order of the entries; the weights' gradient is summed over
fixed pieces of the frames, and these in order: threads change no bit. Few spikes into few outputs go another way
forward, with the same sums: `event_spread.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from snnexp import buffers
from snnexp.arrays import flat_maps, flat_weights, gapless, number_type
from snnexp.data.base import EventFrames
from snnexp.models import event_spread
from snnexp.models.batch_norm import NormGradient, with_sums
from snnexp.models.event_conv_kernels import forward, pack, unpack, weight_gradient
from snnexp.models.event_lists import Lists, list_events, list_maps
from snnexp.models.needed import Needed, dense_input_gradient, dense_weight_gradient
from snnexp.neurons.engines.calls import Taps
from snnexp.neurons.engines.numba_norm import WIDE
from snnexp.parallel import run_parallel
from snnexp.vectors import BYTES

CACHE = 640 << 10  # bytes of a tile's packed weights that stay in a second-level cache
PAST = 1 << 24  # bytes of an output from which on it is written past the caches
TAPS = 1 << 15  # bytes of the sums of `Taps`, at most, which stay in a first-level cache
_BLOCK = 8  # frames of a task of the forward product, at most
_PIECES = 16  # of the frames, at most, that the weights' gradient is summed over
_PIECE = 32  # frames in one, at least


@dataclass(frozen=True)
class Packing:
    """How the weights [outputs, channels, size, size] of a convolution are packed, in numbers of `itemsize` bytes."""

    outputs: int
    channels: int
    size: int
    stride: int
    pad: int
    itemsize: int

    @property
    def lanes(self) -> int:
        """Numbers in a vector."""
        return BYTES // self.itemsize

    @property
    def pixels(self) -> int:
        """Neighbouring outputs that are made at once."""
        return 4 if self.outputs <= self.lanes else 2 if self.outputs <= 2 * self.lanes else 1

    @property
    def tile(self) -> int:
        """Outputs in a row of packed weights."""
        return 4 * self.lanes // self.pixels

    @property
    def tiles(self) -> int:
        """Tiles that hold all outputs."""
        return -(-self.outputs // self.tile)

    @property
    def extra(self) -> int:
        """Columns of zeros to each side."""
        return (self.pixels - 1) * self.stride

    @property
    def columns(self) -> int:
        """Columns of packed weights, kx and the zeros."""
        return self.size + 2 * self.extra

    @property
    def rows(self) -> int:
        """Rows of a tile."""
        return self.size * self.columns * self.channels

    @property
    def step(self) -> int:
        """Rows of a window that the kernels go through at once: as many as have their weights in a cache."""
        size = self.rows * self.tile * self.itemsize
        if size <= CACHE or self.outputs % self.tile:
            return self.size
        return max(self.size * CACHE // size, 1)

    @property
    def lies_in_vectors(self) -> bool:
        """Whether the output is whole vectors, none of which is written twice."""
        return self.outputs % self.tile == 0 and self.step == self.size

    def fills(self, shape: tuple[int, int, int, int]) -> bool:
        """Whether windows fill the rows of an output of this `out_shape`."""
        return shape[3] % self.pixels == 0 and shape[3] > 0

    def pack(self, weight: Tensor) -> NDArray[Any]:
        """weight [O, C, k, k] as [tiles, rows, tile], flat."""
        packed = np.empty(self.tiles * self.rows * self.tile, number_type(weight.dtype))
        weight = gapless(weight)
        given = flat_weights(weight), packed, weight.stride(), self.outputs, self.shape(0, 0)
        run_parallel(lambda start, stop: pack(*given, start, stop), self.tiles, torch.get_num_threads())
        return packed

    def unpack(self, sums: NDArray[Any], like: Tensor) -> Tensor:
        """[O, C, k, k], in memory as the weight `like`, of sums [pieces, tiles, rows + 1, tile] over all pieces."""
        weight = torch.empty_like(gapless(like))
        given = sums.reshape(-1), flat_weights(weight), weight.stride(), self.outputs, len(sums), self.shape(0, 0)
        run_parallel(lambda start, stop: unpack(*given, start, stop), self.tiles, torch.get_num_threads())
        return weight

    def norm(self, norm: NormGradient | None, grad: Tensor) -> tuple[NDArray[Any], NDArray[Any]]:
        """x and [4, tiles, pixels, tile] flat of mean, scale, -offset and -slope; empty without a norm."""
        if norm is None:
            return (np.empty(0, number_type(grad.dtype)),) * 2
        found = np.zeros((4, self.tiles, self.pixels, self.tile), norm.x.dtype)
        room = self.tiles * self.tile - self.outputs
        for to, values in zip(found, (norm.mean, norm.scale, -norm.offset, -norm.slope), strict=True):
            to[:] = np.pad(values, (0, room)).reshape(self.tiles, 1, self.tile)
        return norm.x, found.reshape(-1)

    @property
    def may_be_summed(self) -> bool:
        """Whether the sums of `Taps` may be taken, and stay in a first-level cache."""
        sums = self.size**2 * self.channels * 2 * self.outputs * self.itemsize
        small = sums <= TAPS and self.size * self.outputs <= WIDE
        return small and self.stride == 1 and self.outputs % self.lanes == 0

    @property
    def line(self) -> int:
        """Numbers in a row of the kernel, rounded up to whole vectors."""
        return -(-self.size * self.outputs // self.lanes) * self.lanes

    def taps(self, lists: Lists, alone: bool) -> Taps | None:
        """What lets the engine, behind a norm or alone, take the weights' gradient; None: it can't."""
        small = self.stride == 1 and self.size * self.channels * self.line * self.itemsize <= TAPS
        if not (small if alone else self.may_be_summed):
            return None
        _, channels, height, width = lists.shape
        shape = (height, width, channels, self.size, self.pad, self.tile.bit_length() - 1, self.outputs)
        return Taps(*lists[:3], shape, self.line)

    def gradients_alone(self, products: NDArray[np.float64], like: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients of the weight `like` and of the bias, of the products of `Taps` without a norm."""
        lines = products[: -self.outputs].reshape(self.channels, self.size, self.line)[:, :, : self.size * self.outputs]
        weight = self._as_weight(lines.reshape(self.channels, self.size, self.size, self.outputs), like)
        return weight, torch.from_numpy(products[-self.outputs :].copy()).to(like.dtype)

    def gradients(self, norm: NormGradient, like: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients of the weight `like` and of the bias, of the products of `Taps`."""
        assert norm.products is not None
        taps = self.channels, self.size, self.size
        half = self.size**2 * self.channels * self.outputs
        of_g, of_x, of_one = np.split(norm.products, [half, 2 * half])
        found = of_g.reshape(*taps, -1) * norm.scale - of_x.reshape(*taps, -1) * norm.slope
        found -= of_one.reshape(*taps, 1) * norm.offset
        bias = torch.from_numpy(norm.total * norm.scale - norm.rows * norm.offset)
        return self._as_weight(found, like), bias.to(like.dtype)

    @staticmethod
    def _as_weight(by_tap: NDArray[np.float64], like: Tensor) -> Tensor:
        """[C, ky, kx from right to left, O] in the shape and memory of the weight `like`."""
        turned = torch.from_numpy(by_tap[:, :, ::-1].transpose(3, 0, 1, 2).copy())
        return torch.empty_like(gapless(like)).copy_(turned)

    def shape(self, height: int, width: int) -> tuple[int, ...]:
        """What the kernels ask of the input and the weights."""
        return (
            *(height, width, self.channels, self.size, self.stride, self.pad),
            *(self.columns, self.size + self.extra, self.pixels, self.tile, self.step),
        )

    def out_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Frames, outputs, height and width of the output."""
        high, wide = ((n + 2 * self.pad - self.size) // self.stride + 1 for n in (height, width))
        return frames, self.outputs, high, wide


def packing_of(weight: Tensor, stride: int, pad: int) -> Packing:
    """For weight [O, C, k, k]."""
    return Packing(weight.shape[0], weight.shape[1], weight.shape[2], stride, pad, weight.element_size())


def event_conv(
    x: Tensor | EventFrames,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    pad: int,
    needed: Needed | None = None,
    sums: bool = False,
    dense_gradient: bool = False,
) -> Tensor:
    """F.conv2d(x, weight, bias, stride, pad) as [N, O, H', W'] in channels_last, exact to rounding.

    Args:
        x: maps [N, C, H, W] in the weight's precision, best in channels_last; or event lists, N = T*B.
        weight: [O, C, k, k], float32 or float64, on the CPU.
        needed: computes the gradient of x; None: at all positions.
        sums: a batch norm reads the output, and would add it up (`with_sums`), which may be done as it is written.
        dense_gradient: the weights' gradient does not follow what is not zero; for maps.
    """
    packing = packing_of(weight, stride, pad)
    if isinstance(x, EventFrames):
        maps, lists = None, list_events(x, packing.tile, weight.dtype)
    else:
        maps, lists = x, list_maps(x.contiguous(memory_format=torch.channels_last), packing.tile)
    found: list[NDArray[np.float64]] | None = [] if sums else None
    dense = dense_gradient and maps is not None
    y: Tensor = _EventConv.apply(maps, weight, bias, lists, packing, needed, found, dense)  # type: ignore[no-untyped-call]
    if found:
        start = np.zeros(packing.outputs) if bias is None else bias.detach().double().numpy()
        with_sums(y, start, found[0])
    return y


class _EventConv(torch.autograd.Function):
    """(x or None, weight [O, C, k, k], bias, lists of x, packing, needed, sums of y go here, dense) -> [N, O, H', W'].

    dense: the weights' gradient does not follow what is not zero.

    takes_norm: the gradient that comes back may be that of a batch norm of the output, if `norm_behind` says so.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        lists: Lists,
        packing: Packing,
        needed: Needed | None,
        found: list[NDArray[np.float64]] | None,
        dense: bool,
    ) -> Tensor:
        ctx.lists, ctx.packing, ctx.needed = None if dense else lists, packing, needed
        ctx.takes_norm, ctx.norm_behind = not (ctx.needs_input_grad[0] or dense), None
        ctx.shape, ctx.biased = torch.Size(lists.shape), bias is not None
        ctx.taps, ctx.alone = (packing.taps(lists, alone) if ctx.takes_norm else None for alone in (False, True))
        ctx.save_for_backward(weight, x if dense else None)
        frames, _, height, width = lists.shape
        shape = packing.out_shape(frames, height, width)
        out = buffers.empty(shape, weight.dtype, channels_last=True)
        start = np.zeros(packing.tiles * packing.tile, number_type(weight.dtype))
        if bias is not None:
            start[: packing.outputs] = bias.detach().numpy()
        if packing.pixels == 4 and packing.stride == 1 and event_spread.pays(lists, weight, packing.pad):
            event_spread.convolve(lists, weight, start, flat_maps(out), packing.pad, packing.tile)
            return out
        block = min(_BLOCK, -(-frames // _PIECES))
        flat, tasks = flat_maps(out), packing.tiles * -(-frames // max(block, 1))
        sums = np.zeros((tasks, 2, packing.pixels, packing.tile) if found is not None and packing.fills(shape) else 0)
        wide = shape[3] >= packing.pixels  # else windows would reach into the next row, which another thread may write
        past = packing.lies_in_vectors and wide and flat.nbytes >= PAST and flat.ctypes.data % BYTES == 0
        arrays = (packing.pack(weight), start, flat, sums.reshape(-1), past)
        _run(forward, lists, arrays, packing, shape, block)
        if found is not None and sums.size:
            of_tiles = sums.reshape(packing.tiles, -1, *sums.shape[1:]).sum((1, 3))
            found.append(of_tiles.transpose(1, 0, 2).reshape(2, -1)[:, : packing.outputs])
        return out

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, x = ctx.saved_tensors
        lists, packing, wanted = ctx.lists, ctx.packing, ctx.needs_input_grad[1:3]
        frames, _, height, width = ctx.shape
        grad_x = grad_weight = grad_bias = None
        norm, ctx.norm_behind = ctx.norm_behind, None
        products = None if ctx.alone is None else ctx.alone.taken()
        if products is not None or (norm is not None and norm.products is not None):  # and x needs no gradient
            found = packing.gradients_alone(products, weight) if norm is None else packing.gradients(norm, weight)
            return None, *(g if asked else None for g, asked in zip(found, wanted, strict=True)), *[None] * 5
        grad = grad.contiguous(memory_format=torch.channels_last)
        if lists is None:
            x = x.contiguous(memory_format=torch.channels_last)
            found = dense_weight_gradient(grad, x, weight, packing.stride, packing.pad, wanted, ctx.biased)
            grad_weight, grad_bias = found
        elif any(wanted):
            block = max(-(-frames // _PIECES), min(_PIECE, frames), 1)
            pieces = max(-(-frames // block), 1)
            sums = np.zeros((pieces, packing.tiles, packing.rows + 1, packing.tile), number_type(grad.dtype))
            shape = packing.out_shape(frames, height, width)
            arrays = (flat_maps(grad), *packing.norm(norm, grad), sums.reshape(-1))
            _run(weight_gradient, lists, arrays, packing, shape, block)
            grad_weight = packing.unpack(sums, weight)
            grad_bias = torch.from_numpy(sums[:, :, -1].sum(0).reshape(-1)[: packing.outputs].copy())
        if ctx.needs_input_grad[0]:
            compute = dense_input_gradient if ctx.needed is None else ctx.needed.input_gradient
            grad_x = compute(grad, weight, ctx.shape, packing.stride, packing.pad)
        return grad_x, grad_weight, grad_bias if ctx.needs_input_grad[2] else None, None, None, None, None, None


def _run(kernel: Any, lists: Lists, arrays: tuple[Any, ...], packing: Packing, shape: Any, block: int) -> None:
    """Run a kernel over blocks of frames and tiles of outputs, in threads."""
    frames, _, height, width = lists.shape
    _, outputs, out_height, out_width = shape
    given = (lists.first, lists.entries, lists.values, *arrays, packing.shape(height, width))
    output = (frames, out_height, out_width, outputs, packing.rows)
    if frames and out_height * out_width:
        tasks = -(-frames // block) * packing.tiles
        run_parallel(lambda start, stop: kernel(*given, output, block, start, stop), tasks, torch.get_num_threads())
