"""Plates, axes and films of an explanation."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from explanations import make_explanation
from pages import film as moving
from PIL import Image

from tam_fast import render
from tam_fast.explanation import Explanation
from tam_fast.explanation.replacing import is_ours
from tam_fast.render import Passage


@pytest.fixture
def plates(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What plates are asked for."""
    calls: list[dict[str, Any]] = []
    drawn = render.plate

    def noted(pictures: Any, passages: Any, **options: Any) -> Image.Image:
        calls.append({"pictures": pictures, "passages": passages, **options})
        return drawn(pictures, passages, **options)

    monkeypatch.setattr(render, "plate", noted)
    return calls


def said(passage: Passage) -> list[tuple[str, float | None, bool, bool]]:
    return [(p.text, p.relevance, p.is_target, p.is_later) for p in passage.phrases if p.text.strip()]


def test_a_plate_colours_what_came_before(plates: list[dict[str, Any]]) -> None:
    e = make_explanation([" A", " red", " cir", "cle", " here"], prompt=2)
    e.prompt, e.context_tokens[:2] = "What is", ["What", " is"]
    made = e.plate("circle")
    assert made.mode == "RGB"
    (call,) = plates
    # Of two tokens the larger relevance, of all that came before the first.
    relevance = e.relevance[2:4].amax(dim=0).tolist()
    user, assistant = call["passages"]
    assert said(user) == [("What", relevance[0], False, False), ("is", relevance[1], False, False)]
    assert said(assistant) == [
        ("A", relevance[2], False, False),
        ("red", relevance[3], False, False),
        ("cir", None, True, False),
        ("cle", None, True, False),
        ("here", None, False, True),
    ]
    assert call["candidates"] == [(" cir", 0.75), (" other", 0.125)]
    assert call["note"] == "test"


def test_a_plate_shows_all_images_or_one(plates: list[dict[str, Any]]) -> None:
    e = make_explanation(shapes=[(2, 3), (4, 5)], sources=[0, 1])
    e.plate("red")
    e.plate("red", image=1)
    assert [len(call["pictures"]) for call in plates] == [2, 1]
    picture, (raster,) = plates[1]["pictures"][0]
    assert picture is e.images[1]
    assert (raster.values == e["red"][1].numpy()).all()


def test_a_plate_of_a_video_a_flat_map_and_of_text(plates: list[dict[str, Any]], text_only: Explanation) -> None:
    e = moving()
    e.plate("dog")
    picture, (raster,) = plates[0]["pictures"][0]
    assert picture is e.videos[0].frames[2]
    assert raster.values.max() == 1
    flat = make_explanation(method="cam")
    flat.maps.flat[1] = True
    flat.plate("red")
    assert plates[1]["note"] == "test · cam · flat: nothing to see"
    text_only.plate("b")
    assert plates[2]["pictures"] == []


def test_a_plate_knows_its_words() -> None:
    with pytest.raises(KeyError, match="'cat' is not in the answer; its words are: A, red"):
        make_explanation().plate("cat")
    with pytest.raises(IndexError, match="image: expected one from 0 to 0, got 3"):
        make_explanation().plate("red", image=3)


def test_axes_have_the_pixels_of_the_image() -> None:
    matplotlib = pytest.importorskip("matplotlib", reason="needs matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    e = make_explanation()
    _, given = pyplot.subplots()
    ax = e.plot("circle", given)
    assert ax is given
    (shown,) = ax.get_images()
    assert tuple(shown.get_extent()) == (0, 60, 40, 0)
    assert (np.asarray(shown.get_array()) == np.asarray(e.overlay("circle"))).all()
    assert ax.get_title() == "circle"
    assert len(ax.figure.axes) == 1
    own = e.plot("red", cmap="viridis")
    assert own.figure is not given.figure
    bar = own.figure.axes[1]
    assert bar.get_ylim() == (0, 1)
    # What looks like a formula is drawn as it is written.
    odd = make_explanation(["$x_1", "^{$"])
    odd.plot((0, 2), colorbar=False).figure.canvas.draw()
    pyplot.close("all")


def test_axes_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(ImportError, match="matplotlib: expected it for plot: pip install matplotlib"):
        make_explanation().plot("red")


def test_each_frame_has_the_map_of_its_time(tmp_path: Path) -> None:
    e = moving()
    path = e.save_video(tmp_path / "dog.GIF", "dog")
    assert path == tmp_path / "dog.GIF"
    with Image.open(path) as made:
        assert made.n_frames == 8
        hot = []
        for number in range(8):
            made.seek(number)
            pixels = np.asarray(made.convert("RGB"), dtype=int)
            # The cell of row 1, column 1 of (2, 3) on 240 x 160 pixels.
            hot.append(bool(np.abs(pixels[120, 120] - e.videos[0].frames[number].getpixel((0, 0))).max() > 60))
            assert made.info["duration"] == 500
    # Temporal index 1 shows frames 2 and 3.
    assert hot == [False, False, True, True, False, False, False, False]


def test_a_film_as_mp4(tmp_path: Path) -> None:
    av = pytest.importorskip("av", reason="needs PyAV")
    e = moving()
    path = e.save_video(tmp_path / "dog.mp4", fps=4)
    with av.open(path) as container:
        frames = list(container.decode(video=0))
        assert [frame.time for frame in frames] == pytest.approx([0.25 * n for n in range(8)])
        first, third = (frames[n].to_ndarray(format="rgb24")[120, 120].astype(int) for n in (0, 2))
    assert np.abs(first - 60).max() <= 6
    assert np.abs(third - np.array(e.overlay("dog", frame=1).getpixel((120, 120)))).max() <= 24


def test_a_film_takes_the_strongest_word(film: Explanation) -> None:
    maps = film.maps.maps
    maps[:, 6:] = 0.1
    maps[2, 12] = 0.8
    maps[3, 0] = 1.0  # in the image, not in the video
    with Image.open(io.BytesIO(film.film(".gif"))) as made, Image.open(io.BytesIO(film.film(".gif", "runs"))) as named:
        assert made.n_frames == named.n_frames == 5
        assert made.convert("RGB").tobytes() == named.convert("RGB").tobytes()
    assert film.film(".gif", "dog") != film.film(".gif", "runs")


def test_more_frames_than_are_shown(film: Explanation) -> None:
    """Five frames in three temporal indices: the last one shows a single frame, once."""
    with Image.open(io.BytesIO(film.film(".gif", "dog"))) as made:
        durations = []
        for number in range(made.n_frames):
            made.seek(number)
            durations.append(made.info["duration"])
    assert durations == [500] * 5


def test_a_film_of_an_uncovered_tail() -> None:
    """Five frames in four temporal indices of two each: the last index has no frame of its own, and adds none."""
    e = moving(frames=4)
    del e.videos[0].frames[5:], e.videos[0].times[5:]
    with Image.open(io.BytesIO(e.film(".gif", "dog"))) as made:
        assert made.n_frames == 5


def test_films_are_replaced_other_files_are_not(tmp_path: Path) -> None:
    e = moving()
    path = tmp_path / "a.gif"
    e.save_video(path, "dog")
    assert is_ours(path)
    e.save_video(path, "runs")
    Image.new("RGB", (4, 4)).save(path)
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match=r"a\.gif exists and is not of an earlier run"):
        e.save_video(path, "dog")
    assert path.read_bytes() == before
    e.save_video(path, "dog", force=True)
    assert is_ours(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.gif"]


def test_films_that_cannot_be(tmp_path: Path) -> None:
    e = moving()
    cases: list[tuple[type[Exception], str, Any, dict[str, Any]]] = [
        (ValueError, "path: expected a name that ends in .mp4 or .gif, got", "a.avi", {}),
        (KeyError, "'cat' is not in the answer; its words are: dog, runs, fast", "a.gif", {"key": "cat"}),
        (IndexError, "video: expected one from 0 to 0, got 2", "a.gif", {"video": 2}),
        (ValueError, "fps: expected pictures a second above 0, got 0", "a.gif", {"fps": 0}),
        (ValueError, "cmap: expected inferno", "a.gif", {"cmap": "nosuch"}),
        (OSError, "No such file or directory", "none/a.gif", {}),
    ]
    for kind, message, name, options in cases:
        with pytest.raises(kind, match=message):
            e.save_video(tmp_path / name, **options)
    (tmp_path / "folder.gif").mkdir()
    with pytest.raises(FileExistsError, match=r"folder\.gif exists and is no file"):
        e.save_video(tmp_path / "folder.gif")
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder.gif"]
    with pytest.raises(IndexError, match="video: expected an explanation of a video, got 0"):
        make_explanation().save_video(tmp_path / "a.gif")
    e.videos = []
    with pytest.raises(ValueError, match="videos: this explanation holds none"):
        e.save_video(tmp_path / "a.gif")


def test_long_films_tell_how_far_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tam_fast.explanation.drawings._LONG", 8)
    told: list[str] = []

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

        def write(self, text: str) -> int:
            told.append(text)
            return len(text)

    monkeypatch.setattr("sys.stderr", Terminal())
    moving().film(".gif", "dog")
    assert "frames" in "".join(told)
    told.clear()
    moving(frames=3).film(".gif", "dog")
    assert not told


def test_masked_strength_of_images_does_not_matter(film: Explanation) -> None:
    film.maps.maps[:] = torch.nan
    assert film.film(".gif")
