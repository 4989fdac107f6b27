"""Overlays: colours laid over the pixels, raster by raster where their boxes are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from explanations import make_explanation
from PIL import Image

from tam_fast import render
from tam_fast.render import Raster, colormap, overlay

GREY = (90, 120, 150)


def _picture(width: int = 60, height: int = 40) -> Image.Image:
    return Image.new("RGB", (width, height), GREY)


def _raster(values: Any, box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)) -> Raster:
    return Raster(np.asarray(values, dtype=np.float32), box)


def _changed(image: Image.Image) -> np.ndarray[Any, Any]:
    """Where a drawn picture differs from the plain one."""
    return (np.asarray(image) != np.array(GREY, dtype=np.uint8)).any(axis=-1)


def test_flat_map_is_the_plain_image() -> None:
    picture = _picture()
    for cmap in render.BUILT_IN:
        for rasters in ([], [_raster(np.zeros((3, 4)))], [_raster(np.full((3, 4), np.nan))]):
            drawn = overlay(picture, rasters, cmap=cmap)
            assert drawn is not picture
            assert drawn.tobytes() == picture.tobytes()


def test_opacity_follows_activation() -> None:
    values = np.zeros((4, 6))
    values[1, 1] = 1.0
    drawn = np.asarray(overlay(_picture(), [_raster(values)])).astype(int)
    top = np.array(colormap("inferno")[255], dtype=int)
    expected = np.array(GREY) + 0.85 * (top - np.array(GREY))
    # The cell's centre, at column (1 + 0.5) * 10, row (1 + 0.5) * 10: bicubic keeps nearly all of the peak.
    assert np.abs(drawn[15, 15] - expected).max() < 12
    assert (drawn[35, 55] == GREY).all()


def test_full_opacity_shows_the_colour() -> None:
    drawn = np.asarray(overlay(_picture(), [_raster(np.ones((2, 2)))], cmap="viridis", opacity=1.0))
    assert (drawn == colormap("viridis")[255]).all()
    assert (np.asarray(overlay(_picture(), [_raster(np.ones((2, 2)))], opacity=0.0)) == GREY).all()


def test_jet_is_the_papers_blend() -> None:
    """Half image, half colours, bilinear: what cv2.addWeighted of the official program gives."""
    values = np.random.default_rng(0).random((5, 7), dtype=np.float32)
    drawn = np.asarray(overlay(_picture(70, 50), [_raster(values)], cmap="jet")).astype(int)
    enlarged = np.asarray(Image.fromarray(values).resize((70, 50), Image.Resampling.BILINEAR))
    colours = colormap("jet")[np.floor(enlarged * 255 + 0.5).astype(int)].astype(float)
    assert np.abs(drawn - (0.5 * colours + 0.5 * np.array(GREY))).max() <= 1.0


def test_boxes_place_tiles() -> None:
    ones = np.ones((2, 2))
    for box, inside in (
        ((0.0, 0.0, 0.5, 1.0), (slice(None), slice(0, 30))),
        ((0.25, 0.5, 0.75, 1.0), (slice(20, 40), slice(15, 45))),
        ((-0.5, -0.5, 0.5, 0.5), (slice(0, 20), slice(0, 30))),
        ((0.9, 0.9, 1.4, 1.4), (slice(36, 40), slice(54, 60))),
    ):
        expected = np.zeros((40, 60), dtype=bool)
        expected[inside] = True
        for cmap in ("inferno", "jet"):
            assert (_changed(overlay(_picture(), [_raster(ones, box)], cmap=cmap)) == expected).all(), (box, cmap)
    for box in ((1.0, 0.0, 2.0, 1.0), (-1.0, 0.0, -0.5, 1.0), (0.5, 0.0, 0.5001, 1.0)):
        assert not _changed(overlay(_picture(), [_raster(ones, box)])).any()


def test_tiles_join_without_gap_or_seam() -> None:
    """A map in two halves is the map in one piece but near the seam, where each half sees only its own cells."""
    values = np.tile(np.linspace(0.2, 1.0, 4)[:, None], (1, 8))
    whole = np.asarray(overlay(_picture(61, 41), [_raster(values)])).astype(int)
    halves = [_raster(values[:, :4], (0.0, 0.0, 0.5, 1.0)), _raster(values[:, 4:], (0.5, 0.0, 1.0, 1.0))]
    assert np.abs(np.asarray(overlay(_picture(61, 41), halves)).astype(int) - whole).max() <= 1


def test_padded_box_shows_the_part_on_the_image() -> None:
    values = np.zeros((4, 4))
    values[0] = 1.0
    values[1:] = 0.0
    # The upper half of the raster lies above the image: its first row must not show.
    drawn = overlay(_picture(), [_raster(values, (0.0, -1.0, 1.0, 1.0))])
    assert not _changed(drawn)[8:].any()


def test_larger_activation_counts_where_boxes_overlap() -> None:
    low, high = _raster(np.full((2, 2), 0.3)), _raster(np.full((3, 3), 0.9), (0.0, 0.0, 0.5, 1.0))
    both = np.asarray(overlay(_picture(), [low, high]))
    assert both.tobytes() == np.asarray(overlay(_picture(), [high, low])).tobytes()
    assert (both[:, :30] == np.asarray(overlay(_picture(), [high]))[:, :30]).all()
    assert (both[:, 30:] == np.asarray(overlay(_picture(), [low]))[:, 30:]).all()


def test_values_outside_the_range_are_cut() -> None:
    hot = overlay(_picture(), [_raster([[7.0, np.nan], [-3.0, np.inf]])])
    assert hot.tobytes() == overlay(_picture(), [_raster([[1.0, 0.0], [0.0, 1.0]])]).tobytes()


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 3), (64, 64)])
def test_any_size(shape: tuple[int, int]) -> None:
    drawn = overlay(_picture(17, 5), [_raster(np.ones(shape))], size=(31, 3))
    assert drawn.size == (31, 3)
    assert drawn.mode == "RGB"
    assert _changed(drawn).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"opacity": 1.5}, r"opacity: expected a number from 0 to 1, got 1.5"),
        ({"opacity": float("nan")}, r"opacity: expected a number from 0 to 1, got nan"),
        ({"size": (0, 3)}, r"size: expected \(width, height\), both at least 1, got \(0, 3\)"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        overlay(_picture(), [_raster(np.ones((2, 2)))], **options)


def test_explanation_overlay_chooses_the_image() -> None:
    maps = torch.zeros(2, 12)
    maps[0, 6:] = 1.0
    images = [_picture(30, 20), _picture(60, 40)]
    e = make_explanation(["a", " b"], ((2, 3), (2, 3)), sources=[0, 1], maps=maps, images=images)
    assert not _changed(e.overlay("a")).any()
    assert _changed(e.overlay("a", image=1)).all()
    assert e.overlay(0, image=1, size=(12, 8)).size == (12, 8)
    assert not _changed(e.overlay("b", image=1)).any()
    for wrong in (2, -1):
        with pytest.raises(IndexError, match=rf"image: expected one from 0 to 1, got {wrong}"):
            e.overlay("a", image=wrong)


def test_nothing_to_draw_on() -> None:
    e = make_explanation(images=[])
    for draw in (lambda: e.overlay(0), e.sheet):
        with pytest.raises(ValueError, match="images: this explanation holds none"):
            draw()
