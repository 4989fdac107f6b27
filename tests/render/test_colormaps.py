"""Colour maps: two of our own, and matplotlib's where it is installed."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from tam_fast.render import colormap


@pytest.mark.parametrize("name", ["inferno", "viridis"])
def test_uniform_maps_grow_brighter(name: str) -> None:
    table = colormap(name).astype(float)
    assert table.shape == (256, 3)
    luminance = table @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminance) > -0.8).all()
    assert luminance[-1] > 190
    assert luminance[0] < 35
    assert np.abs(np.diff(table, axis=0)).max() <= 8


def test_published_ends() -> None:
    # As published: (.0015, .0005, .0139), (.9884, .9984, .6449); (.2670, .0049, .3294), (.9932, .9062, .1439).
    for name, ends in (("inferno", [[0, 0, 4], [252, 255, 164]]), ("viridis", [[68, 1, 84], [253, 231, 37]])):
        assert np.abs(colormap(name)[[0, -1]].astype(int) - ends).max() <= 1


def test_jet() -> None:
    table = colormap("jet")
    assert table[[0, 255]].tolist() == [[0, 0, 128], [128, 0, 0]]
    assert table[127:129, 1].tolist() == [255, 255]
    cv2 = pytest.importorskip("cv2", reason="OpenCV is an extra (bench)")
    levels = np.arange(256, dtype=np.uint8)[None]
    theirs = cv2.applyColorMap(levels, cv2.COLORMAP_JET)[0, :, ::-1].astype(int)
    assert np.abs(theirs - table.astype(int)).max() <= 1


def test_colormap_is_read_only() -> None:
    with pytest.raises(ValueError, match="read-only"):
        colormap("jet")[0, 0] = 1


def test_unknown_colormap_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match=r"cmap: expected inferno, viridis, jet, got 'magma' .*not installed"):
        colormap("magma")


def test_other_colormaps_are_matplotlibs(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fake:
        colormaps = {"ramp": lambda values, bytes: np.repeat((values * 255).astype(np.uint8)[:, None], 4, axis=1)}

    monkeypatch.setitem(sys.modules, "matplotlib", Fake)  # type: ignore[arg-type]
    colormap.cache_clear()
    assert colormap("ramp")[255].tolist() == [255, 255, 255]
    with pytest.raises(ValueError, match=r"or a colour map of matplotlib, got 'nosuch'"):
        colormap("nosuch")
    colormap.cache_clear()
