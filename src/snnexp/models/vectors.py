"""Vectors for numba kernels whose sums must stay in registers, which a compiler does not see from plain loops.

A vector has 64 bytes, whatever the processor's registers have: shorter ones take two or four of them. No fast-math: a sum
has one order. A product is rounded together with the sum that it goes into where the processor can.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, register_model

BYTES = 64  # of a vector


class Vector(types.Type):  # type: ignore[misc]
    """Numbers that are worked on at once."""

    def __init__(self, dtype) -> None:
        self.dtype = dtype
        self.lanes = BYTES * 8 // dtype.bitwidth
        super().__init__(name=f"snnexp.Vector({dtype})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager, vector) -> None:
        element = manager.lookup(vector.dtype).get_value_type()
        super().__init__(manager, vector, ir.VectorType(element, vector.lanes))


@intrinsic
def load(typing_context, array, at):
    """array[at : at + lanes]; `at` is not negative."""

    def generate(context, builder, signature, arguments):
        vector = context.get_value_type(signature.return_type)
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        address = builder.bitcast(builder.gep(data, [arguments[1]]), vector.as_pointer())
        return builder.load(address, align=signature.args[0].dtype.bitwidth // 8)

    return Vector(array.dtype)(array, types.int64), generate


@intrinsic
def zeros(typing_context, array):
    """A vector of zeros of the array's type."""

    def generate(context, builder, signature, arguments):
        vector = context.get_value_type(signature.return_type)
        return ir.Constant(vector, [0.0] * vector.count)

    return Vector(array.dtype)(array), generate


@intrinsic
def add_product(typing_context, a, b, c):
    """a + b * c"""

    def generate(context, builder, signature, arguments):
        a, b, c = arguments
        return builder.fadd(a, builder.fmul(b, c, flags=("contract",)), flags=("contract",))

    return a(a, a, a), generate


@intrinsic
def total(typing_context, a):
    """The sum of a vector's numbers, by halves."""

    def generate(context, builder, signature, arguments):
        (vector,), lanes, whole = arguments, a.lanes, ir.IntType(32)
        while lanes > 1:
            lanes //= 2
            masks = (ir.Constant(ir.VectorType(whole, lanes), list(range(s, s + lanes))) for s in (0, lanes))
            nothing = ir.Constant(vector.type, ir.Undefined)
            low, high = (builder.shuffle_vector(vector, nothing, mask) for mask in masks)
            vector = builder.fadd(low, high)
        return builder.extract_element(vector, ir.Constant(whole, 0))

    return a.dtype(a), generate
