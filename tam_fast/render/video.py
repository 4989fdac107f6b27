"""Pictures in time as one file: :func:`encode_video`, MP4 by PyAV and GIF by Pillow."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import accumulate, pairwise
from typing import Any

from PIL import Image

__all__ = ["MARK", "SUFFIXES", "encode_video", "paces"]

SUFFIXES = (".mp4", ".gif")
"""How the names of files end that :func:`encode_video` makes."""

MARK = b"made by tam_fast"
"""Stands in a file and says who wrote it: in the first 1,000 bytes of a GIF, the last of an MP4."""

_TICKS = 1000  # a second
_SHORTEST = 0.02  # seconds that browsers show a GIF's picture at least
_RATE = 2.0  # pictures a second where times are not known


def paces(times: Sequence[float] | None, count: int, fps: float | None = None) -> list[float]:
    """Say how long each picture is shown, in seconds.

    Parameters
    ----------
    times : sequence of float, optional
        When each picture was taken, in seconds, not descending.
    count : int
        Pictures.
    fps : float, optional
        Pictures a second, whatever the times are.

    Returns
    -------
    list of float
        Each until the next one was taken, at least 1/50 s; the last one as long as the middle one of the others. Half a
        second each where no times are known.

    Raises
    ------
    ValueError
        If `fps` is not above 0.
    """
    if fps is not None:
        if not (0 < fps < math.inf):
            raise ValueError(f"fps: expected pictures a second above 0, got {fps}")
        return [max(_SHORTEST, 1 / fps)] * count
    if times is None or len(times) < 2:
        return [1 / _RATE] * count
    gaps = [max(_SHORTEST, later - earlier) for earlier, later in pairwise(times)]
    return [*gaps, sorted(gaps)[len(gaps) // 2]]


def encode_video(pictures: Iterable[Image.Image], durations: Sequence[float], suffix: str) -> bytes:
    """Encode pictures that are shown one after the other.

    Parameters
    ----------
    pictures : iterable of PIL images
        All of one size; taken one at a time.
    durations : sequence of float
        Seconds that each is shown, above 0.
    suffix : str
        ``".mp4"`` (H.264, at constant quality; sides that are odd lose a pixel) or ``".gif"`` (256 colours a picture,
        for ever from the start again).

    Returns
    -------
    bytes

    Raises
    ------
    ValueError
        If the suffix is another, there is no picture, they differ in size, or are not as many as the durations.
    ImportError
        If PyAV is needed and not installed; says how to install it.
    """
    if suffix not in SUFFIXES:
        raise ValueError(f"suffix: expected one of {', '.join(SUFFIXES)}, got {suffix!r}")
    if not durations:
        raise ValueError("durations: expected one for each of at least one picture, got none")
    if not all(0 < duration < math.inf for duration in durations):
        raise ValueError(f"durations: expected seconds above 0, got {min(durations)}")
    shown = _checked(pictures, len(durations))
    return _mp4(shown, durations) if suffix == ".mp4" else _gif(shown, durations)


def _checked(pictures: Iterable[Image.Image], count: int) -> Iterator[Image.Image]:
    size: tuple[int, int] | None = None
    number = 0
    for number, picture in enumerate(pictures, 1):
        if size is not None and picture.size != size:
            raise ValueError(f"pictures: expected pictures of one size, got {size} and {picture.size}")
        if number > count:
            break
        size = picture.size
        yield picture.convert("RGB")
    if number != count:
        raise ValueError(
            f"pictures: expected as many as durations, {count}, got {'more' if number > count else number}"
        )


def _mp4(pictures: Iterator[Image.Image], durations: Sequence[float]) -> bytes:
    try:
        import av
    except ImportError as error:
        raise ImportError(
            "av: expected PyAV, which writes MP4: pip install 'tam-fast[video]'; GIF needs none"
        ) from error

    made = io.BytesIO()
    frames: Any = av.VideoFrame
    mean = Fraction(len(durations) / math.fsum(durations)).limit_denominator(1000)
    with av.open(made, "w", format="mp4") as container:
        stream: Any = None
        # Frames in the order of time (no B-frames), so that each packet can be told how long it is shown.
        options = {"crf": "18", "preset": "medium", "bf": "0"}
        ticks = [max(1, round(duration * _TICKS)) for duration in durations]
        lasting, starts = iter(ticks), [0, *accumulate(ticks)]

        def write(packets: Iterable[Any]) -> None:
            for packet in packets:
                packet.duration = next(lasting)
                container.mux(packet)

        for number, picture in enumerate(pictures):
            # A side of one pixel is drawn twice as large: halves of colours need two.
            width, height = (max(2, side - side % 2) for side in picture.size)
            if stream is None:
                # The mean rate is what the level of the format is chosen by; times are those of the frames.
                stream = container.add_stream("libx264", rate=max(mean, Fraction(1, 100)), options=options)
                stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
                stream.codec_context.time_base = stream.time_base = Fraction(1, _TICKS)
            fits = width <= picture.width and height <= picture.height
            shown = picture.crop((0, 0, width, height)) if fits else picture.resize((width, height))
            frame: Any = frames.from_image(shown)
            frame.pts, frame.time_base = starts[number], Fraction(1, _TICKS)
            write(stream.encode(frame))
        write(stream.encode(None))
    # A box of type "free" at the end, which players pass over.
    return made.getvalue() + (8 + len(MARK)).to_bytes(4, "big") + b"free" + MARK


def _gif(pictures: Iterator[Image.Image], durations: Sequence[float]) -> bytes:
    # Times are hundredths of a second: rounded where they add up, not one by one.
    marks, total = [0], 0.0
    for duration in durations:
        total += duration
        marks.append(round(total * 100))
    shown = [10 * max(2, end - start) for start, end in pairwise(marks)]
    reduced = map(_with_palette, pictures)
    first = next(reduced)
    made = io.BytesIO()
    first.save(
        made,
        format="GIF",
        save_all=True,
        append_images=reduced,
        duration=shown if len(shown) > 1 else shown[0],
        loop=0,
        comment=MARK,
        disposal=1,
    )
    return made.getvalue()


def _with_palette(picture: Image.Image) -> Image.Image:
    """Reduce a picture to 256 colours, scattered (Floyd and Steinberg) so that maps fade without steps.

    The palette is that of a small copy: a median cut takes long on all pixels, and finds nearly the same.
    """
    small = picture.copy()
    small.thumbnail((128, 128), Image.Resampling.BOX)
    palette = small.quantize(256, method=Image.Quantize.MEDIANCUT)
    return picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
