"""The Triton engine (CUDA): one kernel forward and one back over all time steps.

With TRITON_INTERPRET=1 set before the first import, the same kernels run on the CPU in Triton's interpreter: slow,
exact, and how they are tested where there is no GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
import triton
from torch import Tensor

from snnexp.neurons.compiler.plan import SCALARS
from snnexp.neurons.engines.calls import BackwardCall, ForwardCall
from snnexp.neurons.engines.recurrence import Backend
from snnexp.neurons.engines.triton_source import Kernel, backward_kernel, forward_kernel
from snnexp.waiting import compiling

BLOCK = 64  # columns per program: small, since programs are few (batch x neurons / BLOCK) and each walks alone
UNROLL = 4  # steps whose loads are in flight together
WARPS = 2


class TritonBackend(Backend):
    """Launches generated kernels."""

    def forward(self, call: ForwardCall) -> None:
        kernel = forward_kernel(call.dynamics, call.names, call.wants)
        rows = {"x": call.x, "spk": call.spk, "mem": call.mem, "noise": call.noise, **call.stored}
        _launch(kernel, call, rows | {"x": call.x}, call.x.shape[0])

    def backward(self, call: BackwardCall) -> None:
        has = call.grad_spk is not None, call.grad_mem is not None
        kernel = backward_kernel(call.dynamics, call.names, call.wants, *has)
        rows = {"mem": call.mem, **call.stored, "grad_spk": call.grad_spk, "grad_mem": call.grad_mem}
        _launch(kernel, call, rows | {"grad_x": call.grad_x}, call.mem.shape[0])


def _launch(kernel: Kernel, call: ForwardCall | BackwardCall, rows: dict[str, Any], steps: int) -> None:
    """Multiplications and additions are not fused, so that membranes have the reference's bits."""
    columns = call.mem.shape[1]
    named: dict[str, Any] = {f"{name}_rows": row for name, row in rows.items()}
    named |= {f"{name}_values": value for name, value in call.values.items()}
    named |= {f"{name}_columns": column for name, column in call.columns.items()}
    named |= {f"{name}_period": value.numel() for name, value in call.values.items()}
    named |= {"time": call.time, "end": call.last, "steps": steps, "columns": columns}
    named |= {"DOUBLE": call.mem.dtype == torch.float64, "BLOCK": BLOCK, "UNROLL": UNROLL}
    if call.dynamics.spiking:  # constants, since a Python float argument would be rounded to float32
        named |= {n.upper(): v for n, v in zip(SCALARS, call.dynamics.surrogate.constants, strict=False)}
    grad_spk = rows.get("grad_spk")
    named["SPK_CONSTANT"] = grad_spk is not None and grad_spk.shape[0] < steps
    arguments = {name: named[name] for name in kernel.arguments}
    with _device(call.mem), _first_of_its_kind(kernel, arguments):
        kernel.function[(triton.cdiv(columns, BLOCK),)](**arguments, num_warps=WARPS, enable_fp_fusion=False)


_launched: set[Any] = set()


def _first_of_its_kind(kernel: Kernel, arguments: Mapping[str, Any]) -> Any:
    """Triton compiles at a launch with types or sizes that it has not seen: that takes seconds, and is to be said."""
    values = (value.dtype if isinstance(value, Tensor) else value for value in arguments.values())
    key = (kernel.source, *values)
    if key in _launched:
        return nullcontext()
    _launched.add(key)
    return compiling()


def _device(tensor: Tensor) -> Any:
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
