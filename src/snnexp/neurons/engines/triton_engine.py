"""The Triton engine (CUDA): one kernel forward and one back over all time steps.

With TRITON_INTERPRET=1 set before the first import, the same kernels run on the CPU in Triton's interpreter: slow,
exact, and how they are tested where there is no GPU.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import triton
from torch import Tensor

from snnexp.neurons.engines.calls import BackwardCall, ForwardCall
from snnexp.neurons.engines.fused import run_fused
from snnexp.neurons.engines.recurrence import Backend
from snnexp.neurons.engines.triton_kernels import backward_kernel, forward_kernel
from snnexp.neurons.equation import Dynamics, State
from snnexp.neurons.names import RESETS

BLOCK = 64  # columns per program: small, since programs are few (batch x neurons / BLOCK) and each walks alone
UNROLL = 4  # steps whose loads are in flight together
WARPS = 2


def run(
    x: Tensor,
    alpha: Tensor | None,
    beta: Tensor,
    threshold: Tensor,
    dynamics: Dynamics,
    state: State | None,
    overwrite_input: bool = False,
    recurrent: Tensor | None = None,
) -> tuple[Tensor, Tensor, State]:
    """Run all time steps of x [T, B, *shape]; spikes in x's dtype, membranes and state in float32 (float64 for it)."""
    return run_fused(x, alpha, beta, threshold, dynamics, state, TritonBackend(), overwrite_input, recurrent)


class TritonBackend(Backend):
    """Launches the kernels of `triton_kernels`."""

    def forward(self, call: ForwardCall) -> None:
        d, steps, columns = call.dynamics, *call.x.shape
        alpha = _or(call.alpha, call.beta)
        with _device(call.x):
            forward_kernel[_grid(columns)](
                call.x, call.spk, call.mem, _or(call.stored, call.mem), call.threshold, call.beta, alpha,
                *(_or(t, call.kept) for t in (call.kept, call.removed, call.cur, call.fired, call.first)),
                call.time, call.last, steps, columns, call.threshold.numel(), call.beta.numel(), alpha.numel(),
                RESET=RESETS.index(d.reset) if d.spiking else 0,
                STRICT=d.strict,
                TAU_FORM=d.tau_form,
                FIRE_ONCE=d.fire_once,
                FORCE_LAST=d.force_last_spike,
                RELATIVE=d.relative_surrogate,
                SPIKING=d.spiking,
                HAS_CURRENT=call.alpha is not None,
                STORE_CURRENT=call.stored is not None,
                **_launch(call.mem),
            )  # fmt: skip

    def backward(self, call: BackwardCall) -> None:
        d, steps, columns = call.dynamics, *call.mem.shape
        reset = RESETS.index(d.reset) if d.spiking else 0
        a, b = d.surrogate.constants if d.spiking else (0.0, 0.0)
        alpha = _or(call.alpha, call.beta)
        outs = (call.grad_cur, call.to_cur, call.grad_threshold, call.grad_beta, call.grad_alpha)
        with _device(call.mem):
            backward_kernel[_grid(columns)](
                call.mem, *(_or(t, call.mem) for t in (call.stored, call.grad_spk, call.grad_mem)), call.grad_x,
                call.threshold, call.beta, alpha, _or(call.first, call.grad_u), call.grad_u,
                *(_or(t, call.grad_u) for t in outs),
                call.time, steps, columns, call.threshold.numel(), call.beta.numel(), alpha.numel(),
                RESET=0 if d.ignore_reset_in_backward else reset,
                KEPT_RESET=reset,
                STRICT=d.strict,
                TAU_FORM=d.tau_form,
                DETACH=d.detach_reset,
                FIRE_ONCE=d.fire_once,
                RELATIVE=d.relative_surrogate,
                SPIKING=d.spiking,
                SURROGATE=d.surrogate.code if d.spiking else 0,
                A=a,  # constants, since a Python float argument would be rounded to float32
                B=b,
                HAS_CURRENT=call.alpha is not None,
                SPK_CONSTANT=call.grad_spk is not None and call.grad_spk.shape[0] < steps,
                HAS_GRAD_SPK=call.grad_spk is not None,
                HAS_GRAD_MEM=call.grad_mem is not None,
                WANTS_THRESHOLD=call.grad_threshold is not None,
                WANTS_BETA=call.grad_beta is not None,
                WANTS_ALPHA=call.grad_alpha is not None,
                **_launch(call.mem),
            )  # fmt: skip


def _or(tensor: Tensor | None, stand_in: Tensor) -> Tensor:
    return stand_in if tensor is None else tensor


def _grid(columns: int) -> tuple[int]:
    return (triton.cdiv(columns, BLOCK),)


def _device(tensor: Tensor) -> Any:
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def _launch(like: Tensor) -> dict[str, Any]:
    """Multiplications and additions are not fused, so that membranes have the reference's bits."""
    double = like.dtype == torch.float64
    return {"DOUBLE": double, "BLOCK": BLOCK, "UNROLL": UNROLL, "num_warps": WARPS, "enable_fp_fusion": False}
