"""Maps as bytes, and back."""

from __future__ import annotations

import zlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tam_fast.maps.packing import Packed, compress, decompress, from_base64, pack, to_base64, unpack


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 5), st.integers(0, 40), st.integers(0, 10_000), st.sampled_from([1.0, 0.03, 1e-30]), st.booleans()
)
def test_values_come_back_within_half_a_step(rows: int, cells: int, seed: int, factor: float, is_half: bool) -> None:
    maps = torch.rand(rows, cells, generator=torch.Generator().manual_seed(seed)) * factor
    if is_half and factor == 1.0:
        maps = maps.half()
    packed = pack(maps)
    assert packed.levels.dtype == torch.uint8
    assert packed.levels.shape == maps.shape
    back = unpack(packed)
    values = maps.float()
    assert torch.all((back - values).abs() <= packed.scale[:, None] / 510 * 1.001 + 1e-38)
    for row, before, level in zip(back, values, packed.levels, strict=True):
        if cells and before.max() > 0:
            # The hottest cell stays one of the hottest, and its value is kept.
            assert level[before.argmax()] == 255
            assert row.max() == before.max()


def test_a_map_of_nothing() -> None:
    packed = pack(torch.tensor([[0.0, 0.0], [float("nan"), 0.5]]))
    assert packed.levels.tolist() == [[0, 0], [0, 255]]
    assert packed.scale.tolist() == [0.0, 0.5]


def test_bytes_travel() -> None:
    levels = torch.arange(24, dtype=torch.uint8).reshape(2, 3, 4)
    view = levels.transpose(0, 2)
    for some in (levels, view):
        shape = tuple(some.shape)
        assert torch.equal(from_base64(to_base64(some), shape), some)
        assert torch.equal(decompress(compress(some), shape), some)
    assert from_base64("", (0, 5)).shape == (0, 5)
    assert decompress(compress(levels[:0]), (0, 3, 4)).shape == (0, 3, 4)
    from_base64(to_base64(levels), (24,))[0] = 7  # can be written to


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: pack(torch.zeros(2, 2, dtype=torch.uint8)), TypeError, "maps: expected a floating point"),
        (lambda: pack(torch.zeros(4)), ValueError, "maps: expected (T, N), got (4,)"),
        (lambda: pack(torch.tensor([[-0.5, 1.0]])), ValueError, "maps: expected finite values of at least 0, got -0.5"),
        (lambda: pack(torch.tensor([[float("inf")]])), ValueError, "maps: expected finite"),
        (lambda: unpack(Packed(torch.zeros(2, 2), torch.zeros(2))), ValueError, "packed: expected levels"),
        (lambda: unpack(Packed(torch.zeros(2, 2).byte(), torch.zeros(3))), ValueError, "packed: expected levels"),
        (lambda: to_base64(torch.zeros(2)), TypeError, "levels: expected uint8"),
        (lambda: from_base64("no base64!", (3,)), ValueError, "text: expected base64"),
        (lambda: from_base64("AAAA", (4,)), ValueError, "text: expected 4 bytes for (4,), got 3"),
        (lambda: decompress(b"nothing", (3,)), ValueError, "data: expected a zlib stream"),
        (lambda: decompress(zlib.compress(b"abc"), (4,)), ValueError, "data: expected 4 bytes"),
        (lambda: decompress(zlib.compress(b"abcde"), (4,)), ValueError, "data: expected 4 bytes"),
        (lambda: decompress(zlib.compress(b"abcd")[:-3], (4,)), ValueError, "data: expected a whole zlib stream"),
    ],
)
def test_what_is_refused(call: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        call()  # type: ignore[operator]
    assert str(caught.value).startswith(message)


def test_a_bomb_is_not_unpacked() -> None:
    """Of a stream that is longer than was said no more is read than shows it."""
    with pytest.raises(ValueError, match="got 5"):
        decompress(zlib.compress(bytes(10_000_000)), (4,))
