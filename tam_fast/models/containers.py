"""Frames of video files: through PyAV, and through Pillow those of animated pictures."""

from __future__ import annotations

import io
import itertools
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

from PIL import Image, ImageSequence

from tam_fast.models.colours import to_rgb
from tam_fast.models.files import opened
from tam_fast.models.sampling import Sampling, choose

__all__ = ["Progress", "Read", "VideoSource", "check_memory", "is_picture", "read_animation", "read_video"]

VideoSource: TypeAlias = "str | os.PathLike[str] | bytes"
Progress: TypeAlias = Callable[[int, int], object]

_ANIMATED = ("GIF", "WEBP", "PNG", "AVIF", "FLI")  # formats of Pillow whose frames are shown one after another
_MOST_PIXELS = 1 << 30  # of all frames that are kept: 3 GiB
_UNTOLD = 0.1  # seconds that browsers give a frame of a GIF that names no duration


@dataclass(frozen=True)
class Read:
    """What was read of a video, see :class:`tam_fast.models.videos.Clip`; `duration` in seconds, of all frames."""

    frames: list[Image.Image]
    times: list[float]
    fps: float | None
    indices: list[int]
    total: int
    duration: float
    backend: str


def is_picture(source: VideoSource) -> tuple[bool, bool]:
    """Whether Pillow knows a file as an image, and whether as one whose frames are shown in turn."""
    try:
        with opened(_stream(source), None, "") as image:
            # Pillow knows an MPEG stream's head, and nothing behind it.
            animated = image.format in _ANIMATED and bool(getattr(image, "is_animated", False))
            return image.format != "MPEG", animated
    except ValueError as error:
        return "pixels" in str(error), False  # larger than Pillow's limit: a picture all the same


def _stream(source: VideoSource) -> Any:
    return io.BytesIO(source) if isinstance(source, bytes) else source


def check_memory(size: tuple[int, int], count: int, sampling: Sampling, name: str) -> None:
    """Refuse frames that are too large, alone or together.

    Raises
    ------
    ValueError
        If a frame has more than `sampling.max_pixels`, or all that are kept more than 2**30 pixels.
    """
    width, height = size
    got = f"got {width} x {height} = {width * height}"
    if width < 1 or height < 1:
        raise ValueError(f"{name}: expected frames of at least one pixel, got {width} x {height}")
    if sampling.max_pixels is not None and width * height > sampling.max_pixels:
        raise ValueError(f"{name}: expected at most {sampling.max_pixels} pixels a frame (max_pixels), {got}")
    if width * height * count > _MOST_PIXELS:
        raise ValueError(
            f"{name}: expected at most {_MOST_PIXELS} pixels in all frames that are shown, {got} in each of {count}"
        )


def read_animation(source: VideoSource, sampling: Sampling, name: str, progress: Progress | None = None) -> Read:
    """Read the frames of an animated GIF, WebP, PNG or AVIF, with their durations.

    Raises
    ------
    ValueError
        If a frame cannot be decoded, or sizes or counts are not as asked for.
    """
    times, clock = [], 0.0
    with _told(name), opened(_stream(source), None, "") as image:
        size = image.size
    check_memory(size, 1, sampling, name)
    with _told(name), opened(_stream(source), None, "") as image:
        for frame in ImageSequence.Iterator(image):
            frame.load()  # of a WebP the duration is known only then
            times.append(clock)
            clock += float(frame.info.get("duration") or 0) / 1000 or _UNTOLD
    chosen = choose(times, clock, sampling, name)
    check_memory(size, len(chosen), sampling, name)
    frames: list[Image.Image] = []
    with _told(name), opened(_stream(source), None, "") as image:
        for index in chosen:
            image.seek(index)
            frames.append(to_rgb(image))
            if progress is not None:
                progress(len(frames), len(chosen))
    return Read(frames, [times[index] for index in chosen], len(times) / clock, chosen, len(times), clock, "pillow")


@contextmanager
def _told(name: str) -> Iterator[None]:
    """Let an error of reading say which video it is of."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name}: expected a video, got one whose frames cannot be read ({error})") from error


@dataclass(frozen=True)
class _Packets:
    """What a file tells of its frames without decoding them; times in units of the stream's time base."""

    times: list[int]
    keys: list[int]
    last: int
    whole: bool


class _Missing(Exception):
    """A frame did not come out of the decoder where its packet said."""


def read_video(source: VideoSource, sampling: Sampling, name: str, progress: Progress | None = None) -> Read:
    """Read frames of a video file through PyAV.

    The file is read twice: its packets tell when each frame is shown, then those that were chosen are decoded, from the
    key frame before them. Where packets do not say, all frames are decoded to be counted. Only chosen frames are kept.
    Of several video streams the first is taken, of frames that are turned or mirrored what a player shows. Nothing but
    the file is opened, even if it names others.

    Raises
    ------
    ImportError
        If PyAV is missing.
    ValueError
        If it is no video, has no frames, is damaged or cut off, or sizes or counts are not as asked for.
    """
    with _container(source, name) as (container, stream):
        unit = float(stream.time_base)
        size = (stream.codec_context.width, stream.codec_context.height)
        check_memory(size, 1, sampling, name)
        packets = _packets(container, stream)
        promised, start = _promised(stream), 0.0
        if not stream.duration and packets.times:
            start = packets.times[0] * unit
        rate = float(stream.average_rate or stream.guessed_rate or stream.base_rate or 25)
    known = packets.whole
    times = [(time - packets.times[0]) * unit for time in packets.times] if known else _count(source, name, rate)
    while True:
        if not times:
            raise ValueError(f"{name}: expected at least one frame, got a video without")
        fps, end = _pace(times, packets.last * unit, rate)
        if promised is not None and end + start < promised - max(1.0, 0.02 * promised):
            raise ValueError(
                f"{name}: expected a whole video, got one that is cut off: {promised:.1f} seconds by its header, "
                f"{end:.1f} in the file"
            )
        chosen = choose(times, end, sampling, name)
        check_memory(size, len(chosen), sampling, name)
        try:
            if known:
                frames = _pick(source, name, [packets.times[index] for index in chosen], packets.keys, progress)
            else:
                frames = _pick_by_number(source, name, chosen, progress)
            break
        except _Missing:
            if not known:
                raise ValueError(
                    f"{name}: expected a whole video, got one that is damaged: frames are missing"
                ) from None
            known, times = False, _count(source, name, fps)
    if len({frame.size for frame in frames}) > 1:
        sizes = " and ".join(f"{width} x {height}" for width, height in sorted({frame.size for frame in frames}))
        raise ValueError(f"{name}: expected frames of one size, got {sizes}")
    return Read(frames, [times[index] for index in chosen], fps, chosen, len(times), end, "pyav")


def _pace(times: Sequence[float], last: float, rate: float) -> tuple[float, float]:
    """Frames a second, and the seconds at which the last frame, shown for `last` or 0, goes."""
    step = times[-1] / (len(times) - 1) if len(times) > 1 else 1 / rate
    # What files say of their rate is often a guess; it is exact where the times agree.
    return rate if abs(rate * step - 1) < 1e-3 else 1 / step, times[-1] + (last or step)


@contextmanager
def _container(source: VideoSource, name: str) -> Iterator[tuple[Any, Any]]:
    """Open a file and its first stream of video; whatever goes wrong with it becomes one line."""
    try:
        import av
    except ImportError as error:
        raise ImportError(
            f"{name}: expected PyAV, which reads video files, got no module av: pip install 'tam-fast[video]', or give "
            "the frames themselves"
        ) from error
    try:
        # Playlists may name URLs. With `options` PyAV before 17 crashes on streams that show up late.
        file = _stream(source) if isinstance(source, bytes) else os.fspath(source)
        with av.open(file, container_options={"protocol_whitelist": "file"}, metadata_errors="replace") as container:
            cover = getattr(getattr(av.stream, "Disposition", None), "attached_pic", None)
            streams = [one for one in container.streams.video if cover is None or not one.disposition & cover]
            if not streams:
                kinds = ", ".join(sorted({one.type for one in container.streams})) or "nothing"
                raise ValueError(f"{name}: expected a video, got a file of {kinds}")
            if streams[0].codec_context is None:
                raise ValueError(f"{name}: expected a video of a codec that PyAV knows, got another")
            # Frames are decoded side by side.
            streams[0].thread_type = "AUTO"
            yield container, streams[0]
    except av.FFmpegError as error:
        problem = "damaged, or no video" if isinstance(error, (av.InvalidDataError, av.EOFError)) else error.strerror
        raise ValueError(f"{name}: expected a video that can be read, got one that cannot: {problem}") from error
    except MemoryError as error:
        raise ValueError(f"{name}: expected a video whose frames fit into memory, got one whose do not") from error
    except (ArithmeticError, LookupError, RuntimeError, TypeError, UnicodeError) as error:  # of a damaged header
        raise ValueError(f"{name}: expected a video that can be read, got one that cannot: damaged") from error


def _packets(container: Any, stream: Any) -> _Packets:
    times: list[int] = []
    keys: list[int] = []
    durations: dict[int, int] = {}
    whole = True
    for packet in container.demux(stream):
        if not packet.size or packet.is_discard:
            continue
        if packet.pts is None:
            whole = False
            continue
        times.append(packet.pts)
        durations[packet.pts] = packet.duration or 0
        if packet.is_keyframe:
            keys.append(packet.pts)
    times.sort()
    keys.sort()
    whole = whole and len(durations) == len(times) > 0
    return _Packets(times, keys, durations[times[-1]] if whole else 0, whole)


def _promised(stream: Any) -> float | None:
    """Seconds that a stream has by its header."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    try:
        hours, minutes, seconds = stream.metadata["DURATION"].split(":")  # of Matroska
        return float(hours) * 3600 + float(minutes) * 60 + float(seconds)
    except (KeyError, ValueError):
        return None


def _pick(
    source: VideoSource, name: str, wanted: Sequence[int], keys: Sequence[int], progress: Progress | None
) -> list[Image.Image]:
    """Decode the frames of some times, ascending, each from the key frame before it."""
    frames: list[Image.Image] = []

    def key_before(time: int) -> int | None:
        place = bisect_right(keys, time) - 1
        return keys[place] if place >= 0 else None

    with _container(source, name) as (container, stream):
        done: int | None = None
        while len(frames) < len(wanted):
            key = key_before(wanted[len(frames)])
            if key is not None and key != keys[0] and (done is None or key > done):
                container.seek(key, stream=stream)
            for frame in container.decode(stream):
                target = wanted[len(frames)]
                if frame.pts is None or frame.pts > target:
                    raise _Missing
                done = frame.pts
                if frame.pts < target:
                    continue
                frames.append(_picture(frame, name))
                if progress is not None:
                    progress(len(frames), len(wanted))
                if len(frames) == len(wanted) or (key_before(wanted[len(frames)]) or done) > done:
                    break
            else:
                raise _Missing
    return frames


def _count(source: VideoSource, name: str, rate: float) -> list[float]:
    """Decode all frames, and tell the seconds at which each is shown."""
    with _container(source, name) as (container, stream):
        times = [frame.time for frame in container.decode(stream)]
    if any(time is None for time in times) or any(b <= a for a, b in itertools.pairwise(times)):
        return [index / rate for index in range(len(times))]
    return [time - times[0] for time in times]


def _pick_by_number(
    source: VideoSource, name: str, chosen: Sequence[int], progress: Progress | None
) -> list[Image.Image]:
    frames: list[Image.Image] = []
    with _container(source, name) as (container, stream):
        for number, frame in enumerate(container.decode(stream)):
            if number == chosen[len(frames)]:
                frames.append(_picture(frame, name))
                if progress is not None:
                    progress(len(frames), len(chosen))
                if len(frames) == len(chosen):
                    return frames
    raise _Missing


def _picture(frame: Any, name: str) -> Image.Image:
    if getattr(frame, "is_corrupt", False):
        raise ValueError(f"{name}: expected a whole video, got one that is damaged at {frame.time or 0:.1f} seconds")
    image = Image.fromarray(frame.to_ndarray(format="rgb24"))
    turn = _TURNS.get(_signs(frame))
    return image if turn is None else image.transpose(turn)


def _signs(frame: Any) -> tuple[int, int, int, int]:
    """What becomes of a step right and of one down: x and y of each, as signs, by the frame's display matrix."""
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX":
            numbers = memoryview(bytes(data)).cast("i")
            xx, xy, yx, yy = ((numbers[k] > 1 << 15) - (numbers[k] < -(1 << 15)) for k in (0, 1, 3, 4))
            return xx, xy, yx, yy
    return 1, 0, 0, 1


_TURNS = MappingProxyType(
    {
        (0, 1, -1, 0): Image.Transpose.ROTATE_270,
        (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
        (0, -1, 1, 0): Image.Transpose.ROTATE_90,
        (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
        (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
        (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
        (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
    }
)
