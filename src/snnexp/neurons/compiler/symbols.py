"""Symbols: what a step function sees instead of tensors when it is compiled. Operations on them make a graph.

A symbol is one scalar of one neuron at one time step. Equal operations on equal symbols are the same symbol, numbers
are folded, and what multiplies by 1 or 0 or adds 0 vanishes. A step may use arithmetic, comparisons, `abs`, whole
powers, `.detach()` and the functions of torch in `TORCH`; its Python `if`s see the options only.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any

import torch

BOOLEAN = ("ge", "gt", "le", "lt", "flag")
_FOLD: dict[str, Callable[..., Any]] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": operator.truediv, "neg": operator.neg,
    "ge": operator.ge, "gt": operator.gt, "le": operator.le, "lt": operator.lt, "max": max, "min": min, "abs": abs,
}  # fmt: skip
_known: dict[tuple[Any, ...], Symbol] = {}


class Symbol:
    """One operation on symbols, or a leaf: a number (`const`), a yes or no (`flag`), or a value with a name.

    Attributes:
        op: the operation, or the leaf's kind: const, flag, input, old (state of the step before), value (parameter).
        args: what it is done to.
        name: of a leaf; a const's number; of a spike, whether it is strict.
    """

    __slots__ = ("args", "name", "op")

    def __init__(self, op: str, args: tuple[Symbol, ...], name: Any) -> None:
        self.op, self.args, self.name = op, args, name

    def __add__(self, other: Any) -> Symbol:
        return make("add", self, other)

    def __radd__(self, other: Any) -> Symbol:
        return make("add", other, self)

    def __sub__(self, other: Any) -> Symbol:
        return make("sub", self, other)

    def __rsub__(self, other: Any) -> Symbol:
        return make("sub", other, self)

    def __mul__(self, other: Any) -> Symbol:
        return make("mul", self, other)

    def __rmul__(self, other: Any) -> Symbol:
        return make("mul", other, self)

    def __truediv__(self, other: Any) -> Symbol:
        return make("div", self, other)

    def __rtruediv__(self, other: Any) -> Symbol:
        return make("div", other, self)

    def __pow__(self, power: Any) -> Symbol:
        if not isinstance(power, int) or power < 1:
            raise TypeError(f"a power must be a whole number from 1 on, not {power!r}")
        return self if power == 1 else make("mul", self ** (power - 1), self)

    def __neg__(self) -> Symbol:
        return make("neg", self)

    def __abs__(self) -> Symbol:
        return make("abs", self)

    abs = __abs__

    def __ge__(self, other: Any) -> Symbol:
        return make("ge", self, other)

    def __gt__(self, other: Any) -> Symbol:
        return make("gt", self, other)

    def __le__(self, other: Any) -> Symbol:
        return make("le", self, other)

    def __lt__(self, other: Any) -> Symbol:
        return make("lt", self, other)

    def detach(self) -> Symbol:
        """The same value, without a gradient."""
        return make("detach", self)

    def __bool__(self) -> bool:
        raise TypeError("`if` cannot look at a neuron's value, which differs between neurons: use torch.where")

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"neurons cannot be compiled with .{name}; there are abs, detach and {_words()}")

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function not in TORCH:
            name = getattr(function, "__name__", str(function))
            raise TypeError(f"torch.{name} cannot be compiled; there are {_words()}")
        return TORCH[function](*args, **(kwargs or {}))


def leaf(kind: str, name: Any) -> Symbol:
    """Return the leaf of this kind and name."""
    return _intern(kind, (), name)


def make(op: str, *given: Any, name: Any = None) -> Symbol:
    """Return the symbol for an operation, simplified.

    Raises: TypeError if an argument is neither a symbol nor a number.
    """
    args = tuple(_symbol(a) for a in given)
    if op not in ("select", "detach") and any(a.op in BOOLEAN for a in args):
        args = tuple(make("select", a, 1.0, 0.0) if a.op in BOOLEAN else a for a in args)
    if op in _FOLD and all(a.op == "const" for a in args) and (op != "div" or args[1].name):
        return _symbol(_FOLD[op](*(a.name for a in args)))
    simpler = _RULES[op](*args) if op in _RULES else None
    return _intern(op, args, name) if simpler is None else simpler


def _intern(op: str, args: tuple[Symbol, ...], name: Any) -> Symbol:
    key = (op, tuple(map(id, args)), name, type(name))
    return _known.setdefault(key, Symbol(op, args, name))


def _symbol(value: Any) -> Symbol:
    if isinstance(value, Symbol):
        return value
    if isinstance(value, bool):
        return leaf("const", float(value))
    if isinstance(value, (int, float)):
        return leaf("const", float(value))
    raise TypeError(f"a neuron's equation works with its own values and numbers, not with {type(value).__name__}")


def _is(symbol: Symbol, number: float) -> bool:
    return symbol.op == "const" and symbol.name == number


def _choice(symbol: Symbol) -> bool:
    """Whether it is a choice between two numbers."""
    return symbol.op == "select" and all(a.op == "const" for a in symbol.args[1:])


def _add(a: Symbol, b: Symbol) -> Symbol | None:
    if _is(a, 0) or _is(b, 0):
        return b if _is(a, 0) else a
    if b.op == "neg":
        return make("sub", a, b.args[0])
    return make("sub", b, a.args[0]) if a.op == "neg" else None


def _sub(a: Symbol, b: Symbol) -> Symbol | None:
    if _is(b, 0):
        return a
    if _is(a, 0):
        return make("neg", b)
    if b.op == "neg":
        return make("add", a, b.args[0])
    if a.op == "const" and _choice(b):
        return make("select", b.args[0], a.name - b.args[1].name, a.name - b.args[2].name)
    return None


def _mul(a: Symbol, b: Symbol) -> Symbol | None:
    for one, other in ((a, b), (b, a)):
        if _is(one, 0):
            return one
        if _is(one, 1):
            return other
        if _is(one, -1):
            return make("neg", other)
    if a.op == "neg":
        return make("neg", make("mul", a.args[0], b))
    return make("neg", make("mul", a, b.args[0])) if b.op == "neg" else None


def _div(a: Symbol, b: Symbol) -> Symbol | None:
    if _is(b, 1) or _is(a, 0):
        return a
    return make("neg", make("div", a.args[0], b)) if a.op == "neg" else None


def _select(condition: Symbol, a: Symbol, b: Symbol) -> Symbol | None:
    if condition.op == "const":
        return a if condition.name else b
    return a if a is b else None


_RULES: dict[str, Callable[..., Symbol | None]] = {
    "add": _add,
    "sub": _sub,
    "mul": _mul,
    "div": _div,
    "select": _select,
    "neg": lambda a: a.args[0] if a.op == "neg" else None,
    "detach": lambda a: a if a.op in ("const", "detach") else None,
}


def _where(condition: Any, a: Any, b: Any) -> Symbol:
    if not isinstance(condition, Symbol) or condition.op not in (*BOOLEAN, "const"):
        raise TypeError("torch.where needs a comparison as its condition")
    return make("select", condition, a, b)


def _clamp(x: Symbol, min: Any = None, max: Any = None) -> Symbol:
    below = x if min is None else make("select", make("lt", x, min), min, x)
    return below if max is None else make("select", make("gt", x, max), max, below)


def _sigmoid(x: Any) -> Symbol:
    return 1 / (1 + make("exp", make("neg", x)))


TORCH: dict[Any, Callable[..., Symbol]] = {
    torch.exp: lambda x: make("exp", x),
    torch.maximum: lambda a, b: make("max", a, b),
    torch.minimum: lambda a, b: make("min", a, b),
    torch.where: _where,
    torch.clamp: _clamp,
    torch.abs: abs,
    torch.square: lambda x: x * x,
    torch.sigmoid: _sigmoid,
    torch.tanh: lambda x: 2 * _sigmoid(2 * x) - 1,
    torch.relu: lambda x: make("select", make("gt", x, 0), x, 0),
    torch.zeros_like: lambda x: leaf("const", 0.0),
    torch.ones_like: lambda x: leaf("const", 1.0),
}
"""Functions of torch that an equation may call, as operations on symbols."""


def _words() -> str:
    return ", ".join(f"torch.{function.__name__}" for function in TORCH)


def in_order(roots: Iterable[Symbol]) -> list[Symbol]:
    """Everything that the roots are made of, each after its arguments; the order depends on the graph alone."""
    done: dict[int, Symbol] = {}
    stack = [(root, False) for root in reversed(list(roots))]
    while stack:
        symbol, ready = stack.pop()
        if id(symbol) in done:
            continue
        if ready or not symbol.args:
            done[id(symbol)] = symbol
        else:
            stack.append((symbol, True))
            stack.extend((a, False) for a in reversed(symbol.args))
    return list(done.values())


def rebuilt(symbol: Symbol, args: Iterable[Symbol]) -> Symbol:
    """The same operation on other arguments."""
    return make(symbol.op, *args, name=symbol.name) if symbol.args else symbol


def evaluate(symbol: Symbol, leaf_value: Callable[[Symbol], Any]) -> Any:
    """Work a symbol out on tensors."""
    values: dict[int, Any] = {}
    functions = _FOLD | {"select": torch.where, "exp": torch.exp, "max": torch.maximum, "min": torch.minimum}
    functions |= {"exp_of_negative": torch.exp, "detach": torch.Tensor.detach}
    for s in in_order([symbol]):
        if s.args:
            values[id(s)] = functions[s.op](*(values[id(a)] for a in s.args))
        else:
            values[id(s)] = s.name if s.op == "const" else leaf_value(s)
    return values[id(symbol)]


def value_of(symbol: Symbol, known: dict[int, Symbol]) -> Symbol:
    """The symbol's value alone: without what only the gradient sees. `known`: results so far, added to."""
    for s in in_order([symbol]):
        if id(s) in known:
            continue
        args = [known[id(a)] for a in s.args]
        if s.op in ("detach", "with_value"):
            known[id(s)] = args[0]
        elif s.op == "spike":
            known[id(s)] = make("select", make("gt" if s.name else "ge", args[0], 0.0), 1.0, 0.0)
        else:
            known[id(s)] = rebuilt(s, args)
    return known[id(symbol)]
