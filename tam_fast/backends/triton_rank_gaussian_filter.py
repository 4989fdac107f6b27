# mypy: ignore-errors
# ruff: noqa: B007, RUF005, SIM102, SIM300, RET505 (what Triton compiles is not quite Python)
"""Triton kernels of the rank Gaussian filter (Eq. 6 and 7).

A lane holds one column of windows and moves down a strip of rows. Every row of K values is sorted once and shared by
the K windows that hold it; a window then sorts its columns and completes the order by a network.
"""

import triton
import triton.language as tl

from tam_fast import _C
from tam_fast.backends.triton_common import at, field, is_finite, item_of, kernel


def _split(kernel_size):
    """Take the window's network apart: the comparators of a line, and those that complete sorted rows and columns."""
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


NETWORKS = {kernel_size: _split(kernel_size) for kernel_size in (3, 5, 7)}


@triton.constexpr_function
def _line_size(kernel_size):
    return len(NETWORKS[kernel_size][0])


@triton.constexpr_function
def _line(kernel_size, index, side, start, step):
    return start + step * NETWORKS[kernel_size][0][index][side]


@triton.constexpr_function
def _completion_size(kernel_size):
    return len(NETWORKS[kernel_size][1])


@triton.constexpr_function
def _completion(kernel_size, index, side):
    return NETWORKS[kernel_size][1][index][side]


@triton.jit
def _sorted_line(values, K: tl.constexpr, START: tl.constexpr, STEP: tl.constexpr):
    """Sort the K values at START, START + STEP, ..."""
    for i in tl.static_range(_line_size(K)):
        a = values[_line(K, i, 0, START, STEP)]
        b = values[_line(K, i, 1, START, STEP)]
        values = (
            values[: _line(K, i, 0, START, STEP)]
            + (tl.minimum(a, b),)
            + values[_line(K, i, 0, START, STEP) + 1 : _line(K, i, 1, START, STEP)]
            + (tl.maximum(a, b),)
            + values[_line(K, i, 1, START, STEP) + 1 :]
        )
    return values


@triton.jit
def _sorted_window(values, K: tl.constexpr):
    """Sort K rows, each sorted already, in row-major order."""
    for column in tl.static_range(K):
        values = _sorted_line(values, K, column, K)
    for i in tl.static_range(_completion_size(K)):
        a = values[_completion(K, i, 0)]
        b = values[_completion(K, i, 1)]
        values = (
            values[: _completion(K, i, 0)]
            + (tl.minimum(a, b),)
            + values[_completion(K, i, 0) + 1 : _completion(K, i, 1)]
            + (tl.maximum(a, b),)
            + values[_completion(K, i, 1) + 1 :]
        )
    return values


@triton.jit
def _blend(values, total, squares, K: tl.constexpr):
    """Weigh sorted values by rank, from their sum and sum of squares: float32 in a range where squares are normal."""
    count: tl.constexpr = K * K
    centre: tl.constexpr = K * K // 2
    # mu^2 / (2 var) / log 2. The one-pass variance only cancels where the weights vanish.
    numerator = total * total
    exponent = (numerator * 0.72134752) / (squares * count - numerator)
    # Negative ones (rounding of a constant window), NaN (0 / 0) and Inf are all above the bound as unsigned integers.
    pattern = exponent.to(tl.uint32, bitcast=True)
    exponent = tl.minimum(pattern, tl.full(pattern.shape, 0x41F00000, tl.uint32)).to(tl.float32, bitcast=True)
    weighted = values[centre]
    weights = tl.full(exponent.shape, 0.5, tl.float32)
    if K == 3:
        q = tl.exp2(-exponent)
        q2 = q * q
        q4 = q2 * q2
        q8 = q4 * q4
        powers = (q, q4, q8 * q, q8 * q8)
        for d in tl.static_range(1, centre + 1):
            weighted += powers[d - 1] * (values[centre - d] + values[centre + d])
            weights += powers[d - 1]
    else:
        for d in tl.static_range(1, centre + 1):
            weight = tl.exp2(exponent * (-d * d))
            weighted += weight * (values[centre - d] + values[centre + d])
            weights += weight
    return weighted / weights * 0.5


@triton.jit
def _reflected(index, size, RADIUS: tl.constexpr):
    """Reflect like numpy, for indices at most RADIUS outside; others end up somewhere inside."""
    last = size - 1
    index = tl.abs(index)
    index = tl.where(index > last, tl.abs(2 * last - index), index)
    if RADIUS > 2:
        index = tl.where(index > last, tl.abs(2 * last - index), index)
    return tl.minimum(index, last)


@triton.jit
def _folded(index, size):
    """Reflect like numpy at any distance."""
    period = tl.maximum(2 * (size - 1), 1)
    index = tl.abs(index) % period
    return tl.minimum(tl.minimum(index, tl.abs(2 * (size - 1) - index)), size - 1)


@triton.jit
def _as_output(value, OUTPUT: tl.constexpr):
    """Convert to the stored type; uint8 is floor(255 x), NaN as 0."""
    if OUTPUT == tl.uint8:
        level = tl.minimum(tl.maximum(tl.floor(value * 255.0), 0.0), 255.0)
        return tl.where(value == value, level, 0.0).to(tl.uint8)
    else:
        return value.to(OUTPUT)


@triton.jit
def filter_strip(
    source,  # pointers to the first elements of the lanes' maps
    row_stride,
    column_stride,
    target,  # pointers to where those maps' results go, contiguous
    x,
    y,
    live,
    height,
    width,
    constant_nan,
    OUTPUT: tl.constexpr,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    PLAIN: tl.constexpr,  # squares of values that matter are normal numbers
):
    """Filter ROWS rows of windows from (y, x) on, one column a lane."""
    columns = ()
    for j in tl.static_range(K):
        columns = columns + (_reflected(x + (j - K // 2), width, K // 2).to(tl.int64) * column_stride,)
    if K == 3:
        _filter_unrolled(
            source, row_stride, columns, target, x, y, live, height, width, constant_nan, OUTPUT, K, ROWS, PLAIN
        )
    else:
        _filter_rolled(
            source, row_stride, columns, target, x, y, live, height, width, constant_nan, OUTPUT, K, ROWS, PLAIN
        )


@triton.jit
def _filter_unrolled(
    source,
    row_stride,
    columns,
    target,
    x,
    y,
    live,
    height,
    width,
    constant_nan,
    OUTPUT: tl.constexpr,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    PLAIN: tl.constexpr,
):
    """Filter a strip without a loop, so that nothing moves between registers; what is not plain comes second."""
    radius: tl.constexpr = K // 2
    centre: tl.constexpr = K * K // 2
    rows = ()  # sorted
    totals = ()
    squares = ()
    suspicious = live & False
    for i in tl.static_range(ROWS + K - 1):
        line = source + _reflected(y + (i - radius), height, radius).to(tl.int64) * row_stride
        values = ()
        for j in tl.static_range(K):
            values = values + (tl.load(line + columns[j], mask=live, other=0.0).to(tl.float32),)
        total = values[0]
        square = values[0] * values[0]
        for j in tl.static_range(1, K):
            total += values[j]
            square += values[j] * values[j]
        rows = rows + _sorted_line(values, K, 0, 1)
        totals = totals + (total,)
        squares = squares + (square,)
        if i >= K - 1:
            total = totals[i - (K - 1)]
            square = squares[i - (K - 1)]
            for j in tl.static_range(1, K):
                total += totals[i - (K - 1) + j]
                square += squares[i - (K - 1) + j]
            window = _sorted_window(rows[(i - (K - 1)) * K :], K)
            result = tl.where(total > 0, _blend(window, total, square, K), 0.0)
            if PLAIN:
                result = tl.where(is_finite(square), result, float("nan"))
            else:
                zero = (window[0] == 0) & (window[2 * centre] == 0) & (square == 0)
                suspicious = suspicious | (((square >= 2.0**-80) & (square <= 2.0**110)) == 0) & (zero == 0)
            constant = (window[0] == window[2 * centre]) & (window[0] > 0) & (constant_nan != 0)
            result = tl.where(constant, float("nan"), result)
            row = y + (i - (K - 1))
            to = target + row.to(tl.int64) * width + x
            tl.store(to, _as_output(result, OUTPUT), mask=live & (row < height))
    if PLAIN == 0:
        if tl.max(suspicious.to(tl.int32)) > 0:
            _filter_rare_rows(
                source, row_stride, columns, target, x, y, live, height, width, constant_nan, OUTPUT, K, ROWS
            )


@triton.jit
def _filter_rolled(
    source,
    row_stride,
    columns,
    target,
    x,
    y,
    live,
    height,
    width,
    constant_nan,
    OUTPUT: tl.constexpr,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    PLAIN: tl.constexpr,
):
    """Filter a strip in a loop that carries sorted rows.

    It also carries the pointers to the next row: Triton's coalescing pass takes time that is cubic in what hangs
    together with a pointer, unless the pointer is an argument of a loop's body.
    """
    radius: tl.constexpr = K // 2
    zero = x.to(tl.float32) * 0.0
    rows = ()
    for i in tl.static_range(K * (K - 1)):
        rows = rows + (zero,)
    spoils = ()  # 0 or, for a row with NaN or Inf, NaN
    for i in tl.static_range(K - 1):
        spoils = spoils + (zero,)
    line = source + _reflected(y - radius, height, radius).to(tl.int64) * row_stride
    pointers = ()
    for j in tl.static_range(K):
        pointers = pointers + (line + columns[j],)
    for i in range(0, ROWS + K - 1):
        values = ()
        for j in tl.static_range(K):
            values = values + (tl.load(pointers[j], mask=live, other=0.0).to(tl.float32),)
        line = source + _reflected(y + (i + 1 - radius), height, radius).to(tl.int64) * row_stride
        pointers = ()
        for j in tl.static_range(K):
            pointers = pointers + (line + columns[j],)
        spoil = values[0] * 0.0
        for j in tl.static_range(1, K):
            spoil += values[j] * 0.0
        values = _sorted_line(values, K, 0, 1)
        row = y + (i - (K - 1))
        if i >= K - 1:
            to = target + row.to(tl.int64) * width + x
            inside = live & (row < height)
            _filter_window(rows + values, spoils + (spoil,), to, inside, constant_nan, OUTPUT, K, PLAIN)
        rows = rows[K:] + values
        spoils = spoils[1:] + (spoil,)


@triton.jit
def _scaled(values, K: tl.constexpr):
    """Sorted values times the power of two that brings the largest magnitude to about 1, and that power's inverse."""
    largest = tl.maximum(tl.abs(values[0]), tl.abs(values[K * K - 1]))
    factor, inverse = _scale_of(largest, False)
    scaled = ()
    for i in tl.static_range(K * K):
        scaled = scaled + (values[i] * factor,)
    return scaled, inverse


@triton.jit
def _filter_window(
    values, spoils, target, inside, constant_nan, OUTPUT: tl.constexpr, K: tl.constexpr, PLAIN: tl.constexpr
):
    """Filter windows of K sorted rows."""
    values = _sorted_window(values, K)
    constant = (values[0] == values[K * K - 1]) & (values[0] > 0) & (constant_nan != 0)
    if PLAIN == 0:
        values, inverse = _scaled(values, K)
    total = values[0]
    square = values[0] * values[0]
    for i in tl.static_range(1, K * K):
        total += values[i]
        square += values[i] * values[i]
    result = _blend(values, total, square, K)
    if PLAIN == 0:
        result = result * inverse
    result = tl.where(total > 0, result, 0.0)
    for j in tl.static_range(K):
        result += spoils[j]
    result = tl.where(constant, float("nan"), result)
    tl.store(target, _as_output(result, OUTPUT), mask=inside)


@triton.jit
def _scale_of(largest, WIDE: tl.constexpr):
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
def _filter_rare_rows(
    source,
    row_stride,
    columns,
    target,
    x,
    y,
    live,
    height,
    width,
    constant_nan,
    OUTPUT: tl.constexpr,
    K: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Replace the results of those windows of a strip that are not plain."""
    radius: tl.constexpr = K // 2
    for i in range(0, ROWS):
        row = y + i
        values = ()
        for r in tl.static_range(K):
            line = source + _reflected(row + (r - radius), height, radius).to(tl.int64) * row_stride
            for j in tl.static_range(K):
                values = values + (tl.load(line + columns[j], mask=live, other=0.0).to(tl.float32),)
        result, is_rare = _filter_rare(values, constant_nan, K)
        to = target + row.to(tl.int64) * width + x
        tl.store(to, _as_output(result, OUTPUT), mask=live & (row < height) & is_rare)


@triton.jit
def _filter_rare(values, constant_nan, K: tl.constexpr):
    """Filter windows that are not plain, scaled by a power of two; also tell which are that."""
    spoil = values[0] * 0.0
    square = values[0] * values[0]
    for i in tl.static_range(1, K * K):
        spoil += values[i] * 0.0
        square += values[i] * values[i]
    is_rare = ((square >= 2.0**-80) & (square <= 2.0**110)) == 0
    for r in tl.static_range(K):
        values = _sorted_line(values, K, r * K, 1)
    values = _sorted_window(values, K)
    constant = (values[0] == values[K * K - 1]) & (values[0] > 0) & (constant_nan != 0)
    values, inverse = _scaled(values, K)
    total = values[0]
    square = values[0] * values[0]
    for i in tl.static_range(1, K * K):
        total += values[i]
        square += values[i] * values[i]
    result = tl.where(total > 0, _blend(values, total, square, K) * inverse, 0.0) + spoil
    return tl.where(constant, float("nan"), result), is_rare


@kernel
def rank_gaussian_filter_kernel(
    table: tl.int64,
    items: tl.int64,
    constant_nan: tl.int64,
    source: tl.int64,  # (count, H, W)
    target: tl.int64,  # contiguous within a map
    count: tl.int64,
    height: tl.int64,
    width: tl.int64,
    map_stride: tl.int64,
    row_stride: tl.int64,
    column_stride: tl.int64,
    target_map_stride: tl.int64,
    INPUT: tl.constexpr,
    OUTPUT: tl.constexpr,
    K: tl.constexpr,
    PLAIN: tl.constexpr,  # squares of values that matter are normal numbers
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
):
    """Filter maps of ragged sizes by sorting networks, k = 3, 5, 7; k = 1 copies finite values."""
    program = tl.program_id(0)
    place = item_of(table, items, program, 10)
    first = (program - field(table, place, 0, 0)) * LANES
    source = field(table, place, 1, source)
    target = field(table, place, 2, target)
    count = field(table, place, 3, count)
    height = field(table, place, 4, height).to(tl.int32)
    width = field(table, place, 5, width).to(tl.int32)
    map_stride = field(table, place, 6, map_stride)
    row_stride = field(table, place, 7, row_stride)
    column_stride = field(table, place, 8, column_stride)
    target_map_stride = field(table, place, 9, target_map_stride)

    # Lanes run through a map's strips column by column, and on into the next map.
    lanes_of_map = tl.cdiv(height, ROWS) * width
    first_map = first // lanes_of_map
    lane = (first - first_map * lanes_of_map).to(tl.int32) + tl.arange(0, LANES)
    number = first_map + lane // lanes_of_map
    lane = lane % lanes_of_map
    y = lane // width * ROWS
    x = lane % width
    live = number < count
    sources = at(source, INPUT) + number * map_stride
    targets = at(target, OUTPUT) + number * target_map_stride
    if K == 1:
        for i in tl.static_range(ROWS):
            inside = live & (y + i < height)
            value = tl.load(
                sources + (y + i).to(tl.int64) * row_stride + x.to(tl.int64) * column_stride, mask=inside, other=0.0
            ).to(tl.float32)
            value = tl.where(is_finite(value), value, float("nan"))
            tl.store(targets + (y + i).to(tl.int64) * width + x, _as_output(value, OUTPUT), mask=inside)
    else:
        filter_strip(
            sources, row_stride, column_stride, targets, x, y, live, height, width, constant_nan, OUTPUT, K, ROWS, PLAIN
        )


@kernel
def rank_gaussian_filter_ranked_kernel(
    table: tl.int64,
    items: tl.int64,
    constant_nan: tl.int64,
    kernel_size: tl.int64,
    source: tl.int64,
    target: tl.int64,
    count: tl.int64,
    height: tl.int64,
    width: tl.int64,
    map_stride: tl.int64,
    row_stride: tl.int64,
    column_stride: tl.int64,
    target_map_stride: tl.int64,
    INPUT: tl.constexpr,
    OUTPUT: tl.constexpr,
    WIDE: tl.constexpr,  # compute in float64
    SLOTS: tl.constexpr,  # a power of two that holds a window
    PIXELS: tl.constexpr,
):
    """Filter maps with windows of any size, in float32 or float64, by counting."""
    program = tl.program_id(0)
    place = item_of(table, items, program, 10)
    program = program - field(table, place, 0, 0).to(tl.int32)
    source = field(table, place, 1, source)
    target = field(table, place, 2, target)
    count = field(table, place, 3, count)
    height = field(table, place, 4, height).to(tl.int32)
    width = field(table, place, 5, width).to(tl.int32)
    map_stride = field(table, place, 6, map_stride)
    row_stride = field(table, place, 7, row_stride)
    column_stride = field(table, place, 8, column_stride)
    target_map_stride = field(table, place, 9, target_map_stride)

    programs = tl.cdiv(height * width, PIXELS)
    number = (program // programs).to(tl.int64)
    pixel = program % programs * PIXELS + tl.arange(0, PIXELS)
    live = (pixel < height * width) & (pixel * 0 + number < count)
    slot = tl.arange(0, SLOTS)
    size = kernel_size.to(tl.int32)
    window = size * size
    used = slot < window
    y = (pixel // width)[:, None]
    x = (pixel % width)[:, None]
    maps = at(source, INPUT) + number * map_stride
    line = _folded(y + (slot // size - size // 2)[None, :], height).to(tl.int64) * row_stride
    column = _folded(x + (slot % size - size // 2)[None, :], width).to(tl.int64) * column_stride
    values = tl.load(maps + line + column, mask=live[:, None] & used[None, :], other=0.0)
    if WIDE:
        values = values.to(tl.float64)
    else:
        values = values.to(tl.float32)
    # A value's rank is the number of values before it; equal ones are in the window's order.
    rank = tl.zeros((PIXELS, SLOTS), tl.int32)
    for i in range(0, window):
        other_y = _folded(y + (i // size - size // 2), height).to(tl.int64)
        other_x = _folded(x + (i % size - size // 2), width).to(tl.int64)
        other = tl.load(maps + other_y * row_stride + other_x * column_stride, mask=live[:, None], other=0.0)
        value = other.to(values.dtype)
        rank += ((value < values) | ((value == values) & (slot > i)[None, :])).to(tl.int32)
    not_finite = tl.max((is_finite(values) == 0).to(tl.int32), axis=1) > 0
    values = tl.where(not_finite[:, None], 0.0, values)
    factor, inverse = _scale_of(tl.max(tl.abs(values), axis=1), WIDE)
    values = values * factor[:, None]
    smallest = tl.min(tl.where(used[None, :], values, float("inf")), axis=1)
    largest = tl.max(tl.where(used[None, :], values, float("-inf")), axis=1)
    mean = tl.sum(values, axis=1) / window
    deviation = tl.where(used[None, :], values - mean[:, None], 0.0)
    variance = tl.sum(deviation * deviation, axis=1) / window
    spread = smallest < largest
    # mu^2 / (2 var) / log 2
    exponent = mean * mean * 0.7213475204444817 / tl.where(spread & (variance > 0), variance, 1.0)
    distance = (rank - window // 2).to(values.dtype)
    powers = tl.minimum(exponent[:, None] * (distance * distance), 1000.0)
    weights = tl.where(used[None, :], tl.exp2(-powers), 0.0)
    result = tl.sum(weights * values, axis=1) / tl.sum(weights, axis=1)
    result = tl.where(spread, result, smallest)
    result = tl.where(mean > 0, result * inverse, 0.0)
    constant = (spread == 0) & (mean > 0) & (constant_nan != 0)
    result = tl.where(not_finite | constant, float("nan"), result)
    to = at(target, OUTPUT) + number * target_map_stride + pixel
    tl.store(to, _as_output(result, OUTPUT), mask=live)
