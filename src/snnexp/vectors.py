"""Vectors for numba kernels whose sums must stay in registers, which a compiler does not see from plain loops.

A vector has 64 bytes; a processor with shorter registers takes two or four for it. No fast-math: a sum has one order. A
product is rounded together with the sum that it goes into where the processor can.

numba keeps compiled kernels by their own file: whoever edits this one touches those that import it.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, import-untyped"

from __future__ import annotations

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, register_model

BYTES = 64  # of a vector


class Vector(types.Type):  # type: ignore[misc]
    """Numbers that are worked on at once."""

    def __init__(self, dtype) -> None:
        self.dtype = dtype
        self.lanes = BYTES * 8 // dtype.bitwidth
        super().__init__(name=f"Vector({dtype})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager, vector) -> None:
        element = manager.lookup(vector.dtype).get_value_type()
        super().__init__(manager, vector, ir.VectorType(element, vector.lanes))


def address(context, builder, signature, arguments, vector):
    """Where in memory an array's vector lies, and the size of one number; whole positions, never negative."""
    array = context.make_array(signature.args[0])(context, builder, arguments[0])
    address = builder.gep(array.data, [arguments[1]])
    return builder.bitcast(address, vector.as_pointer()), signature.args[0].dtype.bitwidth // 8


@intrinsic
def load(typing_context, array, at):
    """array[at : at + lanes]"""

    def generate(context, builder, signature, arguments):
        vector = context.get_value_type(signature.return_type)
        place, size = address(context, builder, signature, arguments, vector)
        return builder.load(place, align=size)

    return Vector(array.dtype)(array, types.int64), generate


@intrinsic
def store(typing_context, array, at, vector):
    """array[at : at + lanes] = vector"""

    def generate(context, builder, signature, arguments):
        place, size = address(context, builder, signature, arguments, arguments[2].type)
        builder.store(arguments[2], place, align=size)
        return context.get_dummy_value()

    return types.void(array, types.int64, vector), generate


@intrinsic
def store_past(typing_context, array, at, vector):
    """The same past the caches, for what is not read again soon: a cache would fetch its place from memory first.

    Where it is put must be a multiple of BYTES.
    """

    def generate(context, builder, signature, arguments):
        place, _ = address(context, builder, signature, arguments, arguments[2].type)
        stored = builder.store(arguments[2], place, align=BYTES)
        stored.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
        return context.get_dummy_value()

    return types.void(array, types.int64, vector), generate


@intrinsic
def fetch(typing_context, array, at):
    """Ask for the cache line of array[at], of its numbers as they lie in memory; nothing waits for it."""

    def generate(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        place = builder.bitcast(builder.gep(data, [arguments[1]]), ir.IntType(8).as_pointer())
        whole = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [place.type, whole, whole, whole])
        builder.call(
            builder.module.declare_intrinsic("llvm.prefetch", [place.type], kind), [place, whole(0), whole(2), whole(1)]
        )
        return context.get_dummy_value()

    return types.void(array, types.int64), generate


@intrinsic
def store_behind(typing_context, array, at, vector, kept):
    """array[at + kept : at + lanes] = vector[kept:]; what is before stays as it is."""

    def generate(context, builder, signature, arguments):
        value, kept = arguments[2:]
        place, size = address(context, builder, signature, arguments, value.type)
        lanes, count = value.type.count, ir.Constant(kept.type, 0)
        with builder.if_else(builder.icmp_signed("==", kept, count)) as (all_of_it, a_part):
            with all_of_it:
                builder.store(value, place, align=size)
            with a_part:
                numbers = ir.Constant(ir.VectorType(kept.type, lanes), list(range(lanes)))
                before = builder.icmp_signed("<", numbers, spread(builder, kept, lanes))
                there = builder.load(place, align=size)
                builder.store(builder.select(before, there, value), place, align=size)
        return context.get_dummy_value()

    return types.void(array, types.int64, vector, types.int64), generate


@intrinsic
def zeros(typing_context, array):
    """A vector of zeros of the array's type."""

    def generate(context, builder, signature, arguments):
        vector = context.get_value_type(signature.return_type)
        return ir.Constant(vector, [0.0] * vector.count)

    return Vector(array.dtype)(array), generate


def spread(builder, scalar, lanes):
    """A vector of one number."""
    kind = ir.VectorType(scalar.type, lanes)
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0))
    same = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
    return builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), same)


@intrinsic
def filled(typing_context, array, value):
    """A vector of one number, of the array's type."""

    def generate(context, builder, signature, arguments):
        return spread(builder, arguments[1], context.get_value_type(signature.return_type).count)

    return Vector(array.dtype)(array, array.dtype), generate


def _made_by(operation):
    """Code that is one operation on two vectors."""

    def generate(context, builder, signature, arguments):
        return getattr(builder, operation)(*arguments)

    return generate


def _made_with_number(operation):
    """Code that is one operation on a vector and a number."""

    def generate(context, builder, signature, arguments):
        vector, number = arguments
        return getattr(builder, operation)(vector, spread(builder, number, vector.type.count))

    return generate


@intrinsic
def add(typing_context, a, b):
    """a + b"""
    return a(a, a), _made_by("fadd")


@intrinsic
def subtract(typing_context, a, b):
    """a - b"""
    return a(a, a), _made_by("fsub")


@intrinsic
def product(typing_context, a, b):
    """a * b"""
    return a(a, a), _made_by("fmul")


@intrinsic
def scaled(typing_context, a, scale):
    """a * scale"""
    return a(a, a.dtype), _made_with_number("fmul")


@intrinsic
def divided(typing_context, a, divisor):
    """a / divisor, a number."""
    return a(a, a.dtype), _made_with_number("fdiv")


@intrinsic
def moved(typing_context, a, shift):
    """a + shift, of whole numbers."""
    return a(a, a.dtype), _made_with_number("add")


@intrinsic
def larger(typing_context, a, b):
    """The larger ones of a and b, which are numbers."""

    def generate(context, builder, signature, arguments):
        return builder.select(builder.fcmp_ordered(">", *arguments), *arguments)

    return a(a, a), generate


@intrinsic
def where_positive(typing_context, condition, a):
    """a where the condition is above 0, else 0."""

    def generate(context, builder, signature, arguments):
        zero = ir.Constant(arguments[0].type, [0.0] * condition.lanes)
        return builder.select(builder.fcmp_ordered(">", arguments[0], zero), arguments[1], zero)

    return a(condition, a), generate


@intrinsic
def add_scaled(typing_context, a, b, scale):
    """a + scale * b, rounded once where the processor can."""

    def generate(context, builder, signature, arguments):
        x, y, scalar = arguments
        product = builder.fmul(y, spread(builder, scalar, a.lanes), flags=("contract",))
        return builder.fadd(x, product, flags=("contract",))

    return a(a, a, a.dtype), generate


@intrinsic
def add_product(typing_context, a, b, c):
    """a + b * c, rounded once where the processor can."""

    def generate(context, builder, signature, arguments):
        x, y, z = arguments
        return builder.fadd(x, builder.fmul(y, z, flags=("contract",)), flags=("contract",))

    return a(a, a, a), generate


@intrinsic
def total(typing_context, a):
    """The sum of a vector's numbers, by halves."""

    def generate(context, builder, signature, arguments):
        (vector,), lanes, whole = arguments, a.lanes, ir.IntType(32)
        while lanes > 1:
            lanes //= 2
            masks = [ir.Constant(ir.VectorType(whole, lanes), list(range(s, s + lanes))) for s in (0, lanes)]
            nothing = ir.Constant(vector.type, ir.Undefined)
            low, high = (builder.shuffle_vector(vector, nothing, mask) for mask in masks)
            vector = builder.fadd(low, high)
        return builder.extract_element(vector, ir.Constant(whole, 0))

    return a.dtype(a), generate


@intrinsic
def one(typing_context, array, at):
    """array[at], never tested for a negative position."""

    def generate(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.load(builder.gep(data, [arguments[1]]))

    return array.dtype(array, types.int64), generate


@intrinsic
def nonzero(typing_context, a):
    """Which of a vector's numbers are not 0: the first one is the lowest bit."""

    def generate(context, builder, signature, arguments):
        (vector,) = arguments
        nothing = ir.Constant(vector.type, [0.0] * a.lanes)
        bits = builder.bitcast(builder.fcmp_unordered("!=", vector, nothing), ir.IntType(a.lanes))
        return builder.zext(bits, ir.IntType(64))

    return types.int64(a), generate


@intrinsic
def put_eight(typing_context, array, at, bytes_, start, shift):
    """array[at : at + 8] = bytes_[start : start + 8] + shift, of bytes."""

    def generate(context, builder, signature, arguments):
        array, at, bytes_, start, shift = arguments
        eight = ir.VectorType(ir.IntType(8), 8).as_pointer()

        def place(number, array, at):
            data = context.make_array(signature.args[number])(context, builder, array).data
            return builder.bitcast(builder.gep(data, [at]), eight)

        same = spread(builder, builder.trunc(shift, ir.IntType(8)), 8)
        moved = builder.add(builder.load(place(2, bytes_, start), align=1), same)
        builder.store(moved, place(0, array, at), align=1)
        return context.get_dummy_value()

    return types.void(array, types.int64, bytes_, types.int64, types.int64), generate


@numba.njit(error_model="numpy", forceinline=True)
def copied(out, at, values, begin, count):
    """out[at : at + count] = values[begin : begin + count]; they do not overlap.

    numba's own assignment to a slice brings its message about unequal lengths along: 1.5 s of compiling strings.
    """
    to, source = np.uint64(at), np.uint64(begin)
    for k in range(np.uint64(count)):
        out[to + k] = values[source + k]
