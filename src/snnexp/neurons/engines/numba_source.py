"""The frame of the numba kernels: blocks of columns, each walked through all T, around a step that is generated.

A kernel takes a range of blocks of columns and walks each block through all T: what a block carries from step to step
stays in the first-level cache, and the innermost loop, over the block's columns, becomes vector instructions. Columns
do not interact, so the result has the same bits for every block size and number of threads.

A pair of kernels is made for each set of options, and compiled for each precision on first use. Arguments are named
after what the step reads and writes: mem_rows [T, M], cur_columns [M], beta_values [1 or neurons] (repeated over the
columns), surrogate_a; then those of the frame.

A kernel that normalises its input goes through a block in parts that stay in the first-level cache, and asks for the
next step's as it goes: blocks are long, and the next step's input lies elsewhere in memory. Backward works membranes
out again (`BackwardUse.again`) in `room` of the block's own, which a second-level cache holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache
from typing import Any, NamedTuple

from snnexp import vectors
from snnexp.neurons.compiler.plan import Backward, Body, Names, backward_plan, forward_plan
from snnexp.neurons.compiler.source import StepWriter, body_lines, file_hash, load, local
from snnexp.neurons.compiler.symbols import Symbol, in_order, leaf, make
from snnexp.neurons.engines import numba_helpers, numba_near, numba_needed, numba_norm, numba_taps
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

from snnexp.neurons.engines.numba_helpers import {names}


'''
NAMES = "block_at, compiled, exp_of_negative, pool, push, room, spread, unpool"
NEEDED = "from snnexp.neurons.engines.numba_needed import marked, pool_needed  # {by}\n"
NORM = "from snnexp.neurons.engines.numba_norm import ahead, beside, hand_back, normal, sum_up  # {by}\n"
NEAR = "from snnexp.neurons.engines.numba_near import find_place, pick, take_apart  # {by}\n"
TAPS = """from snnexp.neurons.engines.numba_taps import add_taps, add_taps_alone, add_up, keep_taps  # {by}
from snnexp.neurons.engines.numba_taps import keep_total, with_margins
"""
TAPPED = ("tap_first", "tap_entries", "tap_values", "tap_shape", "tap_sums", "group")  # arguments of one that uses them
CHANNELS = ("norm_mean", "norm_scale", "norm_bias")  # arguments of a kernel that normalises


class ForwardUse(NamedTuple):
    """How the forward kernel is used."""

    in_place: bool = False  # membranes go where the input was
    counting: bool = False  # spikes of each column over all steps
    pool: str = ""  # max or avg
    recurrent: bool = False  # a block is one sample, and the last step's spikes add to its input
    store_input: bool = False  # of a recurrent layer: the input with what the spikes added
    needed: bool = False  # where the gradient of the spikes is
    norm: bool = False  # the input is normalised as it is loaded
    unseen: bool = False  # membranes, and what backward would read besides, are not written; counting: see `near`
    local: Names = ()  # columns that the block has for itself: they begin at rest, and nobody asks for them afterwards
    single: Names = ()  # values that are one number

    def near(self, dynamics: Dynamics) -> bool:
        """Whether it counts membranes in a window, too (`calls.Near`), so that nobody has to look at them for that.

        Who counts spikes usually counts them as well, so all those kernels do: without a window none is in it. One that
        normalises decides as it runs whether membranes are written, so that a look at some batches needs no other.
        """
        once = dynamics.equation is None and dynamics.fire_once  # out of reach once it has fired
        return self.counting and not self.recurrent and dynamics.spiking and not once


class BackwardUse(NamedTuple):
    """How the backward kernel is used."""

    in_place: bool = False  # the input's gradient goes where the membranes were
    pool: str = ""
    has_grad_spk: bool = True
    has_grad_mem: bool = False
    again: bool = False  # membranes are worked out again of an input that is normalised, and sums for its norm taken
    taps: bool = False  # the gradient goes into the products of `Taps`, and is not written
    local: Names = ()  # columns that begin at zero; as in `ForwardUse`
    single: Names = ()


class Kernel(NamedTuple):
    """A kernel as source, what to call it with, as a function in plain Python, and compiled (None: not on disk)."""

    source: str
    arguments: Names
    plain: Any
    compiled: Any


class _Frame(StepWriter):
    """What both kernels share: the loops' heads, and the step within them."""

    def __init__(
        self, body: Body, use: ForwardUse | BackwardUse, more: Iterable[Symbol] = (), parts: bool = False
    ) -> None:
        super().__init__(body, more)
        self.pool, self.single, self.parts = use.pool, use.single, parts
        self.local = [name for name in self.columns if name in use.local]

    def begin(self, rows: str, kept: Iterable[str] = ()) -> None:
        """Before the loops; the first line of numbers is filled in by `finish`."""
        self(f"steps, columns = {rows}.shape", "")
        self("span = block * size * row" if self.pool else "span = block")
        self(*(f"{local(leaf('value', name))} = {name}_values[0]" for name in self.values if name in self.single))
        self(*(f"{name}_spread = room({name}_values, span)" for name in self.values if name not in self.single))
        self(*(f"{name}_own = room({rows}, span)" for name in self.local), *kept)
        if self.pool:
            self("wide = row // inner // size * inner")

    def block_begins(self) -> None:
        """Where a block lies, its share of the columns and their values."""
        if self.pool:
            self("c, width, pooled_row, bands = block_at(index, block, columns, height, row, size)")
        else:
            self("c = index * block", "width = min(block, columns - c)")
        self(*(f"spread({n}_values, c, {n}_spread, width)" for n in self.values if n not in self.single))

    def columns_begin(self, start: dict[str, str]) -> None:
        """The block's share of the columns; its own begin at these numbers."""
        for name in self.columns:
            if name in self.local:
                self(f"{name}_whole = {name}_own[:width]", f"{name}_whole[:] = {start[name]}")
            else:
                self(f"{name}_whole = {name}_columns[c : c + width]")

    def step_begins(self) -> None:
        """The step's number."""
        if self.timed:
            self("now = times[t]", "last = now == end")

    @contextmanager
    def part(self, rows: Iterable[str], elsewhere: dict[str, str], columns: Iterable[str] = ()) -> Iterator[None]:
        """A loop over the parts of a block, or over one, which is all of it, and its shares of rows and columns."""
        names = [f"{name}_column = {name}_whole" for name in (*self.columns, *columns)]
        names += [f"{name}_block = {name}_spread" for name in self.values if name not in self.single]
        if not self.parts:
            self(*(f"{name}_row = {elsewhere.get(name, f'{name}_rows[t, c : c + width]')}" for name in rows))
            self(*names)
            yield
            return
        with self.block("for s in range(0, width, part):"):
            self("e = min(s + part, width)", "ahead(x_rows, t + 1, c + s, c + e)")
            self(*(f"{name}_row = {elsewhere.get(name, f'{name}_rows[t, c + s : c + e]')}" for name in rows))
            self(*(f"{name}[s:e]" for name in names))
            yield

    def over_columns(self) -> AbstractContextManager[None]:
        """The innermost loop."""
        return self.block("for j in range(e - s):" if self.parts else "for j in range(width):")

    def load(self, symbols: Iterable[Symbol]) -> None:
        """Bring what a step reads into variables."""
        where = {"row": "row", "column": "column", "value": "block"}
        for s in symbols:
            if s.op in where and not (s.op == "value" and s.name in self.single):
                self(f"{local(s)} = {s.name}_{where[s.op]}[j]")
        if self.parts:
            self(f"x = normal(x_row[j], {', '.join(f'{name}[j]' for name in CHANNELS)})")

    def assign(self, outputs: dict[str, Symbol], names: dict[Symbol, str] | None = None) -> None:
        """Work out symbols."""
        self(*body_lines(outputs, names or {}, CALLS, self.number))

    def finish(self, kind: str, rows: list[str], frame: list[str], on_disk: bool) -> Kernel:
        """The kernel, with arguments for these rows and these more."""
        arguments = [f"{name}_rows" for name in rows] + [f"{name}_values" for name in self.values]
        arguments += [f"{name}_columns" for name in self.columns if name not in self.local]
        arguments += self.scalars + frame + (["times", "end"] if self.timed else [])
        like = f"{rows[0]}_rows"
        self.lines[1] = "; ".join(f"{name} = {like}.dtype.type({value!r})" for value, name in self.numbers.items())
        geometry = ["height", "row", "inner", "size"] if self.pool else []
        hashes = "".join(file_hash(module.__file__) for module in (numba_helpers, vectors))
        head = HEAD.format(kind=kind, by=__name__, helpers=hashes, names=NAMES)
        signature = ", ".join([*arguments, *geometry, "block", "start", "stop"])
        head += NEEDED.format(by=file_hash(numba_needed.__file__)) * ("needed_rows" in arguments)
        head += NORM.format(by=file_hash(numba_norm.__file__)) * ("norm_mean" in frame)
        head += TAPS.format(by=file_hash(numba_taps.__file__)) * ("group" in frame)
        head += NEAR.format(by=file_hash(numba_near.__file__)) * ("near" in frame)
        source = f"{head}def {kind}({signature}):\n" + "".join(f"    {line}\n" for line in self.lines)
        source += f"\n\n{kind}_compiled = compiled({kind})\n" if on_disk else ""
        module = load(source, on_disk)
        return Kernel(source, tuple(arguments), getattr(module, kind), getattr(module, f"{kind}_compiled", None))


@lru_cache(1024)
def forward_kernel(
    dynamics: Dynamics, names: Names, wants: frozenset[str], use: ForwardUse, on_disk: bool = True
) -> Kernel:
    """Return the forward kernel for neurons with values of these names, of which `wants` get gradients."""
    plan = forward_plan(dynamics, names, wants, use.needed)
    body = plan.body
    if use.unseen:
        body = Body({name: row for name, row in body.rows.items() if name in ("spk", "needed")}, body.columns)
    near = in_order([_in_window(body.rows["mem"])]) if use.near(dynamics) else []
    out = _Frame(body, use, near, parts=use.norm)
    rows = list(dict.fromkeys(["x", *body.reads("row"), *body.rows, *(["input"] if use.store_input else [])]))
    local_rows = {"mem": "x_row"} if use.in_place else {}
    here = "s:e" if use.norm else ":width"
    if use.pool:
        local_rows |= {"spk": f"unpooled[{here}]", "needed": f"unpooled_needed[{here}]"}
    kept = ["pushed = x_rows[0, :1].repeat(block)"] if use.recurrent else []
    kept += ["unpooled = room(x_rows, span)"] if use.pool else []
    kept += ["unpooled_needed = room(needed_rows, span)"] if use.pool and use.needed else []
    kept += ["counts_own = room(x_rows, span)"] if near else []
    if use.norm:
        unread = [name for name in body.rows if name not in ("spk", "needed")]  # by anybody but backward
        kept += _laid([*CHANNELS, *(f"{name}_scratch" for name in unread if near)])
        if near:
            kept += ["written = mem_rows.shape[0] > 0"]
            local_rows |= {n: f"{n}_rows[t, c + s : c + e] if written else {n}_scratch[: e - s]" for n in unread}
    out.begin("x_rows", kept)
    with out.block("for index in range(start, stop):"):
        out.block_begins()
        out.columns_begin({name: out.number(plan.rest[name].name) for name in out.local})
        if near:
            out("counts_whole = counts_own[:width]", "counts_whole[:] = zero")
        elif use.counting:
            out("counts_whole = counts[c : c + width]")
        with out.block("for t in range(steps):"):
            out.step_begins()
            if near and use.norm:
                out("place = find_place(places, t * columns + c)")
            if use.recurrent:
                out("before_row = before[c : c + width] if t == 0 else spk_rows[t - 1, c : c + width]")
                out("push(before_row, weight, pushed, zero)")
            with out.part(rows, local_rows, ["counts"] if use.counting else []):
                with out.over_columns():
                    _forward_step(out, body, dynamics, use, near)
                if near and use.norm:
                    out("place = pick(mem_row, t * columns + c + s, places, picked, place)")
            if use.pool:
                _pooling(out, use)
        if near:
            out("take_apart(counts_whole, counts[c : c + width], near, c)")
    frame = (["counts"] if use.counting else []) + [*CHANNELS] * use.norm
    frame += ["near", *["places", "picked"] * use.norm] if near else []
    frame += ["before", "weight", *([] if "spk" in rows else ["spk_rows"])] if use.recurrent else []
    return out.finish("forward", [r for r in rows if r != "mem" or not use.in_place], frame, on_disk)


def _laid(names: Sequence[str]) -> list[str]:
    """Values of channels, and room for as many numbers of these further names, where parts of a block find them."""
    lines = ["part = norm_mean.size", f"laid = beside({', '.join(CHANNELS)}, {len(names) - len(CHANNELS)})"]
    return [*lines, *(f"{name} = laid[{number}, :part]" for number, name in enumerate(names))]


def _in_window(mem: Symbol) -> Symbol:
    """What a membrane adds to a column's count: MANY if it is in the window."""
    distance = make("abs", make("sub", mem, leaf("value", "near_center")))
    return make("select", make("le", distance, leaf("value", "near_radius")), float(numba_near.MANY), 0.0)


def _forward_step(out: _Frame, body: Body, dynamics: Dynamics, use: ForwardUse, near: list[Symbol]) -> None:
    """One column's step; near: `_in_window`, in order, or nothing."""
    out.load(in_order([*out.step, *near]))
    if use.recurrent:
        out("x = x + pushed[j]")
    if use.store_input:
        out("input_row[j] = x")
    outputs = {f"{name}_row[j]": symbol for name, symbol in body.rows.items()}
    outputs |= {f"{name}_column[j]": symbol for name, symbol in body.columns.items()}
    if use.counting:
        one = make("select", body.rows["spk"] > 0, 1.0, 0.0) if dynamics.high_spikes else body.rows["spk"]
        outputs["count"] = make("add", one, near[-1]) if near else one
    own = {symbol: name for name, symbol in body.rows.items() if name in ("mem", "spk")}
    out.assign(outputs, out.called | own)
    if use.pool and use.needed:
        out("needed_row[j] = marked(needed_row[j], spk_row[j])")
    if use.counting:
        out("counts_column[j] += count")


def _pooling(out: _Frame, use: ForwardUse) -> None:
    """A step's spikes, and where their gradient is, pooled."""
    with out.block("if bands > 0:"):
        out("pooled = spk_rows[t, pooled_row * wide : (pooled_row + bands) * wide]")
        out(f"pool(unpooled, pooled, bands, row, inner, size, {use.pool == 'avg'})")
        if use.needed:
            out("pooled_needed = needed_rows[t, pooled_row * wide : (pooled_row + bands) * wide]")
            out(f"pool_needed(unpooled_needed, pooled_needed, bands, row, inner, size, {use.pool == 'avg'})")


@lru_cache(1024)
def backward_kernel(
    dynamics: Dynamics, names: Names, wants: frozenset[str], use: BackwardUse, on_disk: bool = True
) -> Kernel:
    """Return the backward kernel for neurons with values of these names, of which `wants` get gradients."""
    plan = backward_plan(dynamics, names, wants, use.has_grad_spk, use.has_grad_mem)
    spikes = in_order([plan.spk]) if use.pool == "max" and use.has_grad_spk else []
    out = _Frame(plan.body, use, spikes)
    read = [s.name for s in (*out.step, *spikes) if s.op == "row"]
    rows = list(dict.fromkeys(["mem", *read, "grad_x"]))
    local_rows = {"grad_x": "mem_row"} if use.in_place or use.again else {}
    if use.taps and not use.again:
        local_rows["grad_x"] = "grad_x_room[:width]"
    local_rows["grad_spk"] = "routed[:width]" if use.pool else "grad_spk_rows[t * grad_step, c : c + width]"
    like, scratch, found = "x_rows" if use.again else "mem_rows", list[str](), list[str]()
    if use.pool:
        scratch = [f"{name} = room({like}, {size})" for name, size in _SCRATCH.items()]
    if use.again:
        again, found = _again(dynamics, names, wants, use, out)
        local_rows |= {name: f"{name}_room[t * span : t * span + width]" for name in found}
        scratch += _before_again(again, found, use.taps)
    elif use.taps:
        scratch += ["grad_x_room = room(mem_rows, span)", "total = room(mem_rows, span)", "total[:] = 0"]
        scratch += ["pairs = room(mem_rows, tap_sums.shape[1])", "pairs[:] = 0"]
        scratch += ["wider = with_margins(grad_x_room, row, tap_shape)"]
    out.begin(like, scratch)
    with out.block("for index in range(start, stop):"):
        out.block_begins()
        if use.again:
            out(*again.lines)
        out.columns_begin(dict.fromkeys(out.local, "zero"))
        if use.pool:
            out("routed[:] = zero")
        with out.block("for t in range(steps - 1, -1, -1):"):
            _backward_step(out, plan, use, rows, local_rows, spikes)
        out(*["keep_taps(pairs, tap_sums[index // group])"] * use.taps)
        out(*["keep_total(total[:width], tap_sums[index // group], inner)"] * (use.taps and not use.again))
    frame = ["grad_step"] if "grad_spk" in rows and not use.pool else []
    frame += [*CHANNELS, "sums"] if use.again else []
    frame += TAPPED if use.taps else ["past"] if use.again else []
    kept = not (use.in_place or use.taps)
    rows = [*["x"] * use.again, *(r for r in rows if r not in found and (r != "grad_x" or kept))]
    return out.finish("backward", rows, frame, on_disk)


_SCRATCH = {"routed": "span", "spikes": "span", "free": "inner"}  # what pooling takes


def _backward_step(
    out: _Frame,
    plan: Backward,
    use: BackwardUse,
    rows: Iterable[str],
    local_rows: dict[str, str],
    spikes: Iterable[Symbol],
) -> None:
    """A block's step."""
    out.step_begins()
    with out.part(rows, local_rows):
        if spikes:
            with out.over_columns():
                out.load(spikes)
                out.assign({"spikes[j]": plan.spk})
        if use.pool and use.has_grad_spk:
            with out.block("if bands > 0:"):
                if use.again:
                    out("ahead(grad_spk_rows, t - 1, pooled_row * wide, (pooled_row + bands) * wide)")
                out("pooled = grad_spk_rows[t, pooled_row * wide : (pooled_row + bands) * wide]")
                average = use.pool == "avg"
                out(f"unpool(spikes, pooled, routed, free, bands, row, inner, size, {average}, one, zero)")
        with out.over_columns():
            out.load(out.step)
            outputs = {f"{name}_column[j]": symbol for name, symbol in plan.body.columns.items()}
            out.assign(outputs | {"grad_x_row[j]": plan.body.rows["grad_x"]}, out.called)
    if use.taps:
        out("batch, sample, top = columns // (height * row), c // (height * row), c % (height * row) // row")
        listed = "tap_first, tap_entries, tap_values, tap_shape, row, t * batch + sample, top"
        if use.again:
            out("sum_up(mem_row, x_flat, t * columns + c, shift, sums[index])")
            out(f"add_taps(mem_row, x_flat, t * columns + c, norm_mean, pairs, {listed})")
        else:
            out("add_up(grad_x_row, total)", f"add_taps_alone(grad_x_row, wider, pairs, {listed})")
    elif use.again:
        out("hand_back(mem_row, x_flat, grad_x_flat, t * columns + c, shift, sums[index], past)")


def _again(
    dynamics: Dynamics, names: Names, wants: frozenset[str], use: BackwardUse, out: _Frame
) -> tuple[_Frame, list[str]]:
    """Forward steps in the kernel `out`, for what its own steps read; returns them and the names of that."""
    plan = forward_plan(dynamics, names, wants)
    body = Body({name: plan.body.rows[name] for name in ("mem", *plan.stored)}, plan.body.columns)
    again = _Frame(body, use._replace(local=tuple(body.columns)), parts=True)
    again.numbers = out.numbers
    again.columns_begin({name: again.number(plan.rest[name].name) for name in again.local})
    with again.block("for t in range(steps):"):
        again.step_begins()
        where = {name: f"{name}_room[t * span + s : t * span + e]" for name in body.rows}
        with again.part(["x", *body.rows], where), again.over_columns():
            again.load(again.step)
            outputs = {f"{name}_row[j]": symbol for name, symbol in body.rows.items()}
            outputs |= {f"{name}_column[j]": symbol for name, symbol in body.columns.items()}
            again.assign(outputs, again.called | {body.rows["mem"]: "mem"})
    out.values, out.timed = sorted({*out.values, *again.values}), out.timed or again.timed
    return again, list(body.rows)


def _before_again(again: _Frame, found: Iterable[str], taps: bool) -> list[str]:
    """What `_again` and what takes the gradient need before the loops."""
    lines = [f"{name}_room = room(x_rows, steps * span)" for name in found]
    lines += [f"{name}_own = room(x_rows, span)" for name in again.local]
    lines += [*_laid(CHANNELS), "shift = norm_mean[: sums.shape[2]]"]
    if taps:
        return [*lines, "x_flat = x_rows.reshape(-1)", "pairs = room(x_rows, tap_sums.shape[1])", "pairs[:] = 0"]
    return [*lines, "x_flat, grad_x_flat = x_rows.reshape(-1), grad_x_rows.reshape(-1)"]
