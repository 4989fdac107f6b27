# mypy: ignore-errors
"""Triton kernels of the interference: E_t = sum_k r_tk A_k with <A_t, E_t> and <E_t, E_t> (Eq. 4 and 5).

Relevances are multiplied by the power of two that brings a target's largest finite one into [1, 2), and E is left
undivided. Every tile writes its own partial dot products, which the last kernel adds in order: no atomics, the same
bits every time.
"""

import triton
import triton.language as tl

from tam_fast.backends.triton.kernels.common import at, field, given_for, is_finite, item_of, kernel, rectified, row_of
from tam_fast.backends.triton.kernels.token_scores import partial_products, row_pointers


@triton.jit
def counted_context(target_names, lengths, t, live, contexts):
    """How many context tokens count for some targets, and the names of the targets."""
    length = tl.load(at(lengths, tl.int64) + t, mask=live & given_for(lengths, t), other=contexts)
    name = tl.load(at(target_names, tl.int64) + t, mask=live & given_for(target_names, t), other=0)
    length = tl.where(live & ((target_names == 0) | (name != -1)), tl.minimum(length, contexts), 0)
    return length, name


@triton.jit
def relevance_of(relevance, lines, context_names, name, length, k):
    """Relevances of context tokens k to targets: 0 beyond a target's context, and for the target's own word."""
    counted = k[None, :] < length[:, None]
    context_name = tl.load(
        at(context_names, tl.int64) + k, mask=given_for(context_names, k) & (k < tl.max(length)), other=-1
    )
    same_word = given_for(context_names, k)[None, :] & (context_name[None, :] == name[:, None])
    return tl.load(at(relevance, tl.float32) + lines[:, None] + k[None, :], mask=counted & (same_word == 0), other=0.0)


@triton.jit
def power_of_two(largest):
    """Factor that brings a positive number into [1, 2), as far as float32 goes."""
    exponent = largest.to(tl.int32, bitcast=True) >> 23
    return (tl.maximum(254 - exponent, 1) << 23).to(tl.float32, bitcast=True)


@triton.jit
def relevance_scale(relevance, lines, context_names, name, length, last, BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr):
    """Return the factor of each target's relevances, and the denominator of Eq. 4 times the factor."""
    largest = tl.zeros((BLOCK_T,), tl.float32)
    total = tl.zeros((BLOCK_T,), tl.float64)
    for begin in range(0, last, BLOCK_K):
        k = begin + tl.arange(0, BLOCK_K).to(tl.int64)
        r = relevance_of(relevance, lines, context_names, name, length, k)
        magnitude = tl.where(is_finite(r), tl.abs(r), 0.0)
        largest = tl.maximum(largest, tl.max(magnitude, axis=1))
        total += tl.sum(r.to(tl.float64), axis=1)
    factor = power_of_two(largest)
    return factor, (total + 1e-8) * factor.to(tl.float64)


@triton.jit
def dot_products(activation, lines, interference, dots, denominator, t, n, tile, tiles, targets, size):
    """Write a tile's part of <A, E> and <E, E> to dots (T, tiles, 2), and the denominators after all of them."""
    live = t < targets
    a = tl.load(
        at(activation, tl.float32) + lines[:, None] + n[None, :],
        mask=live[:, None] & (n < size)[None, :],
        other=0.0,
    )
    e = tl.where((n < size)[None, :], interference, 0.0).to(tl.float64)
    to = at(dots, tl.float64) + (t * tiles + tile) * 2
    tl.store(to, tl.sum(a.to(tl.float64) * e, axis=1), mask=live)
    tl.store(to + 1, tl.sum(e * e, axis=1), mask=live)
    tl.store(at(dots, tl.float64) + targets * tiles * 2 + t, denominator, mask=live & (t * 0 + tile == 0))


@kernel
def interference_kernel(
    table: tl.int64,
    items: tl.int64,
    activation: tl.int64,  # rows of N float32
    activation_row_stride: tl.int64,
    activation_rows: tl.int64,  # (T,) int64; or 0: row t
    context: tl.int64,  # rows of N float32
    context_row_stride: tl.int64,
    context_rows: tl.int64,  # (K,) int64; or 0: row k
    relevance: tl.int64,  # rows of K float32
    relevance_row_stride: tl.int64,
    relevance_rows: tl.int64,  # (T,) int64; or 0: row t
    context_names: tl.int64,  # (K,) int64; or 0: every relevance counts
    target_names: tl.int64,  # (T,) int64, -1: no relevance counts; or 0
    lengths: tl.int64,  # (T,) int64 context tokens; or 0: all
    targets: tl.int64,
    contexts: tl.int64,
    size: tl.int64,
    tiles: tl.int64,  # of positions
    interference: tl.int64,  # (T, N) float32
    dots: tl.int64,  # (T, tiles, 2) float64, then (T,)
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Interference of many targets: a tiled product that ends with the longest context of a tile's targets."""
    program = tl.program_id(0)
    place = item_of(table, items, program, 19)
    local = program - field(table, place, 0, 0).to(tl.int32)
    activation = field(table, place, 1, activation)
    activation_row_stride = field(table, place, 2, activation_row_stride)
    activation_rows = field(table, place, 3, activation_rows)
    context = field(table, place, 4, context)
    context_row_stride = field(table, place, 5, context_row_stride)
    context_rows = field(table, place, 6, context_rows)
    relevance = field(table, place, 7, relevance)
    relevance_row_stride = field(table, place, 8, relevance_row_stride)
    relevance_rows = field(table, place, 9, relevance_rows)
    context_names = field(table, place, 10, context_names)
    target_names = field(table, place, 11, target_names)
    lengths = field(table, place, 12, lengths)
    targets = field(table, place, 13, targets)
    contexts = field(table, place, 14, contexts)
    size = field(table, place, 15, size)
    tiles = field(table, place, 16, tiles)
    interference = field(table, place, 17, interference)
    dots = field(table, place, 18, dots)

    tile = local % tiles.to(tl.int32)
    # Targets with long contexts first: what is left for the end is short.
    last_tile = tl.cdiv(targets, BLOCK_T).to(tl.int32) - 1
    t = (last_tile - local // tiles.to(tl.int32)).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    n = tile.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    live = t < targets
    length, name = counted_context(target_names, lengths, t, live, contexts)
    lines = row_of(relevance_rows, t, live) * relevance_row_stride
    last = tl.max(length)
    factor, denominator = relevance_scale(relevance, lines, context_names, name, length, last, BLOCK_T, BLOCK_K)
    sums = tl.zeros((BLOCK_T, BLOCK_N), tl.float32)
    for begin in range(0, last, BLOCK_K):
        k = begin + tl.arange(0, BLOCK_K).to(tl.int64)
        r = relevance_of(relevance, lines, context_names, name, length, k) * factor[:, None]
        maps = row_of(context_rows, k, k < last) * context_row_stride
        a = tl.load(
            at(context, tl.float32) + maps[:, None] + n[None, :],
            mask=(k < last)[:, None] & (n < size)[None, :],
            other=0.0,
        )
        sums = tl.dot(r, a, sums, input_precision="ieee")

    if tl.max((is_finite(sums) == 0).to(tl.int32)) > 0:
        # NaN and Inf of a context map enter only where its relevance is not 0.
        careful = tl.zeros((BLOCK_T, BLOCK_N), tl.float32)
        for step in range(0, last):
            k = step + tl.zeros((1,), tl.int64)
            r = relevance_of(relevance, lines, context_names, name, length, k) * factor[:, None]
            maps = row_of(context_rows, k, k < last) * context_row_stride
            a = tl.load(at(context, tl.float32) + maps[:, None] + n[None, :], mask=(n < size)[None, :], other=0.0)
            careful += tl.where(r != 0, r * a, 0.0)
        sums = tl.where(is_finite(sums), sums, careful)

    target = at(interference, tl.float32) + t[:, None] * size + n[None, :]
    tl.store(target, sums, mask=live[:, None] & (n < size)[None, :])
    rows = row_of(activation_rows, t, live) * activation_row_stride
    dot_products(activation, rows, sums, dots, denominator, t, n, tile, tiles, targets, size)


@kernel
def interference_few_kernel(
    table: tl.int64,
    items: tl.int64,
    activation: tl.int64,
    activation_row_stride: tl.int64,
    activation_rows: tl.int64,
    context: tl.int64,
    context_row_stride: tl.int64,
    context_rows: tl.int64,
    relevance: tl.int64,
    relevance_row_stride: tl.int64,
    relevance_rows: tl.int64,
    context_names: tl.int64,
    target_names: tl.int64,
    lengths: tl.int64,
    targets: tl.int64,
    contexts: tl.int64,
    size: tl.int64,
    tiles: tl.int64,
    interference: tl.int64,
    dots: tl.int64,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Interference of few targets: a matrix-vector product a target, spread over many programs."""
    program = tl.program_id(0)
    place = item_of(table, items, program, 19)
    local = program - field(table, place, 0, 0).to(tl.int32)
    activation = field(table, place, 1, activation)
    activation_row_stride = field(table, place, 2, activation_row_stride)
    activation_rows = field(table, place, 3, activation_rows)
    context = field(table, place, 4, context)
    context_row_stride = field(table, place, 5, context_row_stride)
    context_rows = field(table, place, 6, context_rows)
    relevance = field(table, place, 7, relevance)
    relevance_row_stride = field(table, place, 8, relevance_row_stride)
    relevance_rows = field(table, place, 9, relevance_rows)
    context_names = field(table, place, 10, context_names)
    target_names = field(table, place, 11, target_names)
    lengths = field(table, place, 12, lengths)
    targets = field(table, place, 13, targets)
    contexts = field(table, place, 14, contexts)
    size = field(table, place, 15, size)
    tiles = field(table, place, 16, tiles)
    interference = field(table, place, 17, interference)
    dots = field(table, place, 18, dots)

    tile = local % tiles.to(tl.int32)
    t = (local // tiles.to(tl.int32)).to(tl.int64) + tl.zeros((1,), tl.int64)
    n = tile.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    live = t < targets
    length, name = counted_context(target_names, lengths, t, live, contexts)
    lines = row_of(relevance_rows, t, live) * relevance_row_stride
    last = tl.max(length)
    factor, denominator = relevance_scale(relevance, lines, context_names, name, length, last, 1, BLOCK_K)
    products = tl.zeros((BLOCK_K, BLOCK_N), tl.float32)
    for begin in range(0, last, BLOCK_K):
        k = begin + tl.arange(0, BLOCK_K).to(tl.int64)
        r = relevance_of(relevance, lines, context_names, name, length, k) * factor[:, None]
        r = tl.trans(r)
        maps = row_of(context_rows, k, k < last) * context_row_stride
        a = tl.load(
            at(context, tl.float32) + maps[:, None] + n[None, :],
            mask=(k < last)[:, None] & (n < size)[None, :],
            other=0.0,
        )
        products += tl.where(r != 0, r * a, 0.0)
    sums = tl.sum(products, axis=0)[None, :]
    target = at(interference, tl.float32) + t[:, None] * size + n[None, :]
    tl.store(target, sums, mask=live[:, None] & (n < size)[None, :])
    rows = row_of(activation_rows, t, live) * activation_row_stride
    dot_products(activation, rows, sums, dots, denominator, t, n, tile, tiles, targets, size)


@kernel
def interference_from_states_kernel(
    activation: tl.int64,
    activation_row_stride: tl.int64,
    activation_rows: tl.int64,
    relevance: tl.int64,
    relevance_row_stride: tl.int64,
    relevance_rows: tl.int64,
    context_names: tl.int64,
    target_names: tl.int64,
    lengths: tl.int64,
    targets: tl.int64,
    contexts: tl.int64,
    size: tl.int64,
    tiles: tl.int64,
    interference: tl.int64,
    dots: tl.int64,
    hidden: tl.int64,  # (S, C)
    hidden_rows: tl.int64,
    hidden_row_stride: tl.int64,
    hidden_column_stride: tl.int64,
    positions: tl.int64,  # (N,) int64 rows of hidden
    classifier: tl.int64,  # (V, C)
    vocabulary: tl.int64,
    classifier_row_stride: tl.int64,
    classifier_column_stride: tl.int64,
    classes: tl.int64,  # (K,) int64 rows of classifier
    channels: tl.int64,
    flag: tl.int64,
    CLASSIFIER: tl.constexpr,
    HIDDEN: tl.constexpr,
    FACTOR: tl.constexpr,
    PRECISION: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Interference whose context maps are made from states and classifier rows as they are needed, never written."""
    program = tl.program_id(0)
    tile = program % tiles.to(tl.int32)
    last_tile = tl.cdiv(targets, BLOCK_T).to(tl.int32) - 1
    t = (last_tile - program // tiles.to(tl.int32)).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    n = tile.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    live = t < targets
    length, name = counted_context(target_names, lengths, t, live, contexts)
    lines = row_of(relevance_rows, t, live) * relevance_row_stride
    last = tl.max(length)
    factor, denominator = relevance_scale(relevance, lines, context_names, name, length, last, BLOCK_T, BLOCK_K)

    position = tl.load(at(positions, tl.int64) + n, mask=n < size, other=0)
    known_position = (position >= 0) & (position < hidden_rows)
    states = row_pointers(hidden, tl.where(known_position, position, 0), hidden_row_stride, HIDDEN, ALIGNED)
    if ALIGNED:
        channels = channels // 16 * 16
        hidden_column_stride = 1
        classifier_column_stride = 1
    sums = tl.zeros((BLOCK_T, BLOCK_N), tl.float32)
    for begin in range(0, last, BLOCK_K):
        k = begin + tl.arange(0, BLOCK_K).to(tl.int64)
        token = tl.load(at(classes, tl.int64) + k, mask=k < last, other=0)
        known_token = (token >= 0) & (token < vocabulary)
        rows = row_pointers(classifier, tl.where(known_token, token, 0), classifier_row_stride, CLASSIFIER, ALIGNED)
        scores = tl.zeros((BLOCK_K, BLOCK_N), tl.float32)
        for first in range(0, channels, BLOCK_C):
            c = first + tl.arange(0, BLOCK_C)
            inside = c < channels
            weight = tl.load(
                rows[:, None] + (c * classifier_column_stride)[None, :],
                mask=(known_token & (k < last))[:, None] & inside[None, :],
                other=0.0,
            )
            state = tl.load(
                states[None, :] + (c * hidden_column_stride)[:, None],
                mask=(known_position & (n < size))[None, :] & inside[:, None],
                other=0.0,
            )
            scores += partial_products(weight.to(FACTOR), state.to(FACTOR), PRECISION)
        scores = tl.where(known_token[:, None] & known_position[None, :], scores, float("nan"))
        a = rectified(tl.where((k < last)[:, None] & (n < size)[None, :], scores, 0.0))
        r = relevance_of(relevance, lines, context_names, name, length, k) * factor[:, None]
        if tl.max((is_finite(a) == 0).to(tl.int32)) == 0:
            sums = tl.dot(r, a, sums, input_precision="ieee")
        else:
            tl.store(at(flag, tl.int32), 1, mask=flag != 0)
            for step in range(0, BLOCK_K):
                this = tl.arange(0, BLOCK_K) == step
                one_map = tl.sum(tl.where(this[:, None], a, 0.0), axis=0)
                one_relevance = tl.sum(tl.where(this[None, :], r, 0.0), axis=1)
                sums += tl.where(one_relevance[:, None] != 0, one_relevance[:, None] * one_map[None, :], 0.0)

    target = at(interference, tl.float32) + t[:, None] * size + n[None, :]
    tl.store(target, sums, mask=live[:, None] & (n < size)[None, :])
    rows_of_targets = row_of(activation_rows, t, live) * activation_row_stride
    dot_products(activation, rows_of_targets, sums, dots, denominator, t, n, tile, tiles, targets, size)
