# mypy: ignore-errors
"""Triton kernels from interference to finished maps: scale, residual, joint normalisation, filter (Eq. 2, 3, 5-7)."""

import triton
import triton.language as tl

from tam_fast.backends.triton.kernels.common import at, field, item_of, kernel, rectified, row_of
from tam_fast.backends.triton.kernels.strips import filter_strip
from tam_fast.backends.triton.kernels.windows import as_output


@triton.jit
def _scale(dots, t, targets, tiles, BLOCK_TILES: tl.constexpr):
    """<A, E> / <E, E> of a target from the tiles' parts, 0 where E is 0; and the denominator of Eq. 4."""
    with_activation = tl.zeros((BLOCK_TILES,), tl.float64)
    with_itself = tl.zeros((BLOCK_TILES,), tl.float64)
    for begin in range(0, tiles, BLOCK_TILES):
        tile = begin + tl.arange(0, BLOCK_TILES)
        part = at(dots, tl.float64) + (t * tiles + tile) * 2
        with_activation += tl.load(part, mask=tile < tiles, other=0.0)
        with_itself += tl.load(part + 1, mask=tile < tiles, other=0.0)
    numerator = tl.sum(with_activation)
    denominator = tl.sum(with_itself)
    scale = tl.where(denominator == 0, 0.0, numerator / tl.where(denominator == 0, 1.0, denominator))
    return scale, tl.load(at(dots, tl.float64) + targets * tiles * 2 + t)


@triton.jit
def _residual(activation, interference, n, size, scale):
    """max(A - s E, 0) in float64 up to the last rounding; NaN stays NaN."""
    inside = n < size
    a = tl.load(at(activation, tl.float32) + n, mask=inside, other=0.0).to(tl.float64)
    e = tl.load(at(interference, tl.float32) + n, mask=inside, other=0.0).to(tl.float64)
    return rectified(a - e * scale).to(tl.float32)


@kernel
def finish_maps_kernel(
    table: tl.int64,
    items: tl.int64,
    constant_nan: tl.int64,
    activation: tl.int64,  # rows of N float32
    activation_row_stride: tl.int64,
    activation_rows: tl.int64,  # (T,) int64; or 0: row t
    text: tl.int64,  # rows of L float32
    text_row_stride: tl.int64,
    text_rows: tl.int64,  # (T,) int64; or 0: row t
    text_size: tl.int64,  # L
    text_lengths: tl.int64,  # (T,) int64; or 0: all
    targets: tl.int64,
    size: tl.int64,
    tiles: tl.int64,  # of the dot products
    grid_count: tl.int64,
    height: tl.int64,
    width: tl.int64,
    grids: tl.int64,  # (G, 3) int64: height, width, offset; or 0: all grids are height x width
    interference: tl.int64,  # (T, N) float32, overwritten
    dots: tl.int64,
    maps: tl.int64,  # (T, N)
    text_out: tl.int64,  # (T, L) float32
    scale_out: tl.int64,  # (T,) float32
    flat_out: tl.int64,  # (T,) uint8
    OUTPUT: tl.constexpr,
    CAUSAL: tl.constexpr,  # the residual is the result
    K: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_TILES: tl.constexpr,
):
    """One program finishes one target's map."""
    program = tl.program_id(0)
    place = item_of(table, items, program, 22)
    t = program - field(table, place, 0, 0)
    activation = field(table, place, 1, activation)
    activation_row_stride = field(table, place, 2, activation_row_stride)
    activation_rows = field(table, place, 3, activation_rows)
    text = field(table, place, 4, text)
    text_row_stride = field(table, place, 5, text_row_stride)
    text_rows = field(table, place, 6, text_rows)
    text_size = field(table, place, 7, text_size)
    text_lengths = field(table, place, 8, text_lengths)
    targets = field(table, place, 9, targets)
    size = field(table, place, 10, size)
    tiles = field(table, place, 11, tiles)
    grid_count = field(table, place, 12, grid_count)
    height = field(table, place, 13, height)
    width = field(table, place, 14, width)
    grids = field(table, place, 15, grids)
    interference = field(table, place, 16, interference)
    dots = field(table, place, 17, dots)
    maps = field(table, place, 18, maps)
    text_out = field(table, place, 19, text_out)
    scale_out = field(table, place, 20, scale_out)
    flat_out = field(table, place, 21, flat_out)

    activation += row_of(activation_rows, t, t < targets) * activation_row_stride * 4
    interference += t * size * 4
    work = at(interference, tl.float32)
    scale, denominator = _scale(dots, t, targets, tiles, BLOCK_TILES)
    tl.store(at(scale_out, tl.float32) + t, (scale * denominator).to(tl.float32))
    if CAUSAL:
        for begin in range(0, size, BLOCK):
            n = begin + tl.arange(0, BLOCK)
            residual = _residual(activation, interference, n, size, scale)
            tl.store(at(maps, tl.float32) + t * size + n, residual, mask=n < size)
    else:
        lows = tl.full((BLOCK,), float("inf"), tl.float32)
        highs = tl.full((BLOCK,), float("-inf"), tl.float32)
        nans = tl.zeros((BLOCK,), tl.int32)
        for begin in range(0, size, BLOCK):
            n = begin + tl.arange(0, BLOCK)
            residual = _residual(activation, interference, n, size, scale)
            tl.store(work + n, residual, mask=n < size)
            lows = tl.minimum(lows, tl.where(n < size, residual, float("inf")))
            highs = tl.maximum(highs, tl.where(n < size, residual, float("-inf")))
            nans = nans | ((n < size) & (residual != residual)).to(tl.int32)
        length = tl.load(at(text_lengths, tl.int64) + t, mask=text_lengths != 0, other=text_size)
        length = tl.minimum(length, text_size)
        words = at(text, tl.float32) + row_of(text_rows, t, t < targets) * text_row_stride
        for begin in range(0, length, BLOCK):
            k = begin + tl.arange(0, BLOCK)
            word = tl.load(words + k, mask=k < length, other=0.0)
            lows = tl.minimum(lows, tl.where(k < length, word, float("inf")))
            highs = tl.maximum(highs, tl.where(k < length, word, float("-inf")))
            nans = nans | ((k < length) & (word != word)).to(tl.int32)
        low = tl.min(lows)
        high = tl.max(highs)
        has_nan = tl.max(nans) > 0
        is_flat = ((low < high) | has_nan) == 0
        tl.store(at(flat_out, tl.uint8) + t, is_flat.to(tl.uint8))
        low = tl.where(has_nan, float("nan"), tl.where(is_flat, 0.0, low))
        unit = tl.where(is_flat, 1.0, high - low)

        for begin in range(0, size, BLOCK):
            n = begin + tl.arange(0, BLOCK)
            value = tl.load(work + n, mask=n < size, other=0.0)
            value = tl.where(is_flat, 0.0, tl.math.div_rn(value - low, tl.zeros_like(value) + unit) + 0.0)
            if K == 1:
                tl.store(at(maps, OUTPUT) + t * size + n, as_output(value, OUTPUT), mask=n < size)
            else:
                tl.store(work + n, value, mask=n < size)
        for begin in range(0, text_size, BLOCK):
            k = begin + tl.arange(0, BLOCK)
            value = tl.load(words + k, mask=k < length, other=0.0)
            value = tl.math.div_rn(value - low, tl.zeros_like(value) + unit) + 0.0
            value = tl.where(is_flat | (k >= length), 0.0, value)
            tl.store(at(text_out, tl.float32) + t * text_size + k, value, mask=k < text_size)

        if K > 1:
            tl.debug_barrier()  # what a lane filters, others have written
            _filter_grids(
                work,
                at(maps, OUTPUT) + t * size,
                grid_count,
                height,
                width,
                grids,
                constant_nan,
                OUTPUT,
                K,
                ROWS,
                LANES,
            )


@triton.jit
def _filter_grids(
    work,
    maps,
    grid_count,
    height,
    width,
    grids,
    constant_nan,
    OUTPUT: tl.constexpr,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
):
    """Filter a normalised row: all grids together where they are of one size, else one after the other."""
    passes = tl.where(grids == 0, 1, grid_count)
    together = tl.where(grids == 0, grid_count, 1).to(tl.int32)
    for g in range(0, passes):
        grid = at(grids, tl.int64) + 3 * g
        grid_height = tl.load(grid, mask=grids != 0, other=height).to(tl.int32)
        grid_width = tl.load(grid + 1, mask=grids != 0, other=width).to(tl.int32)
        offset = tl.load(grid + 2, mask=grids != 0, other=0)
        lanes_of_grid = tl.cdiv(grid_height, ROWS) * grid_width
        lanes = together * lanes_of_grid
        pixels = grid_height.to(tl.int64) * grid_width
        for begin in range(0, lanes, LANES):
            lane = begin + tl.arange(0, LANES)
            live = lane < lanes
            here = offset + (lane // lanes_of_grid) * pixels
            lane = lane % lanes_of_grid
            y = lane // grid_width * ROWS
            x = lane % grid_width
            row_stride = grid_width.to(tl.int64)
            filter_strip(
                work + here,
                row_stride,
                1,
                maps + here,
                x,
                y,
                live,
                grid_height,
                grid_width,
                constant_nan,
                OUTPUT,
                K,
                ROWS,
                True,
            )


@kernel
def least_squares_scale_kernel(
    target: tl.int64,  # rows of N
    target_row_stride: tl.int64,
    target_column_stride: tl.int64,
    interference: tl.int64,
    interference_row_stride: tl.int64,
    interference_column_stride: tl.int64,
    size: tl.int64,
    scale: tl.int64,  # (rows,) float32
    ELEMENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """<target, interference> / <interference, interference> of a row in float64, 0 where the denominator is 0."""
    row = tl.program_id(0).to(tl.int64)
    a = at(target, ELEMENT) + row * target_row_stride
    e = at(interference, ELEMENT) + row * interference_row_stride
    with_target = tl.zeros((BLOCK,), tl.float64)
    with_itself = tl.zeros((BLOCK,), tl.float64)
    for begin in range(0, size, BLOCK):
        n = begin + tl.arange(0, BLOCK).to(tl.int64)
        one = tl.load(a + n * target_column_stride, mask=n < size, other=0.0).to(tl.float64)
        other = tl.load(e + n * interference_column_stride, mask=n < size, other=0.0).to(tl.float64)
        with_target += one * other
        with_itself += other * other
    numerator = tl.sum(with_target)
    denominator = tl.sum(with_itself)
    result = tl.where(denominator == 0, 0.0, numerator / tl.where(denominator == 0, 1.0, denominator))
    tl.store(at(scale, tl.float32) + row, result.to(tl.float32))
