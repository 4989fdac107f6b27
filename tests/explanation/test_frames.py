"""Frames of a video: what is refused, and which of them a temporal index shows."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tam_fast.explanation import Frames
from tam_fast.explanation.frames import shown_frames


@pytest.mark.parametrize(
    ("frames", "times", "error", "message"),
    [
        ([], None, ValueError, r"^frames: expected at least one"),
        (["a.png"], None, TypeError, r"^frames: expected PIL images, got str"),
        (
            [Image.new("RGB", (2, 3)), Image.new("RGB", (3, 2))],
            None,
            ValueError,
            r"^frames: expected frames of one size",
        ),
        ([Image.new("RGB", (2, 3))], [0.0, 1.0], ValueError, r"^times: expected one for each of 1 frames, got 2"),
        ([Image.new("RGB", (2, 3))] * 2, [1.0, 0.5], ValueError, r"^times: expected finite seconds in ascending order"),
        ([Image.new("RGB", (2, 3))], [float("nan")], ValueError, r"^times: expected finite seconds"),
    ],
)
def test_what_is_no_video(frames: Any, times: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Frames(frames, times)


def test_frames_become_rgb() -> None:
    assert Frames([Image.new("L", (2, 3))]).frames[0].mode == "RGB"


@given(cells=st.integers(1, 40), step=st.integers(1, 4), lacking=st.integers(0, 3))
def test_every_frame_is_shown_once_and_in_order(cells: int, step: int, lacking: int) -> None:
    """A processor fills the last index up: fewer than `step` frames are lacking there."""
    count = cells * step - min(lacking, step - 1)
    shown = [shown_frames(count, cells, frame) for frame in range(cells)]
    assert [place for some in shown for place in some] == list(range(count))


@given(count=st.integers(1, 50), cells=st.integers(1, 50))
def test_no_index_is_without_a_frame(count: int, cells: int) -> None:
    for frame in range(cells):
        shown = shown_frames(count, cells, frame)
        assert 0 <= shown.start < shown.stop <= count
