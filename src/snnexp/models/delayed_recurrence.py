"""Recurrent layers whose spikes come back with delays: one step after the other, on any device.

    I[t] = x[t] + V sum_l k[l] S[t - 1 - l]        l = 0 to max; delay 0 is the recurrence of an RFC without DL

The fused engines have no kernel for it; the neurons' own step does the work, as in the reference engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from snnexp.models.delays import Delay
from snnexp.models.flow import Flow
from snnexp.models.spec import LayerPlan
from snnexp.models.weights import RecurrentLinear
from snnexp.neurons.engines import LayerRun, spikes_over_time
from snnexp.neurons.equation import State
from snnexp.neurons.layer import SpikingLayer

REASON = "no fused engine has a kernel for a recurrence with delays"


def layers_with_delays(layers: Sequence[LayerPlan]) -> list[str]:
    """The spiking layers whose recurrence has delays, by name."""
    delayed = (layer.position for layer in layers if layer.kind == "recurrent" and "max" in layer.args)
    return [layers[position + 1].name for position in delayed]


def run_with_delays(
    neuron: SpikingLayer, weights: RecurrentLinear, name: str, current: Tensor, flow: Flow, counts: bool
) -> LayerRun:
    """Run `neuron`, whose spikes come back through `weights`, the layer `name`; current [T, B, N].

    The price of what comes back, if there is one, is without gradient: interpolated spikes are no 0 and 1.
    """
    assert weights.delay is not None
    neuron.engine, neuron.engine_reason = "reference", REASON
    memory, matrix = flow.memory, weights.recurrent.weight
    before = memory.neurons.get(neuron.name), memory.traces.get(name)
    spk, mem, state, past, came = run_delayed_recurrence(neuron, current, matrix, weights.delay, *before, flow.last)
    neuron.follow(spk, mem)
    if not flow.last:
        memory.remember(neuron.name, state)
        memory.traces[name] = past
    if flow.observer:
        flow.observer.connection(f"{name}.recurrent", weights.recurrent, came.flatten(0, 1), 1)
    if flow.sums is not None:
        flow.sums.spent(f"{name}.recurrent", came.flatten(0, 1))
    return LayerRun(spk, mem, spikes_over_time(spk, neuron.dynamics.high_spikes) if counts else None)


def run_delayed_recurrence(
    neuron: SpikingLayer,
    x: Tensor,
    weight: Tensor,
    delay: Delay,
    state: State | None,
    past: Tensor | None,
    last: bool,
) -> tuple[Tensor, Tensor, State, Tensor, Tensor]:
    """Run neurons whose own spikes come back delayed: I[t] = x[t] + V sum_l k[l] S[t - 1 - l].

    Args:
        x: input current [T, B, N]; half precision is computed in float32.
        weight: V [N, N].
        state, past: where the steps before x left the neurons, and their last `most` + 1 spikes [most + 1, B, N].
        last: x ends where the sample ends.
    Returns: spikes [T, B, N] in x's dtype, membranes, the last state and spikes, and what came back [T, B, N].
    """
    with torch.autocast(x.device.type, enabled=False):
        exact = x if x.dtype in (torch.float32, torch.float64) else x.float()
        if state is None:
            state = neuron.init_state(x.shape[1], x.device, exact.dtype)
        backwards, columns = delay.kernel(exact.dtype).flip(0), weight.to(exact.dtype).t()
        size, steps = backwards.shape[0], exact.shape[0]
        spikes = [] if past is None else list(past.unbind(0))
        record = exact.new_zeros(size + steps, *exact.shape[1:])  # S[t] is at size + t
        if past is not None:
            record[:size] = past.detach()
        mems, came = [], []
        for t, current in enumerate(exact.unbind(0)):
            before = spikes[-size:]
            back: Tensor = _Arriving.apply(backwards, record[t : t + size], *before)  # type: ignore[no-untyped-call]
            current = torch.addmm(current, back, columns)
            spk, mem, state = neuron.single_step(current, state, last and t == steps - 1)
            record[size + t] = spk.detach()
            spikes.append(spk)
            mems.append(mem)
            came.append(back.detach())
        if len(spikes) < size:
            spikes = [torch.zeros_like(spikes[0])] * (size - len(spikes)) + spikes
        spk = torch.stack(spikes[-steps:]).to(x.dtype)
        return spk, torch.stack(mems), state, torch.stack(spikes[-size:]), torch.stack(came)


class _Arriving(torch.autograd.Function):
    """(k backwards [L, N], the last L spikes [L, B, N], those of them that are in the graph) -> their sum [B, N]."""

    @staticmethod
    def forward(ctx: Any, backwards: Tensor, window: Tensor, *spikes: Tensor) -> Tensor:
        ctx.save_for_backward(backwards)
        ctx.window, ctx.count = window, len(spikes)  # a part of the record that is never written again
        return (window * backwards.unsqueeze(1)).sum(0)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (backwards,) = ctx.saved_tensors
        grad_kernel = (ctx.window * grad).sum(1) if ctx.needs_input_grad[0] else None
        if ctx.count == 0:
            return grad_kernel, None
        return (grad_kernel, None, *(backwards[-ctx.count :].unsqueeze(1) * grad).unbind(0))
