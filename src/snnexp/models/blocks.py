"""Small dense matrix products for kernels that make the factors as they go: a block of C stays in registers.

    C[r, j] = sum over k of A[r, k] B[k, j]        r < ROWS, j < COLUMNS

The block is as large as the processor's registers allow; in which order a number is summed does not depend on it.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, import-untyped"

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from snnexp.vectors import BYTES, Vector, spread

# Of AVX-512's 32 registers of 64 bytes, or 16 of 32 (AVX2), or 32 of 16.
_FEATURES = cpu_target.target_context.codegen()._tm_features.split(",")
ROWS, VECTORS = (12, 2) if "+avx512f" in _FEATURES else (6, 1)


def columns_of(itemsize: int) -> int:
    """Columns of a block, for numbers of so many bytes."""
    return VECTORS * BYTES // itemsize


@intrinsic
def block_product(typing_context, a, a_at, a_row, a_step, b, b_at, b_step, c, c_at, c_row, depth):
    """c[c_at + r c_row + j] = sum over k < depth of a[a_at + r a_row + k a_step] b[b_at + k b_step + j]

    For r < ROWS and j < columns_of(...). Flat arrays of one type; depth is at least 1. k runs upwards.
    """
    place = types.int64
    return types.void(a, place, place, place, b, place, place, c, place, place, place), _block_of(added=False)


@intrinsic
def add_block_product(typing_context, a, a_at, a_row, a_step, b, b_at, b_step, c, c_at, c_row, depth):
    """The same, added to what c holds."""
    place = types.int64
    return types.void(a, place, place, place, b, place, place, c, place, place, place), _block_of(added=True)


def _block_of(added):
    """What makes the code of `block_product`, or of `add_block_product`."""

    def generate(context, builder, signature, arguments):
        _, a_at, a_row, a_step, _, b_at, b_step, _, c_at, c_row, depth = arguments
        vector = context.get_value_type(Vector(signature.args[0].dtype))
        size, whole = signature.args[0].dtype.bitwidth // 8, ir.IntType(64)

        def data(position, at):
            array = context.make_array(signature.args[position])(context, builder, arguments[position])
            return builder.gep(array.data, [at])

        def places(start, step):
            found = [start]
            while len(found) < ROWS:
                found.append(builder.gep(found[-1], [step]))
            return found

        def vectors(start, offset=None):
            for v in range(VECTORS):
                at = ir.Constant(whole, v * vector.count)
                yield builder.bitcast(
                    builder.gep(start, [at if offset is None else builder.add(offset, at)]), vector.as_pointer()
                )

        rows, first, targets = places(data(0, a_at), a_row), data(4, b_at), places(data(7, c_at), c_row)
        zero = ir.Constant(vector, [0.0] * vector.count)
        starts = [[builder.load(p, align=size) if added else zero for p in vectors(target)] for target in targets]
        before, loop, after = builder.block, builder.append_basic_block("k"), builder.append_basic_block("sums")
        builder.branch(loop)
        builder.position_at_end(loop)
        k, at, line = builder.phi(whole), builder.phi(whole), builder.phi(whole)
        sums = [[builder.phi(vector) for _ in range(VECTORS)] for _ in range(ROWS)]
        pieces, results = [builder.load(p, align=size) for p in vectors(first, line)], []
        for row, old in zip(rows, sums, strict=True):
            scale = spread(builder, builder.load(builder.gep(row, [at])), vector.count)
            products = [builder.fmul(scale, piece, flags=("contract",)) for piece in pieces]
            results.append([builder.fadd(s, p, flags=("contract",)) for s, p in zip(old, products, strict=True)])
        for phi, step in ((k, ir.Constant(whole, 1)), (at, a_step), (line, b_step)):
            phi.add_incoming(ir.Constant(whole, 0), before)
            phi.add_incoming(builder.add(phi, step), loop)
        for phis, olds, news in zip(sums, starts, results, strict=True):
            for phi, old, new in zip(phis, olds, news, strict=True):
                phi.add_incoming(old, before)
                phi.add_incoming(new, loop)
        builder.cbranch(builder.icmp_signed("<", k.incomings[1][0], depth), loop, after)
        builder.position_at_end(after)
        for target, values in zip(targets, results, strict=True):
            for value, p in zip(values, vectors(target), strict=True):
                builder.store(value, p, align=size)
        return context.get_dummy_value()

    return generate
