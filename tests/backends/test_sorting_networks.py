"""The comparators that the kernels execute sort every vector of zeros and ones, and therefore every vector."""

from __future__ import annotations

import numpy as np
import pytest

from tam_fast import _C

# Bit b of LOW[i] is bit i of b: 64 consecutive numbers at once, one 64-bit word for each of their six lowest bits.
LOW = [sum(1 << b for b in range(64) if b >> i & 1) for i in range(6)]


def zero_one_words(wires: int) -> np.ndarray:
    """All 2**wires zero-one vectors, bit-parallel: (wires, 2**(wires - 6)) uint64, a vector in every bit."""
    words = np.empty((wires, 1 << (wires - 6)), np.uint64)
    counter = np.arange(words.shape[1], dtype=np.uint64)
    for wire in range(wires):
        if wire < 6:
            words[wire] = LOW[wire]
        else:
            words[wire] = np.where(counter >> np.uint64(wire - 6) & np.uint64(1), ~np.uint64(0), np.uint64(0))
    return words


@pytest.mark.parametrize("kernel_size", [3, 5])
def test_sorts_all_zero_one_vectors(kernel_size: int) -> None:
    words = zero_one_words(kernel_size**2)
    for low, high in _C.sorting_network(kernel_size):
        smaller = words[low] & words[high]
        words[high] |= words[low]
        words[low] = smaller
    for wire in range(1, len(words)):
        assert not np.any(words[wire - 1] & ~words[wire]), f"wires {wire - 1} and {wire}"


@pytest.mark.parametrize("kernel_size", range(3, 16, 2))
def test_sorts_numbers(kernel_size: int) -> None:
    values = np.random.default_rng(kernel_size).integers(0, 100, (kernel_size**2, 500))
    expected = np.sort(values, axis=0)
    for low, high in _C.sorting_network(kernel_size):
        pair = values[[low, high]]
        values[low], values[high] = pair.min(0), pair.max(0)
    np.testing.assert_array_equal(values, expected)


def test_comparators_when_columns_are_shared() -> None:
    # A kernel of size k sorts one column where the listed network sorts k of them.
    expected = {3: 25 - 2 * 3, 5: 103, 7: 293}
    line = {3: 3, 5: 9, 7: 16}
    for kernel_size, count in expected.items():
        assert len(_C.sorting_network(kernel_size)) - (kernel_size - 1) * line[kernel_size] == count


@pytest.mark.parametrize("kernel_size", [-1, 0, 1, 2, 4, 17])
def test_refuses_other_sizes(kernel_size: int) -> None:
    with pytest.raises(ValueError, match="kernel_size"):
        _C.sorting_network(kernel_size)
