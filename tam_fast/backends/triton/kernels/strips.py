# mypy: ignore-errors
# ruff: noqa: B007, RUF005, RET505 (what Triton compiles is not quite Python)
"""Strips of windows of the Triton filters.

A lane holds one column of windows, or some neighbouring ones, and moves down a strip of rows. Every row is sorted by
threes (fives, sevens) once and shared by the windows that hold it. Two windows, one below the other, share all rows but
one each: those are put in order column by column, each window inserts its own, and a network completes the order.

That is right where squares are normal numbers (NaN and Inf spoil a window by themselves). A lane gathers evidence of
anything else, and then windows are made again, scaled by a power of two.

A row of a lane is a tuple: for each unit K values in order, then for each column the sum, and for each column the sum
of squares, of the K neighbours around it. Units hold columns one each or, of halves, i and i + COLUMNS / 2 together.
"""

import triton
import triton.language as tl

from tam_fast.backends.triton.kernels.common import given_for, is_finite
from tam_fast.backends.triton.kernels.windows import (
    as_output,
    completed,
    factor_of_squares,
    floats_of,
    inserted,
    pair_of,
    reflected,
    reflected_below,
    row_address,
    scale_of,
    sorted_line,
    type_of_pairs,
    units_of,
    weighted_mean,
)


@triton.jit
def _vector(address, ELEMENT: tl.constexpr, COLUMNS: tl.constexpr):
    """Pointers to COLUMNS neighbours, aligned for access at once."""
    pointers = address.to(tl.pointer_type(ELEMENT))[:, None] + tl.arange(0, COLUMNS)[None, :]
    return tl.max_contiguous(tl.multiple_of(pointers, (1, COLUMNS * ELEMENT.primitive_bitwidth // 8)), (1, COLUMNS))


@triton.jit
def _read(
    places, near, row, row_bytes, INPUT: tl.constexpr, K: tl.constexpr, COLUMNS: tl.constexpr, MASKED: tl.constexpr
):
    """Values of a row around a lane's columns."""
    values = ()
    if COLUMNS == 1:
        for i in tl.static_range(K):
            pointer = row_address(places[i], row, row_bytes).to(tl.pointer_type(INPUT))
            if MASKED:
                values = values + (tl.load(pointer, mask=near[0], other=0.0),)
            else:
                values = values + (tl.load(pointer),)
        return values
    else:
        address = row_address(places[0], row, row_bytes)
        block = tl.load(_vector(address, INPUT, COLUMNS))
        if COLUMNS == 2:
            values = tl.split(block)
        else:
            even, odd = tl.split(block.reshape(block.shape[0], 2, 2))
            first, third = tl.split(even)
            second, fourth = tl.split(odd)
            values = (first, second, third, fourth)
        pointer = address.to(tl.pointer_type(INPUT))
        left = tl.load(pointer - 1, mask=near[0], other=values[1])
        right = tl.load(pointer + COLUMNS, mask=near[1], other=values[COLUMNS - 2])
        return (left,) + values + (right,)


@triton.jit
def _row_of(
    places,
    near,
    row,
    row_bytes,
    factor,
    INPUT: tl.constexpr,
    K: tl.constexpr,
    COLUMNS: tl.constexpr,
    HALF: tl.constexpr,
    MASKED: tl.constexpr,
    SCALED: tl.constexpr,
):
    """Read a row and sort it. Of three columns, those that two neighbouring windows share are added up first."""
    UNITS: tl.constexpr = units_of(COLUMNS, HALF)
    read = _read(places, near, row, row_bytes, INPUT, K, COLUMNS, MASKED)
    values = ()
    for i in tl.static_range(COLUMNS + K - 1):
        value = read[i].to(tl.float32)
        if SCALED:
            value = value * factor
        values = values + (value,)
    units = values
    if HALF is not None:
        units = ()
        for i in tl.static_range(UNITS + 2):
            units = units + (pair_of(read[i], read[i + UNITS]),)
    if K == 3:
        result = ()
        totals = ()
        squares = ()
        for i in tl.static_range(UNITS):
            both = sorted_line((units[i + 1 - i % 2], units[i + 2 - i % 2]), 2, HALF)
            result = result + inserted(both, units[i + i % 2 * 2], 2, HALF)
        for i in tl.static_range(COLUMNS):
            a = values[i + 1 - i % 2]
            b = values[i + 2 - i % 2]
            c = values[i + i % 2 * 2]
            totals = totals + ((a + b) + c,)
            squares = squares + (tl.fma(c, c, tl.fma(b, b, a * a)),)
        return result + totals + squares
    else:
        total = values[0]
        square = values[0] * values[0]
        for i in tl.static_range(1, K):
            total += values[i]
            square = tl.fma(values[i], values[i], square)
        return sorted_line(values, K, None) + (total, square)


@triton.jit
def _row_of_zeros(evidence, K: tl.constexpr, COLUMNS: tl.constexpr, HALF: tl.constexpr):
    """What takes the place of a row that is not read yet."""
    row = ()
    for i in tl.static_range(K * units_of(COLUMNS, HALF)):
        row = row + (evidence[0] if HALF is None else evidence[1],)
    for i in tl.static_range(2 * COLUMNS):
        row = row + (evidence[0],)
    return row


@triton.jit
def _more_evidence(evidence, row, K: tl.constexpr, COLUMNS: tl.constexpr, HALF: tl.constexpr):
    """Add to what is known of a strip: its sum and, of the smallest values, the signs; or its sum of magnitudes."""
    UNITS: tl.constexpr = units_of(COLUMNS, HALF)
    sums, signs = evidence
    if K == 3:
        sums += row[K * UNITS]
        signs = signs | row[0].to(tl.int32, bitcast=True)
        if COLUMNS > 1:
            sums += row[K * UNITS + COLUMNS - 1]
        if UNITS > 1:
            signs = signs | row[K * (UNITS - 1)].to(tl.int32, bitcast=True)
    else:
        sums += tl.abs(row[0]) + tl.abs(row[K - 1])
    return sums, signs


@triton.jit
def _is_special(evidence, K: tl.constexpr, HALF: tl.constexpr, VALUES: tl.constexpr):
    """Whether in a strip there may be values whose squares are out of range, or for K = 3 negative ones.

    Windows whose sum is below 2^-59 come out wrong where others of the strip make up for it: by 2^-23 of the map's
    maximum at most.
    """
    sums, signs = evidence
    is_special = (((sums >= 2.0**-28) & (sums <= 2.0**56)) | (sums == 0)) == 0
    if VALUES != "any":
        is_special = is_special != is_special
    if K == 3 and VALUES != "unit":
        if HALF is None:
            is_special = is_special | (signs < 0)
        else:
            is_special = is_special | ((signs & -2147450880) != 0)
    return is_special


@triton.jit
def _filtered(
    columns,
    sums,
    squares,
    one,
    inverse,
    constant_nan,
    K: tl.constexpr,
    COLUMNS: tl.constexpr,
    HALF: tl.constexpr,
):
    """Filter a row of windows: of K - 1 rows, column by column in order, their sums and squares; and one more row."""
    UNITS: tl.constexpr = units_of(COLUMNS, HALF)
    count: tl.constexpr = K * (K - 1)
    first = ()
    second = ()
    for i in tl.static_range(UNITS):
        values = ()
        for j in tl.static_range(K):
            column = columns[i * count + j * (K - 1) : i * count + (j + 1) * (K - 1)]
            values = values + inserted(column, one[i * K + j], K - 1, HALF)
        values = completed(values, K, HALF)
        total = sums[i] + one[K * UNITS + i]
        square = one[K * UNITS + COLUMNS + i]
        if HALF is not None:
            a = ()
            b = ()
            for j in tl.static_range(K * K):
                low, high = floats_of(values[j], HALF)
                a = a + (low,)
                b = b + (high,)
            first = first + (weighted_mean(a, total, squares[i], square, K),)
            total = sums[i + UNITS] + one[K * UNITS + i + UNITS]
            square = one[K * UNITS + COLUMNS + i + UNITS]
            second = second + (weighted_mean(b, total, squares[i + UNITS], square, K),)
        else:
            result = weighted_mean(values, total, squares[i], square, K)
            if K > 3:
                # By a product, which leaves NaN what is NaN already.
                result = result * tl.where(total <= 0, 0.0, inverse)
                constant = (values[0] == values[K * K - 1]) & (total > 0) & (constant_nan != 0)
                result = tl.where(constant, float("nan"), result)
            first = first + (result,)
    return first + second


@triton.jit
def _write(target, row, row_bytes, limit, results, OUTPUT: tl.constexpr, COLUMNS: tl.constexpr):
    """Store a row of results if it is above `limit`."""
    outputs = ()
    for i in tl.static_range(COLUMNS):
        outputs = outputs + (as_output(results[i], OUTPUT),)
    address = row_address(target, row, row_bytes)
    if COLUMNS == 1:
        tl.store(address.to(tl.pointer_type(OUTPUT)), outputs[0], mask=row < limit)
    else:
        if COLUMNS == 2:
            block = tl.join(outputs[0], outputs[1])
        else:
            block = tl.join(tl.join(outputs[0], outputs[2]), tl.join(outputs[1], outputs[3]))
            block = block.reshape(block.shape[0], 4)
        tl.store(_vector(address, OUTPUT, COLUMNS), block, mask=(row < limit)[:, None])


@triton.jit
def _filter_two_rows(
    rows,
    inverse,
    constant_nan,
    target,
    row,
    row_bytes,
    limit,
    OUTPUT: tl.constexpr,
    K: tl.constexpr,
    COLUMNS: tl.constexpr,
    HALF: tl.constexpr,
):
    """Filter two rows of windows, from K + 1 rows: all but the first and the last are in both."""
    UNITS: tl.constexpr = units_of(COLUMNS, HALF)
    columns = ()
    for i in tl.static_range(K * UNITS):
        column = ()
        for j in tl.static_range(1, K):
            column = column + (rows[j][i],)
        columns = columns + sorted_line(column, K - 1, HALF)
    sums = ()
    squares = ()
    for i in tl.static_range(COLUMNS):
        total = rows[1][K * UNITS + i]
        square = rows[1][K * UNITS + COLUMNS + i]
        for j in tl.static_range(2, K):
            total += rows[j][K * UNITS + i]
            square += rows[j][K * UNITS + COLUMNS + i]
        sums = sums + (total,)
        squares = squares + (square * factor_of_squares(K) if K == 3 else square,)
    results = _filtered(columns, sums, squares, rows[0], inverse, constant_nan, K, COLUMNS, HALF)
    _write(target, row, row_bytes, limit, results, OUTPUT, COLUMNS)
    results = _filtered(columns, sums, squares, rows[K], inverse, constant_nan, K, COLUMNS, HALF)
    _write(target, row + 1, row_bytes, limit, results, OUTPUT, COLUMNS)


@triton.constexpr_function
def rows_a_turn(kernel_size):
    """Rows of a turn of the loop: after a multiple of K - 1, what it carries is in the same registers again."""
    return 2 if kernel_size == 7 else 4


@triton.jit
def _filter_strips(
    places,
    near,
    row_bytes,
    target,
    target_row_bytes,
    y,
    limit,
    height,
    rows,
    factor,
    inverse,
    constant_nan,
    INPUT: tl.constexpr,
    OUTPUT: tl.constexpr,
    K: tl.constexpr,
    COLUMNS: tl.constexpr,
    MASKED: tl.constexpr,
    SCALED: tl.constexpr,  # the long way
    VALUES: tl.constexpr,
):
    """Filter strips of some rows from row y on, and return whether there may be special windows."""
    radius: tl.constexpr = K // 2
    HALF: tl.constexpr = type_of_pairs(COLUMNS, INPUT)
    evidence = (y.to(tl.float32) * 0.0, y * 0)
    # Not unrolled: Triton takes time that is cubic in what is connected to the addresses of loads.
    last = ()
    for j in tl.static_range(K - 1):
        last = last + (_row_of_zeros(evidence, K, COLUMNS, HALF),)
    for before in range(K - 1):
        row = reflected_below(tl.abs(y + (before - radius)), height, radius)
        one = _row_of(places, near, row, row_bytes, factor, INPUT, K, COLUMNS, HALF, MASKED, SCALED)
        evidence = _more_evidence(evidence, one, K, COLUMNS, HALF)
        last = last[1:] + (one,)
    for i in range(0, rows, rows_a_turn(K)):
        for j in tl.static_range(0, rows_a_turn(K), 2):
            for n in tl.static_range(2):
                row = reflected_below(y + (i + (j + n + radius)), height, radius)
                one = _row_of(places, near, row, row_bytes, factor, INPUT, K, COLUMNS, HALF, MASKED, SCALED)
                evidence = _more_evidence(evidence, one, K, COLUMNS, HALF)
                last = last + (one,)
            _filter_two_rows(
                last,
                inverse,
                constant_nan,
                target,
                y + (i + j),
                target_row_bytes,
                limit,
                OUTPUT,
                K,
                COLUMNS,
                HALF,
            )
            last = last[2:]
    return _is_special(evidence, K, HALF, VALUES)


@triton.jit
def _scale_of_strips(
    source, row_bytes, column_stride, x, y, height, width, rows, wanted, INPUT: tl.constexpr, K: tl.constexpr
):
    """Power of two that brings the largest finite magnitude of strips to about 1, and its inverse."""
    radius: tl.constexpr = K // 2
    column_bytes = column_stride * (INPUT.primitive_bitwidth // 8)
    largest = x.to(tl.float32) * 0.0
    for i in range((rows + K - 1) * K):
        line = source.to(tl.int64) + reflected(y + (i // K - radius), height, radius).to(tl.int64) * row_bytes
        address = line + reflected(x + (i % K - radius), width, radius).to(tl.int64) * column_bytes
        value = tl.load(address.to(tl.pointer_type(INPUT)), mask=wanted, other=0.0).to(tl.float32)
        largest = tl.maximum(largest, tl.where(is_finite(value), tl.abs(value), 0.0))
    return scale_of(largest, False)


@triton.jit
def _places(source, x, width, column_stride, INPUT: tl.constexpr, K: tl.constexpr):
    """Addresses of the K columns of windows in the first row."""
    size: tl.constexpr = INPUT.primitive_bitwidth // 8
    start = source.to(tl.int64)
    places = ()
    if K == 3:
        # In the order in which a lane of several columns adds up: a pair that begins with an even one comes first.
        even = x - x % 2
        places = (
            reflected(x + 1 - (x + 1) % 2 * 2, width, 1),
            reflected(even, width, 1),
            reflected(even + 1, width, 1),
        )
    else:
        for i in tl.static_range(K):
            places = places + (reflected(x + (i - K // 2), width, K // 2),)
    addresses = ()
    for i in tl.static_range(K):
        addresses = addresses + (start + places[i].to(tl.int64) * column_stride * size,)
    return addresses


@triton.jit
def filter_short(
    source,  # pointers to the first elements of the lanes' maps
    row_bytes,
    column_stride,
    target,  # pointers to where those maps' results go, contiguous
    x,
    y,
    live,
    height,
    width,
    rows,
    constant_nan,
    INPUT: tl.constexpr,
    OUTPUT: tl.constexpr,
    COLUMNS: tl.constexpr,
    MASKED: tl.constexpr,
    VALUES: tl.constexpr,
):
    """Filter strips with windows of 3 the short way, and return whether some windows may be special."""
    if COLUMNS > 1:
        places = (source.to(tl.int64) + x.to(tl.int64) * (INPUT.primitive_bitwidth // 8),)
        near = (x > 0, x + COLUMNS < width)
    else:
        places = _places(source, x, width, column_stride, INPUT, 3)
        near = (live,)
    is_special = _filter_strips(
        places,
        near,
        row_bytes.to(tl.int32),
        target.to(tl.int64) + x.to(tl.int64) * (OUTPUT.primitive_bitwidth // 8),
        width * (OUTPUT.primitive_bitwidth // 8),
        y,
        tl.where(live, height, 0),
        height,
        rows,
        0.0,
        0.0,
        constant_nan,
        INPUT,
        OUTPUT,
        3,
        COLUMNS,
        MASKED,
        False,
        VALUES,
    )
    if VALUES == "unit":
        return height * 0
    else:
        return tl.max((live & is_special).to(tl.int32))


@triton.jit
def is_long(row_bytes, width, constant_nan, OUTPUT: tl.constexpr):
    """Whether the short way is not open: it addresses rows by products of 32 bits, and keeps constant windows."""
    return ((row_bytes >> 31) | (width.to(tl.int64) * (OUTPUT.primitive_bitwidth // 8) >> 31) | constant_nan) != 0


@triton.jit
def _filter_special(rows, total, square, spoil, constant_is_nan):
    """Filter any windows of 3, of sorted rows, scaled by a power of two; also tell where the short way may be wrong.

    Of the values as they are come their sum, their sum of squares, and 0 or, for NaN and Inf, NaN.
    """
    is_special = (((square >= 2.0**-80) & (square <= 2.0**110)) == 0) | (total <= 0)
    values = ()
    for i in tl.static_range(3):
        values = values + sorted_line((rows[i], rows[3 + i], rows[6 + i]), 3, None)
    values = completed(values, 3, None)
    constant = (values[0] == values[8]) & (values[0] > 0) & constant_is_nan
    factor, inverse = scale_of(tl.maximum(tl.abs(values[0]), tl.abs(values[8])), False)
    scaled = ()
    total = values[0] * 0.0
    square = total
    for i in tl.static_range(9):
        scaled = scaled + (values[i] * factor,)
        total += scaled[i]
        square = tl.fma(scaled[i], scaled[i], square)
    result = weighted_mean(scaled, total, square * factor_of_squares(3), square * 0.0, 3) * inverse
    result = tl.where(total > 0, result, 0.0) + spoil
    return tl.where(constant, float("nan"), result), is_special | constant


@triton.jit
def filter_specials(
    source,
    row_bytes,
    column_stride,
    target,
    x,
    y,
    live,
    height,
    width,
    rows,
    constant_nan,
    INPUT: tl.constexpr,
    OUTPUT: tl.constexpr,
):
    """Replace the results of those windows of 3 for which the short way may be wrong."""
    # As they are; but addresses are computed again, which the short way would otherwise keep in registers.
    x = tl.minimum(x, width)
    y = tl.minimum(y, height)
    target_row_bytes = width.to(tl.int64) * (OUTPUT.primitive_bitwidth // 8)
    everything = given_for(is_long(row_bytes, width, constant_nan, OUTPUT).to(tl.int32), y)
    to = target.to(tl.int64) + x.to(tl.int64) * (OUTPUT.primitive_bitwidth // 8)
    places = _places(source, x, width, column_stride, INPUT, 3)
    zero = x.to(tl.float32) * 0.0
    tl.debug_barrier()  # the thread that stored a pixel may be another one
    for i in range(0, rows):
        row = y + i
        lines = (zero, zero, zero, zero, zero, zero, zero, zero, zero)
        total = zero
        square = zero
        spoil = zero
        for j in range(-1, 2):
            values = _read(places, (live,), reflected(row + j, height, 1), row_bytes, INPUT, 3, 1, True)
            line = ()
            for k in tl.static_range(3):
                value = values[k].to(tl.float32)
                line = line + (value,)
                total += value
                square = tl.fma(value, value, square)
                spoil += value * 0.0
            lines = lines[3:] + sorted_line(line, 3, None)
        result, is_special = _filter_special(lines, total, square, spoil, given_for(constant_nan, y))
        is_wanted = live & (row < height) & (is_special | everything)
        address = row_address(to, row, target_row_bytes)
        tl.store(address.to(tl.pointer_type(OUTPUT)), as_output(result, OUTPUT), mask=is_wanted)


@triton.jit
def filter_wide(
    source,
    row_bytes,
    column_stride,
    target,
    x,
    y,
    live,
    height,
    width,
    rows,
    constant_nan,
    INPUT: tl.constexpr,
    OUTPUT: tl.constexpr,
    K: tl.constexpr,
    MASKED: tl.constexpr,
    VALUES: tl.constexpr,
):
    """Filter strips with windows of 5 or 7; those whose squares are out of range again, scaled by a power of two."""
    target_row_bytes = width.to(tl.int64) * (OUTPUT.primitive_bitwidth // 8)
    to = target.to(tl.int64) + x.to(tl.int64) * (OUTPUT.primitive_bitwidth // 8)
    places = _places(source, x, width, column_stride, INPUT, K)
    factor = x.to(tl.float32) * 0.0 + 1.0
    inverse = factor
    wanted = live
    turns = height * 0 + 2
    while turns > 0:
        is_special = _filter_strips(
            places,
            (live,),
            row_bytes,
            to,
            target_row_bytes,
            y,
            tl.where(wanted, height, 0),
            height,
            rows,
            factor,
            inverse,
            constant_nan,
            INPUT,
            OUTPUT,
            K,
            1,
            MASKED,
            VALUES == "any",
            VALUES,
        )
        turns -= 1
        if VALUES == "any":
            wanted = wanted & is_special
            if tl.max(wanted.to(tl.int32)) == 0:
                turns -= 1
            if turns > 0:
                factor, inverse = _scale_of_strips(
                    source, row_bytes, column_stride, x, y, height, width, rows, wanted, INPUT, K
                )
        else:
            turns -= 1
        # As it is; but addresses are computed again, which the first turn would otherwise keep in registers.
        y = tl.minimum(y, height)


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
    PLAIN: tl.constexpr,  # values are in the unit interval, or NaN
):
    """Filter ROWS rows of windows from (y, x) on, one column a lane."""
    INPUT: tl.constexpr = source.dtype.element_ty
    values: tl.constexpr = "unit" if PLAIN else "any"
    row_bytes = row_stride * (INPUT.primitive_bitwidth // 8)
    if K == 3:
        is_special = height * 0 + 1
        if is_long(row_bytes, width, constant_nan, OUTPUT) == 0:
            is_special = filter_short(
                source,
                row_bytes,
                column_stride,
                target,
                x,
                y,
                live,
                height,
                width,
                ROWS,
                constant_nan,
                INPUT,
                OUTPUT,
                1,
                True,
                values,
            )
        if is_special > 0:
            filter_specials(
                source,
                row_bytes,
                column_stride,
                target,
                x,
                y,
                live,
                height,
                width,
                ROWS,
                constant_nan,
                INPUT,
                OUTPUT,
            )
    else:
        filter_wide(
            source,
            row_bytes,
            column_stride,
            target,
            x,
            y,
            live,
            height,
            width,
            ROWS,
            constant_nan,
            INPUT,
            OUTPUT,
            K,
            True,
            values,
        )
