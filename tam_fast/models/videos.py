"""From files, frames and arrays to the frames that a model is shown, with their times: :func:`load_videos`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from PIL import Image

from tam_fast.models.arrays import is_array, read_pixels
from tam_fast.models.containers import Progress, Read, check_memory, is_picture, read_animation, read_video
from tam_fast.models.files import find_file, shown
from tam_fast.models.images import ImageLike, kind_of, load_image
from tam_fast.models.sampling import DEFAULT_FPS, Sampling, check_rate, check_sampling, choose

if TYPE_CHECKING:
    import numpy as np
    import torch

__all__ = ["Clip", "VideoLike", "load_videos"]

VideoLike: TypeAlias = (
    "str | os.PathLike[str] | bytes | Sequence[ImageLike] | np.ndarray[Any, Any] | torch.Tensor | Mapping[str, Any]"
)

_EXPECTED = (
    "a video file, a list of frames, an array (F, H, W, 3) of uint8 or (F, 3, H, W) of floats, or "
    "{'video': ..., 'fps': ...}"
)


@dataclass(frozen=True, eq=False)
class Clip:
    """The frames of a video that a model is shown.

    Attributes
    ----------
    frames : list of PIL.Image.Image
        RGB, in order, all of one size.
    times : list of float
        Seconds from the video's beginning, one a frame, ascending.
    fps : float or None
        Frames a second of the source; None if that is not known, and `times` are those of 2 a second.
    indices : list of int
        Numbers of the frames in the source.
    total : int
        Frames of the source.
    backend : str
        What has read it: ``"pyav"``, ``"pillow"`` or ``""``.
    """

    frames: list[Image.Image]
    times: list[float]
    fps: float | None
    indices: list[int]
    total: int
    backend: str = ""

    @property
    def duration(self) -> float:
        """Seconds of the whole source, its last frame's included."""
        return self.total / self.rate

    @property
    def rate(self) -> float:
        """Frames a second of the source; 2 where that is not known."""
        return self.fps if self.fps is not None else DEFAULT_FPS

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of a frame."""
        return self.frames[0].size

    def array(self) -> np.ndarray[Any, Any]:
        """Return the frames as an array (F, H, W, 3) of uint8."""
        import numpy as np

        return np.stack([np.asarray(frame) for frame in self.frames])

    def metadata(self) -> Any:
        """Return what transformers' processors are told of a video.

        They write ``frames_indices[k] / fps`` as the time of frame k. Where frames come at uneven intervals an index is
        therefore no whole number, so that each time is the one at which its frame is shown.

        Returns
        -------
        transformers.video_utils.VideoMetadata
        """
        from transformers.video_utils import VideoMetadata

        places = [
            index if abs(index / self.rate - time) < 1e-3 else time * self.rate
            for index, time in zip(self.indices, self.times, strict=True)
        ]
        return VideoMetadata(
            total_num_frames=self.total,
            fps=self.rate,
            width=self.size[0],
            height=self.size[1],
            duration=self.duration,
            video_backend=self.backend or None,
            frames_indices=places,
        )


def load_videos(
    videos: VideoLike | Sequence[VideoLike],
    *,
    fps: float | None = None,
    num_frames: int | None = None,
    source_fps: float | None = None,
    max_pixels: int | None = None,
    progress: Progress | None = None,
) -> list[Clip]:
    """Bring one video, or several, to the frames that a model is shown.

    A list is one video if it holds frames, which are all that :func:`tam_fast.models.images.load_images` takes, and
    several if it holds videos. Whether a path or ``bytes`` are a frame or a video is read from the file itself; an
    animated GIF, WebP, PNG or AVIF is a video.

    Of a file the frames that are seen at 0, 0.5, 1, ... seconds are taken, or if these are fewer than 4 or more than 32
    as many evenly spread; by the times at which its frames are shown, which need not be even. Frames and arrays are
    taken as they are, unless `num_frames`, or `fps` along with their own rate, asks for fewer.

    Parameters
    ----------
    videos : path, bytes, list of frames, array, tensor, mapping, or a list or tuple of them
        Arrays and tensors are (F, H, W, 3) uint8 or (F, 3, H, W) floats in [0, 1]. A mapping holds one of these as
        ``"video"`` or ``"frames"``, and may hold its rate as ``"fps"``.
    fps : float, optional
        Frames a second to take; at most 768 in all.
    num_frames : int, optional
        How many to take, evenly from the first to the last; not with `fps`.
    source_fps : float, optional
        Frames a second that frames and arrays have which do not bring it along. Without, they count as 2 a second.
    max_pixels : int, optional
        Videos with larger frames are refused, before a frame is decoded.
    progress : callable, optional
        Called with the number of frames that have been decoded, and of all that will be, of each file.

    Returns
    -------
    list of Clip

    Raises
    ------
    ValueError
        If there is none, one is no video, damaged, cut off, has no frames, fewer than asked for, frames of different
        sizes, or more than 2**30 pixels in all; if frames and videos are mixed; if a text is a URL.
    FileNotFoundError
        If there is no such file.
    TypeError
        If one is of another type.
    ImportError
        If a file needs PyAV (``pip install 'tam-fast[video]'``).
    """
    sampling = check_sampling(fps, num_frames, max_pixels)
    rate = None if source_fps is None else check_rate(source_fps, "source_fps")
    if videos is None or (isinstance(videos, (list, tuple)) and not videos):
        raise ValueError("videos: expected at least one video, got none")
    if not isinstance(videos, (list, tuple)) or _holds_frames(videos, "videos"):
        return [_load(videos, "videos", sampling, rate, progress)]
    return [_load(video, f"videos[{index}]", sampling, rate, progress) for index, video in enumerate(videos)]


def _holds_frames(items: Sequence[Any], name: str) -> bool:
    """Whether a list is the frames of one video; if not, it is of videos."""
    kinds = [_is_frame(item, f"{name}[{index}]") for index, item in enumerate(items)]
    if len(set(kinds)) > 1:
        first = kinds.index(not kinds[0])
        what = ("videos", "a frame") if kinds[first] else ("frames", "a video")
        raise ValueError(f"{name}[{first}]: expected {what[0]} alone in a list, got {what[1]} among them")
    return kinds[0]


def _is_frame(item: Any, name: str) -> bool:
    if isinstance(item, Image.Image):
        return True
    if is_array(item):
        return bool(item.ndim == 3)
    if isinstance(item, (list, tuple, Mapping)):
        return False
    picture, animated = is_picture(_source(item, name))
    return picture and not animated


def _source(item: Any, name: str) -> Any:
    """Check a path or bytes, and return what is opened."""
    if isinstance(item, (bytes, bytearray, memoryview)):
        return bytes(item)
    if not isinstance(item, (str, os.PathLike)):
        raise TypeError(f"{name}: expected {_EXPECTED}, got {kind_of(item)}")
    return find_file(os.fsdecode(os.fspath(item)), name, "a video")


def _load(video: Any, name: str, sampling: Sampling, rate: float | None, progress: Progress | None) -> Clip:
    if isinstance(video, Mapping):
        video, rate = _unpacked(video, name, rate)
    if isinstance(video, Image.Image):
        raise ValueError(f"{name}: expected {_EXPECTED}, got one picture: give it as images, or as a list of frames")
    if is_array(video):
        pixels = read_pixels(video, name, 4)
        return _of_frames([Image.fromarray(frame) for frame in pixels], name, sampling, rate)
    if isinstance(video, (list, tuple)):
        if not video:
            raise ValueError(f"{name}: expected at least one frame, got none")
        if not _holds_frames(video, name):
            raise ValueError(f"{name}: expected a list of frames, got a list of videos")
        frames = [load_image(frame, f"{name}[{index}]") for index, frame in enumerate(video)]
        return _of_frames(frames, name, sampling, rate)
    source = _source(video, name)
    picture, animated = is_picture(source)
    if picture and not animated:
        what = f"{len(source)} bytes" if isinstance(source, bytes) else shown(os.fsdecode(source))
        raise ValueError(
            f"{name}: expected a video, got one picture, {what}: give it as images, or as a list of frames"
        )
    read: Read = (read_animation if animated else read_video)(source, sampling, name, progress)
    return Clip(read.frames, read.times, read.fps, read.indices, read.total, read.backend)


def _unpacked(video: Mapping[str, Any], name: str, rate: float | None) -> tuple[Any, float | None]:
    data = [key for key in ("video", "frames") if video.get(key) is not None]
    unknown = set(video) - {"video", "frames", "fps"}
    if len(data) != 1 or unknown:
        raise ValueError(
            f"{name}: expected a mapping of 'video' or 'frames', and 'fps', got {', '.join(map(repr, video)) or 'none'}"
        )
    found = video[data[0]]
    if video.get("fps") is None:
        return found, rate
    if isinstance(found, (str, os.PathLike, bytes, bytearray, memoryview)):
        raise ValueError(f"{name}: expected 'fps' with frames or an array alone, got it with a file, which has its own")
    return found, check_rate(video["fps"], f"{name}['fps']")


def _of_frames(frames: list[Image.Image], name: str, sampling: Sampling, rate: float | None) -> Clip:
    sizes = sorted({frame.size for frame in frames})
    if len(sizes) > 1:
        got = " and ".join(f"{width} x {height}" for width, height in sizes[:3])
        raise ValueError(f"{name}: expected frames of one size, got {got}")
    check_memory(sizes[0], len(frames), sampling, name)
    if sampling.fps is not None and rate is None:
        raise ValueError(
            f"fps: expected none, or the frames of {name} along with their own rate ({{'frames': ..., 'fps': ...}}), "
            f"got {sampling.fps:g}"
        )
    step = 1 / (rate or DEFAULT_FPS)
    times = [index * step for index in range(len(frames))]
    chosen = list(range(len(frames)))
    if sampling.fps is not None or sampling.num_frames is not None:
        chosen = choose(times, len(times) * step, sampling, name)
    return Clip([frames[k] for k in chosen], [times[k] for k in chosen], rate, chosen, len(frames))
