"""What each PTX instruction does, on numpy arrays with one element for each lane: the instructions of ptx_machine.py.

A decoder turns the modifiers and operands of one instruction into a closure that takes the batch of lanes. Registers
are arrays that are never written in place, of any type of their width; whoever reads one views it as what the
instruction says. Lanes that are not active are computed along and dropped.

Not exactly as the device: the approximations (ex2, lg2, rcp, ...) are correctly rounded or nearly, div.full is div.rn,
and NaNs that come in through memory keep their sign and payload, where the device would make most of them 0x7fffffff.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

Array = Any  # numpy's own annotations do not follow views from one type to another
Step = Callable[[Any], None]

BOOL: np.dtype[Any] = np.dtype(np.bool_)
FLOAT16, FLOAT32, FLOAT64 = (np.dtype(name) for name in ("f2", "f4", "f8"))
UNSIGNED: dict[int, np.dtype[Any]] = {bits: np.dtype(f"u{bits // 8}") for bits in (8, 16, 32, 64)}
SIGNED: dict[int, np.dtype[Any]] = {bits: np.dtype(f"i{bits // 8}") for bits in (8, 16, 32, 64)}
UINT16, UINT32, UINT64, INT32, INT64 = UNSIGNED[16], UNSIGNED[32], UNSIGNED[64], SIGNED[32], SIGNED[64]
TYPES: dict[str, np.dtype[Any]] = {
    **{f"{letter}{bits}": UNSIGNED[bits] for letter in "bu" for bits in UNSIGNED},
    **{f"s{bits}": SIGNED[bits] for bits in SIGNED},
    **{"f16": FLOAT16, "f32": FLOAT32, "f64": FLOAT64, "pred": BOOL},
    **{"bf16": UINT16, "f16x2": UINT32, "bf16x2": UINT32, "tf32": UINT32},
}
CACHING = {"nc", "ca", "cg", "cs", "lu", "cv", "wb", "wt", "volatile", "relaxed", "weak", "acquire", "release",
           "gpu", "sys", "cta", "acq_rel", "sc"}  # fmt: skip


class LaneFault(Exception):
    """Something a lane may not do; position is that of the lane among the active ones."""

    def __init__(self, message: str, position: int = 0):
        super().__init__(message)
        self.position = position


class FloatingPointFlags:
    """What the last operations of numpy raised: its error handler."""

    invalid = False
    underflow = False

    def __call__(self, kind: str, flags: int) -> None:
        self.invalid |= bool(flags & 8)
        self.underflow |= bool(flags & 4)


flags = FloatingPointFlags()


def first(bad: Array) -> int:
    return int(np.flatnonzero(bad)[0])


# ---------------------------------------------------------------------------------------------------------- arithmetic


def canonical(function: Callable[..., Array], dtype: np.dtype[Any]) -> Callable[..., Array]:
    """The function, with the NaNs that it makes as the device makes them: positive, where the host's are negative."""
    if dtype is FLOAT64:
        return function
    nan = np.array({FLOAT32: 0x7FFFFFFF, FLOAT16: 0x7FFF}[dtype], UNSIGNED[dtype.itemsize * 8]).view(dtype)

    def made(*operands: Array) -> Array:
        result = function(*operands)
        if flags.invalid:
            flags.invalid = False
            result = np.where(np.isnan(result), nan, result)
        return result

    return made


def scalar(value: Any, dtype: np.dtype[Any]) -> Array:
    """An array without axes: what numpy combines with arrays the fastest."""
    return np.array(value, dtype)


SMALLEST = {dtype: scalar(np.finfo(dtype).tiny, dtype) for dtype in (FLOAT16, FLOAT32, FLOAT64)}


def flushed(x: Array) -> Array:
    """Subnormal numbers become zeros of their sign."""
    small = np.abs(x) < SMALLEST[x.dtype]
    return np.where(small, np.copysign(x.dtype.type(0), x), x) if np.count_nonzero(small) else x


def flushing(function: Callable[..., Array]) -> Callable[..., Array]:
    return lambda *operands: flushed(function(*[flushed(x) for x in operands]))


def rounded_to_odd(x: Array, y: Array) -> Array:
    """x + y in float64, of inexact sums the neighbour whose last bit is one: rounding it again rounds only once."""
    total = x + y
    back = total - x
    error = (x - (total - back)) + (y - back)
    bits = total.view(INT64)
    odd = bits + np.where((error > 0) == (total > 0), 1, -1)
    return np.where((error != 0) & np.isfinite(total) & ((bits & 1) == 0), odd, bits).view(FLOAT64)


BELOW_FLOAT32, TIE_OF_FLOAT32 = scalar(0x1FFFFFFF, INT64), scalar(0x10000000, INT64)


def fma32(x: Array, y: Array, z: Array) -> Array:
    """x * y + z rounded once: the product is exact in float64, so only ties that the sum made can round wrongly."""
    product, z = x.astype(FLOAT64) * y.astype(FLOAT64), z.astype(FLOAT64)
    total = product + z
    flags.underflow = False
    result = total.astype(FLOAT32)
    if flags.underflow or np.count_nonzero((total.view(INT64) & BELOW_FLOAT32) == TIE_OF_FLOAT32):
        result = rounded_to_odd(product, z).astype(FLOAT32)
    return result


def fma16(x: Array, y: Array, z: Array) -> Array:
    return rounded_to_odd(x.astype(FLOAT64) * y.astype(FLOAT64), z.astype(FLOAT64)).astype(FLOAT16)


def two_sum(x: Array, y: Array) -> tuple[Array, Array]:
    total = x + y
    back = total - x
    return total, (x - (total - back)) + (y - back)


def fma64(x: Array, y: Array, z: Array) -> Array:
    """x * y + z rounded once: Boldo and Melquiond (2008), "Emulation of a FMA and correctly rounded sums".

    Where a product's error could underflow or a split overflow, by fractions.
    """
    product = x * y
    halves = []
    for factor in (x, y):
        wide = factor * 134217729.0
        high = wide - (wide - factor)
        halves.append((high, factor - high))
    (x_high, x_low), (y_high, y_low) = halves
    error = x_low * y_low - (((product - x_high * y_high) - x_low * y_high) - x_high * y_low)
    small, small_error = two_sum(z, error)
    large, large_error = two_sum(product, small)
    result = large + rounded_to_odd(large_error, small_error)
    sizes = np.abs([x, y])
    inside = ((sizes == 0) | ((sizes > 2.0**-480) & (sizes < 2.0**480))).all(0) & (np.abs(z) < 2.0**1000)
    exact = (x == 0) | (y == 0)
    if np.count_nonzero(inside & ~exact) == result.size:
        return result
    finite = np.isfinite(x) & np.isfinite(y)
    result = np.where(exact | ~finite, product + z, np.where(np.isfinite(z), result, z))
    for lane in np.flatnonzero(~inside & ~exact & finite & np.isfinite(z)):
        total = Fraction(float(x[lane])) * Fraction(float(y[lane])) + Fraction(float(z[lane]))
        try:
            result[lane] = float(total) if total else product[lane] + z[lane]
        except OverflowError:
            result[lane] = np.inf if total > 0 else -np.inf
    return result


def extremum(name: str, nan: bool = False) -> Callable[[Array, Array], Array]:
    """PTX's min and max: the number where one operand is NaN (unless .NaN), and -0 below +0."""
    table: dict[str, tuple[Any, Any]] = {"min": (np.fmin, np.minimum), "max": (np.fmax, np.maximum)}
    function, signs = table[name][nan], np.bitwise_or if name == "min" else np.bitwise_and

    def chosen(x: Array, y: Array) -> Array:
        result = function(x, y)
        bits = UNSIGNED[result.itemsize * 8]
        magnitude = result.view(bits)
        if np.count_nonzero(magnitude + magnitude) != result.size:
            both = (x == 0) & (y == 0)
            result = np.where(both, signs(x.view(bits), y.view(bits)), result.view(bits)).view(result.dtype)
        return result

    return chosen


def bfloat16_to_float32(x: Array) -> Array:
    return (x.view(UINT16).astype(UINT32) << 16).view(FLOAT32)


def float32_to_bfloat16(x: Array) -> Array:
    bits = x.view(UINT32)
    rounded = (bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16
    return np.where(np.isnan(x), np.uint32(0x7FFF), rounded).astype(UINT16)


def float32_to_float16(x: Array) -> Array:
    half = x.astype(FLOAT16)
    if np.count_nonzero(half != half):
        half = np.where(np.isnan(half), np.uint16(0x7FFF).view(FLOAT16), half)
    return half


def widened(function: Callable[..., Array], kind: str) -> Callable[..., Array]:
    """A function of float32 on halves, alone or packed; rounding twice is innocuous for one sum, product or choice."""
    if kind.startswith("bf16"):

        def made(*operands: Array) -> Array:
            return float32_to_bfloat16(function(*[bfloat16_to_float32(x) for x in operands])).view(TYPES[kind])
    else:

        def made(*operands: Array) -> Array:
            wide = function(*[x.view(FLOAT16).astype(FLOAT32) for x in operands])
            return float32_to_float16(wide).view(UINT16).view(UNSIGNED[TYPES[kind].itemsize * 8])

    return made


def multiply_high(x: Array, y: Array) -> Array:
    bits = x.itemsize * 8
    if bits < 64:
        wide = (SIGNED if x.dtype.kind == "i" else UNSIGNED)[2 * bits]
        return (np.multiply(x, y, dtype=wide) >> bits).astype(x.dtype)
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    a, b = x.view(UINT64), y.view(UINT64)
    cross = (a >> half) * (b & low) + ((a & low) * (b & low) >> half)
    other = (a & low) * (b >> half) + (cross & low)
    high = (a >> half) * (b >> half) + (cross >> half) + (other >> half)
    if x.dtype.kind == "i":
        high = high - np.where(x < 0, b, np.uint64(0)) - np.where(y < 0, a, np.uint64(0))
    return high.view(x.dtype)


def divide(x: Array, y: Array, remainder: bool) -> Array:
    """Towards zero; what PTX leaves open, the quotient by zero, has all bits set."""
    unsigned, zero = UNSIGNED[x.itemsize * 8], y == 0
    if x.dtype.kind == "u":
        safe = np.where(zero, y.dtype.type(1), y)
        result = x % safe if remainder else x // safe
    else:
        a, b = (np.where(v < 0, -v, v).view(unsigned) for v in (x, np.where(zero, y.dtype.type(1), y)))
        result = (a % b if remainder else a // b).view(x.dtype)
        result = np.where((x < 0) if remainder else ((x < 0) != (y < 0)), -result, result)
    return np.where(zero, x if remainder else np.array(-1).astype(x.dtype), result)


def count_bits(x: Array) -> Array:
    return np.bitwise_count(x).astype(UINT32)


def reverse_bits(x: Array) -> Array:
    size = x.itemsize
    rows = np.unpackbits(x.view(np.uint8).reshape(-1, size), axis=1, bitorder="little")[:, ::-1]
    return np.packbits(rows, axis=1, bitorder="little").reshape(-1).view(x.dtype)


def leading_zeros(x: Array) -> Array:
    for shift in (1, 2, 4, 8, 16, 32):
        if shift < x.itemsize * 8:
            x = x | (x >> x.dtype.type(shift))
    return np.uint32(x.itemsize * 8) - np.bitwise_count(x).astype(UINT32)


NIBBLES = np.array([0, 4, 8, 12], UINT32)


def permute_bytes(a: Array, b: Array, selector: Array) -> Array:
    pool = np.empty((len(a), 2), UINT32)
    pool[:, 0], pool[:, 1] = a, b
    nibbles = (selector[:, None] >> NIBBLES) & np.uint32(15)
    places = (nibbles & np.uint32(7)) + (8 * np.arange(len(a))).astype(UINT32)[:, None]
    chosen = pool.view(np.uint8).reshape(-1)[places]
    signs = nibbles > 7
    if np.count_nonzero(signs):
        chosen = np.where(signs, (chosen >> 7) * np.uint8(255), chosen)
    return chosen.view(UINT32).reshape(-1)


def extract_field(x: Array, position: Array, length: Array) -> Array:
    bits, signed = x.itemsize * 8, x.dtype.kind == "i"
    position, length = (np.minimum(v.view(UINT32) & np.uint32(255), bits).astype(INT64) for v in (position, length))
    length_here = np.minimum(length, bits - position)
    wide = x.astype(INT64) if bits == 32 else x.view(INT64)
    unsigned = wide.view(UINT64) if bits == 64 else wide.view(UINT64) & np.uint64(0xFFFFFFFF)
    field = np.where(position < bits, unsigned >> np.minimum(position, 63).view(UINT64), np.uint64(0))
    keep = np.where(length_here >= 64, ~np.uint64(0), (np.uint64(1) << np.minimum(length_here, 63).view(UINT64)) - 1)
    field = field & keep.astype(UINT64)
    if signed:
        last = np.minimum(position + length - 1, bits - 1)
        sign = ((unsigned >> np.clip(last, 0, 63).view(UINT64)) & np.uint64(1)) * (length > 0)
        field = np.where(sign == 1, field | ~keep.astype(UINT64), field)
    return field.astype(UNSIGNED[bits])


def insert_field(source: Array, target: Array, position: Array, length: Array) -> Array:
    bits = source.itemsize * 8
    position, length = ((v.view(UINT32) & np.uint32(255)).astype(UINT64) for v in (position, length))
    ones = np.where(length >= bits, ~np.uint64(0), (np.uint64(1) << np.minimum(length, 63)) - np.uint64(1))
    place = np.minimum(position, np.uint64(63))
    mask = np.where(position >= bits, np.uint64(0), ones << place)
    mixed = (target.astype(UINT64) & ~mask) | ((source.astype(UINT64) << place) & mask)
    return mixed.astype(source.dtype)


def logic3(table: int) -> Callable[[Array, Array, Array], Array]:
    def function(a: Array, b: Array, c: Array) -> Array:
        result = np.zeros_like(a)
        for row in range(8):
            if table >> row & 1:
                result = result | ((a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c))
        return result

    return function


def toward_zero(exact: Array, rounded: Array) -> Array:
    """The neighbour nearer to zero where rounding to nearest went away from it."""
    away = np.abs(rounded.astype(exact.dtype)) > np.abs(exact)
    return np.where(away, np.nextafter(rounded, rounded.dtype.type(0)), rounded)


def directed(mode: str, dtype: np.dtype[Any]) -> Callable[[Array], Array]:
    """Conversion to a narrower floating-point type by PTX's rounding mode."""

    def convert(x: Array) -> Array:
        near = x.astype(dtype)
        back, zero = near.astype(x.dtype), dtype.type(0)
        if mode == "rz":
            return np.where(np.abs(back) > np.abs(x), np.nextafter(near, zero), near)
        if mode == "rm":
            return np.where(back > x, np.nextafter(near, dtype.type(-np.inf)), near)
        return np.where(back < x, np.nextafter(near, dtype.type(np.inf)), near)

    return near_conversion(dtype) if mode == "rn" else convert


def near_conversion(dtype: np.dtype[Any]) -> Callable[[Array], Array]:
    return float32_to_float16 if dtype is FLOAT16 else lambda x: x.astype(dtype)


def to_integer(rounding: Callable[[Array], Array], dtype: np.dtype[Any], source: np.dtype[Any]) -> Callable[..., Array]:
    """Saturating, as PTX always does; NaN is 0, or the highest bit alone where 64 bits are on either side."""
    bits, signed = dtype.itemsize * 8, dtype.kind == "i"
    low, high = (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1)) if signed else (0.0, 2.0**bits)
    limits = np.iinfo(dtype)
    nan = (1 << (bits - 1)) if source is FLOAT64 or bits == 64 else 0

    def convert(x: Array) -> Array:
        whole = rounding(x.astype(FLOAT64))
        inside = (whole >= low) & (whole < high)
        if np.count_nonzero(inside) == inside.size:
            return whole.astype(dtype)
        result = np.where(inside, whole, 0.0).astype(dtype)
        result = np.where(whole >= high, dtype.type(limits.max), np.where(whole < low, dtype.type(limits.min), result))
        return np.where(np.isnan(whole), np.array(nan, UNSIGNED[bits]).view(dtype), result)

    return convert


def tensor_core(a: Array, b: Array, c: Array, group: int) -> Array:
    """a (warps, k, m, 1) times b (warps, k, 1, n) plus c (warps, m, n), all float64, as no tensor core is worse.

    Products are exact. Those of `group` steps and the accumulator are cut off towards zero at 2**-25 of the power of
    two in the largest one, and their sum at float32's last bit: Fasi, Higham, Mikaitis and Pranesh (2021), "Numerical
    behavior of NVIDIA tensor cores", found the A100 to keep two bits more than float32 while it adds.
    """
    if len(c) > 16:  # more would not stay in the caches
        parts = range(0, len(c), 16)
        return np.concatenate([tensor_core(a[i : i + 16], b[i : i + 16], c[i : i + 16], group) for i in parts])
    addends = np.empty((len(c), group + 1, *c.shape[1:]))
    for begin in range(0, a.shape[1], group):
        np.multiply(a[:, begin : begin + group], b[:, begin : begin + group], out=addends[:, :group])
        addends[:, group] = c
        exponent = np.abs(addends).max(1).view(INT64) >> 52
        endless = np.count_nonzero(exponent == 2047)
        if endless:
            unlimited = addends.sum(1)
        exponent = np.maximum(exponent, 100)
        addends *= ((2071 - exponent) << 52).view(FLOAT64)[:, None]
        np.trunc(addends, out=addends)
        total = addends.sum(1) * ((exponent - 25) << 52).view(FLOAT64)
        c = (total.view(INT64) & ~BELOW_FLOAT32).view(FLOAT64)
        if endless:
            c = np.where(exponent == 2047, unlimited, c)
    return c


# ------------------------------------------------------------------------------------------------------------ decoders

DECODERS: dict[str, Callable[..., Step]] = {}


def opcode(*names: str) -> Callable[[Callable[..., Step]], Callable[..., Step]]:
    def register(decoder: Callable[..., Step]) -> Callable[..., Step]:
        DECODERS.update(dict.fromkeys(names, decoder))
        return decoder

    return register


def unsupported(modifiers: set[str]) -> None:
    if modifiers:
        raise NotImplementedError(f"modifiers {sorted(modifiers)}")


def elementwise(function: Callable[..., Array], to: int, *sources: tuple[int, np.dtype[Any]]) -> Step:
    """A step that writes function(sources) to register `to`; sources are registers and what to view them as."""
    if len(sources) == 1:
        ((a, a_type),) = sources

        def step(s: Any) -> None:
            x = s.R[a]
            if x.dtype is not a_type:
                x = x.view(a_type)
            x = function(x)
            if s.mask is None:
                s.R[to] = x
            else:
                s.put(to, x)
    elif len(sources) == 2:
        (a, a_type), (b, b_type) = sources

        def step(s: Any) -> None:
            R = s.R
            x, y = R[a], R[b]
            if x.dtype is not a_type:
                x = x.view(a_type)
            if y.dtype is not b_type:
                y = y.view(b_type)
            x = function(x, y)
            if s.mask is None:
                R[to] = x
            else:
                s.put(to, x)
    else:

        def step(s: Any) -> None:
            R = s.R
            s.put(to, function(*[R[a] if R[a].dtype is t else R[a].view(t) for a, t in sources]))

    return step


def simple(d: Any, function: Callable[..., Array], operands: Any, kind: str, to: str | None = None) -> Step:
    """elementwise() of operands that are all of one type."""
    sources = [(d.source(x, kind), TYPES[kind]) for x in operands[1:]]
    return elementwise(function, d.destination(operands[0], to or kind), *sources)


FLOATS: dict[str, Callable[..., Array]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "neg": np.negative, "abs": np.abs, "div": np.divide,
    "sqrt": np.sqrt, "rcp": np.reciprocal, "fma": fma32, "mad": fma32, "min": extremum("min"), "max": extremum("max"),
}  # fmt: skip
INTEGERS: dict[str, Callable[..., Array]] = {
    "add": np.add, "sub": np.subtract, "neg": np.negative, "abs": np.abs, "min": np.minimum, "max": np.maximum,
    "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "not": np.invert,
    "div": lambda x, y: divide(x, y, False), "rem": lambda x, y: divide(x, y, True),
}  # fmt: skip


def in_float64(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    return lambda x: function(x.astype(FLOAT64)).astype(FLOAT32)


APPROXIMATIONS: dict[str, Callable[[Array], Array]] = {
    "ex2": in_float64(np.exp2), "lg2": in_float64(np.log2), "rsqrt": in_float64(lambda x: 1 / np.sqrt(x)),
    "sin": in_float64(np.sin), "cos": in_float64(np.cos), "tanh": in_float64(np.tanh), "rcp": in_float64(np.reciprocal),
    "sqrt": in_float64(np.sqrt),
}  # fmt: skip


@opcode("add", "sub", "neg", "abs", "min", "max", "div", "rem", "and", "or", "xor", "not", "sqrt", "rcp", "fma",
        "ex2", "lg2", "rsqrt", "sin", "cos", "tanh")  # fmt: skip
def arithmetic(d: Any, name: str, modifiers: list[str], operands: Any) -> Step:
    *rest, kind = modifiers
    options = set(rest)
    if kind == "pred" or (TYPES[kind].kind in "iu" and "f" not in kind):
        unsupported(options)
        if kind == "pred" and name == "not":
            return simple(d, np.logical_not, operands, kind)
        # wrapping is the same with and without a sign, and numpy is silent about it only without
        unsigned = name in ("add", "sub", "neg") and kind != "pred"
        return simple(d, INTEGERS[name], operands, f"u{TYPES[kind].itemsize * 8}" if unsigned else kind)
    function: Callable[..., Array]
    if name in APPROXIMATIONS and "approx" in options:
        function = APPROXIMATIONS[name]
    elif "NaN" in options:
        function = extremum(name, nan=True)
    else:
        function = FLOATS[name]
    half = "f16" in kind
    if half and name == "fma":
        if kind != "f16":
            raise NotImplementedError("packed fma")
        function = fma16
    elif half:
        if name in ("neg", "abs"):
            sign = np.array(0x80008000 if "x2" in kind else 0x8000, TYPES[kind] if kind != "f16" else UINT16)
            bits = f"b{sign.itemsize * 8}"
            function = (lambda x: x ^ sign) if name == "neg" else (lambda x: x & ~sign)
            return simple(d, function, operands, bits)
        function = widened(function, kind)
    elif name == "fma" and kind == "f64":
        function = fma64
    if "ftz" in options and not half:
        function = flushing(function)
    if name not in ("neg", "abs", "min", "max") and not half:
        function = canonical(function, TYPES[kind])
    unsupported(options - {"rn", "ftz", "approx", "full", "NaN"})
    return simple(d, function, operands, kind)


@opcode("mul", "mad")
def multiplication(d: Any, name: str, modifiers: list[str], operands: Any) -> Step:
    *rest, kind = modifiers
    if "f" in kind:
        return arithmetic(d, "fma" if name == "mad" else name, modifiers, operands)
    options, dtype = set(rest), TYPES[kind]
    bits = dtype.itemsize * 8
    unsupported(options - {"lo", "hi", "wide"})
    unsigned, result = UNSIGNED[bits], kind
    if "wide" in options:
        result = f"{kind[0]}{2 * bits}"
        wide = TYPES[result]

        def product(x: Array, y: Array) -> Array:
            return np.multiply(x.astype(wide), y.astype(wide))
    elif "hi" in options:
        product = multiply_high
    else:

        def product(x: Array, y: Array) -> Array:
            return np.multiply(x.view(unsigned), y.view(unsigned))

    to = d.destination(operands[0], result)
    factors = [(d.source(x, kind), dtype) for x in operands[1:3]]
    if name == "mul":
        return elementwise(product, to, *factors)
    final = UNSIGNED[TYPES[result].itemsize * 8]
    return elementwise(
        lambda x, y, z: np.add(product(x, y).view(final), z), to, *factors, (d.source(operands[3], result), final)
    )


@opcode("copysign")
def copysign(d: Any, name: str, modifiers: list[str], operands: Any) -> Step:
    return simple(d, lambda sign, value: np.copysign(value, sign), operands, modifiers[-1])


@opcode("shl", "shr")
def shift(d: Any, name: str, modifiers: list[str], operands: Any) -> Step:
    (kind,) = modifiers
    dtype, function = TYPES[kind], np.left_shift if name == "shl" else np.right_shift
    bits = dtype.itemsize * 8
    to, source = d.destination(operands[0], kind), d.source(operands[1], kind)
    amount = d.integer(operands[2])
    if amount is not None and 0 <= amount < bits:
        return elementwise(function, to, (source, dtype), (d.constant(amount, dtype), dtype))

    def clamped(x: Array, by: Array) -> Array:
        shifted = function(x, np.minimum(by, np.uint32(bits - 1)).astype(dtype))
        if dtype.kind == "i" and name == "shr":
            return shifted
        return np.where(by < bits, shifted, dtype.type(0))

    return elementwise(clamped, to, (source, dtype), (d.source(operands[2], "u32"), UINT32))


@opcode("shf")
def funnel_shift(d: Any, name: str, modifiers: list[str], operands: Any) -> Step:
    left, wrap = "l" in modifiers, "wrap" in modifiers

    def function(low: Array, high: Array, by: Array) -> Array:
        by = (by & np.uint32(31) if wrap else np.minimum(by, np.uint32(32))).astype(UINT64)
        pair = low.astype(UINT64) | high.astype(UINT64) << np.uint64(32)
        return (((pair << by) >> np.uint64(32)) if left else (pair >> by)).astype(UINT32)

    return simple(d, function, operands, "u32")


@opcode("popc", "clz", "brev", "prmt", "bfe", "bfi", "lop3")
def bits(d: Any, name: str, modifiers: list[str], operands: Any) -> Step:
    (kind,) = modifiers
    if name in ("popc", "clz"):
        return simple(d, count_bits if name == "popc" else leading_zeros, operands, f"u{kind[1:]}", to="u32")
    if name == "lop3":
        return simple(d, logic3(d.integer(operands[4])), operands[:4], kind)
    to = d.destination(operands[0], kind)
    values = 2 if name == "bfi" else 1
    if name in ("bfe", "bfi"):
        sources = [(d.source(x, kind), TYPES[kind]) for x in operands[1 : 1 + values]]
        places = [(d.source(x, "u32"), UINT32) for x in operands[1 + values :]]
        return elementwise(extract_field if name == "bfe" else insert_field, to, *sources, *places)
    return simple(d, reverse_bits if name == "brev" else permute_bytes, operands, kind)


def unordered(function: Any) -> Callable[[Array, Array], Array]:
    return lambda x, y: np.logical_not(function(x, y))


COMPARISONS: dict[str, Callable[[Array, Array], Array]] = {
    "eq": np.equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal, "ne": np.not_equal,
    "lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal,
    "equ": lambda x, y: (x == y) | (x != x) | (y != y), "neu": np.not_equal,
    "ltu": unordered(np.greater_equal), "leu": unordered(np.greater),
    "gtu": unordered(np.less_equal), "geu": unordered(np.less),
    "num": lambda x, y: (x == x) & (y == y), "nan": lambda x, y: (x != x) | (y != y),
}  # fmt: skip


def comparison(d: Any, name: str, kind: str, ftz: bool, a: Any, b: Any) -> tuple[Callable[..., Array], Any, Any]:
    function, dtype = COMPARISONS[name], TYPES[kind]
    if name == "ne" and "f" in kind:
        function = lambda x, y: (x < y) | (x > y)  # noqa: E731
    if kind == "bf16":
        compared = function
        function = lambda x, y: compared(bfloat16_to_float32(x), bfloat16_to_float32(y))  # noqa: E731
    if ftz:
        inner = function
        function = lambda x, y: inner(flushed(x), flushed(y))  # noqa: E731
    return function, (d.source(a, kind), dtype), (d.source(b, kind), dtype)


BOOLEANS: dict[str, Any] = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


@opcode("setp")
def set_predicate(d: Any, name: str, modifiers: list[str], operands: Any) -> Step:
    compare, *rest, kind = modifiers
    combine = next((BOOLEANS[x] for x in rest if x in BOOLEANS), None)
    unsupported(set(rest) - set(BOOLEANS) - {"ftz"})
    function, a, b = comparison(d, compare, kind, "ftz" in rest, operands[1], operands[2])
    targets = operands[0] if isinstance(operands[0], tuple) else (operands[0],)
    if combine is None and len(targets) == 1:
        return elementwise(function, d.destination(targets[0], "pred"), a, b)
    third = d.predicate(operands[3]) if combine is not None else None
    slots = [d.destination(x, "pred") for x in targets]

    def step(s: Any) -> None:
        (i, i_type), (j, j_type) = a, b
        result = function(s.R[i].view(i_type), s.R[j].view(j_type))
        for slot, value in zip(slots, (result, ~result), strict=False):
            if third is not None and combine is not None:
                value = combine(value, s.R[third[0]] ^ third[1])
            s.put(slot, value)

    return step


@opcode("set")
def set_value(d: Any, name: str, modifiers: list[str], operands: Any) -> Step:
    compare, *rest, to, kind = modifiers
    unsupported(set(rest) - {"ftz"})
    function, a, b = comparison(d, compare, kind, "ftz" in rest, operands[1], operands[2])
    if to == "f32":
        return elementwise(lambda x, y: function(x, y).astype(FLOAT32), d.destination(operands[0], to), a, b)
    return elementwise(lambda x, y: -function(x, y).astype(UINT32), d.destination(operands[0], to), a, b)


@opcode("selp")
def select(d: Any, name: str, modifiers: list[str], operands: Any) -> Step:
    (kind,) = modifiers
    dtype, (chooser, negated) = TYPES[kind], d.predicate(operands[3])
    a, b = (d.source(x, kind, loose=True) for x in operands[1:3])
    if negated:
        a, b = b, a
    to = d.destination(operands[0], kind)
    return elementwise(np.where, to, (chooser, BOOL), (a, dtype), (b, dtype))


@opcode("mov")
def move(d: Any, name: str, modifiers: list[str], operands: Any) -> Step:
    (kind,) = modifiers
    to, source = operands
    if isinstance(source, list):
        width = TYPES[kind].itemsize * 8 // len(source)
        parts = [d.source(x, f"b{width}") for x in source]
        part, whole = UNSIGNED[width], UNSIGNED[TYPES[kind].itemsize * 8]

        def pack(s: Any) -> None:
            columns = np.stack([s.R[x].view(part) for x in parts], axis=1)
            s.put(target, columns.view(whole).reshape(-1))

        target = d.destination(to, kind)
        return pack
    if isinstance(to, list):
        width = TYPES[kind].itemsize * 8 // len(to)
        targets, a, part = [d.destination(x, f"b{width}") for x in to], d.source(source, kind), UNSIGNED[width]

        def unpack(s: Any) -> None:
            columns = np.ascontiguousarray(s.R[a]).view(part).reshape(-1, len(targets))
            for index, slot in enumerate(targets):
                s.put(slot, np.ascontiguousarray(columns[:, index]))

        return unpack
    a = d.source(source, kind, copies=True)
    slot = d.destination(to, kind)

    def step(s: Any) -> None:
        if s.mask is None:
            s.R[slot] = s.R[a]
        elif s.R[a] is not None:
            s.put(slot, s.R[a])

    return step


ROUNDINGS: dict[str, Callable[[Array], Array]] = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def saturated(x: Array) -> Array:
    return np.where(np.isnan(x), x.dtype.type(0), np.clip(x, x.dtype.type(0), x.dtype.type(1)))


def conversion(to: str, source: str, options: set[str]) -> Callable[[Array], Array]:
    to_float, source_float = "f" in to, "f" in source
    rounding = next((ROUNDINGS[x] for x in ROUNDINGS if x in options), None)
    mode = next((x for x in ("rn", "rz", "rm", "rp") if x in options), "rn")
    read: Callable[[Array], Array] = bfloat16_to_float32 if source == "bf16" else lambda x: x
    wide = FLOAT32 if source == "bf16" else TYPES[source]
    function: Callable[[Array], Array]
    if not source_float and not to_float:
        limits = np.iinfo(TYPES[to])
        if "sat" in options:
            bounds = [max(int(limits.min), int(np.iinfo(wide).min)), min(int(limits.max), int(np.iinfo(wide).max))]
            function = lambda x: np.clip(x, *(wide.type(v) for v in bounds)).astype(TYPES[to])  # noqa: E731
        else:
            function = lambda x: x.astype(TYPES[to])  # noqa: E731
    elif not source_float:
        if mode != "rn" or to == "bf16" or (to == "f16" and wide.itemsize > 2):
            raise NotImplementedError(f"conversion of {source} to {to} by {mode}")
        function = lambda x: x.astype(TYPES[to])  # noqa: E731
    elif not to_float:
        if rounding is None:
            raise NotImplementedError("conversion to an integer without its rounding")
        function = to_integer(rounding, TYPES[to], wide)
    elif to == "tf32":
        if "rna" not in options:
            raise NotImplementedError("conversion to tf32 other than by rna")
        function = lambda x: np.where(  # noqa: E731
            np.isnan(x), np.uint32(0x7FFFFFFF), (x.view(UINT32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
        )
    elif to == "bf16":
        if mode != "rn" or wide is not FLOAT32:
            raise NotImplementedError(f"conversion of {source} to bf16 by {mode}")
        function = float32_to_bfloat16
    elif rounding is not None:
        function = lambda x: rounding(x).astype(TYPES[to])  # noqa: E731
    elif TYPES[to].itemsize < wide.itemsize:
        function = directed(mode, TYPES[to])
    else:
        function = lambda x: x.astype(TYPES[to])  # noqa: E731
    steps: list[Callable[[Array], Array]] = [read]
    if "ftz" in options and wide is FLOAT32:
        steps.append(flushed)
    if "sat" in options and source_float and to_float:
        steps.append(saturated)
    steps.append(function)
    if "ftz" in options and to == "f32":
        steps.append(flushed)

    def convert(x: Array) -> Array:
        for step in steps:
            x = step(x)
        return x

    return convert


@opcode("cvt")
def convert(d: Any, name: str, modifiers: list[str], operands: Any) -> Step:
    *rest, to, source = modifiers
    options = set(rest)
    unsupported(options - {"rn", "rz", "rm", "rp", "rna", "ftz", "sat", *ROUNDINGS})
    if to.endswith("x2"):
        half = conversion(to[:-2], source, options)

        def pair(high: Array, low: Array) -> Array:
            high, low = (half(x).view(UINT16).astype(UINT32) for x in (high, low))
            return high << np.uint32(16) | low

        return simple(d, pair, operands, source, to="b32")
    function = conversion(to, source, options)
    a, slot, bits = d.source(operands[1], source, loose=True), d.destination(operands[0], to, loose=True), d.bits
    a_bits, a_type = bits(operands[1], TYPES[source].itemsize * 8), TYPES[source]
    narrow = a_bits != a_type.itemsize * 8
    width = bits(operands[0], TYPES[to].itemsize * 8)
    widen = width != TYPES[to].itemsize * 8
    wide = SIGNED[width] if TYPES[to].kind == "i" else UNSIGNED[width]

    def whole(x: Array) -> Array:
        if narrow:
            x = x.astype(UNSIGNED[a_type.itemsize * 8]).view(a_type)
        x = function(x)
        return (x.view(UINT16) if x.dtype is FLOAT16 and widen else x).astype(wide) if widen else x

    return elementwise(whole, slot, (a, UNSIGNED[a_bits] if narrow else a_type))


@opcode("cvta")
def convert_address(d: Any, name: str, modifiers: list[str], operands: Any) -> Step:
    space = next(x for x in modifiers if x in ("global", "shared", "local", "param", "const"))
    kind = modifiers[-1]
    window = np.uint64(d.windows.get(space, 0))
    if not window:
        return move(d, name, [kind], operands)
    function = np.subtract if "to" in modifiers else np.add
    return simple(d, lambda x: function(x, window), operands, kind)


# -------------------------------------------------------------------------------------------------------------- memory


def access(modifiers: list[str]) -> tuple[str, int, str]:
    """Space, elements and type of a load or store."""
    space = next((x.split("::")[0] for x in modifiers if x.split("::")[0] in SPACES), "generic")
    count = next((int(x[1]) for x in modifiers if x in ("v2", "v4", "v8")), 1)
    known = {"v2", "v4", "v8", *CACHING, *TYPES}
    unsupported({x for x in modifiers if x not in known and "::" not in x and x not in SPACES})
    return space, count, modifiers[-1]


SPACES = ("global", "shared", "local", "param", "const")


@opcode("ld", "ldu")
def load(d: Any, name: str, modifiers: list[str], operands: Any) -> Step:
    space, count, kind = access(modifiers)
    targets = operands[0] if isinstance(operands[0], list) else [operands[0]]
    slots = [d.destination(x, kind, loose=True) for x in targets]
    memory, size = TYPES[kind], TYPES[kind].itemsize
    register = [d.bits(x, size * 8) for x in targets]
    wide = [(SIGNED if memory.kind == "i" else UNSIGNED)[b] if b != size * 8 else None for b in register]
    base, offset = d.address(operands[1], space)
    if len(targets) != count:
        raise NotImplementedError(f"{len(targets)} registers for {count} elements")
    if space == "param" and base is None:

        def constant(s: Any) -> None:
            for index, slot in enumerate(slots):
                value = s.parameter(offset + index * size, memory)
                s.put(slot, value if wide[index] is None else value.astype(wide[index]))

        return constant

    def step(s: Any) -> None:
        lanes = s.lanes()
        values = s.load(space, s.addresses(base, offset, lanes), size, count)
        for slot, value, to in zip(slots, values, wide, strict=True):
            s.put_lanes(slot, value if to is None else value.view(memory).astype(to), lanes)

    return step


@opcode("st")
def store(d: Any, name: str, modifiers: list[str], operands: Any) -> Step:
    space, count, kind = access(modifiers)
    sources = operands[1] if isinstance(operands[1], list) else [operands[1]]
    size = TYPES[kind].itemsize
    slots = [d.source(x, kind, loose=True) for x in sources]
    bits = [d.bits(x, size * 8) for x in sources]
    base, offset = d.address(operands[0], space)
    if len(sources) != count:
        raise NotImplementedError(f"{len(sources)} registers for {count} elements")
    to = UNSIGNED[size * 8]

    def step(s: Any) -> None:
        lanes, values = s.lanes(), []
        for slot, width in zip(slots, bits, strict=True):
            value = s.R[slot].view(UNSIGNED[width])
            value = value if lanes is None else value[lanes]
            values.append(value if width == size * 8 else value.astype(to))
        s.store(space, s.addresses(base, offset, lanes), size, values)

    return step


ATOMICS: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda old, new: old + new, "min": min, "max": max, "exch": lambda old, new: new,
    "and": lambda old, new: old & new, "or": lambda old, new: old | new, "xor": lambda old, new: old ^ new,
    "inc": lambda old, top: old.dtype.type(0) if old >= top else old + old.dtype.type(1),
}  # fmt: skip


@opcode("atom", "red")
def atomic(d: Any, name: str, modifiers: list[str], operands: Any) -> Step:
    space = next((x for x in modifiers if x in ("global", "shared")), "generic")
    operation = next(x for x in modifiers if x in ATOMICS or x == "cas")
    kind = modifiers[-1]
    unsupported(set(modifiers) - {space, operation, kind, *CACHING})
    slot = d.destination(operands[0], kind) if name == "atom" else None
    place, *values = operands[1:] if name == "atom" else operands
    base, offset = d.address(place, space)
    sources, dtype = [d.source(x, kind) for x in values], TYPES[kind]

    def step(s: Any) -> None:
        lanes = s.lanes()
        addresses = s.addresses(base, offset, lanes)
        arguments = [s.R[x].view(dtype) if lanes is None else s.R[x].view(dtype)[lanes] for x in sources]
        result = np.empty(len(addresses), dtype)
        for i in range(len(addresses)):
            old = s.atomic_cell(space, addresses, i, dtype)
            result[i] = before = old[0]
            if operation != "cas":
                old[0] = ATOMICS[operation](before, arguments[0][i])
            elif before == arguments[0][i]:
                old[0] = arguments[1][i]
        if slot is not None:
            s.put_lanes(slot, result, lanes)

    return step


@opcode("cp")
def copy_async(d: Any, name: str, modifiers: list[str], operands: Any) -> Step:
    if modifiers[0] != "async" or "bulk" in modifiers:
        raise NotImplementedError("copies other than cp.async")
    if "commit_group" in modifiers:
        return lambda s: s.commit_copies()
    if "wait_all" in modifiers:
        return lambda s: s.wait_copies(None)
    if "wait_group" in modifiers:
        left = d.integer(operands[0])
        return lambda s: s.wait_copies(left)
    unsupported({x for x in modifiers if "::" not in x} - {"async", "ca", "cg", "shared", "global"})
    to, to_offset = d.address(operands[0], "shared")
    source, source_offset = d.address(operands[1], "global")
    size = d.integer(operands[2])
    if size not in (4, 8, 16) or ("cg" in modifiers and size != 16):
        raise NotImplementedError(f"asynchronous copy of {size} bytes")
    taken = d.source(operands[3], "u32") if len(operands) > 3 else None

    def step(s: Any) -> None:
        lanes = s.lanes()
        places, addresses = s.addresses(to, to_offset, lanes), s.addresses(source, source_offset, lanes)
        bytes_read = None
        if taken is not None:
            bytes_read = s.R[taken].view(UINT32)
            bytes_read = bytes_read if lanes is None else bytes_read[lanes]
        s.copy_async(places, addresses, size, bytes_read, lanes)

    return step


@opcode("membar", "fence", "prefetch", "prefetchu", "nanosleep", "griddepcontrol", "createpolicy", "discard")
def nothing(d: Any, name: str, modifiers: list[str], operands: Any) -> Step:
    if name == "createpolicy":
        return move(d, name, ["b64"], [operands[0], "0"])
    return lambda s: None


@opcode("trap")
def trap(d: Any, name: str, modifiers: list[str], operands: Any) -> Step:
    def step(s: Any) -> None:
        raise LaneFault("trap")

    return step


# --------------------------------------------------------------------------------------------------------------- warps
# What lanes of a warp do together. The scheduler has made sure that whoever must be there is.


@opcode("shfl")
def shuffle(d: Any, name: str, modifiers: list[str], operands: Any) -> Step:
    mode = modifiers[1]
    if modifiers[0] != "sync" or mode not in ("bfly", "idx", "up", "down"):
        raise NotImplementedError(f"shuffle {modifiers}")
    targets = operands[0] if isinstance(operands[0], tuple) else (operands[0],)
    value, lane, clamp = d.source(operands[1], "b32"), d.source(operands[2], "u32"), d.source(operands[3], "u32")
    constant = d.integer(operands[2]) is not None and d.integer(operands[3]) is not None
    key = (mode, d.integer(operands[2]), d.integer(operands[3]))
    slots = [d.destination(x, kind) for x, kind in zip(targets, ("b32", "pred"), strict=False)]

    def plan(s: Any) -> tuple[Array, Array]:
        own, by, limits = s.lane_in_warp, s.R[lane].view(UINT32), s.R[clamp].view(UINT32)
        by, top, segment = (x.astype(INT64) for x in (by & 31, limits & 31, limits >> np.uint32(8) & np.uint32(31)))
        last, low = (own & segment) | (top & ~segment), own & segment
        other = {"bfly": own ^ by, "idx": low | (by & ~segment), "up": own - by, "down": own + by}[mode]
        inside = other >= last if mode == "up" else other <= last
        return np.arange(s.size) - own + np.where(inside, other, own), inside

    def step(s: Any) -> None:
        planned = s.plans.get(key) if constant else plan(s)
        if planned is None:
            planned = s.plans[key] = plan(s)
        origin, inside = planned
        if s.mask is not None:
            missing = ~s.mask[origin[s.mask]]
            if np.count_nonzero(missing):
                at = first(missing)
                raise LaneFault(f"reads lane {int(origin[s.lanes()[at]]) % 32}, which is not there", at)
        s.put(slots[0], s.R[value][origin])
        if len(slots) > 1:
            s.put(slots[1], inside)

    return step


def by_warp(s: Any, slot: int, dtype: np.dtype[Any]) -> Array:
    return s.R[slot].view(dtype).reshape(-1, 32)


def spread(values: Array) -> Array:
    """One value of each warp, for every lane."""
    return np.repeat(values, 32)


@opcode("redux")
def reduce_warp(d: Any, name: str, modifiers: list[str], operands: Any) -> Step:
    sync, operation, kind = modifiers
    if sync != "sync":
        raise NotImplementedError("redux without sync")
    dtype, function = TYPES[kind], {"add": np.add, "max": np.maximum, "min": np.minimum, "and": np.bitwise_and,
                                    "or": np.bitwise_or, "xor": np.bitwise_xor}[operation]  # fmt: skip
    slot, value, members = d.destination(operands[0], kind), d.source(operands[1], kind), d.source(operands[2], "u32")
    neutral = {"max": np.iinfo(dtype).min, "min": np.iinfo(dtype).max, "and": -1}.get(operation, 0)

    def step(s: Any) -> None:
        x = by_warp(s, value, dtype)
        named = by_warp(s, members, UINT32)
        if s.mask is not None or np.count_nonzero(named != np.uint32(0xFFFFFFFF)):
            active = np.ones(s.size, BOOL) if s.mask is None else s.mask
            bits = spread(s.named_by_warp(named, active))
            if np.count_nonzero((named.reshape(-1) != bits) & active):
                raise LaneFault("lanes of one warp name different lanes")
            member = (bits >> s.lane_in_warp.astype(UINT32)) & np.uint32(1)
            x = np.where((member == 1).reshape(-1, 32) & active.reshape(-1, 32), x, np.array(neutral).astype(dtype))
        s.put(slot, spread(function.reduce(x, axis=1).astype(dtype)))

    return step


@opcode("vote", "activemask", "elect")
def vote(d: Any, name: str, modifiers: list[str], operands: Any) -> Step:
    if name == "activemask":
        slot = d.destination(operands[0], "b32")
        return lambda s: s.put(slot, spread(s.active_bits()))
    if name != "vote" or modifiers[0] != "sync":
        raise NotImplementedError(f"{name} {modifiers}")
    operation = modifiers[1]
    chosen, negated = d.predicate(operands[1])
    slot = d.destination(operands[0], modifiers[-1])

    def step(s: Any) -> None:
        active = s.active_bits()
        yes = s.active_bits(s.R[chosen] ^ negated) & active
        if operation == "ballot":
            result = spread(yes)
        else:
            result = spread({"any": yes != 0, "all": yes == active, "uni": (yes == 0) | (yes == active)}[operation])
        s.put(slot, result)

    return step


def warps_of(s: Any) -> Array:
    """The warps that take part, as numbers in the batch."""
    return np.arange(s.size // 32) if s.mask is None else np.flatnonzero(s.mask.reshape(-1, 32)[:, 0])


@opcode("ldmatrix")
def load_matrix(d: Any, name: str, modifiers: list[str], operands: Any) -> Step:
    count = next(int(x[1]) for x in modifiers if x in ("x1", "x2", "x4"))
    transposed = "trans" in modifiers
    unsupported({x for x in modifiers if "::" not in x} -
                {"sync", "aligned", "m8n8", "x1", "x2", "x4", "trans", "shared", "b16"})  # fmt: skip
    targets = operands[0] if isinstance(operands[0], list) else [operands[0]]
    slots = [d.destination(x, "b32") for x in targets]
    base, offset = d.address(operands[1], "shared")
    lane, key = np.arange(32), ("rows", count)

    def step(s: Any) -> None:
        warps = warps_of(s)
        lanes = s.plans.get(key) if s.mask is None else None
        if lanes is None:
            lanes = (warps[:, None] * 32 + np.arange(8 * count)).reshape(-1)
            if s.mask is None:
                s.plans[key] = lanes
        places = s.shared_places(s.addresses(base, offset, lanes), 16, lanes, "row")
        s.watch_reads(places, 16, lanes)
        rows = s.shared[4][(places >> 2)[:, None] + WORDS].reshape(len(warps), count, 32)
        if transposed:
            halves = rows.view(UINT16).reshape(len(warps), count, 8, 8)
            low, high = (halves[:, :, lane % 4 * 2 + part, lane // 4].astype(UINT32) for part in (0, 1))
            rows = low | high << np.uint32(16)
        for index, slot in enumerate(slots):
            s.put_warps(slot, rows[:, index], warps)

    return step


WORDS = np.arange(4)


def fragments(shape: str, kind: str) -> tuple[int, int, Array, Array, Array]:
    """k, elements a register holds, and for A (m, k), B (k, n) and C (m, n) where in a warp's registers elements lie.

    A place is (lane * registers + register) * elements + element; layouts are those of the PTX ISA's chapter on mma.
    """
    known = {("m16n8k16", "f16"), ("m16n8k16", "bf16"), ("m16n8k8", "f16"), ("m16n8k8", "bf16"), ("m16n8k8", "tf32"),
             ("m16n8k4", "tf32")}  # fmt: skip
    if (shape, kind) not in known:
        raise NotImplementedError(f"mma {shape} of {kind}")
    k, packed = int(shape[shape.index("k") + 1 :]), 1 if kind == "tf32" else 2
    across = 4 * packed  # columns of A that the four lanes of a row hold in one register
    a, b, c = np.zeros((16, k), INT64), np.zeros((k, 8), INT64), np.zeros((16, 8), INT64)
    a_registers, b_registers = 2 * k // across, k // across
    for lane in range(32):
        group, member = divmod(lane, 4)
        for register in range(a_registers):
            for part in range(packed):
                column = member * packed + part + across * (register // 2)
                a[group + 8 * (register % 2), column] = (lane * a_registers + register) * packed + part
        for register in range(b_registers):
            for part in range(packed):
                row = member * packed + part + across * register
                b[row, group] = (lane * b_registers + register) * packed + part
        for register in range(4):
            c[group + 8 * (register // 2), 2 * member + register % 2] = lane * 4 + register
    return k, packed, a, b, c


@opcode("mma")
def multiply_matrices(d: Any, name: str, modifiers: list[str], operands: Any) -> Step:
    sync, aligned, shape, *layout, d_type, a_type, b_type, c_type = modifiers
    if (sync, aligned, layout, d_type, c_type) != ("sync", "aligned", ["row", "col"], "f32", "f32") or a_type != b_type:
        raise NotImplementedError(f"mma {modifiers}")
    k, packed, a_places, b_places, c_places = fragments(shape, a_type)
    group = 4 if a_type == "tf32" else 8
    slots = [d.destination(x, "f32") for x in operands[0]]
    a, b = ([d.source(x, "b32") for x in operand] for operand in operands[1:3])
    c = [d.source(x, "f32") for x in operands[3]]
    counts = (len(a), len(b), len(c), len(slots))
    if counts != (a_places.size // (32 * packed), b_places.size // (32 * packed), 4, 4):
        raise NotImplementedError(f"mma {shape} of {a_type} with {counts} registers")
    back = np.argsort(c_places.reshape(-1))  # from the matrix to the registers of the lanes

    a_places, b_places = a_places.T.reshape(-1), b_places.reshape(-1)

    def words(s: Any, registers: list[int], warps: Array | None, dtype: np.dtype[Any]) -> Array:
        made = np.empty((s.size // 32 if warps is None else len(warps), 32, len(registers)), dtype)
        for index, register in enumerate(registers):
            value = by_warp(s, register, dtype)
            made[:, :, index] = value if warps is None else value[warps]
        return made.reshape(len(made), -1)

    def values(s: Any, registers: list[int], warps: Array | None, places: Array) -> Array:
        bits = words(s, registers, warps, UINT32)
        if a_type == "tf32":
            numbers = (bits & np.uint32(0xFFFFE000)).view(FLOAT32)
        else:
            numbers = bits.view(FLOAT16) if a_type == "f16" else bfloat16_to_float32(bits)
        return numbers.astype(FLOAT64).take(places, axis=1)

    def step(s: Any) -> None:
        warps = None if s.mask is None else warps_of(s)
        left = values(s, a, warps, a_places).reshape(-1, k, 16, 1)
        right = values(s, b, warps, b_places).reshape(-1, k, 1, 8)
        start = words(s, c, warps, FLOAT32).take(c_places.reshape(-1), axis=1).astype(FLOAT64)
        result = tensor_core(left, right, start.reshape(-1, 16, 8), group).astype(FLOAT32)
        if np.count_nonzero(result != result):
            result = np.where(np.isnan(result), np.uint32(0x7FFFFFFF).view(FLOAT32), result)
        flags.invalid = False
        lanes = np.ascontiguousarray(result.reshape(len(result), -1).take(back, axis=1).reshape(-1, 4).T)
        for index, slot in enumerate(slots):
            if warps is None:
                s.R[slot] = lanes[index]
            else:
                s.put_warps(slot, lanes[index].reshape(-1, 32), warps)

    return step
