"""The Triton kernels: in Triton's interpreter, as compiled code without a GPU, and on a GPU where there is one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from engine_cases import cases, check, pairwise_options

from snnexp.neurons.equation import Dynamics
from snnexp.neurons.surrogates import Surrogate

pytest.importorskip("triton")


def interpret(*command: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a process of its own: TRITON_INTERPRET must be set before Triton is imported."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True)


def test_agrees_with_the_reference_in_the_interpreter():
    result = interpret(str(Path(__file__).with_name("engine_cases.py")), "triton")
    assert result.returncode == 0, result.stderr[-3000:]
    assert "cases agree" in result.stdout


def test_bfloat16_input_in_the_interpreter():
    code = """
import torch
from snnexp.config import NeuronConf
from snnexp.neurons.layer import SpikingLayer
x = (2 * torch.rand(6, 3, 70, generator=torch.Generator().manual_seed(0))).bfloat16()
grads = []
for engine in ("reference", "triton"):
    conf = NeuronConf(name="test", engine=engine, learn_threshold=True, threshold_per="neuron")
    layer = SpikingLayer(conf, (70,), "sn1")
    leaf = x.clone().requires_grad_()
    out = layer(leaf)
    assert layer.engine == engine and out.spk.dtype == torch.bfloat16 and out.mem.dtype == torch.float32
    out.spk.sum().backward()
    grads.append((out.spk, out.mem, leaf.grad, layer.raw_threshold.grad))
(s, m, g, t), (s2, m2, g2, t2) = grads
assert torch.equal(s, s2) and torch.equal(m, m2) and s.float().mean() > 0.1 and g2.dtype == torch.bfloat16
torch.testing.assert_close(g, g2, rtol=2e-2, atol=1e-3)
torch.testing.assert_close(t, t2, rtol=1e-2, atol=1e-2)
"""
    result = interpret("-c", code)
    assert result.returncode == 0, result.stderr[-3000:]


EVERYTHING = Dynamics(
    Surrogate("exponential"), "subtract_first", tau_form=True, detach_reset=False, fire_once=True,
    force_last_spike=True, relative_surrogate=True,
)  # fmt: skip
NAMES = ("beta", "threshold", "alpha")


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter does not compile")
@pytest.mark.parametrize(("io", "number"), [("fp32", "fp32"), ("bf16", "fp32"), ("fp64", "fp64")])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_compiles_for_cuda_without_a_gpu(direction: str, io: str, number: str):
    """Down to machine code for compute capability 9.0; what the interpreter forgives, the compiler does not."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from snnexp.neurons.engines.triton_source import backward_kernel, forward_kernel

    if direction == "forward":
        kernel = forward_kernel(EVERYTHING, NAMES, frozenset(NAMES))
    else:
        kernel = backward_kernel(EVERYTHING, NAMES, frozenset(NAMES), True, True)
    given = {"SURROGATE_A": 0.4, "SURROGATE_B": 0.25, "SPK_CONSTANT": False, "BLOCK": 64, "UNROLL": 4}
    given["DOUBLE"] = number == "fp64"
    signature, values = {}, {}
    for index, name in enumerate(kernel.arguments):
        if name.isupper():
            signature[name], values[(index,)] = "constexpr", given[name]
        elif name.endswith(("_rows", "_columns", "_values")):
            outside = name in ("x_rows", "spk_rows", "grad_spk_rows", "grad_x_rows")
            signature[name] = f"*{io if outside else number}"
        else:
            signature[name] = "i32"
    options = {"num_warps": 2, "enable_fp_fusion": False}
    source = ASTSource(kernel.function, signature, values)
    built = compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert len(built.asm["cubin"]) > 1000
    if number == "fp32":
        assert "fma." not in built.asm["ptx"]  # membranes keep the reference's bits
    if direction == "forward":
        body = built.asm["ptx"]
        assert body.count("ld.global") >= 4 + 3  # the input of UNROLL steps, and theta, beta, alpha


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_agrees_with_the_reference_on_a_gpu():
    from snnexp.neurons.engines.triton_engine import TritonBackend

    for case in cases(pairwise_options(0)):
        case.to("cuda")
        check(case, TritonBackend())
