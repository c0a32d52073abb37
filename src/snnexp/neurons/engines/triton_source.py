"""The frame of the Triton kernels: one program walks a block of columns of [T, M] through all T, step by step.

Calculation is in float32 (float64 for float64 input), whatever the input's precision. Loads of UNROLL steps are issued
before the first of them is used: the walk is serial in time and would otherwise wait for memory once per step. Steps
past the end of time are masked. Arguments are named after what the step reads and writes: mem_rows [T, M], cur_columns
[M], beta_values [1 or neurons] with beta_period; then those of the frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, NamedTuple

from snnexp.neurons.compiler.plan import Body, Names, backward_plan, forward_plan
from snnexp.neurons.compiler.source import StepWriter, body_lines, load, local
from snnexp.neurons.compiler.symbols import Symbol, leaf
from snnexp.neurons.equation import Dynamics

CALLS: dict[str, Callable[..., str]] = {
    "select": lambda condition, a, b: f"tl.where({condition}, {a}, {b})",
    "max": lambda a, b: f"tl.where(({a} > {b}) | ({a} != {a}), {a}, {b})",
    "min": lambda a, b: f"tl.where(({a} < {b}) | ({a} != {a}), {a}, {b})",
    "abs": lambda a: f"tl.abs({a})",
    "exp": lambda a: f"tl.exp({a})",
    "exp_of_negative": lambda a: f"tl.exp({a})",
    "div": lambda a, b: f"divide({a}, {b}, DOUBLE)",
}
HEAD = '''"""A {kind} kernel, made by {by}."""
import triton
import triton.language as tl


@triton.jit
def divide(a, b, DOUBLE: tl.constexpr):
    """Correctly rounded a / b; Triton's own float32 division is approximate."""
    if DOUBLE:
        out = a / b
    else:
        out = tl.div_rn(a, b)
    return out


@triton.jit
def {kind}({arguments}):
'''


class Kernel(NamedTuple):
    """A kernel as source, as a Triton function, and what to call it with."""

    source: str
    arguments: Names
    function: Any


class _Frame(StepWriter):
    """What both kernels share."""

    def __init__(self, body: Body, rows: list[str]) -> None:
        super().__init__(body)
        self.depth = 1
        self.rows = rows
        self.names = {s.name: local(s) for s in self.step if s.op in ("value", "column")}

    def begin(self) -> None:
        """Everything before the walk; the second line of numbers is filled in by `finish`."""
        self("number = mem_rows.dtype.element_ty", "")
        self(*(f"{s} = tl.full((), {s.upper()}, number)" for s in self.scalars))
        self("column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)", "inside = column < columns")
        self(*(f"{self.names[n]} = tl.load({n}_values + column % {n}_period)" for n in self.values))
        for name in self.columns:
            self.names.setdefault(name, local(leaf("column", name)))
            self(f"{self.names[name]} = tl.load({name}_columns + column, mask=inside, other=0.0)")

    def place(self, t: str, active: str) -> None:
        """Where step number `t` of a chunk lies."""
        self(f"t = {t}", "at = t.to(tl.int64) * columns + column", f"active = column < tl.where({active}, columns, 0)")

    def assign(self, outputs: dict[str, Symbol], names: dict[Symbol, str]) -> None:
        """Work out symbols."""
        if self.timed:
            self("now = (time + t).to(number)", "last = time + t == end")
        self(*body_lines(outputs, names, CALLS, self.number))

    def finish(self, kind: str, written: Iterable[str], constants: list[str], on_disk: bool) -> Kernel:
        """The kernel, with what it writes to columns after the walk."""
        self(*(f"tl.store({name}_columns + column, {self.names[name]}, mask=inside)" for name in written))
        arguments = [f"{n}_rows" for n in self.rows] + [f"{n}_values" for n in self.values]
        arguments += [f"{n}_columns" for n in self.columns]
        arguments += ["time", "end", "steps", "columns", *(f"{n}_period" for n in self.values)]
        constants = [*(s.upper() for s in self.scalars), *constants, "DOUBLE", "BLOCK", "UNROLL"]
        self.lines[1] = "    " + "; ".join(f"{name} = tl.full((), {v!r}, number)" for v, name in self.numbers.items())
        signature = ", ".join([*arguments, *(f"{c}: tl.constexpr" for c in constants)])
        source = HEAD.format(kind=kind, by=__name__, arguments=signature) + "\n".join(self.lines) + "\n"
        return Kernel(source, (*arguments, *constants), getattr(load(source, on_disk), kind))


@lru_cache(1024)
def forward_kernel(dynamics: Dynamics, names: Names, wants: frozenset[str], on_disk: bool = True) -> Kernel:
    """Return the forward kernel for neurons with values of these names, of which `wants` get gradients."""
    body = forward_plan(dynamics, names, wants).body
    more = [name for name in body.reads("row") if name != "x"]
    out = _Frame(body, ["x", *more, *body.rows])
    out.begin()
    with out.block("for chunk in range(tl.cdiv(steps, UNROLL)):"):
        out("x_ahead = ()")
        with out.block("for k in tl.static_range(UNROLL):"):
            out.place("chunk * UNROLL + k", "t < steps")
            out("x_ahead = x_ahead + (tl.load(x_rows + at, mask=active, other=0.0).to(number),)")
        with out.block("for k in tl.static_range(UNROLL):"):
            out.place("chunk * UNROLL + k", "t < steps")
            out("x = x_ahead[k]")
            out(*(f"{n} = tl.load({n}_rows + at, mask=active, other=0.0).to(number)" for n in more))
            called = out.called | {symbol: name for name, symbol in body.rows.items() if name in ("mem", "spk")}
            outputs = {f"{name}_out": symbol for name, symbol in body.rows.items()}
            out.assign(outputs | {f"{name}_next": symbol for name, symbol in body.columns.items()}, called)
            out(*(f"tl.store({n}_rows + at, {n}_out.to({n}_rows.dtype.element_ty), mask=active)" for n in body.rows))
            out(*(f"{out.names[n]} = tl.where(active, {n}_next, {out.names[n]})" for n in body.columns))
    return out.finish("forward", body.columns, [], on_disk)


@lru_cache(1024)
def backward_kernel(
    dynamics: Dynamics, names: Names, wants: frozenset[str], has_spk: bool, has_mem: bool, on_disk: bool = True
) -> Kernel:
    """Return the backward kernel; has_spk, has_mem: whether gradients of spikes and membranes come in."""
    body = backward_plan(dynamics, names, wants, has_spk, has_mem).body
    read = list(dict.fromkeys(["mem", *body.reads("row")]))
    out = _Frame(body, [*read, "grad_x"])
    out.begin()
    constant = "grad_spk" in read
    with out.block("for chunk in range(tl.cdiv(steps, UNROLL)):"):
        out(*(f"{name}_ahead = ()" for name in read))
        with out.block("for k in tl.static_range(UNROLL):"):
            out.place("steps - 1 - chunk * UNROLL - k", "t >= 0")
            for name in read:
                where = "(column if SPK_CONSTANT else at)" if name == "grad_spk" else "at"
                loaded = f"tl.load({name}_rows + {where}, mask=active, other=0.0).to(number)"
                out(f"{name}_ahead = {name}_ahead + ({loaded},)")
        with out.block("for k in tl.static_range(UNROLL):"):
            out("t = steps - 1 - chunk * UNROLL - k")
            with out.block("if t >= 0:"):
                out("at = t.to(tl.int64) * columns + column")
                out(*(f"{local(s)} = {s.name}_ahead[k]" for s in out.step if s.op == "row"))
                outputs = {f"{name}_next": symbol for name, symbol in body.columns.items()}
                out.assign({"grad_x": body.rows["grad_x"]} | outputs, out.called)
                out("tl.store(grad_x_rows + at, grad_x.to(grad_x_rows.dtype.element_ty), mask=inside)")
                out(*(f"{out.names[name]} = {name}_next" for name in body.columns))
    return out.finish("backward", body.columns, ["SPK_CONSTANT"] if constant else [], on_disk)
