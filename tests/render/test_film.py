"""Films: each frame with its map, the mark that moves, MP4 and GIF read back picture by picture."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tam_fast.render import Raster, Shot, encode_video, film, overlay, paces
from tam_fast.render.video import MARK

GREY = (90, 120, 150)


def _shots(strengths: list[float], size: tuple[int, int] = (320, 240)) -> list[Shot]:
    image = Image.new("RGB", size, GREY)
    return [Shot(image, [Raster(np.full((2, 3), s, dtype=np.float32))], f"{n}.00 s") for n, s in enumerate(strengths)]


def _tones(count: int, size: tuple[int, int] = (64, 48)) -> list[Image.Image]:
    return [Image.new("RGB", size, (40 * number, 255 - 40 * number, 128)) for number in range(count)]


def test_each_frame_is_its_overlay() -> None:
    shots = _shots([0.0, 0.5, 1.0])
    frames = list(film(shots, "dog"))
    assert len({frame.size for frame in frames}) == 1
    assert all(side % 2 == 0 for side in frames[0].size)
    for shot, frame in zip(shots, frames, strict=True):
        assert (np.asarray(frame)[:240] == np.asarray(overlay(shot.image, shot.rasters))).all()
    assert len({frame.tobytes() for frame in frames}) == 3


def test_the_mark_moves_over_the_strip() -> None:
    frames = list(film(_shots([0.0] * 4), "dog"))
    for number, frame in enumerate(frames):
        foot = np.asarray(frame)[245:]
        white = np.flatnonzero((foot == 255).all(-1).sum(0) > 6)  # upright edges of the mark
        assert (white[0], white[-1]) == (80 * number, 80 * number + 79)


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (2000, 1500), (333, 77)])
def test_frames_of_any_size(size: tuple[int, int]) -> None:
    frame = next(film(_shots([0.5], size), "\u732b\U0001f600 " * 40))
    assert all(side % 2 == 0 for side in frame.size)
    assert frame.width >= 240
    assert max(frame.size) <= 2000


def test_what_is_wrong_is_said_before_the_first_frame() -> None:
    with pytest.raises(ValueError, match="shots: expected at least one, got none"):
        film([], "dog")
    with pytest.raises(ValueError, match="opacity: expected a number from 0 to 1, got 7"):
        film(_shots([0.5]), "dog", opacity=7)
    with pytest.raises(ValueError, match="cmap: expected"):
        film(_shots([0.5]), "dog", cmap="nosuch")


def test_paces() -> None:
    assert paces([0.0, 0.5, 2.0, 2.25], 4) == [0.5, 1.5, 0.25, 0.5]
    assert paces([1.0, 1.0], 2) == [0.02, 0.02]
    assert paces(None, 3) == paces([7.0], 3) == [0.5] * 3
    assert paces([0.0, 5.0], 2, fps=4) == [0.25, 0.25]
    for wrong in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="fps: expected pictures a second above 0"):
            paces(None, 2, fps=wrong)


def test_gif_has_pictures_and_times() -> None:
    # Thirds of a second are no hundredths: they must add up all the same.
    durations = [1 / 3] * 5 + [1.0]
    data = encode_video(iter(_tones(6)), durations, ".gif")
    assert MARK in data[:1000]
    with Image.open(io.BytesIO(data)) as made:
        assert made.n_frames == 6
        assert made.info["loop"] == 0
        shown = []
        for number, tone in enumerate(_tones(6)):
            made.seek(number)
            shown.append(made.info["duration"])
            assert np.abs(np.asarray(made.convert("RGB"), dtype=int) - np.asarray(tone)).max() <= 2
    assert sum(shown[:5]) == 1670
    assert shown[5] == 1000
    single = Image.open(io.BytesIO(encode_video(_tones(1), [0.5], ".gif")))
    assert (single.n_frames, single.size) == (1, (64, 48))


@pytest.mark.parametrize("size", [(64, 48), (65, 49), (1, 1), (2, 9)])
def test_mp4_has_pictures_and_times(size: tuple[int, int]) -> None:
    av = pytest.importorskip("av", reason="needs PyAV")
    durations = [0.5, 0.25, 1.0, 0.04]
    data = encode_video(iter(_tones(4, size)), durations, ".mp4")
    assert data.endswith(MARK)
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert (stream.width, stream.height) == tuple(max(2, side - side % 2) for side in size)
        assert float(stream.duration * stream.time_base) == pytest.approx(1.79, abs=0.002)
        frames = list(container.decode(stream))
    assert [frame.time for frame in frames] == pytest.approx([0.0, 0.5, 0.75, 1.75], abs=1e-3)
    for frame, tone in zip(frames, _tones(4, size), strict=True):
        assert np.abs(frame.to_ndarray(format="rgb24")[0, 0].astype(int) - tone.getpixel((0, 0))).max() <= 8


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_pictures_that_do_not_fit(suffix: str) -> None:
    if suffix == ".mp4":
        pytest.importorskip("av", reason="needs PyAV")
    cases: list[tuple[Any, list[float], str]] = [
        ([], [], "durations: expected one for each of at least one picture, got none"),
        (_tones(2), [0.5, 0.0], "durations: expected seconds above 0, got 0.0"),
        (_tones(2), [0.5] * 3, "pictures: expected as many as durations, 3, got 2"),
        (_tones(4), [0.5] * 3, "pictures: expected as many as durations, 3, got more"),
        (
            [*_tones(1), *_tones(1, (9, 9))],
            [0.5] * 2,
            r"pictures: expected pictures of one size, got \(64, 48\) and \(9, 9\)",
        ),
    ]
    for pictures, durations, message in cases:
        with pytest.raises(ValueError, match=message):
            encode_video(pictures, durations, suffix)
    with pytest.raises(ValueError, match=r"suffix: expected one of .mp4, .gif, got '.avi'"):
        encode_video(_tones(1), [1.0], ".avi")


def test_mp4_without_pyav_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(ImportError, match=r"av: expected PyAV, which writes MP4: pip install 'tam-fast\[video\]'"):
        encode_video(_tones(1), [1.0], ".mp4")
