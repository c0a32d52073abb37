"""The compiler of neuron equations: operations and their gradients against torch, what a kernel holds, its files."""

import ast
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from snnexp.neurons.compiler import source
from snnexp.neurons.compiler.gradient import gradients, summed
from snnexp.neurons.compiler.plan import backward_plan, forward_plan
from snnexp.neurons.compiler.symbols import evaluate, leaf, make, value_of
from snnexp.neurons.custom import Equation, Param, kernels_own
from snnexp.neurons.engines import numba_source
from snnexp.neurons.engines.numba_source import CALLS, BackwardUse, ForwardUse, backward_kernel, forward_kernel
from snnexp.neurons.equation import Dynamics
from snnexp.neurons.surrogates import Surrogate, with_value

PLAIN = Dynamics(Surrogate("atan"))
NAMES = ("beta", "threshold")
X, Y = leaf("value", "x"), leaf("value", "y")

FUNCTIONS = [
    lambda x, y: x * y + x / y - 2 * y + 1 / x,
    lambda x, y: -(x - y) * (x - 1) ** 3,
    lambda x, y: torch.exp(-x * y) + abs(x),
    lambda x, y: torch.maximum(x, y) * 3 + torch.minimum(x, y * y),
    lambda x, y: torch.where(x >= y, x * x, y),
    lambda x, y: torch.clamp(x, min=-0.5, max=0.5) * y + torch.clamp(y, max=0.25),
    lambda x, y: torch.sigmoid(x) * torch.tanh(y) + torch.relu(x) + torch.square(y),
    lambda x, y: x.detach() * y + with_value(x * y, gradient_of=x),
    lambda x, y: (x > y) * x + (x <= 0.5) * y,
]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_values_and_gradients_are_torchs(function):
    x, y = (torch.rand(50, generator=torch.Generator().manual_seed(i), dtype=torch.float64) * 3 - 1 for i in (0, 1))
    y[:10] = x[:10]  # ties
    given = {"x": x.requires_grad_(), "y": y.requires_grad_(), "g": torch.linspace(-1, 1, 50, dtype=torch.float64)}
    expected = function(given["x"], given["y"])
    wanted = torch.autograd.grad(expected, [x, y], given["g"], allow_unused=True)
    symbol = function(X, Y)
    found = gradients([(symbol, leaf("row", "g"))], [X, Y], lambda d: d)
    with torch.no_grad():
        torch.testing.assert_close(evaluate(value_of(symbol, {}), lambda s: given[s.name]), expected)
        for leaf_, gradient in zip((X, Y), wanted, strict=True):
            parts = found.get(leaf_)
            assert (parts is None) == (gradient is None or not gradient.any())
            if parts is not None:
                torch.testing.assert_close(evaluate(summed(parts), lambda s: given[s.name]), gradient)


def test_what_does_nothing_vanishes_and_equal_things_are_one():
    assert X * 1 is X and X + 0 is X and 0 - (-X) is X and (X * 0) is leaf("const", 0.0)
    assert 2 * (X + Y) is 2 * (X + Y) and make("mul", 2, 3) is leaf("const", 6.0)
    assert X - (-Y) is X + Y and (-X) * Y is -(X * Y)
    fires = make("select", X >= 0, 1.0, 0.0)
    assert 1 - fires is make("select", X >= 0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: 1.0 if X > 0 else 0.0, "use torch.where"),
        (lambda: torch.sin(X), "torch.sin cannot be compiled; there are torch.exp"),
        (lambda: X**0.5, "whole number"),
        (lambda: X + torch.ones(3), "not with Tensor"),
        (lambda: X.clamp(0, 1), "cannot be compiled with .clamp"),
        (lambda: torch.where(X, X, Y), "needs a comparison"),
    ],
)
def test_what_cannot_be_compiled_says_so(wrong, words):
    with pytest.raises((TypeError, AttributeError), match=words):
        wrong()


@pytest.mark.parametrize(
    ("options", "names", "wants", "stored", "columns"),
    [
        ({}, NAMES, NAMES, (), {"kept"}),  # U' alone goes on
        ({"reset": "subtract"}, NAMES, NAMES, (), {"last_mem", "last_spk"}),
        ({"tau_form": True}, NAMES, ("beta",), ("x",), {"kept"}),
        ({"tau_form": True}, (*NAMES, "alpha"), ("beta",), ("cur",), {"kept", "cur"}),
        ({}, (*NAMES, "alpha"), ("alpha",), ("cur",), {"kept", "cur"}),
        ({}, (*NAMES, "alpha"), ("threshold",), (), {"kept", "cur"}),
        ({"fire_once": True}, NAMES, (), (), {"kept", "fired", "first_fired"}),
        ({"spiking": False}, NAMES, (), (), {"last_mem"}),
    ],
)
def test_forward_carries_and_stores_no_more_than_it_must(options, names, wants, stored, columns):
    plan = forward_plan(replace(PLAIN, **options), names, frozenset(wants))
    assert plan.stored == stored and set(plan.body.columns) == columns


def test_backward_carries_one_number_for_plain_neurons():
    plan = backward_plan(PLAIN, NAMES, frozenset(NAMES), True, False)
    assert plan.carried == ("later",) and plan.body.reads("row") == ("mem", "grad_spk")


def test_a_kernel_holds_only_what_its_options_need():
    forward = forward_kernel(PLAIN, NAMES, frozenset(), ForwardUse(in_place=True)).source
    assert "mem = kept + x" in forward and "kept_column[j] = beta * (mem * " in forward
    for word in ("fired", "alpha", "cur", "pool(", "push(", "counts", "now", "mem_rows"):
        assert word not in forward.split("def forward")[1], word
    backward = backward_kernel(PLAIN, NAMES, frozenset(["threshold"]), BackwardUse()).source
    assert "grad_threshold_column[j] = grad_threshold - " in backward and "grad_beta" not in backward
    assert backward_kernel(replace(PLAIN, surrogate=Surrogate("atan", alpha=3.0)), NAMES, frozenset(["threshold"]),
                           BackwardUse()).source == backward  # fmt: skip  # its numbers are arguments


def test_frames_keep_their_names_to_themselves():
    lines = source.body_lines({"out": leaf("value", "row") + leaf("value", "c") * 3}, {}, CALLS, repr)
    assert lines == ["out = row_ + c_ * 3.0"]


def strange(x, mem, spk, qq, *, spike, pp=Param(0.5, learn=True), threshold):  # noqa: B008
    qq = pp * qq + torch.exp(-pp) * mem
    mem = mem * (1 - spk) + x - qq
    return mem, spike(mem - threshold), qq


STRANGE = Equation("strange", strange, ("mem", "spk", "qq"), ("pp", "threshold"), (("pp", Param(0.5)),), True)
FRAMED = [
    (replace(PLAIN, equation=STRANGE), ("pp", "threshold", "derived0")),
    (replace(PLAIN, noisy=True, force_last_spike=True, fire_once=True), (*NAMES, "alpha")),
    (replace(PLAIN, relative_surrogate=True), NAMES),
]
OURS = {"mem", "spk", "qq", "pp", "cur", "fired", *NAMES, "alpha"}  # states and values of these


def numba_kernels():
    """Of every frame that there is."""
    for (dynamics, names), wants in product(FRAMED, (True, False)):
        wanted, single = frozenset(n for n in names if wants), () if wants else names
        for pool, norm, counting, needed in product(("", "max"), (False, True), (False, True), (False, True)):
            use = ForwardUse(not norm, counting, pool, needed=needed, norm=norm, single=single)
            use = use._replace(unseen=norm and not use.near(dynamics))
            yield forward_kernel(dynamics, names, wanted, use, False)
        yield forward_kernel(
            dynamics, names, wanted, ForwardUse(recurrent=True, store_input=True, counting=True), False
        )
        for pool, again, taps in product(("", "max"), (False, not dynamics.fire_once), (False, True)):
            plan = backward_plan(dynamics, names, wanted, True, True)
            local = tuple(c for c in plan.body.columns if c.removeprefix("grad_") not in wanted)
            use = BackwardUse(not again, pool, True, True, again, taps and pool != "", local, single)
            yield backward_kernel(dynamics, names, wanted, use, False)


def triton_kernels():
    triton_source = pytest.importorskip("snnexp.neurons.engines.triton_source")
    pytest.importorskip("triton")
    for dynamics, names in FRAMED:
        yield triton_source.forward_kernel(dynamics, names, frozenset(names), False)
        yield triton_source.backward_kernel(dynamics, names, frozenset(names), True, True, False)


@pytest.mark.parametrize("kernels", [numba_kernels, triton_kernels])
def test_no_name_of_an_equation_is_a_frames_as_well(kernels):
    """A state or value that is called as any variable of a kernel is called otherwise there, or refused."""
    found = set()
    for kernel in kernels():
        for function in (f for f in ast.parse(kernel.source).body if getattr(f, "name", "") in ("forward", "backward")):
            found |= {n.id for n in ast.walk(function) if isinstance(n, ast.Name)}
            found |= {n.arg for n in ast.walk(function) if isinstance(n, ast.arg)}
    taken = {n for n in found - OURS if not kernels_own(n) and source.local(leaf("value", n)) == n}
    assert not taken  # belong into source.RESERVED
    parts = [name.rpartition("_") for name in found]
    begins = {begin for begin, _, end in parts if begin and end in (*source.OF_STATES, *source.OF_VALUES)}
    assert {"mem", "pp"} <= begins
    assert not {begin for begin in begins - OURS if not kernels_own(begin)}  # belong into custom.ARRAYS_OWN
    assert source.local(leaf("value", "row_")) == "row__"  # beside a `row`


def test_several_processes_write_one_module_at_once(tmp_path):
    text = (
        f"from pathlib import Path; import snnexp.neurons.compiler.source as s\n"
        f"s._folders = lambda: [Path({str(tmp_path)!r})]\n"
        "print(s.load('x = 42').x, s.load('x = 42').__file__)"
    )

    def run(_: int) -> str:
        return subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True).stdout

    with ThreadPoolExecutor(2) as pool:
        results = set(pool.map(run, range(2)))
    (file,) = tmp_path.glob("*.py")
    assert results == {f"42 {file}\n"} and file.stat().st_mtime == 1e9
    assert not list(tmp_path.glob("*.part"))


def test_without_a_folder_kernels_live_in_memory(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setattr(source, "_folders", lambda: [blocked / "no", tmp_path / "yes"])
    assert os.fspath(tmp_path / "yes") in source.load("x = 'second folder'").__file__
    monkeypatch.setattr(source, "_folders", lambda: [blocked / "no"])
    monkeypatch.setattr(numba_source, "load", source.load.__wrapped__)  # another test may have had this kernel
    kernel = forward_kernel.__wrapped__(PLAIN, NAMES, frozenset(), ForwardUse(counting=True))
    assert kernel.plain.__code__.co_filename.startswith("<snnexp_kernel")
    x, spk, mem, kept, counts = (np.zeros(s, np.float32) for s in ((1, 2), (1, 2), (1, 2), 2, 2))
    named = {"x_rows": x + 2, "spk_rows": spk, "mem_rows": mem, "kept_columns": kept, "counts": counts}
    named |= {f"{n}_values": np.ones(1, np.float32) for n in ("beta", "threshold", "near_center", "near_radius")}
    named["near"] = np.zeros(2, np.int32)
    kernel.compiled(*(named[name] for name in kernel.arguments), 2, 0, 1)
    assert counts.tolist() == [1, 1] and mem.tolist() == [[2, 2]]


def test_users_without_a_home_have_their_kernels_beside_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    (folder,) = source._folders()
    assert folder.is_relative_to(Path(source.__file__).parent)
