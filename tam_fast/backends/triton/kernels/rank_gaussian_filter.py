# mypy: ignore-errors
"""Triton kernels of the rank Gaussian filter (Eq. 6 and 7)."""

import triton
import triton.language as tl

from tam_fast.backends.triton.kernels.common import at, field, is_finite, item_of, kernel
from tam_fast.backends.triton.kernels.strips import filter_short, filter_specials, filter_wide, is_long, rows_a_turn
from tam_fast.backends.triton.kernels.windows import as_output, folded, has_ptx, scale_of


@triton.constexpr_function
def _kind_of_values(plain, output):
    """What maps hold: numbers of the "unit" interval or NaN, those of float16 ("half"), or "any"."""
    return "any" if not plain else "half" if output == tl.float16 else "unit"


@triton.jit
def _lanes(first, count, height, width, rows, COLUMNS: tl.constexpr, LANES: tl.constexpr):
    """Map, column and row of lanes, which run through a map's strips column by column, and on into the next map."""
    lanes_of_row = (width // COLUMNS).to(tl.uint32)
    lanes_of_map = tl.cdiv(height, rows).to(tl.uint32) * lanes_of_row
    first_map = first // lanes_of_map.to(tl.int64)
    lane = (first - first_map * lanes_of_map.to(tl.int64)).to(tl.uint32) + tl.arange(0, LANES).to(tl.uint32)
    number = first_map + (lane // lanes_of_map).to(tl.int64)
    lane = lane % lanes_of_map
    x = (lane % lanes_of_row).to(tl.int32) * COLUMNS
    y = (lane // lanes_of_row).to(tl.int32) * rows
    # Lanes that are left over work on the last map, and store nothing.
    return tl.minimum(number, count - 1), x, y, number < count


@triton.constexpr_function
def _columns_of_lane(kernel_size, element, columns, has_ptx):
    """How many columns a lane has where memory is aligned."""
    return columns if kernel_size == 3 and (has_ptx or element == tl.float32) else 1


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
    PLAIN: tl.constexpr,  # read or written are numbers whose squares are normal, where they matter
    ROWS: tl.constexpr,  # of a strip, at most
    LANES: tl.constexpr,  # columns that a program works on
    COLUMNS: tl.constexpr,  # how many of them are one lane's, for K = 3 and where memory is aligned
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

    sources = at(source, INPUT)
    targets = at(target, OUTPUT)
    row_bytes = row_stride * (INPUT.primitive_bitwidth // 8)
    values: tl.constexpr = _kind_of_values(PLAIN, OUTPUT)
    columns: tl.constexpr = _columns_of_lane(K, INPUT, COLUMNS, has_ptx())
    lanes: tl.constexpr = LANES // columns
    # Strips of a map have the same number of rows, as far as that goes.
    rows = tl.cdiv(height, tl.cdiv(height, ROWS))
    rows = tl.cdiv(rows, rows_a_turn(K)) * rows_a_turn(K)
    if K == 1:
        number, x, y, live = _lanes(first, count, height, width, ROWS, 1, LANES)
        one = sources + number * map_stride + y.to(tl.int64) * row_stride + x.to(tl.int64) * column_stride
        to = targets + number * target_map_stride + y.to(tl.int64) * width + x
        for i in tl.static_range(ROWS):
            inside = live & (y + i < height)
            value = tl.load(one + i * row_stride, mask=inside, other=0.0).to(tl.float32)
            value = tl.where(is_finite(value), value, float("nan"))
            tl.store(to + i * width.to(tl.int64), as_output(value, OUTPUT), mask=inside)
    elif K == 3:
        is_aligned = False
        if columns > 1:
            # Of what is read and written at once.
            size: tl.constexpr = columns * INPUT.primitive_bitwidth // 8
            written: tl.constexpr = columns * OUTPUT.primitive_bitwidth // 8
            strides = (width | row_stride | map_stride | target_map_stride) & (columns - 1)
            is_aligned = (strides | (source & (size - 1)) | (target & (written - 1)) | (column_stride - 1)) == 0
        is_special = program * 0
        if is_long(row_bytes, width, constant_nan, OUTPUT):
            is_special += 1
        elif is_aligned:
            number, x, y, live = _lanes(first // columns, count, height, width, rows, columns, lanes)
            is_special = filter_short(
                sources + number * map_stride,
                row_bytes,
                column_stride,
                targets + number * target_map_stride,
                x,
                y,
                live,
                height,
                width,
                rows,
                constant_nan,
                INPUT,
                OUTPUT,
                columns,
                False,
                values,
            )
        else:
            for i in range(columns):
                number, x, y, live = _lanes(first + i * lanes, count, height, width, rows, 1, lanes)
                is_special |= filter_short(
                    sources + number * map_stride,
                    row_bytes,
                    column_stride,
                    targets + number * target_map_stride,
                    x,
                    y,
                    live,
                    height,
                    width,
                    rows,
                    constant_nan,
                    INPUT,
                    OUTPUT,
                    1,
                    False,
                    values,
                )
        if is_special > 0:
            for i in range(columns):
                number, x, y, live = _lanes(first + i * lanes, count, height, width, rows, 1, lanes)
                filter_specials(
                    sources + number * map_stride,
                    row_bytes,
                    column_stride,
                    targets + number * target_map_stride,
                    x,
                    y,
                    live,
                    height,
                    width,
                    rows,
                    constant_nan,
                    INPUT,
                    OUTPUT,
                )
    else:
        number, x, y, live = _lanes(first, count, height, width, rows, 1, LANES)
        filter_wide(
            sources + number * map_stride,
            row_bytes,
            column_stride,
            targets + number * target_map_stride,
            x,
            y,
            live,
            height,
            width,
            rows,
            constant_nan,
            INPUT,
            OUTPUT,
            K,
            False,
            values,
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
    line = folded(y + (slot // size - size // 2)[None, :], height).to(tl.int64) * row_stride
    column = folded(x + (slot % size - size // 2)[None, :], width).to(tl.int64) * column_stride
    values = tl.load(maps + line + column, mask=live[:, None] & used[None, :], other=0.0)
    if WIDE:
        values = values.to(tl.float64)
    else:
        values = values.to(tl.float32)
    # A value's rank is the number of values before it; equal ones are in the window's order.
    rank = tl.zeros((PIXELS, SLOTS), tl.int32)
    for i in range(0, window):
        other_y = folded(y + (i // size - size // 2), height).to(tl.int64)
        other_x = folded(x + (i % size - size // 2), width).to(tl.int64)
        other = tl.load(maps + other_y * row_stride + other_x * column_stride, mask=live[:, None], other=0.0)
        value = other.to(values.dtype)
        rank += ((value < values) | ((value == values) & (slot > i)[None, :])).to(tl.int32)
    not_finite = tl.max((is_finite(values) == 0).to(tl.int32), axis=1) > 0
    values = tl.where(not_finite[:, None], 0.0, values)
    factor, inverse = scale_of(tl.max(tl.abs(values), axis=1), WIDE)
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
    tl.store(to, as_output(result, OUTPUT), mask=live)
