"""The frames of a video that a model was shown: :class:`Frames`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

__all__ = ["Frames", "shown_frames"]


@dataclass(frozen=True, eq=False)
class Frames:
    """The frames of a video that a model was shown, in order.

    Attributes
    ----------
    frames : list of PIL images
        RGB, all of one size.
    times : list of float, optional
        Seconds from the video's beginning, one a frame, not descending; None if they are not known.

    Raises
    ------
    TypeError, ValueError
        If there is no frame, one is no picture or of another size, or the times are not one finite number a frame in
        ascending order.
    """

    frames: list[Image.Image]
    times: list[float] | None = None

    def __post_init__(self) -> None:
        frames = list(self.frames)
        if not frames:
            raise ValueError("frames: expected at least one, got none")
        for frame in frames:
            if not isinstance(frame, Image.Image):
                raise TypeError(f"frames: expected PIL images, got {type(frame).__name__}")
        sizes = list(dict.fromkeys(frame.size for frame in frames))
        if len(sizes) > 1:
            raise ValueError(f"frames: expected frames of one size, got {sizes[0]} and {sizes[1]}")
        object.__setattr__(self, "frames", [f if f.mode == "RGB" else f.convert("RGB") for f in frames])
        if self.times is None:
            return
        times = [float(time) for time in self.times]
        if len(times) != len(frames):
            raise ValueError(f"times: expected one for each of {len(frames)} frames, got {len(times)}")
        if not all(math.isfinite(time) for time in times) or times != sorted(times):
            raise ValueError(f"times: expected finite seconds in ascending order, got {str(times)[:60]}")
        object.__setattr__(self, "times", times)

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.frames)

    def time(self, shown: Sequence[int]) -> float | None:
        """Return the middle of the times of some neighbouring frames, in seconds; None if they are not known."""
        return None if self.times is None else (self.times[shown[0]] + self.times[shown[-1]]) / 2


def shown_frames(count: int, cells: int, frame: int) -> range:
    """Say which of a video's frames one temporal index of its grids shows.

    Parameters
    ----------
    count : int
        Frames of the video.
    cells : int
        Temporal indices of its grids. Each shows ``k = ceil(count / cells)`` frames in a row (Qwen2-VL: two); the last
        one shows what is left, and the last frame again where none is.
    frame : int
        The temporal index.

    Returns
    -------
    range
        Not empty.
    """
    step = math.ceil(count / cells)
    first = min(frame * step, count - 1)
    return range(first, max(first + 1, min(first + step, count)))
