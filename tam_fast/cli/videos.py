"""The videos that the user names: which names are theirs, finding them, checking them before a model is loaded."""

from __future__ import annotations

from tam_fast.cli.console import ExitCode, Failure, one_line
from tam_fast.cli.sources import Source, open_source

__all__ = ["check_video", "find_video", "is_video"]

SUFFIXES = (".mp4", ".mov", ".webm", ".mkv", ".avi")
"""Files that are videos though nothing says so; others are with ``--video`` alone."""


def is_video(name: str) -> bool:
    """Whether a name is that of a video by its ending."""
    return name.lower().endswith(SUFFIXES)


def find_video(name: str, max_pixels: int, num_frames: int | None = None) -> Source:
    """Check that a name is that of a video whose frames are not too large and, if that is asked for, enough.

    Raises
    ------
    Failure, OSError
        If it is none, cannot be read, or PyAV is missing.
    """
    source = open_source(name, "a video", max_pixels)
    source.is_video = True
    # One frame: its head, its packets and the decoder are tried.
    total = check_video(source, max_pixels, num_frames=1)
    if num_frames is not None and num_frames > total:
        raise Failure(ExitCode.USAGE, f"--num-frames: expected at most {total}, as many as there are, got {num_frames}")
    return source


def check_video(source: Source, max_pixels: int, fps: float | None = None, num_frames: int | None = None) -> int:
    """Decode what a model would be shown of a video, as a trial; return how many frames it has in all.

    Raises
    ------
    Failure
        If that does not work.
    """
    from tam_fast.models.videos import load_videos

    try:
        (clip,) = load_videos(source.data(), fps=fps, num_frames=num_frames, max_pixels=max_pixels)
    except (ValueError, ImportError) as error:
        text = one_line(error).replace("(max_pixels)", "(--max-pixels)")
        if text.startswith(("fps: ", "num_frames: ")):
            raise Failure(ExitCode.USAGE, f"--{text.replace('_', '-', 1)}") from error
        # What is said behind it is about Python's arguments.
        text = text.removeprefix("videos: ").partition(": give it as images")[0]
        raise Failure(ExitCode.FILE, text) from error
    return clip.total
