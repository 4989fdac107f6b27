"""How cells are divided in regions: blocks, superpixels, labels that are given."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tam_fast.maps.layout import Grid, Layout
from tam_fast.methods.regions import cells_kept, region_labels, slic, spread


def layout_of(*grids):
    """A layout of grids (height, width, options), one after the other."""
    start, made = 1, []
    for height, width, options in grids:
        made.append(Grid(range(start, start + height * width), height, width, **options))
        start += height * width
    return Layout(made, [0], start)


def test_there_are_eight_by_eight_blocks():
    labels = region_labels(layout_of((24, 24, {}))).view(24, 24)
    assert torch.equal(labels, torch.arange(24)[:, None] // 3 * 8 + torch.arange(24) // 3)
    wide = region_labels(layout_of((12, 48, {}))).view(12, 48)
    assert wide.unique().numel() == 64
    assert torch.equal(wide[0].unique(), torch.arange(16))  # squares: 4 rows of 16


def test_few_cells_are_regions_each():
    assert torch.equal(region_labels(layout_of((4, 5, {}))), torch.arange(20))
    assert torch.equal(region_labels(layout_of((24, 24, {})), "cells"), torch.arange(576))
    assert not region_labels(layout_of((4, 5, {})), 1).any()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 90))
def test_blocks_are_as_many_as_asked_for_nearly(height, width, count):
    labels = region_labels(layout_of((height, width, {})), count).view(height, width)
    found = labels.unique()
    assert torch.equal(found, torch.arange(len(found)))
    assert len(found) <= count
    assert len(found) >= min(count, height * width) / 2
    # Rectangles: labels are those of a row's block and a column's.
    for label in found:
        rows, columns = (labels == label).nonzero(as_tuple=True)
        assert (labels == label).sum() == rows.unique().numel() * columns.unique().numel()


def test_views_of_one_image_are_divided_alike():
    tiles = [
        (4, 4, {"kind": "tile", "box": (x / 2, y / 2, x / 2 + 0.5, y / 2 + 0.5)}) for y in range(2) for x in range(2)
    ]
    layout = layout_of(*tiles, (4, 4, {"kind": "overview"}))
    labels = region_labels(layout, 16)
    overview = labels[64:].view(4, 4)
    assert torch.equal(overview, torch.arange(16).view(4, 4))
    assert torch.equal(
        labels[:16].view(4, 4), torch.tensor([[0, 1], [4, 5]]).repeat_interleave(2, 0).repeat_interleave(2, 1)
    )


def test_images_and_frames_share_the_number():
    layout = layout_of((8, 8, {}), (8, 8, {"source": 1}))
    labels = region_labels(layout, 32)
    assert labels[:64].unique().numel() == labels[64:].unique().numel() == 16
    assert not set(labels[:64].tolist()) & set(labels[64:].tolist())
    frames = layout_of(*[(4, 4, {"kind": "video", "frame": frame}) for frame in range(6)])
    assert torch.equal(region_labels(frames, 3), torch.arange(3).repeat_interleave(32))


def test_labels_are_numbered_anew():
    layout = layout_of((2, 3, {}))
    assert region_labels(layout, [7, 7, 2, -3, 2, 9]).tolist() == [1, 1, 0, -1, 0, 2]
    assert region_labels(layout, np.array([0, 0, 0, 1, 1, 1], dtype=np.uint8)).tolist() == [0, 0, 0, 1, 1, 1]


def test_cells_of_no_region_stay():
    labels = torch.tensor([0, -1, 1, 0])
    assert cells_kept(torch.tensor([[False, True]]), labels).tolist() == [[False, True, True, False]]
    assert spread(torch.tensor([[2.0, 3.0]]), labels).tolist() == [[2.0, 0.0, 3.0, 2.0]]


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        (0, "regions: expected at least 1, got 0"),
        ("cell", 'regions: expected a number, labels or "cells"'),
        ([0, 1], r"regions: expected 6 integers, got \(2,\)"),
        (torch.zeros(6), "regions: expected 6 integers, got .* of torch.float32"),
        ([-1] * 6, "regions: expected a label of 0 or more"),
        (True, r"regions: expected 6 integers, got \(\) of torch.bool"),
    ],
)
def test_regions_are_checked(regions, message):
    with pytest.raises(ValueError, match=message):
        region_labels(layout_of((2, 3, {})), regions)


# Superpixels -----------------------------------------------------------------------------------------------------


def picture(height, width):
    """A red disc on noisy green."""
    rows, columns = np.mgrid[:height, :width]
    inside = (rows - height / 2) ** 2 + (columns - width / 3) ** 2 < (height / 4) ** 2
    made = np.random.default_rng(0).integers(0, 30, (height, width, 3)).astype(np.uint8)
    made[..., 1] += 150
    made[inside] = (200, 30, 30)
    return made, inside


def test_superpixels_keep_to_edges():
    made, inside = picture(90, 120)
    segments = slic(made, 40)
    sizes = np.bincount(segments.ravel())
    assert 30 <= (sizes > 0).sum() <= 40
    share = np.bincount(segments.ravel(), weights=inside.ravel()) / np.maximum(sizes, 1)
    mixed = sizes[(share > 0.02) & (share < 0.98)].sum() / sizes.sum()
    assert mixed < 0.02
    rows, columns = np.mgrid[:90, :120]
    blocks = rows * 5 // 90 * 8 + columns * 8 // 120
    share = np.bincount(blocks.ravel(), weights=inside.ravel()) / np.bincount(blocks.ravel())
    assert (share[blocks] * (1 - share[blocks]) > 0.02).mean() > 0.1  # blocks do not


@pytest.mark.parametrize(("height", "width", "count"), [(1, 1, 5), (3, 40, 7), (17, 5, 1), (8, 8, 64)])
def test_odd_sizes_have_superpixels(height, width, count):
    segments = slic(np.random.default_rng(1).integers(0, 255, (height, width, 3)).astype(np.uint8), count)
    assert segments.shape == (height, width)
    assert 1 <= len(np.unique(segments)) <= count


def test_cells_have_the_superpixel_that_most_of_them_is():
    made, inside = picture(180, 240)
    layout = layout_of((18, 24, {}))
    labels = region_labels(layout, 40, made)
    cells = torch.from_numpy(inside.reshape(18, 10, 24, 10).mean(axis=(1, 3)).ravel())
    assert torch.equal(labels.unique(), torch.arange(labels.max() + 1))
    inner = set(labels[cells == 1].tolist())
    assert inner
    assert not inner & set(labels[cells == 0].tolist())
    with pytest.raises(ValueError, match="images: expected 1, the sources of the layout's grids, got 2"):
        region_labels(layout, 40, [made, made])


def test_superpixels_are_shared_by_views_and_not_by_frames():
    made, _ = picture(60, 60)
    layout = layout_of(
        (6, 6, {"kind": "overview"}),
        (6, 6, {"kind": "tile", "box": (0, 0, 0.5, 1)}),
        (6, 6, {"kind": "tile", "box": (0.5, 0, 1, 1)}),
        (2, 2, {"kind": "video"}),
    )
    labels = region_labels(layout, 16, made)
    overview = labels[:36].view(6, 6)
    agreed = (labels[36:72].view(6, 6)[:, ::2] == overview[:, :3]).float().mean()
    assert agreed > 0.7
    assert not set(labels[108:].tolist()) & set(labels[:108].tolist())
    assert labels[108:].unique().numel() == 4
