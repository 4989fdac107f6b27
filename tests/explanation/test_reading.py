"""Maps of videos and of texts without images, and pictures of frames."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import tam_fast.render as render
from tam_fast.explanation import Explanation, Frames


def strongest(e: Explanation, token: int, cell: int) -> None:
    """Make one cell the strongest of a token's map."""
    e.maps.maps[token, cell] = 0.9


def test_frames_of_a_video(film: Explanation) -> None:
    frames = film.frames("dog")
    assert (frames.shape, frames.dtype) == ((3, 2, 2), torch.float32)
    assert torch.equal(frames, film.maps.maps[1, 6:].reshape(3, 2, 2))
    maps = film["dog"]
    assert [tuple(found.shape) for found in maps] == [(2, 3), (2, 2), (2, 2), (2, 2)]
    assert torch.equal(torch.stack(maps[1:]), frames)  # type: ignore[arg-type]
    assert torch.equal(film.frames((0, 2)), torch.maximum(film.frames(0), film.frames(1)))
    for video in (1, -1):
        with pytest.raises(IndexError, match=rf"^video: expected one from 0 to 0, got {video}"):
            film.frames("dog", video)
    with pytest.raises(TypeError, match=r"^video: expected a whole number"):
        film.frames("dog", None)  # type: ignore[arg-type]


def test_a_peak_in_a_video_has_a_time(film: Explanation) -> None:
    strongest(film, 1, 6 + 4 + 3)
    peak = film.peak("dog")
    assert (peak.grid, peak.source, peak.video, peak.frame, peak.time) == (2, 0, 0, 1, 1.25)
    strongest(film, 2, 6 + 8)
    assert film.peak("runs").time == 2.0  # five frames: the last index shows one
    strongest(film, 0, 3)
    image = film.peak("A")
    assert (image.source, image.video, image.frame, image.time) == (0, None, None, None)
    film.videos = [Frames(film.videos[0].frames)]
    assert (film.peak("dog").frame, film.peak("dog").time) == (1, None)
    film.videos = []
    assert (film.peak("dog").video, film.peak("dog").time) == (0, None)


def test_overlays_on_frames(film: Explanation) -> None:
    film.maps.maps.zero_()
    strongest(film, 1, 6 + 4 + 3)
    frames = film.videos[0].frames
    assert film.overlay("dog", video=0, frame=0).tobytes() == frames[0].tobytes()
    assert film.overlay("dog", video=0, frame=2).tobytes() == frames[4].tobytes()
    drawn = film.overlay("dog", video=0)
    assert drawn.tobytes() == film.overlay("dog", frame=1).tobytes() != frames[2].tobytes()
    changed = np.abs(np.asarray(drawn, dtype=int) - np.asarray(frames[2], dtype=int))
    assert changed[8:, 12:].mean() > 5 * changed[:8, :12].mean()
    assert film.overlay("dog").size == film.images[0].size
    film.images = []
    assert film.overlay("dog").tobytes() == drawn.tobytes()
    with pytest.raises(IndexError, match=r"^frame: expected one from 0 to 2, got 3"):
        film.overlay("dog", video=0, frame=3)
    with pytest.raises(ValueError, match=r"^image: expected none with a video"):
        film.overlay("dog", image=0, frame=1)
    with pytest.raises(ValueError, match=r"^images: this explanation holds none"):
        film.overlay("dog", image=0)
    film.videos = []
    with pytest.raises(ValueError, match=r"^videos: this explanation holds none"):
        film.overlay("dog", video=0)


def test_a_sheet_shows_each_token_where_it_is_strongest(film: Explanation, monkeypatch: pytest.MonkeyPatch) -> None:
    film.maps.maps.mul_(0.2)
    for token, cell in ((0, 2), (1, 6), (2, 7), (3, 6 + 9), (4, 8)):
        strongest(film, token, cell)
    film.maps.maps[5] = math.nan
    pages = []
    drawn = render.sheet

    def sheet(images, cells, sentence, **options):
        pages.append((images, [cell.caption for cell in cells], options.get("prompt"), sentence))
        return drawn(images, cells, sentence, **options)

    monkeypatch.setattr(render, "sheet", sheet)
    page = film.sheet(width=400)
    assert page.width == 400
    frames = film.videos[0].frames
    assert [(images, captions, prompt) for images, captions, prompt, _ in pages] == [
        (film.images, [" A", " cat"], "What happens?"),
        ([frames[0]], [" dog", " runs", " a"], "0.25 s"),
        ([frames[4]], [" and"], "2.00 s"),
    ]
    assert [piece for piece, strength in pages[2][3] if strength] == [" and"]
    assert "".join(piece for piece, _ in pages[2][3]) == film.text
    film.images, film.videos = [], [Frames(frames)]
    pages.clear()
    film.sheet(width=400)
    assert [prompt for *_, prompt, _ in pages] == ["What happens?", "frame 0", "frame 2"]
    assert pages[0][0] == [frames[0], frames[4]]


def test_a_text_without_images(text_only: Explanation) -> None:
    e = text_only
    assert e["b"] == [] == e.span(0, 2)
    assert e.vector("b").shape == (0,)
    assert e.visual_strength.tolist() == [0.0, 0.0, 0.0]
    assert [word.grounding for word in e.words] == [0.0, 0.0, 0.0]
    assert "no grids" in repr(e)
    for draw in (e.overlay, e.peak):
        with pytest.raises(ValueError, match=r"^images: "):
            draw("b")
    with pytest.raises(ValueError, match=r"^images: this explanation holds none"):
        e.sheet()
    with pytest.raises(IndexError, match=r"^g: expected an explanation with images"):
        e.grid("b")
    with pytest.raises(IndexError, match=r"^video: expected an explanation of a video"):
        e.frames("b")
