"""The transforms of Winograd's convolution, in vectors: of tiles with 2x2 outputs, and with 4x4; see `winograd.py`.

A tile of 2x2 outputs has points 0, 1, -1 and infinity, one of 4x4 has 0, +-NEAR, +-FAR and infinity. With stride 2 the
first and the third weight meet every other input and make a kernel of two (points 0, 1 and infinity), the second one
meets the inputs between: five products for two outputs, where sums take six.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, import-untyped"

from __future__ import annotations

from typing import Any, NamedTuple

import numba

from snnexp.vectors import add, add_scaled, load, scaled, store, subtract

NEAR, FAR = 0.625, 1.5  # of all pairs of eighths that with the smallest rounding errors

_inline = numba.njit(error_model="numpy", forceinline=True)


class Points(NamedTuple):
    """What the transforms multiply by, in the kernels' precision: powers of the points, and what G divides by."""

    half: Any
    near: Any
    far: Any
    near2: Any
    far2: Any
    near3: Any
    far3: Any
    both2: Any  # near2 far2
    sum2: Any  # near2 + far2
    over_zero: Any  # one over the product of a point's distances to the others: of 0,
    over_near: Any  # of +-near, each
    over_far: Any


@_inline
def points_of(like):
    """The constants in the precision of an array."""
    kind, near, far = like.dtype.type, NEAR * NEAR, FAR * FAR
    over_near, over_far = kind(1 / (2 * near * (near - far))), kind(1 / (2 * far * (far - near)))
    powers = kind(NEAR), kind(FAR), kind(near), kind(far), kind(NEAR * near), kind(FAR * far)
    return Points(kind(0.5), *powers, kind(near * far), kind(near + far), kind(1 / (near * far)), over_near, over_far)


# --- of one row or column -----------------------------------------------------------------------------------------


@_inline
def four(a, b, c, d):
    """B' d of a tile of 2x2 outputs."""
    return subtract(a, c), add(b, c), subtract(c, b), subtract(b, d)


@_inline
def six(a, b, c, d, e, f, k):
    """B' d of a tile of 4x4 outputs; row j is the polynomial with roots at all points but the j-th."""
    first = add_scaled(add_scaled(e, c, -k.sum2), a, k.both2)
    last = add_scaled(add_scaled(f, d, -k.sum2), b, k.both2)
    even, odd = add_scaled(e, c, -k.far2), add_scaled(d, b, -k.far2)
    other, rest = add_scaled(e, c, -k.near2), add_scaled(d, b, -k.near2)
    near, far = add_scaled(even, odd, k.near), add_scaled(other, rest, k.far)
    return first, near, add_scaled(even, odd, -k.near), far, add_scaled(other, rest, -k.far), last


@_inline
def two_of(a, b, c, d):
    """A' m of a tile of 2x2 outputs."""
    return add(add(a, b), c), subtract(subtract(b, c), d)


@_inline
def four_of(a, b, c, d, e, f, k):
    """A' m of a tile of 4x4 outputs: powers of the points."""
    inner, outer, left, right = add(b, c), add(d, e), subtract(b, c), subtract(d, e)
    second, third = add_scaled(scaled(left, k.near), right, k.far), add_scaled(scaled(inner, k.near2), outer, k.far2)
    return add(add(a, inner), outer), second, third, add_scaled(add_scaled(f, left, k.near3), right, k.far3)


@_inline
def six_of(a, b, c, d, k):
    """A g: of the gradients of four outputs."""
    even, odd = add_scaled(a, c, k.near2), add_scaled(scaled(b, k.near), d, k.near3)
    other, rest = add_scaled(a, c, k.far2), add_scaled(scaled(b, k.far), d, k.far3)
    return a, add(even, odd), subtract(even, odd), add(other, rest), subtract(other, rest), d


@_inline
def four_from(a, b, c, k):
    """G w of a tile of 2x2 outputs."""
    outer = add(a, c)
    return a, scaled(add(outer, b), k.half), scaled(subtract(outer, b), k.half), c


@_inline
def six_from(a, b, c, k):
    """G w of a tile of 4x4 outputs: powers of the points, each row over the product of its point's distances."""
    even, odd = scaled(add_scaled(a, c, k.near2), k.over_near), scaled(scaled(b, k.near), k.over_near)
    other, rest = scaled(add_scaled(a, c, k.far2), k.over_far), scaled(scaled(b, k.far), k.over_far)
    return scaled(a, k.over_zero), add(even, odd), subtract(even, odd), add(other, rest), subtract(other, rest), c


@_inline
def three_back(a, b, c, d, e, f, k):
    """G' s of a tile of 4x4 outputs."""
    even, odd = scaled(add(b, c), k.over_near), scaled(subtract(b, c), k.over_near)
    other, rest = scaled(add(d, e), k.over_far), scaled(subtract(d, e), k.over_far)
    first, middle = add_scaled(add(even, other), a, k.over_zero), add_scaled(scaled(odd, k.near), rest, k.far)
    return first, middle, add_scaled(add_scaled(f, even, k.near2), other, k.far2)


@_inline
def five(a, b, c, d, e):
    """B' d of a tile of 2 outputs with stride 2: of a, c, e for weights 0 and 2, then of b, d for weight 1."""
    return subtract(a, c), c, subtract(c, e), b, d


@_inline
def two_apart(a, b, c, d, e):
    """A' m of it."""
    return add(add(a, b), d), add(subtract(b, c), e)


@_inline
def five_from_three(a, b, c):
    """B' g for 4 inputs of such a tile, from the output's gradient."""
    return subtract(a, b), b, subtract(b, c), a, b


@_inline
def four_between(a, b, c, d, e):
    """A' m of these: the gradients of 4 inputs."""
    return d, add(a, b), e, subtract(b, c)


@_inline
def five_of(a, b):
    """A g of a tile of 2 outputs with stride 2; its third row is negative, as in A."""
    return a, add(a, b), b, a, b


@_inline
def four_apart(a, b, c):
    """G w with stride 2: the last row goes with the last two of five."""
    return a, add(a, c), c, b


@_inline
def three_between(a, b, c, d):
    """G' s with stride 2, of sums whose third row has the other sign."""
    return add(a, b), d, subtract(b, c)


# --- of a tile: of one vector of its channels ---------------------------------------------------------------------
#
# source and target lie in rows: `row` and `pixel` apart where they are maps, `apart` where they are the products.
# Tiles of 4x4 outputs go through `room`, vectors that hold what lies between their columns and their rows.


@_inline
def _take(source, at, step):
    return load(source, at), load(source, at + step), load(source, at + 2 * step), load(source, at + 3 * step)


@_inline
def _take_six(source, at, step):
    low, p = _take(source, at, step), at + 4 * step
    return low[0], low[1], low[2], low[3], load(source, p), load(source, p + step)


@_inline
def _put(target, at, step, v):
    store(target, at, v[0])
    store(target, at + step, v[1])
    store(target, at + 2 * step, v[2])
    store(target, at + 3 * step, v[3])


@_inline
def _put_six(target, at, step, v):
    _put(target, at, step, v)
    store(target, at + 4 * step, v[4])
    store(target, at + 5 * step, v[5])


@_inline
def spread_two(source, at, row, pixel, target, place, apart):
    """target[16] = B' d B of 4x4 inputs."""
    a, b = four(*_take(source, at, row)), four(*_take(source, at + pixel, row))
    c, d = four(*_take(source, at + 2 * pixel, row)), four(*_take(source, at + 3 * pixel, row))
    _put(target, place, apart, four(a[0], b[0], c[0], d[0]))
    _put(target, place + 4 * apart, apart, four(a[1], b[1], c[1], d[1]))
    _put(target, place + 8 * apart, apart, four(a[2], b[2], c[2], d[2]))
    _put(target, place + 12 * apart, apart, four(a[3], b[3], c[3], d[3]))


@_inline
def spread_four(source, at, row, pixel, target, place, apart, room, lanes, k):
    """target[36] = B' d B of 6x6 inputs."""
    for j in range(6):
        _put_six(room, j * lanes, 6 * lanes, six(*_take_six(source, at + j * pixel, row), k))
    for i in range(6):
        _put_six(target, place + 6 * i * apart, apart, six(*_take_six(room, 6 * i * lanes, lanes), k))


@_inline
def gather_two(source, at, apart):
    """The 2x2 outputs A' m A of the products m[16]."""
    a, b = two_of(*_take(source, at, 4 * apart)), two_of(*_take(source, at + apart, 4 * apart))
    c, d = two_of(*_take(source, at + 2 * apart, 4 * apart)), two_of(*_take(source, at + 3 * apart, 4 * apart))
    above, below = two_of(a[0], b[0], c[0], d[0]), two_of(a[1], b[1], c[1], d[1])
    return above[0], above[1], below[0], below[1]


@_inline
def gather_four(source, at, apart, room, lanes, k):
    """room[16] = the 4x4 outputs A' m A of the products m[36]."""
    for j in range(6):
        _put(room, (16 + j) * lanes, 6 * lanes, four_of(*_take_six(source, at + j * apart, 6 * apart), k))
    for i in range(4):
        _put(room, 4 * i * lanes, lanes, four_of(*_take_six(room, (16 + 6 * i) * lanes, lanes), k))


@_inline
def fan_out(room, target, place, apart, lanes, k):
    """target[36] = A g A' of the gradients of 4x4 outputs, room[16]."""
    for j in range(4):
        _put_six(room, (16 + j) * lanes, 4 * lanes, six_of(*_take(room, j * lanes, 4 * lanes), k))
    for i in range(6):
        _put_six(target, place + 6 * i * apart, apart, six_of(*_take(room, (16 + 4 * i) * lanes, lanes), k))


@_inline
def weights_of_two(source, at, tap, target, place, apart, k):
    """target[16] = G w G' of nine weights that lie `tap` apart."""
    a, b, c = (
        four_from(load(source, at), load(source, at + 3 * tap), load(source, at + 6 * tap), k),
        four_from(load(source, at + tap), load(source, at + 4 * tap), load(source, at + 7 * tap), k),
        four_from(load(source, at + 2 * tap), load(source, at + 5 * tap), load(source, at + 8 * tap), k),
    )
    _put(target, place, apart, four_from(a[0], b[0], c[0], k))
    _put(target, place + 4 * apart, apart, four_from(a[1], b[1], c[1], k))
    _put(target, place + 8 * apart, apart, four_from(a[2], b[2], c[2], k))
    _put(target, place + 12 * apart, apart, four_from(a[3], b[3], c[3], k))


@_inline
def weights_of_four(source, at, tap, target, place, apart, room, lanes, k):
    """target[36] = G w G' of nine weights that lie `tap` apart."""
    for j in range(3):
        p = at + j * tap
        column = six_from(load(source, p), load(source, p + 3 * tap), load(source, p + 6 * tap), k)
        _put_six(room, j * lanes, 3 * lanes, column)
    for i in range(6):
        p = 3 * i * lanes
        row = six_from(load(room, p), load(room, p + lanes), load(room, p + 2 * lanes), k)
        _put_six(target, place + 6 * i * apart, apart, row)


@_inline
def weights_back(room, target, place, tap, lanes, k):
    """target[9], `tap` apart, = G' s G of the sums room[36]."""
    for j in range(6):
        at = (j + 36) * lanes
        column = three_back(*_take_six(room, j * lanes, 6 * lanes), k)
        store(room, at, column[0])
        store(room, at + 6 * lanes, column[1])
        store(room, at + 12 * lanes, column[2])
    for i in range(3):
        row, p = three_back(*_take_six(room, (36 + 6 * i) * lanes, lanes), k), place + 3 * i * tap
        store(target, p, row[0])
        store(target, p + tap, row[1])
        store(target, p + 2 * tap, row[2])


@_inline
def _take_three(source, at, step):
    return load(source, at), load(source, at + step), load(source, at + 2 * step)


@_inline
def _take_five(source, at, step):
    low = _take(source, at, step)
    return low[0], low[1], low[2], low[3], load(source, at + 4 * step)


@_inline
def _put_five(target, at, step, v):
    _put(target, at, step, v)
    store(target, at + 4 * step, v[4])


@_inline
def spread_apart(source, at, row, pixel, target, place, apart, room, lanes):
    """target[25] = B' d B of 5x5 inputs, stride 2."""
    for j in range(5):
        _put_five(room, j * lanes, 5 * lanes, five(*_take_five(source, at + j * pixel, row)))
    for i in range(5):
        _put_five(target, place + 5 * i * apart, apart, five(*_take_five(room, 5 * i * lanes, lanes)))


@_inline
def spread_three(source, at, row, pixel, target, place, apart, room, lanes):
    """target[25] = B' g B of the gradients of 3x3 outputs, stride 2."""
    for j in range(3):
        _put_five(room, j * lanes, 3 * lanes, five_from_three(*_take_three(source, at + j * pixel, row)))
    for i in range(5):
        _put_five(target, place + 5 * i * apart, apart, five_from_three(*_take_three(room, 3 * i * lanes, lanes)))


@_inline
def gather_apart(source, at, apart, room, lanes):
    """The 2x2 outputs A' m A of the products m[25], stride 2."""
    for j in range(5):
        pair = two_apart(*_take_five(source, at + j * apart, 5 * apart))
        store(room, j * lanes, pair[0])
        store(room, (5 + j) * lanes, pair[1])
    above, below = two_apart(*_take_five(room, 0, lanes)), two_apart(*_take_five(room, 5 * lanes, lanes))
    return above[0], above[1], below[0], below[1]


@_inline
def gather_between(source, at, apart, room, lanes):
    """room[16] = the gradients of 4x4 inputs, A' m A of the products m[25], stride 2."""
    for j in range(5):
        _put(room, (16 + j) * lanes, 5 * lanes, four_between(*_take_five(source, at + j * apart, 5 * apart)))
    for i in range(4):
        _put(room, 4 * i * lanes, lanes, four_between(*_take_five(room, (16 + 5 * i) * lanes, lanes)))


@_inline
def fan_out_apart(room, target, place, apart, lanes):
    """target[25] = A g A' of the gradients of 2x2 outputs, room[4], stride 2."""
    for j in range(2):
        _put_five(room, (4 + j) * lanes, 2 * lanes, five_of(load(room, j * lanes), load(room, (2 + j) * lanes)))
    for i in range(5):
        at = (4 + 2 * i) * lanes
        _put_five(target, place + 5 * i * apart, apart, five_of(load(room, at), load(room, at + lanes)))


@_inline
def weights_apart(source, at, tap, target, place, apart):
    """target[16] = G w G' of nine weights that lie `tap` apart, stride 2."""
    a = four_apart(*_take_three(source, at, 3 * tap))
    b, c = four_apart(*_take_three(source, at + tap, 3 * tap)), four_apart(*_take_three(source, at + 2 * tap, 3 * tap))
    _put(target, place, apart, four_apart(a[0], b[0], c[0]))
    _put(target, place + 4 * apart, apart, four_apart(a[1], b[1], c[1]))
    _put(target, place + 8 * apart, apart, four_apart(a[2], b[2], c[2]))
    _put(target, place + 12 * apart, apart, four_apart(a[3], b[3], c[3]))


@_inline
def weights_back_apart(room, target, place, tap, lanes):
    """target[9], `tap` apart, = G' s G of the sums room[16], stride 2."""
    for j in range(4):
        at = (j + 16) * lanes
        column = three_between(*_take(room, j * lanes, 4 * lanes))
        store(room, at, column[0])
        store(room, at + 4 * lanes, column[1])
        store(room, at + 8 * lanes, column[2])
    for i in range(3):
        row, p = three_between(*_take(room, (16 + 4 * i) * lanes, lanes)), place + 3 * i * tap
        store(target, p, row[0])
        store(target, p + tap, row[1])
        store(target, p + 2 * tap, row[2])
