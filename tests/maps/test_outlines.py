"""Masks as boxes, run lengths and polygons: what comes back is the mask."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from tam_fast.maps.outlines import bounds, polygons, run_lengths

Mask = NDArray[np.bool_]


def random_masks(count: int = 60) -> list[Mask]:
    random = np.random.default_rng(0)
    shapes = [tuple(random.integers(1, 14, 2)) for _ in range(count)]
    return [random.random(shape) < random.random() for shape in shapes]


def decoded(counts: str) -> list[int]:
    """The numbers of a compressed text, read from the definition: five bits a character, the last one's sign counts."""
    numbers: list[int] = []
    value = shift = 0
    for character in counts:
        bits = ord(character) - 48
        value |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:
            continue
        if bits & 0x10:
            value -= 1 << shift
        numbers.append(value + numbers[-2] if len(numbers) > 2 else value)
        value = shift = 0
    return numbers


def painted(counts: list[int], size: list[int]) -> Mask:
    values = np.concatenate([np.full(count, place % 2, dtype=bool) for place, count in enumerate(counts)] or [[]])
    return values.astype(bool).reshape(size[::-1]).T


def filled(corners: list[int], shape: tuple[int, ...]) -> Mask:
    """The pixels whose centres lie in a polygon, by the even-odd rule."""
    xs, ys = np.array(corners[0::2]), np.array(corners[1::2])
    inside = np.zeros(shape, dtype=bool)
    for x0, y0, y1 in zip(xs, ys, np.roll(ys, -1), strict=True):
        # Edges are along the axes: those that cross a row of centres are upright.
        low, high = sorted((y0, y1))
        inside[low:high, :x0] ^= True
    return inside


def test_run_lengths_give_the_mask_back() -> None:
    for mask in random_masks():
        found: Any = run_lengths(mask)
        assert found["size"] == list(mask.shape)
        assert sum(found["counts"]) == mask.size
        assert (painted(found["counts"], found["size"]) == mask).all()
        text: Any = run_lengths(mask, compressed=True)["counts"]
        assert decoded(text) == found["counts"]


def test_compressed_run_lengths_are_those_of_pycocotools() -> None:
    """Texts that pycocotools 2.0 wrote of these masks."""
    rows, columns = np.ogrid[:480, :640]
    for mask, text in discs(rows, columns):
        assert run_lengths(mask, compressed=True) == {"size": [480, 640], "counts": text}


def discs(rows: Any, columns: Any) -> list[tuple[Mask, str]]:
    disc = (rows - 200) ** 2 + (columns - 300) ** 2 < 12**2
    return [(disc, GOLDEN_DISC), (~disc, GOLDEN_REST), (np.zeros((480, 640), dtype=bool), GOLDEN_NONE)]


GOLDEN_DISC = "TeW49e>4M2N2N2N2O0O2O0000000000000001N101N2N2N2N3Lnai4"
GOLDEN_REST = "0TeW49aihK4M2N2N2N2O0O2O0000000000000001N101N2N2N2N3Lnai4"
GOLDEN_NONE = "PP\\9"


def test_a_polygon_each_part_gives_the_mask_back() -> None:
    around = np.ones((3, 3))
    for mask in random_masks():
        found = polygons(mask)
        labels, count = ndimage.label(mask)
        assert len(found) == count
        expected = np.zeros(mask.shape, dtype=bool)
        for label in range(1, count + 1):
            # What touches the outside at a corner alone is no hole.
            expected |= ndimage.binary_fill_holes(labels == label, structure=around)
        drawn = np.zeros(mask.shape, dtype=bool)
        for corners in found:
            drawn |= filled(corners, mask.shape)
        assert (drawn == expected).all(), mask.astype(int)


def test_corners_run_clockwise_and_only_where_one_turns() -> None:
    mask = np.zeros((5, 6), dtype=bool)
    mask[1:3, 2:5] = True
    assert polygons(mask) == [[2, 1, 5, 1, 5, 3, 2, 3]]
    mask[3, 2] = True
    assert polygons(mask) == [[2, 1, 5, 1, 5, 3, 3, 3, 3, 4, 2, 4]]
    # Two that touch at a corner are two.
    assert polygons(np.eye(2, dtype=bool)) == [[0, 0, 1, 0, 1, 1, 0, 1], [1, 1, 2, 1, 2, 2, 1, 2]]
    ring = np.ones((3, 3), dtype=bool)
    ring[1, 1] = False
    assert polygons(ring) == [[0, 0, 3, 0, 3, 3, 0, 3]]


def test_bounds() -> None:
    mask = np.zeros((5, 7), dtype=bool)
    assert bounds(mask) is None
    assert polygons(mask) == []
    mask[1, 2] = mask[3, 4] = True
    assert bounds(mask) == (2, 1, 5, 4)
    mask[:] = True
    assert bounds(mask) == (0, 0, 7, 5)
    assert bounds(np.zeros((0, 3), dtype=bool)) is None


@pytest.mark.parametrize("function", [bounds, polygons, run_lengths])
def test_wrong_masks(function: Any) -> None:
    with pytest.raises(TypeError, match="mask: expected a bool array, got dtype uint8"):
        function(np.zeros((2, 2), dtype=np.uint8))
    with pytest.raises(TypeError, match="mask: expected a bool array, got list"):
        function([[True]])
    with pytest.raises(ValueError, match=r"mask: expected \(H, W\), got shape \(3,\)"):
        function(np.zeros(3, dtype=bool))
