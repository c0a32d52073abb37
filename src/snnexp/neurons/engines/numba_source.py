"""The frame of the numba kernels: blocks of columns, each walked through all T, around a step that is generated.

A kernel takes a range of blocks of columns and walks each block through all T: what a block carries from step to step
stays in the first-level cache, and the innermost loop, over the block's columns, becomes vector instructions. Columns
do not interact, so the result has the same bits for every block size and number of threads.

A pair of kernels is made for each set of options, and compiled for each precision on first use. Arguments are named
after what the step reads and writes: mem_rows [T, M], cur_columns [M], beta_values [1 or neurons] (repeated over the
columns), surrogate_a; then those of the frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, NamedTuple

from snnexp import vectors
from snnexp.neurons.compiler.plan import Body, Names, backward_plan, forward_plan
from snnexp.neurons.compiler.source import StepWriter, body_lines, file_hash, load, local
from snnexp.neurons.compiler.symbols import Symbol, in_order
from snnexp.neurons.engines import numba_helpers, numba_needed, numba_norm
from snnexp.neurons.equation import Dynamics

CALLS: dict[str, Callable[..., str]] = {
    "select": lambda condition, a, b: f"({a} if {condition} else {b})",
    "max": lambda a, b: f"({a} if ({a} > {b}) | ({a} != {a}) else {b})",  # nan stays nan, as in torch
    "min": lambda a, b: f"({a} if ({a} < {b}) | ({a} != {a}) else {b})",
    "abs": lambda a: f"abs({a})",
    "exp": lambda a: f"math.exp({a})",
    "exp_of_negative": lambda a: f"exp_of_negative({a})",
}
HEAD = '''"""A {kind} kernel, made by {by} (helpers {helpers})."""
import math

from snnexp.neurons.engines.numba_helpers import block_at, compiled, exp_of_negative, pool, push, spread, unpool


'''


NEEDED = "from snnexp.neurons.engines.numba_needed import marked, pool_needed  # {by}\n"
NORM = "from snnexp.neurons.engines.numba_norm import normalised  # {by}\n"


class ForwardUse(NamedTuple):
    """How the forward kernel is used."""

    in_place: bool = False  # membranes go where the input was
    counting: bool = False  # spikes of each column over all steps
    pool: str = ""  # max or avg
    recurrent: bool = False  # a block is one sample, and the last step's spikes add to its input
    store_input: bool = False  # of a recurrent layer: the input with what the spikes added
    needed: bool = False  # where the gradient of the spikes is
    norm: bool = False  # the input is normalised as it is loaded, into the membranes' memory


class BackwardUse(NamedTuple):
    """How the backward kernel is used."""

    in_place: bool = False  # the input's gradient goes where the membranes were
    pool: str = ""
    has_grad_spk: bool = True
    has_grad_mem: bool = False


class Kernel(NamedTuple):
    """A kernel as source, what to call it with, as a function in plain Python, and compiled (None: not on disk)."""

    source: str
    arguments: Names
    plain: Any
    compiled: Any


class _Frame(StepWriter):
    """What both kernels share: the loops' heads, and the step within them."""

    def __init__(self, body: Body, pool: str, more: Iterable[Symbol] = ()) -> None:
        super().__init__(body, more)
        self.pool = pool

    def begin(self, rows: str, kept: Iterable[str] = ()) -> None:
        """Before the loops; the first line of numbers is filled in by `finish`."""
        self(f"steps, columns = {rows}.shape", "")
        widest = "block * size * row" if self.pool else "block"
        self(*(f"{name}_block = {name}_values[:1].repeat({widest})" for name in self.values), *kept)
        if self.pool:
            self("wide = row // inner // size * inner")

    def block_begins(self) -> None:
        """Where a block lies, its share of the columns and their values."""
        if self.pool:
            self("c, width, pooled_row, bands = block_at(index, block, columns, height, row, size)")
        else:
            self("c = index * block", "width = min(block, columns - c)")
        self(*(f"spread({name}_values, c, {name}_block, width)" for name in self.values))
        self(*(f"{name}_column = {name}_columns[c : c + width]" for name in self.columns))

    def step_begins(self, rows: Iterable[str], elsewhere: dict[str, str]) -> None:
        """The step's number, and its rows where the block lies."""
        if self.timed:
            self("now = times[t]", "last = now == end")
        self(*(f"{name}_row = {elsewhere.get(name, f'{name}_rows[t, c : c + width]')}" for name in rows))

    def load(self, symbols: Iterable[Symbol]) -> None:
        """Bring what a step reads into variables."""
        where = {"row": "row", "column": "column", "value": "block"}
        self(*(f"{local(s)} = {s.name}_{where[s.op]}[j]" for s in symbols if s.op in where))

    def assign(self, outputs: dict[str, Symbol], names: dict[Symbol, str] | None = None) -> None:
        """Work out symbols."""
        self(*body_lines(outputs, names or {}, CALLS, self.number))

    def finish(self, kind: str, rows: list[str], frame: list[str], on_disk: bool) -> Kernel:
        """The kernel, with arguments for these rows and these more."""
        arguments = [f"{name}_rows" for name in rows] + [f"{name}_values" for name in self.values]
        arguments += [f"{name}_columns" for name in self.columns]
        arguments += self.scalars + frame + (["times", "end"] if self.timed else [])
        like = f"{rows[0]}_rows"
        self.lines[1] = "; ".join(f"{name} = {like}.dtype.type({value!r})" for value, name in self.numbers.items())
        geometry = ["height", "row", "inner", "size"] if self.pool else []
        hashes = "".join(file_hash(module.__file__) for module in (numba_helpers, vectors))
        head = HEAD.format(kind=kind, by=__name__, helpers=hashes)
        signature = ", ".join([*arguments, *geometry, "block", "start", "stop"])
        head += NEEDED.format(by=file_hash(numba_needed.__file__)) * ("unpooled_needed" in frame)
        head += NORM.format(by=file_hash(numba_norm.__file__)) * ("norm_mean" in frame)
        source = f"{head}def {kind}({signature}):\n" + "".join(f"    {line}\n" for line in self.lines)
        source += f"\n\n{kind}_compiled = compiled({kind})\n" if on_disk else ""
        module = load(source, on_disk)
        return Kernel(source, tuple(arguments), getattr(module, kind), getattr(module, f"{kind}_compiled", None))


@lru_cache(1024)
def forward_kernel(
    dynamics: Dynamics, names: Names, wants: frozenset[str], use: ForwardUse, on_disk: bool = True
) -> Kernel:
    """Return the forward kernel for neurons with values of these names, of which `wants` get gradients."""
    body = forward_plan(dynamics, names, wants, use.needed).body
    out = _Frame(body, use.pool)
    rows = list(dict.fromkeys(["x", *body.reads("row"), *body.rows, *(["input"] if use.store_input else [])]))
    local_rows = {"mem": "x_row"} if use.in_place or use.norm else {}
    if use.norm:
        arrays = ", ".join(f"{name}_rows[t, c : c + width]" for name in ("x", "mem"))
        local_rows["x"] = f"normalised({arrays}, norm_mean, norm_scale, norm_bias)"
    if use.pool:
        local_rows |= {"spk": "unpooled[c : c + width]", "needed": "unpooled_needed[c : c + width]"}
    out.begin("x_rows", ["pushed = x_rows[0, :1].repeat(block)"] if use.recurrent else [])
    with out.block("for index in range(start, stop):"):
        out.block_begins()
        if use.counting:
            out("counts_column = counts[c : c + width]")
        with out.block("for t in range(steps):"):
            out.step_begins(rows, local_rows)
            if use.recurrent:
                out("before_row = before[c : c + width] if t == 0 else spk_rows[t - 1, c : c + width]")
                out("push(before_row, weight, pushed, zero)")
            with out.block("for j in range(width):"):
                out.load(out.step)
                if use.recurrent:
                    out("x = x + pushed[j]")
                if use.store_input:
                    out("input_row[j] = x")
                outputs = {f"{name}_row[j]": symbol for name, symbol in body.rows.items()}
                outputs |= {f"{name}_column[j]": symbol for name, symbol in body.columns.items()}
                own = {symbol: name for name, symbol in body.rows.items() if name in ("mem", "spk")}
                out.assign(outputs, out.called | own)
                if use.pool and use.needed:
                    out("needed_row[j] = marked(needed_row[j], spk_row[j])")
                if use.counting:
                    one = "(one if spk_row[j] > zero else zero)" if dynamics.high_spikes else "spk_row[j]"
                    out(f"counts_column[j] += {one}")
            if use.pool:
                with out.block("if bands > 0:"):
                    out("pooled = spk_rows[t, pooled_row * wide : (pooled_row + bands) * wide]")
                    out(f"pool(spk_row, pooled, bands, row, inner, size, {use.pool == 'avg'})")
                    if use.needed:
                        out("pooled_needed = needed_rows[t, pooled_row * wide : (pooled_row + bands) * wide]")
                        out(f"pool_needed(needed_row, pooled_needed, bands, row, inner, size, {use.pool == 'avg'})")
    frame = (["counts"] if use.counting else []) + (["unpooled"] if use.pool else [])
    frame += ["norm_mean", "norm_scale", "norm_bias"] if use.norm else []
    frame += ["unpooled_needed"] if use.pool and use.needed else []
    frame += ["before", "weight", *([] if "spk" in rows else ["spk_rows"])] if use.recurrent else []
    return out.finish("forward", [r for r in rows if r != "mem" or not use.in_place], frame, on_disk)


@lru_cache(1024)
def backward_kernel(
    dynamics: Dynamics, names: Names, wants: frozenset[str], use: BackwardUse, on_disk: bool = True
) -> Kernel:
    """Return the backward kernel for neurons with values of these names, of which `wants` get gradients."""
    plan = backward_plan(dynamics, names, wants, use.has_grad_spk, use.has_grad_mem)
    body = plan.body
    finds_spikes = use.pool == "max" and use.has_grad_spk
    spikes = in_order([plan.spk]) if finds_spikes else []
    out = _Frame(body, use.pool, spikes)
    read = [s.name for s in (*out.step, *spikes) if s.op == "row"]
    rows = list(dict.fromkeys(["mem", *read, "grad_x"]))
    local_rows = {"grad_x": "mem_row"} if use.in_place else {}
    local_rows["grad_spk"] = "routed[:width]" if use.pool else "grad_spk_rows[t * grad_step, c : c + width]"
    scratch = [f"{name} = mem_rows[0, :1].repeat(block * size * row)" for name in ("routed", "spikes")]
    out.begin("mem_rows", [*scratch, "free = mem_rows[0, :1].repeat(inner)"] if use.pool else [])
    with out.block("for index in range(start, stop):"):
        out.block_begins()
        if use.pool:
            out("routed[:] = zero")
        with out.block("for t in range(steps - 1, -1, -1):"):
            out.step_begins(rows, local_rows)
            if finds_spikes:
                with out.block("for j in range(width):"):
                    out.load(spikes)
                    out.assign({"spikes[j]": plan.spk})
            if use.pool and use.has_grad_spk:
                with out.block("if bands > 0:"):
                    out("pooled = grad_spk_rows[t, pooled_row * wide : (pooled_row + bands) * wide]")
                    average = use.pool == "avg"
                    out(f"unpool(spikes, pooled, routed, free, bands, row, inner, size, {average}, one, zero)")
            with out.block("for j in range(width):"):
                out.load(out.step)
                outputs = {f"{name}_column[j]": symbol for name, symbol in body.columns.items()}
                out.assign(outputs | {"grad_x_row[j]": body.rows["grad_x"]}, out.called)
    frame = ["grad_step"] if "grad_spk" in rows and not use.pool else []
    return out.finish("backward", [r for r in rows if r != "grad_x" or not use.in_place], frame, on_disk)
