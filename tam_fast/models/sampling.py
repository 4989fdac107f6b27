"""Which frames of a video a model is shown: :func:`choose`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Sampling", "check_sampling", "choose"]

DEFAULT_FPS = 2.0
_FEWEST, _MOST = 4, 32  # unless asked; Qwen-VL's video processors take 4 to 768 at 2 frames a second
_MOST_ASKED = 768


@dataclass(frozen=True)
class Sampling:
    """What was asked of the frames of videos.

    Attributes
    ----------
    fps : float or None
        Frames a second.
    num_frames : int or None
        How many, evenly spread. Neither: 2 frames a second, at least 4 and at most 32 of them.
    max_pixels : int or None
        The most that a frame may have.
    """

    fps: float | None = None
    num_frames: int | None = None
    max_pixels: int | None = None


def check_sampling(fps: Any, num_frames: Any, max_pixels: Any = None) -> Sampling:
    """Check what is asked of the frames of videos.

    Raises
    ------
    ValueError, TypeError
        Names the argument.
    """
    if fps is not None and num_frames is not None:
        raise ValueError(f"num_frames: expected none with fps, which says how many there are, got {num_frames!r}")
    for name, value in (("num_frames", num_frames), ("max_pixels", max_pixels)):
        if value is None:
            continue
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            raise TypeError(f"{name}: expected a whole number, got {value!r}")
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value!r}")
    return Sampling(
        None if fps is None else check_rate(fps, "fps"),
        None if num_frames is None else int(num_frames),
        None if max_pixels is None else int(max_pixels),
    )


def check_rate(value: Any, name: str) -> float:
    """Check that a value is a number of frames a second."""
    try:
        rate = float("nan") if isinstance(value, (bool, str)) else float(value)
    except (TypeError, ValueError):
        rate = float("nan")
    if rate != rate:
        raise TypeError(f"{name}: expected a number of frames a second, got {value!r}")
    if not 0 < rate < float("inf"):
        raise ValueError(f"{name}: expected frames a second above 0, got {value!r}")
    return rate


def choose(times: Sequence[float], duration: float, sampling: Sampling, name: str) -> list[int]:
    """Choose frames by the times at which they appear.

    With ``fps`` those that are seen at 0, 1 / fps, 2 / fps, ... seconds, each once; with ``num_frames`` evenly from the
    first to the last, as ``numpy.linspace`` rounds; else as :class:`Sampling` says.

    Parameters
    ----------
    times : sequence of float
        Seconds at which each frame appears, ascending from 0.
    duration : float
        Seconds, the last frame's included.
    sampling : Sampling
    name : str
        What the video is called in messages.

    Returns
    -------
    list of int
        Indices into `times`, ascending.

    Raises
    ------
    ValueError
        If it has fewer frames than asked for, or would show more than 768.
    """
    total = len(times)
    if sampling.num_frames is not None:
        if sampling.num_frames > total:
            raise ValueError(f"num_frames: expected at most {total}, as many as {name} has, got {sampling.num_frames}")
        return evenly(total, sampling.num_frames)
    rate = sampling.fps or DEFAULT_FPS
    if min(duration * rate, total) > _MOST_ASKED:
        if sampling.fps is not None:
            raise ValueError(
                f"fps: expected at most {_MOST_ASKED} frames of {name}, got {rate:g} frames a second of "
                f"{duration:.1f} seconds: ask for fewer, or for num_frames"
            )
        return evenly(total, _MOST)
    chosen = [index for index in range(total) if index == 0 or _is_seen(times, index, duration, rate)]
    if sampling.fps is None and not _FEWEST <= len(chosen) <= _MOST:
        return evenly(total, min(total, max(_FEWEST, min(_MOST, len(chosen)))))
    return chosen


def _is_seen(times: Sequence[float], index: int, duration: float, rate: float) -> bool:
    """Whether a frame is on the screen at one of the times 0, 1 / rate, 2 / rate, ..."""
    end = times[index + 1] if index + 1 < len(times) else duration
    # Half a microsecond makes up for times that were rounded.
    return math.ceil((times[index] - 5e-7) * rate) / rate < end - 5e-7


def evenly(total: int, count: int) -> list[int]:
    """Spread `count` of `total` indices evenly from the first to the last."""
    if count == 1:
        return [0]
    return [round(step * (total - 1) / (count - 1)) for step in range(count)]
