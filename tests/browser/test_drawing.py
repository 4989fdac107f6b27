"""What is drawn, pixel by pixel: the hottest cell where the map says, on every kind of grid, at every size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from explanations import make_explanation
from pages import GREY, film, settle, spotted

from tam_fast.explanation import Explanation
from tam_fast.explanation.page import page_text
from tam_fast.render import colormap

pytestmark = pytest.mark.long
Visit = Callable[..., Any]
Pixels = Callable[[Any], npt.NDArray[np.int16]]

# Cells of a tiled grid: two tiles side by side of (3, 3), then the whole again in (2, 4).
TILED = [(3, 3), (3, 3), (2, 4)]
TILES = [(0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0), (0.0, 0.0, 1.0, 1.0)]


def hot(picture: npt.NDArray[np.int16], cmap: str = "inferno") -> npt.NDArray[np.bool_]:
    """The pixels that have a colour map's last colour."""
    found: npt.NDArray[np.bool_] = np.abs(picture - colormap(cmap)[255].astype(np.int16)).max(axis=-1) <= 14
    return found


def full(page: Any, cells: str = "exact") -> None:
    page.locator("select[name=cells]").select_option(cells)
    page.locator("input[name=opacity]").fill("100")


@pytest.mark.parametrize("cells", ["exact", "smooth"])
@pytest.mark.parametrize(
    ("made", "tokens"),
    [
        (spotted([(4, 6)], [0, 8, 23]), 3),
        (spotted([(5, 5)], [0, 12, 24], boxes=[(0.1666, 0.0, 0.8334, 1.0)]), 3),  # cropped in the middle
        (spotted([(5, 5)], [12], boxes=[(0.0, -0.25, 1.0, 1.25)]), 1),  # padded
        (spotted([(6, 4)], [9, 22], size=(300, 600)), 2),
    ],
    ids=["plain", "cropped", "padded", "upright"],
)
def test_the_hottest_cell_is_where_the_map_says(
    visit: Visit, pixels: Pixels, made: Explanation, tokens: int, cells: str
) -> None:
    page = visit(page_text(made))
    full(page, cells)
    frame = page.locator(".frame")
    ((rows, columns),) = made.layout.sizes
    x0, y0, x1, y1 = made.layout.grids[0].box
    for token in range(tokens):
        page.locator(f'.u[data-u="{token}"]').click()
        page.locator("h1").hover()
        found = hot(pixels(frame))
        height, width = found.shape
        peak = made.peak(token)
        down, across = np.nonzero(found)
        assert len(down), token
        cell = (x1 - x0) / columns * width, (y1 - y0) / rows * height
        # Between centres colours fade, but from an outer one to the edge they stay.
        slack = 0.05 if cells == "exact" else 0.3
        assert abs(across.mean() + 0.5 - peak.x * width) < slack * cell[0] + 1
        assert abs(down.mean() + 0.5 - peak.y * height) < slack * cell[1] + 1
        if cells == "exact":
            # The whole cell and nothing else.
            assert found.sum() == pytest.approx(cell[0] * cell[1], rel=0.06)


@pytest.mark.parametrize("cell", [4, 9 + 4, 18 + 5])
def test_tiles_and_their_overview(visit: Visit, pixels: Pixels, cell: int) -> None:
    made = spotted(TILED, [cell], boxes=TILES, sources=[0, 0, 0], kinds=["tile", "tile", "overview"])
    page = visit(page_text(made))
    full(page)
    page.locator(".u").first.click()
    page.locator("h1").hover()
    found = hot(pixels(page.locator(".frame")))
    down, across = np.nonzero(found)
    peak, (height, width) = made.peak(0), found.shape
    side = (1 / 6, 1 / 3) if cell < 18 else (1 / 4, 1 / 2)
    assert len(across)
    # What is hot lies within the cell, and is all of a tile's.
    assert abs((across + 0.5) / width - peak.x).max() < side[0] / 2 + 2 / width
    assert abs((down + 0.5) / height - peak.y).max() < side[1] / 2 + 2 / height
    if cell < 18:
        assert found.sum() == pytest.approx(side[0] * width * side[1] * height, rel=0.06)


def test_what_is_not_active_stays_the_picture(visit: Visit, pixels: Pixels) -> None:
    page = visit(page_text(spotted([(4, 6)], [0])))
    frame = page.locator(".frame")
    plain = pixels(frame)[12:-12, 12:-12]  # without the round corners
    assert np.abs(plain - np.array(GREY)).max() <= 3
    page.locator(".u").first.click()
    page.locator("h1").hover()
    shown = pixels(frame)[12:-12, 12:-12]
    height, width, _ = shown.shape
    assert np.abs(shown - plain).max() > 60
    assert np.abs(shown - plain)[height // 2 :, width // 2 :].max() == 0


def test_jet_covers_everything_at_half_its_opacity(visit: Visit, pixels: Pixels) -> None:
    page = visit(page_text(spotted([(4, 6)], [0])))
    page.locator("select[name=cmap]").select_option("jet")
    assert page.locator("input[name=opacity]").input_value() == "50"
    page.locator("select[name=cells]").select_option("exact")
    page.locator(".u").first.click()
    page.locator("h1").hover()
    shown = pixels(page.locator(".frame"))
    expected = (colormap("jet")[0].astype(float) + 128) / 2
    assert np.abs(shown[-40:-12, -40:-12] - expected).max() <= 4


def test_own_scale_shows_a_faint_word(visit: Visit, pixels: Pixels) -> None:
    made = spotted([(4, 6)], [8])
    made.maps.maps *= 0.3
    page = visit(page_text(made))
    full(page)
    page.locator(".u").first.click()
    page.locator("h1").hover()
    frame = page.locator(".frame")
    assert not hot(pixels(frame)).any()
    page.locator("select[name=scale]").select_option("own")
    assert hot(pixels(frame)).any()
    assert page.locator(".high").inner_text() == "0.30"


def test_several_images_and_frames(visit: Visit, pixels: Pixels) -> None:
    page = visit(page_text(spotted([(2, 2), (3, 3)], [1, 4 + 8], sources=[0, 1])))
    full(page)
    for token, expected in ((0, [True, False]), (1, [False, True])):
        page.locator(".u").nth(token).click()
        page.locator("h1").hover()
        assert [bool(hot(pixels(frame)).any()) for frame in page.locator(".frame").all()] == expected
    page = visit(page_text(film()))
    full(page)
    page.locator(".u").filter(has_text="runs").click()
    page.locator("h1").hover()
    found = hot(pixels(page.locator(".film .frame")))
    down, across = np.nonzero(found)
    height, width = found.shape
    assert (down.mean() / height, across.mean() / width) == pytest.approx((0.75, 0.5), abs=0.02)


@pytest.mark.parametrize("width", [320, 375, 720, 1000, 1440])
def test_pointing_moves_nothing_away(visit: Visit, width: int) -> None:
    """Else a word slides from under the pointer, and back when it is let go: again and again."""
    faint = spotted([(4, 6)] * 3, [1, -1, 30], sources=[0, 1, 2])
    faint.maps.maps[0] *= 0.37
    for made in (faint, film()):
        page = visit(page_text(made), width=width, height=800)
        page.locator("select[name=scale]").select_option("own")
        places = []
        for unit in (None, 0, 1, 2):
            page.evaluate("unit => page.hover(page.views[0], unit)", unit)
            settle(page)
            rows = page.locator(".u, .frame, .strip, .said").all()
            places.append([row.evaluate("e => e.getBoundingClientRect().top + scrollY") for row in rows])
        assert places[1:] == places[:1] * 3


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 375, 720, 1440])
def test_nothing_is_wider_than_the_window(visit: Visit, width: int, scheme: str) -> None:
    """720 pixels are also what 1,440 at a zoom of 200 % are."""
    long = make_explanation([" " + "w" * 120, " Donau", "dampf", "schiff", " end"], ((4, 6),), prompt=2)
    for made in (long, spotted([(4, 6)] * 3, [1], sources=[0, 1, 2]), film()):
        page = visit(page_text(made, title="t" * 200), width=width, height=800, color_scheme=scheme)
        page.locator(".u").first.click()
        settle(page)
        assert page.evaluate("document.documentElement.scrollWidth") == width
        for frame in page.locator(".frame").all():
            box = frame.bounding_box()
            picture = frame.locator("img").evaluate("image => image.naturalWidth / image.naturalHeight")
            assert box["width"] / box["height"] == pytest.approx(picture, rel=0.02)
        assert page.locator(".u.on").first.is_visible()


def test_dark_pages_are_dark(visit: Visit, pixels: Pixels) -> None:
    made = page_text(make_explanation(shapes=((4, 6),)))
    corners = {}
    for scheme in ("light", "dark"):
        page = visit(made, color_scheme=scheme)
        corners[scheme] = pixels(page.locator("body"))[3, 3].tolist()
        page.locator(".u").nth(3).hover()
        settle(page)
        # A word of no relevance stands on the page's own ground.
        assert page.evaluate("page.ground") == corners[scheme]
    assert min(corners["light"]) > 240
    assert max(corners["dark"]) < 30


def test_zoom(visit: Visit, pixels: Pixels) -> None:
    made = spotted([(4, 6)], [8])
    page = visit(page_text(made), width=720, height=450, device_scale_factor=2)
    full(page)
    page.locator(".u").first.click()
    page.locator("h1").hover()
    found = hot(pixels(page.locator(".frame")))
    down, across = np.nonzero(found)
    height, width = found.shape
    peak = made.peak(0)
    assert (across.mean() / width, down.mean() / height) == pytest.approx((peak.x, peak.y), abs=0.01)


def test_print(visit: Visit, pixels: Pixels) -> None:
    page = visit(page_text(make_explanation(shapes=((4, 6),))), color_scheme="dark")
    page.locator(".u").nth(1).click()
    page.locator("h1").hover()
    page.emulate_media(media="print")
    settle(page)
    for hidden in (".hint", ".tools label"):
        assert not page.locator(hidden).first.is_visible()
    for shown in (".frame", ".panes canvas", ".said >> nth=-1", ".about dl", ".bar"):
        assert page.locator(shown).first.is_visible(), shown
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.pdf(print_background=True).startswith(b"%PDF")
