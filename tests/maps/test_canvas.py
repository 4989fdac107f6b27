"""Canvases: tiles, crops and an overview of one image as one map."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from tam_fast.maps.layout import Grid, Layout


def layout(*grids):
    """Grids of (height, width, kind, source, frame, box), one after the other in the sequence."""
    made, place = [], 0
    for height, width, kind, source, frame, box in grids:
        made.append(Grid(range(place, place + height * width), height, width, kind, source, frame, box))
        place += height * width
    return Layout(made, [], place + 1)


WHOLE = (0.0, 0.0, 1.0, 1.0)


def test_a_grid_alone_is_its_own_canvas():
    found = layout((2, 3, "image", 0, 0, (0.25, 0.0, 0.75, 1.0)), (1, 1, "image", 1, 0, WHOLE))
    canvas = found.canvas(0)
    assert (canvas.shape, canvas.box, canvas.grids) == ((2, 3), (0.25, 0.0, 0.75, 1.0), (0,))
    maps = torch.rand(4, 7)
    maps[1, 2] = math.nan
    assert torch.equal(canvas.join(maps).nan_to_num(-1), maps[:, :6].view(4, 2, 3).nan_to_num(-1))
    assert found.canvas(1).join(maps[0]).shape == (1, 1)
    assert [one.source for one in found.canvases()] == [0, 1]


def test_tiles_and_an_overview_by_the_largest():
    found = layout(
        (2, 2, "tile", 0, 0, (0.0, 0.0, 0.5, 1.0)),
        (2, 2, "tile", 0, 0, (0.5, 0.0, 1.0, 1.0)),
        (1, 2, "overview", 0, 0, WHOLE),
    )
    maps = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.35, 0.65])
    expected = torch.tensor([[0.35, 0.35, 0.65, 0.65], [0.35, 0.4, 0.7, 0.8]])
    torch.testing.assert_close(found.canvas(0).join(maps), expected)
    assert found.canvas(0).grids == (0, 1, 2)


def test_cells_that_do_not_meet_have_the_mean_of_what_they_share():
    # The canvas has cells of 1/4; the second tile's cells are half as fine and begin inside one of them.
    found = layout((1, 3, "tile", 0, 0, (0.0, 0.0, 0.75, 1.0)), (1, 1, "tile", 0, 0, (0.625, 0.0, 1.0, 1.0)))
    canvas = found.canvas(0)
    assert canvas.shape == (1, 4)
    joined = canvas.join(torch.tensor([0.0, 0.0, 0.6, 0.3]))
    # The third cell: all of the first tile's last one and half of the second tile's.
    torch.testing.assert_close(joined, torch.tensor([[0.0, 0.0, (0.6 + 0.5 * 0.3) / 1.5, 0.3]]))


def test_random_divisions_against_pixels():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        cuts = [0.0, *sorted(torch.randint(1, 12, (2,), generator=generator).div(12).tolist()), 1.0]
        cuts = sorted(set(cuts))
        parts = [
            (2, int(torch.randint(1, 4, (1,), generator=generator)), "tile", 0, 0, (low, 0.0, high, 1.0))
            for low, high in itertools.pairwise(cuts)
        ]
        found = layout(*parts, (3, 3, "overview", 0, 0, WHOLE))
        maps = torch.rand(found.offsets[-1], generator=generator)
        canvas = found.canvas(0)
        fine = 12 * math.lcm(1, 2, 3) * math.lcm(canvas.height, canvas.width, 2, 3)
        layers = {"tile": torch.zeros(6, fine), "overview": torch.zeros(6, fine)}
        for grid, start in zip(found.grids, found.offsets, strict=False):
            raster = maps[start : start + len(grid)].view(grid.shape)
            first, last = round(grid.box[0] * fine), round(grid.box[2] * fine)
            columns = ((torch.arange(first, last) - first + 0.5) / (last - first) * grid.width).long()
            rows = ((torch.arange(6) + 0.5) / 6 * grid.height).long()
            layers[grid.kind][:, first:last] = raster[rows][:, columns]
        shape = (canvas.height, 6 // canvas.height, canvas.width, fine // canvas.width)
        expected = torch.maximum(*(layer.reshape(shape).mean((1, 3)) for layer in layers.values()))
        torch.testing.assert_close(canvas.join(maps), expected, atol=1e-5, rtol=0)


def test_padding_and_what_no_grid_covers():
    found = layout((1, 1, "tile", 0, 0, (0.0, 0.0, 0.5, 0.5)), (1, 1, "tile", 0, 0, (0.5, 0.5, 1.25, 1.0)))
    canvas = found.canvas(0)
    assert canvas.box == (0.0, 0.0, 1.25, 1.0)
    joined = canvas.join(torch.tensor([0.5, 0.75]))
    assert joined.shape == (2, 2)  # 2.5 cells across become 2
    assert joined[0, 0] == 0.5
    assert joined[1, 0] == 0.75  # what there is of it
    nothing = layout((1, 2, "crop", 0, 0, (0.0, 0.0, 0.5, 0.5)), (1, 2, "crop", 0, 0, (0.5, 0.5, 1.0, 1.0)))
    assert nothing.canvas(0).join(torch.ones(4)).tolist() == [[1, 1, 0, 0], [0, 0, 1, 1]]


def test_nan_is_passed_over_where_something_is_known():
    found = layout((1, 2, "tile", 0, 0, WHOLE), (1, 1, "overview", 0, 0, WHOLE))
    joined = found.canvas(0).join(torch.tensor([[math.nan, 0.5, 0.25], [math.nan, 0.5, math.nan]]))
    assert joined[0].tolist() == [[0.25, 0.5]]
    assert joined[1, 0, 0].isnan()
    assert joined[1, 0, 1] == 0.5


def test_frames_of_a_video_are_apart():
    found = layout((1, 1, "video", 0, 0, WHOLE), (1, 1, "video", 0, 1, WHOLE), (1, 1, "image", 0, 0, WHOLE))
    assert [(one.source, one.frame) for one in found.canvases()] == [(0, 0), (0, 1), (0, None)]
    assert found.canvas(0, frame=1).join(torch.tensor([1.0, 2.0, 3.0])).item() == 2.0
    assert found.canvas(0).join(torch.tensor([1.0, 2.0, 3.0])).item() == 3.0


def test_what_is_not_there_is_refused():
    found = layout((1, 1, "image", 0, 0, WHOLE))
    with pytest.raises(IndexError, match=r"source: expected one of \[0\], .*got image 1"):
        found.canvas(1)
    with pytest.raises(IndexError, match="frame 0 of video 0"):
        found.canvas(0, frame=0)
    with pytest.raises(ValueError, match=r"maps: expected \(\.\.\., 1\)"):
        found.canvas(0).join(torch.zeros(2))
