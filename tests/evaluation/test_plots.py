"""Plots of insertion and deletion curves."""

from __future__ import annotations

import io
import sys
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("pyarrow")
pytest.importorskip("matplotlib")

from tam_fast.evaluation.plots import _methods, _style, plot_curves
from tam_fast.evaluation.results import Curve


def curves(*methods: str) -> list[Curve]:
    found = []
    for place, method in enumerate(methods):
        for figure, sign in (("insertion", 1), ("deletion", -1)):
            mean = (0.5 + sign * np.linspace(-0.4, 0.4, 9) / (place + 1)).tolist()
            found.append(Curve(method, figure, mean, [0.02] * 9, 12))
    return found


def picture(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


@pytest.mark.parametrize(("theme", "ground"), [("light", (255, 255, 255)), ("dark", (0x14, 0x17, 0x1A))])
def test_a_line_a_method_in_its_colour(theme: str, ground: tuple[int, int, int]) -> None:
    drawn = picture(plot_curves(curves("tam", "cam", "random"), theme=theme))
    assert tuple(drawn[2, 2]) == ground
    assert drawn.shape[1] > 1_400
    names = ["tam", "cam", "random"]
    for method in ("tam", "cam"):
        red, green, blue = (int(_style(method, names, "#000000")["color"][i : i + 2], 16) for i in (1, 3, 5))
        near = np.abs(drawn - (red, green, blue)).max(axis=2) < 6
        left, right = near[:, : drawn.shape[1] // 3], near[:, drawn.shape[1] // 2 : 3 * drawn.shape[1] // 4]
        assert left.sum() > 200
        assert right.sum() > 200


@pytest.mark.long
def test_what_rises_is_drawn_rising() -> None:
    drawn = picture(plot_curves([curve for curve in curves("tam") if curve.figure == "insertion"]))
    colour = _style("tam", ["tam"], "#000000")["color"]
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    near = np.abs(drawn - (red, green, blue)).max(axis=2) < 6
    columns = [column for column in range(100, drawn.shape[1] // 3) if near[:, column].any()]
    heights = [float(np.flatnonzero(near[:, column]).mean()) for column in columns[:: len(columns) // 8]]
    assert all(after < before for before, after in pairwise(heights))  # rows count from the top


@pytest.mark.long
def test_the_same_curves_give_the_same_file() -> None:
    one = plot_curves(curves("tam"), "svg")
    assert b"<svg" in one
    assert plot_curves(curves("tam"), "svg") == one


def test_methods_are_told_apart_however_many() -> None:
    names = [f"m{place}" for place in range(24)]
    styles = {(style["color"], str(style["linestyle"])) for style in (_style(name, names, "#000") for name in names)}
    assert len(styles) == 24


def test_the_best_are_drawn_and_tam_and_cam_always() -> None:
    some = curves("a", "b", "c", "d", "e", "cam", "tam", "uniform")
    drawn = {
        name: {curve.method: curve for curve in some if curve.figure == name} for name in ("insertion", "deletion")
    }
    for curve in some:
        level = "edcba".find(curve.method)
        curve.mean[:] = [0.5 + 0.05 * level] * 9
    assert _methods(drawn, 4) == ["a", "b", "cam", "tam", "uniform"]


def test_curves_of_something_else() -> None:
    with pytest.raises(ValueError, match="curves: expected some of insertion or deletion, got none"):
        plot_curves([Curve("tam", "insertion_normalised", [0.0, 1.0], [0.0, 0.0], 3)])


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match=r"plots: expected matplotlib, got none: pip install"):
        plot_curves(curves("tam"))
