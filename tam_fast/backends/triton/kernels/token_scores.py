# mypy: ignore-errors
"""Triton kernels of the score product: gathered classifier rows times gathered hidden rows, ReLU (Eq. 1)."""

import triton
import triton.language as tl

from tam_fast.backends.triton.kernels.common import at, field, given_for, is_finite, item_of, kernel, rectified


@triton.jit
def row_pointers(address, rows, row_stride, ELEMENT: tl.constexpr, ALIGNED: tl.constexpr):
    """Pointers to the first elements of rows; ALIGNED promises 16 bytes of the address, 16 elements of the stride."""
    base = address.to(tl.int64).to(tl.pointer_type(ELEMENT))
    if ALIGNED:
        # What is said about an argument is lost where a function is inlined.
        base = tl.multiple_of(base, 16)
        row_stride = row_stride // 16 * 16
    return base + rows * row_stride


@triton.jit
def partial_products(weight, state, PRECISION: tl.constexpr):
    """Products of one block of channels, to be added up by ordinary additions: tensor cores truncate their sums."""
    # Given a limit the compiler leaves the addition alone instead of handing it to the tensor core.
    return tl.dot(weight, state, input_precision=PRECISION, max_num_imprecise_acc=weight.shape[1])


@kernel
def token_scores_kernel(
    table: tl.int64,
    items: tl.int64,
    classifier: tl.int64,  # (V, C)
    vocabulary: tl.int64,
    channels: tl.int64,
    classifier_row_stride: tl.int64,
    classifier_column_stride: tl.int64,
    flag: tl.int64,  # int32, 1 where a sum is NaN or Inf; or 0
    hidden: tl.int64,  # (S, C)
    hidden_rows: tl.int64,
    hidden_row_stride: tl.int64,
    hidden_column_stride: tl.int64,
    positions: tl.int64,  # (P,) int64 rows of hidden; or 0: all in order
    position_count: tl.int64,
    classes: tl.int64,  # (U,) int64 rows of classifier
    class_count: tl.int64,
    out: tl.int64,  # (U, P) float32
    out_row_stride: tl.int64,
    CLASSIFIER: tl.constexpr,
    HIDDEN: tl.constexpr,
    FACTOR: tl.constexpr,  # the type of what is multiplied
    PRECISION: tl.constexpr,
    ALIGNED: tl.constexpr,  # unit column strides, and 16 bytes of addresses and row strides; channels a multiple of 16
    BLOCK_U: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """out[u, p] = max(<hidden[positions[p]], classifier[classes[u]]>, 0); NaN for what is out of range."""
    program = tl.program_id(0)
    place = item_of(table, items, program, 11)
    tile = program - field(table, place, 0, 0).to(tl.int32)
    hidden = field(table, place, 1, hidden)
    hidden_rows = field(table, place, 2, hidden_rows)
    hidden_row_stride = field(table, place, 3, hidden_row_stride)
    hidden_column_stride = field(table, place, 4, hidden_column_stride)
    positions = field(table, place, 5, positions)
    position_count = field(table, place, 6, position_count)
    classes = field(table, place, 7, classes)
    class_count = field(table, place, 8, class_count)
    out = field(table, place, 9, out)
    out_row_stride = field(table, place, 10, out_row_stride)

    # Programs that follow one another share the hidden rows, of which there are more.
    tiles_of_classes = tl.cdiv(class_count, BLOCK_U).to(tl.int32)
    u = (tile % tiles_of_classes).to(tl.int64) * BLOCK_U + tl.arange(0, BLOCK_U)
    p = (tile // tiles_of_classes).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    token = tl.load(at(classes, tl.int64) + u, mask=u < class_count, other=-1)
    position = tl.load(at(positions, tl.int64) + p, mask=(p < position_count) & given_for(positions, p), other=p)
    known_token = (token >= 0) & (token < vocabulary)
    known_position = (position >= 0) & (position < hidden_rows)
    token = tl.where(known_token, token, 0)
    position = tl.where(known_position & (p < position_count), position, 0)
    if ALIGNED:
        channels = channels // 16 * 16
        classifier_column_stride = 1
        hidden_column_stride = 1
    weights = row_pointers(classifier, token, classifier_row_stride, CLASSIFIER, ALIGNED)
    states = row_pointers(hidden, position, hidden_row_stride, HIDDEN, ALIGNED)

    sums = tl.zeros((BLOCK_U, BLOCK_P), tl.float32)
    for begin in range(0, channels, BLOCK_C):
        c = begin + tl.arange(0, BLOCK_C)
        inside = c < channels
        weight = tl.load(
            weights[:, None] + (c * classifier_column_stride)[None, :],
            mask=known_token[:, None] & inside[None, :],
            other=0.0,
        )
        state = tl.load(
            states[None, :] + (c * hidden_column_stride)[:, None],
            mask=known_position[None, :] & inside[:, None],
            other=0.0,
        )
        sums += partial_products(weight.to(FACTOR), state.to(FACTOR), PRECISION)

    wanted = (u < class_count)[:, None] & (p < position_count)[None, :]
    sums = tl.where(known_token[:, None] & known_position[None, :], sums, float("nan"))
    target = at(out, tl.float32) + u[:, None] * out_row_stride + p[None, :]
    tl.store(target, rectified(sums), mask=wanted)
    not_finite = tl.max((wanted & (is_finite(sums) == 0)).to(tl.int32))
    tl.store(at(flag, tl.int32), 1, mask=(not_finite > 0) & (flag != 0))


@kernel
def step_scores_kernel(
    prompt: tl.int64,  # (P, C)
    prompt_rows: tl.int64,
    prompt_row_stride: tl.int64,
    positions: tl.int64,  # (N + n_p,) int64 rows of the prompt
    position_count: tl.int64,
    prompt_text: tl.int64,  # n_p
    states: tl.int64,  # (capacity, C)
    states_rows: tl.int64,
    states_row_stride: tl.int64,
    classifier: tl.int64,  # (V, C)
    vocabulary: tl.int64,
    channels: tl.int64,
    classifier_row_stride: tl.int64,
    classifier_column_stride: tl.int64,
    scores: tl.int64,  # (rows, N + n_p + capacity) float32
    scores_rows: tl.int64,
    scores_row_stride: tl.int64,
    state: tl.int64,  # (4,) int64: token id, row, length, is_new
    context_rows: tl.int64,  # (K,) int64
    context_names: tl.int64,  # (K,) int64
    context_size: tl.int64,
    target: tl.int64,  # (3,) int64: row, name, length
    flag: tl.int64,  # int32
    STATES: tl.constexpr,
    CLASSIFIER: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Score one token: over the prompt if it is new, and over the states that predicted its context."""
    program = tl.program_id(0)
    given = at(state, tl.int64)
    token = tl.load(given)
    row = tl.load(given + 1)
    length = tl.load(given + 2)
    is_new = tl.load(given + 3)
    known_row = (row >= 0) & (row < scores_rows)
    if program == 0:
        fits = (length >= 0) & (length < context_size)
        tl.store(at(context_rows, tl.int64) + length, row, mask=fits)
        tl.store(at(context_names, tl.int64) + length, row, mask=fits)
        of_target = at(target, tl.int64)
        tl.store(of_target, row)
        tl.store(of_target + 1, row, mask=tl.load(of_target + 1) != -1)
        tl.store(of_target + 2, length)

    if ALIGNED:
        channels = channels // 16 * 16
        classifier_column_stride = 1
    of_prompt = tl.cdiv(position_count, BLOCK_P)
    in_prompt = program < of_prompt
    begin = tl.where(in_prompt, program, program - of_prompt) * BLOCK_P
    answered = tl.maximum(tl.minimum(length - prompt_text, states_rows), 0)
    count = tl.where(in_prompt, tl.where(is_new != 0, position_count, 0), answered)
    count = tl.where(known_row, count, 0)
    if begin < count:
        p = begin + tl.arange(0, BLOCK_P)
        wanted = p < count
        position = tl.load(at(positions, tl.int64) + p, mask=p < tl.where(in_prompt, count, 0), other=p)
        rows = tl.where(in_prompt, prompt_rows, states_rows)
        known = (position >= 0) & (position < rows)
        known_token = (token >= 0) & (token < vocabulary)
        source = tl.where(in_prompt, prompt, states)
        stride = tl.where(in_prompt, prompt_row_stride, states_row_stride)
        lines = row_pointers(source, tl.where(known & wanted, position, 0), stride, STATES, ALIGNED)
        weights = row_pointers(classifier, tl.where(known_token, token, 0), classifier_row_stride, CLASSIFIER, ALIGNED)
        products = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
        for first in range(0, channels, BLOCK_C):
            c = first + tl.arange(0, BLOCK_C)
            inside = c < channels
            weight = tl.load(
                weights + c * classifier_column_stride, mask=c < tl.where(known_token, channels, 0), other=0.0
            )
            line = tl.load(lines[:, None] + c[None, :], mask=(known & wanted)[:, None] & inside[None, :], other=0.0)
            products += line.to(tl.float32) * weight.to(tl.float32)[None, :]
        sums = tl.where(known & known_token, tl.sum(products, axis=1), float("nan"))
        to = at(scores, tl.float32) + row * scores_row_stride + tl.where(in_prompt, 0, position_count) + p
        tl.store(to, rectified(sums), mask=wanted)
        not_finite = tl.max((wanted & (is_finite(sums) == 0)).to(tl.int32))
        tl.store(at(flag, tl.int32), 1, mask=(not_finite > 0) & (flag != 0))
