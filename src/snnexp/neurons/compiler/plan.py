"""The plan of a neuron's kernels: what goes from step to step, what forward stores, what backward works out again.

Forward carries the extra states, and of membrane and spike what the next step makes of them, if that is fewer numbers
(U' of a reset instead of U and S).

Backward walks from the last step to the first. At step t it has U[t] (always stored), and works S[t] and everything
else out from it where it can; what it cannot is stored by forward, if possible a state or the input. Of the derivative
of step t + 1, what needs values of step t is done at step t ("late"), the rest at step t + 1 ("early"); what late needs
of early is carried. So one read of U[t] serves the reset, the decay and the surrogate. The late part of the first step,
where a state was given to start from, is the engine's (`Backward.first_*`).

A state that is the maximum of itself and of spikes (who has fired) is a latch. It is not stored: the number of the step
at which it was set says all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

from snnexp.errors import ConfigError
from snnexp.neurons.compiler.gradient import gradients, summed
from snnexp.neurons.compiler.symbols import BOOLEAN, Symbol, in_order, leaf, make, rebuilt, value_of
from snnexp.neurons.equation import Dynamics, advance, state_names, state_of

X, NOISE, NOW, LAST = leaf("input", "x"), leaf("input", "noise"), leaf("step", "now"), leaf("flag", "last")
SCALARS = ("surrogate_a", "surrogate_b", "surrogate_limit")  # Surrogate.constants
ZERO = leaf("const", 0.0)
Names = tuple[str, ...]


@dataclass(frozen=True)
class Body:
    """One step of a kernel: what it writes to rows [T, M] and columns [M], as symbols of what it reads.

    Leaves: row, column, value (a parameter), scalar (SCALARS), step (now) and flag (last).
    """

    rows: dict[str, Symbol]
    columns: dict[str, Symbol]

    def reads(self, kind: str) -> Names:
        """Names of the leaves of a kind, in the order of their first use."""
        return tuple(s.name for s in in_order([*self.rows.values(), *self.columns.values()]) if s.op == kind)


@dataclass(frozen=True)
class Forward:
    """The forward kernel."""

    body: Body
    start: dict[str, Symbol]  # columns before the first step, in terms of the state that is given (leaves `old`)
    rest: dict[str, Symbol]  # the same for a state of zeros
    stored: Names  # rows that backward needs besides the membrane; x is the input
    latches: dict[str, str]  # states -> the column with the step that set them, for those that backward asks for
    constant: Names  # states that no gradient passes through


@dataclass(frozen=True)
class Backward:
    """The backward kernel."""

    body: Body
    spk: Symbol  # the spikes of the step, for pooling
    carried: Names  # columns from early to late; zero at the start
    first_state: dict[str, Symbol]  # gradients of the state's mem and spk before the first step
    first_values: dict[str, Symbol]  # and what that step's late part adds to those of the values
    rest_values: dict[str, Symbol]  # the same after a state of zeros, where it does not vanish


class _Step:
    """One traced step: the `new` states as gradients see them, and their mere `values`."""

    def __init__(self, dynamics: Dynamics, names: Names, latches: Names = ()) -> None:
        self.dynamics, self.names, self.latches = dynamics, names, latches
        states = state_names(dynamics, names)
        self.old = {state: leaf("old", state) for state in states}
        for state in latches:
            self.old[state] = make("select", make("lt", leaf("column", f"first_{state}"), NOW), 1.0, 0.0)
        values = {name: leaf("value", name) for name in names}
        after = advance(X, state_of(dynamics, self.old), values, dynamics, LAST, NOISE)
        memo: dict[int, Symbol] = {}
        self.new: dict[str, Symbol] = {s: _number(getattr(after, s)) for s in states}
        self.derived = _of_values_alone(self.new.values()) if dynamics.equation is not None else {}
        named = {id(symbol): leaf("value", name) for name, symbol in self.derived.items()}
        self.new = {s: replaced(symbol, lambda s: named.get(id(s))) for s, symbol in self.new.items()}
        self.values = {s: value_of(symbol, memo) for s, symbol in self.new.items()}
        self.extra = tuple(s for s in states if s not in ("mem", "spk"))
        self.kept = tuple(s for s in self.extra if s not in latches)
        self.memo: dict[Symbol, dict[int, Symbol | None]] = {}
        self.sources = {"x": X} | {n: self.values[n] for n in self.kept}  # rows that forward can store
        self.rows = {id(s): leaf("row", name) for name, s in self.sources.items() if s.args or s is X}
        self.rows[id(self.values["mem"])] = leaf("row", "mem")

    def derivative(self, x: Symbol) -> Symbol:
        """The surrogate's derivative."""
        surrogate = self.dynamics.surrogate
        constants = [leaf("scalar", name) for name, _ in zip(SCALARS, surrogate.constants, strict=False)]
        return cast(Symbol, surrogate.formula(x, *constants))

    def is_latch(self, state: str) -> bool:
        """Whether the state is set by spikes and stays set; no gradient may pass on the way."""
        symbol, old = self.values[state], self.old[state]
        if symbol.op != "max" or old not in symbol.args or not all(_binary(a, old) for a in symbol.args):
            return False
        others = [X, *(s for name, s in self.old.items() if name != state), *(leaf("value", n) for n in self.names)]
        return not gradients([(self.new[state], leaf("late", state))], others, self.derivative)

    def known(self, symbol: Symbol, last: Symbol = LAST) -> Symbol | None:
        """A value of this step in terms of rows, or None if a state of the step before is needed for it."""
        memo = self.memo.setdefault(last, {})
        if id(symbol) not in memo:
            found = self.rows.get(id(symbol), last if symbol is LAST else None)
            if found is None and symbol.op != "old":
                args = [self.known(a, last) for a in symbol.args]
                found = None if None in args else rebuilt(symbol, args)  # type: ignore[arg-type]
            memo[id(symbol)] = found
        return memo[id(symbol)]

    def known_value(self, symbol: Symbol) -> Symbol | None:
        """The same for what else may be part of a gradient: None there."""
        return None if symbol.op in ("late", "row", "column") else self.known(symbol)

    def stored(self, symbol: Symbol, last: Symbol = LAST) -> Symbol:
        """A value of this step in terms of rows, if need be of one of its own."""
        found = self.rows[id(symbol)] if id(symbol) in self.rows else self.known(symbol, last)
        if found is None:
            name = f"value{len(self.sources)}"
            self.sources[name], self.rows[id(symbol)] = symbol, leaf("row", name)
            found = self.rows[id(symbol)]
        return found


def _number(value: Symbol | float) -> Symbol:
    return make("add", value, 0.0)


def _binary(symbol: Symbol, old: Symbol) -> bool:
    """Whether it is 0 or 1, if `old` is."""
    if symbol.op == "const":
        return symbol.name in (0.0, 1.0)
    if symbol.op in ("mul", "max", "min"):
        return all(_binary(a, old) for a in symbol.args)
    if symbol.op == "select":
        return all(_binary(a, old) for a in symbol.args[1:])
    return symbol is old or (symbol.op == "sub" and symbol.args[0].name == 1.0 and _binary(symbol.args[1], old))


def replaced(root: Symbol, mapping: Callable[[Symbol], Symbol | None]) -> Symbol:
    """`root` with the symbols for which the mapping gives another replaced by that, from the top down."""
    memo: dict[int, Symbol] = {}

    def visit(symbol: Symbol) -> Symbol:
        if id(symbol) not in memo:
            found = mapping(symbol)
            memo[id(symbol)] = rebuilt(symbol, [visit(a) for a in symbol.args]) if found is None else found
        return memo[id(symbol)]

    return visit(root)


def _containing(roots: Iterable[Symbol], wanted: Callable[[Symbol], bool]) -> set[int]:
    """Ids of the symbols that are made of a leaf that is wanted."""
    found: set[int] = set()
    for symbol in in_order(roots):
        if any(id(a) in found for a in symbol.args) or (not symbol.args and wanted(symbol)):
            found.add(id(symbol))
    return found


def _of_values_alone(roots: Iterable[Symbol]) -> dict[str, Symbol]:
    """What depends on values only and takes an e^x: not worked out for each step but once, by torch."""
    order = in_order(roots)
    stepwise = _containing(order, lambda s: s.op not in ("value", "const"))
    costly: set[int] = set()
    for symbol in order:
        if id(symbol) not in stepwise and (symbol.op == "exp" or any(id(a) in costly for a in symbol.args)):
            costly.add(id(symbol))
    edge = [a for symbol in order if id(symbol) in stepwise for a in symbol.args if id(a) in costly]
    return {f"derived{i}": symbol for i, symbol in enumerate(dict.fromkeys(edge))}


@lru_cache(256)
def derived_values(dynamics: Dynamics, names: Names) -> dict[str, Symbol]:
    """More values of a user's equation, in terms of its own."""
    return {} if dynamics.equation is None else _Step(dynamics, names).derived


def _traced(dynamics: Dynamics, names: Names) -> _Step:
    """The step as backward sees it: latches by the step that set them."""
    step = _Step(dynamics, names)
    return _Step(dynamics, names, tuple(s for s in step.extra if step.is_latch(s)))


@lru_cache(256)
def why_not_compiled(dynamics: Dynamics) -> str | None:
    """Say what of a user's equation cannot be compiled, and where, or return None."""
    assert dynamics.equation is not None
    try:
        _Step(dynamics, dynamics.equation.values)
    except ConfigError as error:
        return str(error)
    return None


@lru_cache(256)
def where_needed(dynamics: Dynamics, names: Names) -> Symbol | None:
    """Whether anything comes of the gradient of a step's spike: if not, it may be left out.

    It is so where all of it passes a surrogate derivative that is 0. None: some passes none (spikes as high as theta).
    """
    return _where_needed(_Step(dynamics, names)) if dynamics.spiking else None


def _where_needed(step: _Step) -> Symbol | None:
    states = [step.old[s] for s in step.old if s not in step.extra or not step.is_latch(s)]
    leaves = [X, *states, *(leaf("value", name) for name in (*step.names, *step.derived))]
    seeds, found = [(step.new["spk"], leaf("row", "grad_spk"))], dict[int, Symbol]()

    def met(x: Symbol) -> Symbol:
        found[id(x)] = x
        return ZERO

    beside = gradients(seeds, leaves, met)
    if not found or any(part is not ZERO for parts in beside.values() for part in parts):
        return None
    inside = [make("gt", make("abs", step.derivative(x)), 0.0) for x in found.values()]
    return inside[0] if len(inside) == 1 else None


@lru_cache(1024)
def forward_plan(dynamics: Dynamics, names: Names, wants: frozenset[str], needed: bool = False) -> Forward:
    """Plan the forward kernel for values of these names, of which `wants` get gradients.

    needed: it also writes where the spikes' gradient is (row needed, of yes and no): see `where_needed`.
    """
    step, traced = _Step(dynamics, names), _traced(dynamics, names)
    back = _plan_backward(traced, wants, True, True)
    asked_for = {*back.body.reads("row"), *Body({"spk": back.spk}, {}).reads("row")}
    stored = tuple(sorted(asked_for & set(traced.sources)))
    carried = _frontier(step)
    start = {**carried, **{s: step.old[s] for s in step.extra}}
    names_of = {id(symbol): leaf("column", name) for name, symbol in start.items()}
    names_of |= {id(X): leaf("row", "x"), id(NOISE): leaf("row", "noise")}

    def read(symbol: Symbol) -> Symbol:
        return replaced(symbol, lambda s: names_of.get(id(s)))

    values = {state: read(symbol) for state, symbol in step.values.items()}
    rows = {"mem": values["mem"]} | ({"spk": values["spk"]} if dynamics.spiking else {})
    rows |= {name: read(symbol) for name, symbol in traced.sources.items() if name in stored and name != "x"}
    inside = _where_needed(step) if needed else None
    rows |= {} if inside is None else {"needed": read(inside)}

    def of_next(symbol: Symbol) -> Symbol:  # what the next step will make of this one's membrane and spike
        return replaced(symbol, lambda s: values[s.name] if s.op == "old" else None)

    columns = {name: of_next(symbol) for name, symbol in carried.items()}
    columns |= {s: values[s] for s in step.extra}
    asked = {s.name for symbol in traced.values.values() for s in in_order([symbol]) if s.op == "column"}
    latches = {s: f"first_{s}" for s in traced.latches if f"first_{s}" in asked}
    for state, column in latches.items():
        fires = next(a for a in step.values[state].args if a is not step.old[state])
        set_at = leaf("column", column)
        columns[column] = make("select", read(fires) > 0, make("min", set_at, NOW), set_at)
    rest = {name: _at_rest(symbol) for name, symbol in start.items()}
    return Forward(Body(rows, columns), start, rest, stored, latches, traced.latches)


def _at_rest(symbol: Symbol) -> Symbol:
    return replaced(symbol, lambda s: ZERO if s.op == "old" else None)


def _frontier(step: _Step) -> dict[str, Symbol]:
    """What goes on of membrane and spike: themselves, or what the next step makes of them, whichever are fewer."""
    roots, own = list(step.values.values()), [step.old["mem"], step.old["spk"]]
    order = in_order(roots)
    foreign = _containing(roots, lambda s: s.op in ("input", "flag", "step", "old") and s not in own)
    mine = _containing(roots, lambda s: s in own) - foreign
    users = [s.args for s in order if id(s) not in mine or s.op in BOOLEAN] + [tuple(roots)]
    edge = list(dict.fromkeys(a for args in users for a in args if id(a) in mine and a.op not in BOOLEAN))
    raw = [s for s in own if s in order]
    if len(edge) < len(raw):
        return {f"kept{i or ''}": symbol for i, symbol in enumerate(edge)}
    return {f"last_{s.name}": s for s in raw}


@lru_cache(1024)
def backward_plan(dynamics: Dynamics, names: Names, wants: frozenset[str], has_spk: bool, has_mem: bool) -> Backward:
    """Plan the backward kernel; has_spk, has_mem: whether gradients of spikes and membranes come in from outside."""
    step = _traced(dynamics, names)
    _plan_backward(step, wants, True, True)  # so that stored rows have the names that forward gave them
    return _plan_backward(step, wants, has_spk, has_mem)


def _gradients(step: _Step, wants: list[str], outside: list[str]) -> dict[Symbol, list[Symbol]]:
    """The step's gradients, of what arrives from `outside` and from the step after (leaves `late` and columns)."""
    leaves = [X, *(step.old[s] for s in ("mem", "spk", *step.kept)), *(leaf("value", n) for n in wants)]
    late = ["mem", "spk"]
    while True:
        seeds = [(step.new[s], leaf("late", s)) for s in late]
        seeds += [(step.new[s], leaf("row", f"grad_{s}")) for s in outside]
        seeds += [(step.new[s], leaf("column", f"grad_{s}")) for s in step.kept]
        found = gradients(seeds, leaves, step.derivative)
        reached = [s for s in late if step.old[s] in found]
        if reached == late:
            return found
        late = reached  # the step after passes nothing on to the other


def _plan_backward(step: _Step, wants: frozenset[str], has_spk: bool, has_mem: bool) -> Backward:
    outside = [name for name, has in (("mem", has_mem), ("spk", has_spk and step.dynamics.spiking)) if has]
    found = {
        leaf_: [replaced(part, step.known_value) for part in list_]
        for leaf_, list_ in _gradients(step, sorted(wants), outside).items()
    }
    totals = {leaf_: summed(list_) for leaf_, list_ in found.items() if leaf_.op != "value"}
    everything = [*totals.values(), *(part for list_ in found.values() for part in list_)]
    on_old = _containing(everything, lambda s: s.op == "old")
    parts = {name: found.get(leaf("value", name), []) for name in sorted(wants)}
    early = {f"grad_{s}": totals.get(step.old.get(s, X), ZERO) for s in ("x", *step.kept)}
    early_parts = {name: [p for p in list_ if id(p) not in on_old] for name, list_ in parts.items()}
    late = _Late([*early.values(), *(p for list_ in early_parts.values() for p in list_)], everything)
    late_state = {s: late.delayed(totals[step.old[s]]) for s in ("mem", "spk") if step.old[s] in totals}
    late_parts = {n: [late.delayed(p) for p in list_ if id(p) in on_old] for n, list_ in parts.items()}

    def now_late(symbol: Symbol) -> Symbol:  # at the step before: its new states are the old ones
        return replaced(symbol, lambda s: step.stored(step.values[s.name], ZERO) if s.op == "old" else None)

    passed = {s: now_late(symbol) for s, symbol in late_state.items()}

    def now_early(symbol: Symbol) -> Symbol:
        at_once = {"late": lambda s: passed[s.name], "old": step.stored}
        return replaced(symbol, lambda s: at_once[s.op](s) if s.op in at_once else None)

    columns = {name: now_early(symbol) for name, symbol in (early | late.carried).items()}
    rows = {"grad_x": columns.pop("grad_x")}
    for name in parts:
        sums = [leaf("column", f"grad_{name}"), *map(now_late, late_parts[name]), *map(now_early, early_parts[name])]
        columns[f"grad_{name}"] = summed(sums)
    first_values = {name: summed(list_) for name, list_ in late_parts.items() if list_}
    at_rest = {name: _at_rest(symbol) for name, symbol in first_values.items()}
    rest_values = {name: symbol for name, symbol in at_rest.items() if symbol is not ZERO}
    body, spk = Body(rows, columns), step.stored(step.values["spk"])
    return Backward(body, spk, tuple(late.carried), late_state, first_values, rest_values)


class _Late:
    """Rewrites a gradient of old states so that it can be had one step later, from as few carried numbers as it can."""

    def __init__(self, early: list[Symbol], everything: list[Symbol]) -> None:
        self.early = {id(s) for s in in_order(early)}
        self.on_old = _containing(everything, lambda s: s.op == "old")
        self.on_step = _containing(everything, lambda s: s.op not in ("old", "value", "scalar", "const"))
        self.carried: dict[str, Symbol] = {}

    def delayed(self, symbol: Symbol) -> Symbol:
        """The symbol in terms of carried columns, values and old states."""
        if id(symbol) not in self.on_step:
            return symbol
        if id(symbol) not in self.on_old:
            new = self._cut(symbol) - set(self.carried.values())
            if len(new) > 1 or symbol in self._cut(symbol):
                return self._carry(symbol)
        return rebuilt(symbol, [self.delayed(a) for a in symbol.args])

    def _cut(self, symbol: Symbol) -> set[Symbol]:
        if id(symbol) not in self.on_step:
            return set()
        if id(symbol) not in self.on_old and (id(symbol) in self.early or not symbol.args):
            return {symbol}
        return {s for a in symbol.args for s in self._cut(a)}

    def _carry(self, symbol: Symbol) -> Symbol:
        name = next((name for name, s in self.carried.items() if s is symbol), None)
        if name is None:
            name = f"later{len(self.carried) or ''}"
            self.carried[name] = symbol
        return leaf("column", name)
