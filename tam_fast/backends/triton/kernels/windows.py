# mypy: ignore-errors
# ruff: noqa: RUF005, SIM300, RET505 (what Triton compiles is not quite Python)
"""What the Triton filters do with one window: sorting networks, the weighted mean (Eq. 7), reflection at borders.

Sorted are float32, or pairs of halves side by side in 32 bits, for which NVIDIA's GPUs have instructions.
"""

import re

import triton
import triton.language as tl

from tam_fast import _C


def _completion_of(kernel_size):
    """Comparators of the window's network that complete sorted rows and columns."""
    network = _C.sorting_network(kernel_size)
    columns = 0
    while network[columns][0] % kernel_size == network[columns][1] % kernel_size:
        columns += 1
    rows = columns
    while network[rows][0] // kernel_size == network[rows][1] // kernel_size:
        rows += 1
    line = [(a // kernel_size, b // kernel_size) for a, b in network[:columns] if a % kernel_size == 0]
    if columns != len(line) * kernel_size or rows != 2 * columns:
        raise RuntimeError(f"sorting_network({kernel_size}): expected columns, rows, and the rest")
    return tuple(line), tuple(network[rows:])


LINES = {
    2: ((0, 1),),
    4: ((0, 2), (1, 3), (0, 1), (2, 3), (1, 2)),
    6: ((0, 5), (1, 3), (2, 4), (1, 2), (3, 4), (0, 3), (2, 5), (0, 1), (2, 3), (4, 5), (1, 2), (3, 4)),
}
"""Networks that sort a line of some values."""

COMPLETIONS = {}
"""Networks that sort K x K values whose rows and columns are sorted."""

for _size in (3, 5, 7):
    LINES[_size], COMPLETIONS[_size] = _completion_of(_size)


@triton.constexpr_function
def _line_size(size):
    return len(LINES[size])


@triton.constexpr_function
def _line(size, index, side):
    return LINES[size][index][side]


@triton.constexpr_function
def _completion_size(kernel_size):
    return len(COMPLETIONS[kernel_size])


@triton.constexpr_function
def _completion(kernel_size, index, side):
    return COMPLETIONS[kernel_size][index][side]


# -------------------------------------------------------------------------------------------- what NVIDIA's GPUs have


if triton.knobs.runtime.interpret:

    def has_ptx():
        """Whether this is compiled for an NVIDIA GPU: it is interpreted."""
        return False

else:

    @tl.core.builtin
    def has_ptx(_semantic=None):
        """Whether this is compiled for an NVIDIA GPU that has minima and maxima of halves."""
        options = _semantic.builder.options
        return tl.constexpr(options.backend_name == "cuda" and int(re.sub(r"\D", "", str(options.arch))) >= 80)


@triton.jit
def _reciprocal(x):
    """1 / x to about an ulp; with PTX, Inf where x is not normal."""
    if has_ptx():
        return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)
    else:
        return 1.0 / x


@triton.jit
def _exp2_of_minus(x):
    """2^-|x|; with PTX, 0 where that is not normal."""
    if has_ptx():
        return tl.inline_asm_elementwise(
            "{ .reg .f32 x; abs.f32 x, $1; neg.f32 x, x; ex2.approx.ftz.f32 $0, x; }",
            "=f,f",
            [x],
            tl.float32,
            is_pure=True,
            pack=1,
        )
    else:
        return tl.exp2(-tl.abs(x))


@triton.jit
def row_address(base, row, row_bytes):
    """Address of a row, which is not negative. A stride of 32 bits makes that one instruction with PTX."""
    if row_bytes.dtype == tl.int32 and has_ptx():
        return base + tl.inline_asm_elementwise(
            "mul.wide.u32 $0, $1, $2;", "=l,r,r", [row, row_bytes], tl.int64, is_pure=True, pack=1
        )
    else:
        return base + row.to(tl.int64) * row_bytes.to(tl.int64)


# What follows sorts float32, or pairs of the type HALF side by side in 32 bits.


@triton.constexpr_function
def type_of_pairs(columns, element):
    """HALF for a type of maps: a lane of several columns sorts halves in pairs, which takes instructions of PTX."""
    return element if columns > 1 and element in (tl.float16, tl.bfloat16) else None


@triton.constexpr_function
def units_of(columns, half):
    """How many floats or pairs hold the values of a lane's columns."""
    return columns if half is None else columns // 2


@triton.jit
def pair_of(a, b):
    """Two halves side by side, as bits."""
    a = a.to(tl.int16, bitcast=True)
    b = b.to(tl.int16, bitcast=True)
    return tl.inline_asm_elementwise("mov.b32 $0, {$1, $2};", "=r,h,h", [a, b], tl.int32, is_pure=True, pack=1)


@triton.jit
def floats_of(pair, HALF: tl.constexpr):
    """The two halves of a pair as float32."""
    if HALF == tl.float16:
        return tl.inline_asm_elementwise(
            "{ .reg .b16 a, b; mov.b32 {a, b}, $2; cvt.f32.f16 $0, a; cvt.f32.f16 $1, b; }",
            "=f,=f,r",
            [pair],
            (tl.float32, tl.float32),
            is_pure=True,
            pack=1,
        )
    else:
        return (pair << 16).to(tl.float32, bitcast=True), (pair & -65536).to(tl.float32, bitcast=True)


@triton.jit
def _smaller(a, b, HALF: tl.constexpr):
    if HALF == tl.float16:
        return tl.inline_asm_elementwise("min.f16x2 $0, $1, $2;", "=r,r,r", [a, b], tl.int32, is_pure=True, pack=1)
    elif HALF == tl.bfloat16:
        return tl.inline_asm_elementwise("min.bf16x2 $0, $1, $2;", "=r,r,r", [a, b], tl.int32, is_pure=True, pack=1)
    else:
        return tl.minimum(a, b)


@triton.jit
def _larger(a, b, HALF: tl.constexpr):
    if HALF == tl.float16:
        return tl.inline_asm_elementwise("max.f16x2 $0, $1, $2;", "=r,r,r", [a, b], tl.int32, is_pure=True, pack=1)
    elif HALF == tl.bfloat16:
        return tl.inline_asm_elementwise("max.bf16x2 $0, $1, $2;", "=r,r,r", [a, b], tl.int32, is_pure=True, pack=1)
    else:
        return tl.maximum(a, b)


# ------------------------------------------------------------------------------------------------------------- sorting


@triton.jit
def _exchanged(values, FIRST: tl.constexpr, SECOND: tl.constexpr, HALF: tl.constexpr):
    """Put the smaller one of two values in the first place and the larger one in the second."""
    a = values[FIRST]
    b = values[SECOND]
    return (
        values[:FIRST]
        + (_smaller(a, b, HALF),)
        + values[FIRST + 1 : SECOND]
        + (_larger(a, b, HALF),)
        + values[SECOND + 1 :]
    )


@triton.jit
def sorted_line(values, SIZE: tl.constexpr, HALF: tl.constexpr):
    """Sort SIZE values."""
    for i in tl.static_range(_line_size(SIZE)):
        values = _exchanged(values, _line(SIZE, i, 0), _line(SIZE, i, 1), HALF)
    return values


@triton.jit
def inserted(values, one, SIZE: tl.constexpr, HALF: tl.constexpr):
    """Sort SIZE sorted values and one more."""
    result = (_smaller(values[0], one, HALF),)
    for i in tl.static_range(1, SIZE):
        result = result + (_larger(values[i - 1], _smaller(values[i], one, HALF), HALF),)
    return result + (_larger(values[SIZE - 1], one, HALF),)


@triton.jit
def completed(values, K: tl.constexpr, HALF: tl.constexpr):
    """Sort K x K values whose rows and columns are sorted."""
    for i in tl.static_range(_completion_size(K)):
        values = _exchanged(values, _completion(K, i, 0), _completion(K, i, 1), HALF)
    return values


# ---------------------------------------------------------------------------------------------------------- arithmetic


@triton.constexpr_function
def factor_of_squares(kernel_size):
    """What sums of squares are multiplied with before they are given to `weighted_mean` (all but the last row's)."""
    return 9 * 1453635 / 2**20 if kernel_size == 3 else 1.0


@triton.jit
def weighted_mean(values, total, squares, squares_of_one, K: tl.constexpr):
    """Weigh sorted values by rank (Eq. 7), from their sum S and sum of squares Q: that of K - 1 rows and that of one.

    mu^2 / (2 var) / log 2 is S^2 / (2 log 2) / (K^2 Q - S^2). The one-pass variance only cancels where the weights
    vanish, and the smallest denormal keeps 0 / 0 away, so neither constant windows nor zeros need to be told apart.
    """
    centre: tl.constexpr = K * K // 2
    square = tl.fma(total, total, 2.0**-149)
    if K == 3:
        # All of the denominator times 2 log 2, which is short enough here for nine times it to be exact as well.
        deviation = tl.fma(square, -1453635 / 2**20, squares)
        deviation = tl.fma(squares_of_one, factor_of_squares(K), deviation)
        q = _exp2_of_minus(square * _reciprocal(deviation))
        q2 = q * q
        q3 = q2 * q
        q5 = q3 * q2
        q7 = q5 * q2
        # v4 + q (v3 + v5) + q^4 (v2 + v6) + q^9 (v1 + v7) + q^16 (v0 + v8), over 1 + 2 (q + q^4 + q^9 + q^16)
        weighted = tl.fma(q7, values[0] + values[8], values[1] + values[7])
        weighted = tl.fma(q5, weighted, values[2] + values[6])
        weighted = tl.fma(q3, weighted, values[3] + values[5])
        weighted = tl.fma(q, weighted, values[4])
        weights = tl.fma(q7, 2.0, 2.0)
        weights = tl.fma(q5, weights, 2.0)
        weights = tl.fma(q3, weights, 2.0)
        weights = tl.fma(q, weights, 1.0)
    else:
        deviation = tl.fma(squares + squares_of_one, K * K * 1.0, -square)
        exponent = square * _reciprocal(deviation)
        # High powers of one exponential would multiply its error.
        weighted = values[centre]
        weights = tl.full(total.shape, 0.5, tl.float32)
        for d in tl.static_range(1, centre + 1):
            weight = _exp2_of_minus(exponent * (d * d * 0.72134752))
            weighted = tl.fma(weight, values[centre - d] + values[centre + d], weighted)
            weights += weight
        weights = weights * 2.0
    return weighted * _reciprocal(weights)


@triton.jit
def scale_of(largest, WIDE: tl.constexpr):
    """Power of two that brings a magnitude to about 1, and its inverse; both are normal."""
    if WIDE:
        power = tl.minimum(tl.maximum(2046 - (largest.to(tl.int64, bitcast=True) >> 52), 1), 2045)
        factor = (power << 52).to(tl.float64, bitcast=True)
        inverse = ((2046 - power) << 52).to(tl.float64, bitcast=True)
    else:
        power = tl.minimum(tl.maximum(254 - (largest.to(tl.int32, bitcast=True) >> 23), 1), 253)
        factor = (power << 23).to(tl.float32, bitcast=True)
        inverse = ((254 - power) << 23).to(tl.float32, bitcast=True)
    return factor, inverse


@triton.jit
def reflected(index, size, RADIUS: tl.constexpr):
    """Reflect like numpy, for indices at most RADIUS outside; others end up somewhere inside."""
    last = size - 1
    index = tl.abs(index)
    index = tl.where(index > last, tl.abs(2 * last - index), index)
    if RADIUS > 2:
        index = tl.where(index > last, tl.abs(2 * last - index), index)
    return tl.minimum(index, last)


@triton.jit
def reflected_below(index, size, RADIUS: tl.constexpr):
    """The same for indices that are not negative: one instruction for a RADIUS of 1."""
    if RADIUS == 1:
        return tl.maximum(tl.minimum(index, 2 * (size - 1) - index), 0)
    else:
        return reflected(index, size, RADIUS)


@triton.jit
def folded(index, size):
    """Reflect like numpy at any distance."""
    period = tl.maximum(2 * (size - 1), 1)
    index = tl.abs(index) % period
    return tl.minimum(tl.minimum(index, tl.abs(2 * (size - 1) - index)), size - 1)


@triton.jit
def as_output(value, OUTPUT: tl.constexpr):
    """Convert to the stored type; uint8 is floor(255 x), NaN as 0."""
    if OUTPUT == tl.uint8:
        level = tl.minimum(tl.maximum(tl.floor(value * 255.0), 0.0), 255.0)
        return tl.where(value == value, level, 0.0).to(tl.uint8)
    else:
        return value.to(OUTPUT)
