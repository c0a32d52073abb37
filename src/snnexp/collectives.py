"""Sums, rows and words that the processes of a run put together; see `ranks.py`. Nothing here in a single process.

A batch's rows are shared out; the output of the network is gathered, so that every process computes the loss of the
whole batch, whatever loss it is. Its gradient by a process's own rows is what goes backwards there, and the sum over
the processes of the parameters' gradients is the gradient of the whole batch: no term has to be weighted. What looks
at several samples within the network (batch norm, moderate dropout, means over the batch) is joined where it is
computed. Random numbers are drawn for the whole batch in every process, and each takes its rows of them.

All processes come here in the same order, whatever their rows are and whatever the time is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from snnexp import ranks
from snnexp.ranks import Rows

Value = TypeVar("Value")

_rows: Rows | None = None  # of the batch under way


def set_rows(rows: Rows | None) -> None:
    """From here on, until the next call, the network sees these rows of a batch."""
    global _rows
    _rows = rows


def rows() -> Rows | None:
    """The rows of the batch under way that this process has; None: all of them, there is nothing to join."""
    return _rows if ranks.several() else None


def absent() -> bool:
    """Whether what the network sees is a stand-in that nobody may count."""
    mine = rows()
    return mine is not None and mine.absent


# --- plain --------------------------------------------------------------------------------------------------------


def add_up(values: Tensor) -> Tensor:
    """The sum over all processes, in place; the same bits in all of them."""
    if ranks.several():
        ranks.joined(lambda: dist.all_reduce(values))
    return values


def largest(values: Tensor) -> Tensor:
    """The largest of all processes, in place."""
    if ranks.several():
        ranks.joined(lambda: dist.all_reduce(values, op=dist.ReduceOp.MAX))
    return values


def all_of(values: Tensor) -> Tensor:
    """The tensors of all processes, which have one shape: [processes, *shape]."""
    out = values.new_empty((ranks.size(), *values.shape))
    ranks.joined(lambda: dist.all_gather(list(out.unbind(0)), values.contiguous()))
    return out


def numbers_of_first(*values: float) -> tuple[float, ...]:
    """The first process's numbers: processors of several kinds may differ in the last bits, and decisions must not."""
    if not ranks.several():
        return values
    box = torch.tensor(values, dtype=torch.float64)
    ranks.joined(lambda: dist.broadcast(box, src=0))
    return tuple(box.tolist())


def words_of_all(value: Value) -> list[Value]:
    """What every process has, in their order."""
    if not ranks.several():
        return [value]
    box: list[Any] = [None] * ranks.size()
    ranks.joined(lambda: dist.all_gather_object(box, value))
    return box


def in_any(told: bool) -> bool:
    """Whether any process says so."""
    return bool(add_up(torch.tensor(int(told))))


@torch.no_grad()
def same_everywhere(module: nn.Module) -> None:
    """Give all processes the first one's parameters and buffers: they are the same, unless processors differ."""
    if not ranks.several():
        return
    kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.numel():
            kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    for tensors in kinds.values():
        flat = torch.cat([t.detach().reshape(-1) for t in tensors])
        ranks.joined(lambda flat=flat: dist.broadcast(flat, src=0))  # type: ignore[misc]
        for tensor, part in zip(tensors, torch.split(flat, [t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view(tensor.shape))


@torch.no_grad()
def add_up_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """The sum of all processes' gradients, in one message for each precision.

    A parameter without a gradient anywhere keeps none; the flags behind the gradients tell.
    """
    if not ranks.several():
        return
    kinds: dict[tuple[torch.dtype, torch.device], list[nn.Parameter]] = {}
    for parameter in parameters:
        if parameter.requires_grad:
            kinds.setdefault((parameter.dtype, parameter.device), []).append(parameter)
    for (dtype, device), members in kinds.items():
        there = torch.tensor([p.grad is not None for p in members], dtype=dtype, device=device)
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in members]
        flat = add_up(torch.cat([*(part.reshape(-1) for part in parts), there]))
        *sums, there = torch.split(flat, [*(p.numel() for p in members), len(members)])
        for parameter, part, summed, has in zip(members, parts, sums, there.tolist(), strict=True):
            if has:
                parameter.grad = part.copy_(summed.view(part.shape))


# --- rows ---------------------------------------------------------------------------------------------------------


def for_the_whole_batch(like: Tensor, mine: Rows, dim: int) -> Tensor:
    """Room for the whole batch's rows along `dim`, in the order of memory that `like` has."""
    strides = like.stride()
    inner = sorted(range(dim + 1, like.dim()), key=lambda d: -strides[d])
    order = [*range(dim + 1), *inner]
    shape = [mine.total if d == dim else like.shape[d] for d in order]
    back = [order.index(d) for d in range(like.dim())]
    return torch.empty(shape, dtype=like.dtype, device=like.device).permute(back)


def drawn(draw: Callable[[Tensor], Tensor], like: Tensor, dim: int) -> Tensor:
    """`draw(x)` for x like `like`, whose samples lie along `dim`: this process's rows of the whole batch's numbers."""
    mine = rows()
    if mine is None:
        return draw(like)
    full = draw(for_the_whole_batch(like, mine, dim).fill_(1))
    return full[(slice(None),) * dim + (mine.part,)]


def samples(own: int) -> int:
    """Samples in the whole batch under way, of which this process has `own`."""
    mine = rows()
    return own if mine is None else mine.total


def total_of_rows(values: Tensor) -> Tensor:
    """The sum over all processes of what was summed over their rows of the batch under way; without a gradient."""
    mine = rows()
    if mine is None:
        return values
    return add_up(torch.zeros_like(values) if mine.absent else values.detach().clone())


def padded(x: Tensor, mine: Rows) -> Tensor:
    """Rows [b, ...] in their places in the whole batch [B, ...], zeros elsewhere."""
    full = x.new_zeros((mine.total, *x.shape[1:]))
    if not mine.absent:
        full[mine.part] = x
    return full


def gathered_rows(x: Tensor, mine: Rows) -> Tensor:
    """The rows [b, ...] of all processes, [B, ...]."""
    most = max(mine.counts)
    room = x.new_zeros((most, *x.shape[1:]))
    if not mine.absent:
        room[: len(x)] = x
    everything = all_of(room).flatten(0, 1)
    if min(mine.counts) == most:
        return everything
    kept = [rank * most + row for rank, count in enumerate(mine.counts) for row in range(count)]
    return everything[torch.tensor(kept, device=x.device)]


# --- with gradients -----------------------------------------------------------------------------------------------


def whole(parts: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Outputs [T, b, K] of this process's rows -> those of the whole batch, [T, B, K]; one message for all of them.

    What follows is computed alike in every process: the gradient by the own rows needs no other process.
    """
    mine = rows()
    if mine is None:
        return tuple(parts)
    distinct = list({id(part): part for part in parts}.values())
    results = dict(zip(map(id, distinct), _Whole.apply(mine, *distinct), strict=True))  # type: ignore[no-untyped-call]
    return tuple(results[id(part)] for part in parts)


class _Whole(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mine: Rows, *parts: Tensor) -> tuple[Tensor, ...]:
        ctx.mine, ctx.kinds = mine, [(part.shape, part.dtype) for part in parts]
        dtype = torch.float64 if any(part.dtype == torch.float64 for part in parts) else torch.float32
        together = torch.cat([part.to(dtype) for part in parts], -1).transpose(0, 1)
        full = gathered_rows(together, mine).transpose(0, 1)
        widths = [part.shape[-1] for part in parts]
        return tuple(p.to(q.dtype).contiguous() for p, q in zip(torch.split(full, widths, -1), parts, strict=True))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.mine.absent:
            return (None, *(torch.zeros(s, dtype=t, device=grads[0].device) for s, t in ctx.kinds))
        return (None, *(grad[:, ctx.mine.part].contiguous() for grad in grads))


def summed(x: Tensor) -> Tensor:
    """The sum over all processes, from which every one of them computes the same; the gradient is the own part's."""
    mine = rows()
    if mine is None:
        return x
    return cast(Tensor, _Summed.apply(x * 0 if mine.absent else x))  # type: ignore[no-untyped-call]


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return add_up(x.clone())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


def mean_over_samples(x: Tensor) -> Tensor:
    """The mean over the whole batch's samples of what `x`, a scalar, is the mean of over this process's."""
    mine = rows()
    return x if mine is None else summed(x * ((mine.stop - mine.start) / mine.total))


def seen_by_all(x: Tensor) -> Tensor:
    """Rows [b, ...] -> those of the whole batch [B, ...], from which each process computes something of its own.

    The gradient comes from all of them.
    """
    mine = rows()
    return x if mine is None else cast(Tensor, _Seen.apply(mine, x))  # type: ignore[no-untyped-call]


class _Seen(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mine: Rows, x: Tensor) -> Tensor:
        ctx.mine = mine
        full = for_the_whole_batch(x, mine, 0)
        return full.copy_(gathered_rows(x.contiguous(), mine))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        total = add_up(grads[0].contiguous().clone())
        mine: Rows = ctx.mine
        return None, torch.zeros_like(total[:1]) if mine.absent else total[mine.part]
