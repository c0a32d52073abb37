"""Training does without torch's compiler until somebody asks for it, and then it is the real one."""

from __future__ import annotations

import subprocess
import sys

import pytest

TRAIN = """
import sys
import torch
from snnexp.config import OptimizerConf
from snnexp import without_compiler
from snnexp.training.optimisation import build_optimizer, load_optimizer

without_compiler.put_off()

def steps(optimizer, parameter):
    for _ in range(2):
        optimizer.zero_grad()
        parameter.square().sum().backward()
        optimizer.step()
    return parameter.detach().clone()

weights = [torch.nn.Parameter(torch.arange(3.0)) for _ in range(2)]
made = [build_optimizer(OptimizerConf(name="adam", lr=0.1), {"weights": [w]}) for w in weights]
before = steps(made[0], weights[0])
load_optimizer(made[0], made[0].state_dict())
assert not [name for name in sys.modules if name.startswith(("torch._dynamo.", "sympy"))]
assert not hasattr(sys.modules["torch._dynamo"], "__warningregistry__")
"""
ASKED = {
    "a part of it": "from torch._dynamo import config; import torch._dynamo.utils",
    "what to leave alone": """
@torch.compiler.disable()
def one(x): return x + 1
@torch.compiler.disable
def two(x): return x + 1
@torch._dynamo.disable(recursive=True)
def three(x): return x + 1
import torch._dynamo.testing
for f in (one, two, three, made[0].zero_grad):
    counter = torch._dynamo.testing.CompileCounter()
    given = () if f is made[0].zero_grad.__self__ or f == made[0].zero_grad else (torch.ones(2),)
    torch.compile(lambda: f(*given), backend=counter)()
    assert counter.frame_count == 0, f
""",
    "to compile": "assert torch.equal(torch.compile(torch.sin, backend='eager')(weights[0]), weights[0].sin())",
}


@pytest.mark.parametrize("asked", ASKED)
def test_the_compiler_comes_when_it_is_asked_for(asked: str) -> None:
    after = (
        f"{ASKED[asked]}\nassert sys.modules['torch._dynamo'].__file__\n"
        "assert torch._dynamo is sys.modules['torch._dynamo']\nassert torch.equal(steps(made[1], weights[1]), before)"
    )
    done = subprocess.run([sys.executable, "-c", TRAIN + after], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
