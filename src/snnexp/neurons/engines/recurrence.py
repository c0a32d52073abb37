"""What a fused engine brings, and its recurrent layers: a step also gets the last step's weighted spikes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from snnexp.neurons.engines.calls import BackwardCall, ForwardCall, InputNorm, PoolGrid


def some_steps(call: ForwardCall | BackwardCall, steps: slice, names: tuple[str, ...]) -> dict[str, Any]:
    """Some steps of those of the call's tensors that have all steps."""

    def cut(rows: Any) -> Any:
        if isinstance(rows, dict):
            return {name: row[steps] for name, row in rows.items()}
        return None if rows is None else rows[steps]

    return {name: cut(getattr(call, name)) for name in names}


class Backend(ABC):
    """The two kernels of an engine, and recurrent layers with them: one pass per time step, a product between them."""

    makes_columns = False  # of its own, where nobody asks for their end: `local` of a call

    @abstractmethod
    def forward(self, call: ForwardCall) -> None:
        """Run all steps of the call."""

    @abstractmethod
    def backward(self, call: BackwardCall) -> None:
        """Run all steps of the call, from the last to the first."""

    def works_out_again(self, x: Tensor, pool: PoolGrid | None, norm: InputNorm, stored: int) -> bool:
        """Whether backward can do without the membranes of x [T, M] and `stored` more rows, which it has to read.

        It then works them out of x again.
        """
        return False

    def forward_recurrent(self, call: ForwardCall, weight: Tensor, spk0: Tensor | None) -> None:
        """Run all steps, each with the weighted spikes of the step before added to its input."""
        self.forward_steps(call, weight, spk0, range(call.x.shape[0]))

    def forward_steps(self, call: ForwardCall, weight: Tensor, spk0: Tensor | None, steps: range) -> None:
        """Run some of the steps; the spikes before the first of them are there already."""
        size = weight.shape[0]
        keeps_input = "x" in call.stored
        before = spk0 if steps.start == 0 else call.spk[steps.start - 1].view(-1, size)
        for t in steps:
            row = some_steps(call, slice(t, t + 1), ("spk", "mem", "stored", "noise"))
            drive = row["stored"]["x"] if keeps_input else row["mem"]
            target = drive.view(-1, size)
            if before is None:
                target.copy_(call.x[t].view(-1, size))
            else:
                torch.addmm(call.x[t].view(-1, size), before, weight.t(), out=target)
            self.forward(replace(call, x=drive, **row, in_place=not keeps_input, time=t))
            before = call.spk[t].view(-1, size)

    def stepper(self, call: BackwardCall) -> Callable[[int], None]:
        """Return what runs step t of the call backward; its grad_spk [1, M] holds that step's gradient by then."""

        def step(t: int) -> None:
            row = some_steps(call, slice(t, t + 1), ("mem", "stored", "grad_mem", "grad_x"))
            self.backward(replace(call, **row, time=t))

        return step


def backward_recurrent(
    backend: Backend, call: BackwardCall, weight: Tensor, spk: Tensor, spk0: Tensor | None, wants_weight: bool
) -> tuple[Tensor | None, Tensor]:
    """One pass per step, back; returns the gradients of the weights and of the spikes before the first step."""
    steps, size = call.mem.shape[0], weight.shape[0]
    grad_x = call.grad_x.view(steps, -1, size)
    back = torch.zeros_like(grad_x[0])
    outside = [None] * steps if call.grad_spk is None else [g.view(-1, size) for g in call.grad_spk.unbind(0)]
    step = backend.stepper(replace(call, grad_spk=back.view(1, -1)))
    for t in reversed(range(steps)):
        given = outside[t]
        if given is not None:
            back.add_(given)
        step(t)
        torch.mm(grad_x[t], weight, out=back)
    grad_weight = None
    if wants_weight:
        grad_weight = grad_x[1:].flatten(0, 1).t() @ spk[:-1].reshape(-1, size)
        if spk0 is not None:
            grad_weight += grad_x[0].t() @ spk0
    return grad_weight, back
