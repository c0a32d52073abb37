"""Reverse differentiation of a graph of symbols."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from snnexp.neurons.compiler.symbols import Symbol, in_order, make, value_of

Derivative = Callable[[Symbol], Symbol]  # of the spike: x -> the surrogate's stand-in for dS/dx


def gradients(
    seeds: Iterable[tuple[Symbol, Symbol]], wanted: Iterable[Symbol], derivative: Derivative
) -> dict[Symbol, list[Symbol]]:
    """Return what the gradient of each wanted leaf is the sum of, from the last use of the leaf to the first.

    Args:
        seeds: results of the graph, with the gradients that reach them.
        wanted: leaves; one that no gradient reaches is left out of the result.
    """
    given = list(seeds)
    order = in_order(symbol for symbol, _ in given)
    leaves = list(wanted)
    alive = {id(symbol) for symbol in leaves}  # what a wanted leaf can be reached from
    for symbol in order:
        if any(id(a) in alive for a in _differentiable(symbol)):
            alive.add(id(symbol))
    parts: dict[int, list[Symbol]] = {}
    for symbol, gradient in given:
        parts.setdefault(id(symbol), []).append(gradient)
    values: dict[int, Symbol] = {}
    for symbol in reversed(order):
        if symbol.args and id(symbol) in parts and id(symbol) in alive:
            total = summed(parts[id(symbol)])
            for arg, part in _back(symbol, total, derivative, lambda s: value_of(s, values)):
                if id(arg) in alive:
                    parts.setdefault(id(arg), []).append(part)
    return {symbol: parts[id(symbol)] for symbol in leaves if id(symbol) in parts}


def summed(parts: list[Symbol]) -> Symbol:
    """The sum from first to last."""
    total = parts[0]
    for part in parts[1:]:
        total = make("add", total, part)
    return total


def _differentiable(symbol: Symbol) -> tuple[Symbol, ...]:
    match symbol.op:
        case "detach":
            return ()
        case "with_value" | "select":
            return symbol.args[1:]
    return symbol.args


def _back(
    symbol: Symbol, g: Symbol, derivative: Derivative, value: Callable[[Symbol], Symbol]
) -> Iterator[tuple[Symbol, Symbol]]:
    """What the gradient g of a symbol adds to those of its arguments."""
    args = symbol.args
    v = [value(a) for a in args]
    match symbol.op:
        case "add":
            yield from ((args[0], g), (args[1], g))
        case "sub":
            yield from ((args[0], g), (args[1], -g))
        case "mul":
            yield from ((args[0], g * v[1]), (args[1], g * v[0]))
        case "div":
            yield from ((args[0], g / v[1]), (args[1], -(g * v[0] / (v[1] * v[1]))))
        case "neg":
            yield args[0], -g
        case "exp":
            yield args[0], g * value(symbol)
        case "abs":
            yield args[0], g * make("select", v[0] > 0, 1.0, make("select", v[0] < 0, -1.0, 0.0))
        case "max" | "min":  # where both are equal each gets half, as in torch
            a, b = v if symbol.op == "max" else v[::-1]
            first = make("select", a > b, 1.0, make("select", b > a, 0.0, 0.5))
            yield from ((args[0], g * first), (args[1], g * (1 - first)))
        case "select":
            yield from ((args[1], make("select", v[0], g, 0.0)), (args[2], make("select", v[0], 0.0, g)))
        case "with_value":
            yield args[1], g
        case "spike":
            yield args[0], g * derivative(v[0])
        case _:
            raise NotImplementedError(f"no derivative of {symbol.op}")
