"""Image files, decoded by Pillow to upright RGB; what is damaged or too large is told in one line."""

from __future__ import annotations

import errno
import io
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

from tam_fast.models.colours import to_rgb

__all__ = ["ONE_PICTURE", "find_file", "not_a_path", "opened", "read_head", "read_image", "reason", "shown", "upright"]


# Schemes have two letters or more: C:\ is a drive. Path("https://x") has become https:/x.
_URL = re.compile(r"\s*[a-z][a-z0-9+.-]+:/", re.IGNORECASE)


def find_file(text: str, name: str, what: str = "an image") -> Path:
    """Find the file of a path, or say in one short line what the text is instead.

    Parameters
    ----------
    text : str
        The path.
    name : str
        The argument it was given for.
    what : str
        What the file is to hold.

    Returns
    -------
    Path
        Of a file that is there.

    Raises
    ------
    ValueError
        If the text is a URL, a data URI, or no possible name.
    FileNotFoundError
        If there is no such file, or something else at the path.
    """
    problem = not_a_path(text)
    if problem:
        raise ValueError(f"{name}: expected a path, got {problem}")
    path = Path(text)
    try:
        if path.is_file():
            return path
        if text and path.is_dir():
            got = f"the folder {shown(text)}"
        elif text and path.exists():
            got = f"a device or a pipe at {shown(text)}"
        else:
            got = f"no file at {shown(text)}"
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or reason(error)
        raise ValueError(f"{name}: expected the path of {what}, got {shown(text)} ({problem})") from error
    raise FileNotFoundError(f"{name}: expected {what} file, got {got}")


def not_a_path(text: str) -> str | None:
    """Say of a URL, a data URI or a text too long for a name what it is and what to do, in one short line.

    Parameters
    ----------
    text : str
        What was given as a path.

    Returns
    -------
    str or None
        None if it may be a path; also if it looks like a URL and there is a file of that name.
    """
    is_data = text[:20].lstrip().lower().startswith("data:")
    try:
        if Path(text).exists():
            return None
    except (OSError, ValueError) as error:
        if not is_data and not _URL.match(text) and getattr(error, "errno", None) == errno.ENAMETOOLONG:
            return f"{len(text)} characters, too long for a file's name ({shown(text, 60)}): decode image data"
    if is_data:
        return f"a data URI of {len(text)} characters: decode it and save it, or give it as a PIL image"
    if not _URL.match(text):
        return None
    is_file = text.lstrip().lower().startswith("file:")
    return f"the URL {shown(text)}: " + ("give the path itself" if is_file else "download it and give the file")


def shown(text: str, limit: int = 160) -> str:
    """Quote a text, shortened in the middle where it is long."""
    half = limit // 2
    return repr(text) if len(text) <= limit else f"{text[:half]!r}...{text[-half // 2 :]!r}"


def read_head(
    file: str | os.PathLike[str] | io.BytesIO, max_pixels: int | None = None, setting: str = "max_pixels"
) -> tuple[int, int]:
    """Read the size of an image in a file, and check it, before anything is decoded.

    Parameters
    ----------
    file : path or BytesIO
    max_pixels : int, optional
        Larger images are refused. It takes the place of Pillow's limit, which holds if it is None.
    setting : str
        What the limit is called in the message.

    Returns
    -------
    (int, int)
        Width and height as stored, not yet turned.

    Raises
    ------
    ValueError
        If it is no image, cannot be read, has no pixels or too many. The message is a reason in one short line,
        without the file's name.
    """
    with opened(file, max_pixels, setting) as image:
        return image.size


def read_image(
    file: str | os.PathLike[str] | io.BytesIO, max_pixels: int | None = None, setting: str = "max_pixels"
) -> tuple[Image.Image, bool]:
    """Decode an image file to upright RGB.

    Parameters
    ----------
    file, max_pixels, setting
        As in :func:`read_head`.

    Returns
    -------
    picture : PIL.Image.Image
        Its first frame, see :func:`tam_fast.models.colours.to_rgb`.
    more : bool
        Whether it has further frames.

    Raises
    ------
    ValueError
        As :func:`read_head`, and if the pixels cannot be decoded.
    """
    with opened(file, max_pixels, setting) as image:
        return upright(image)


@contextmanager
def opened(file: Any, max_pixels: int | None, setting: str) -> Iterator[Image.Image]:
    """Open an image within the limit; whatever goes wrong with its file or decoder becomes one line."""
    limit, changed = Image.MAX_IMAGE_PIXELS, max_pixels is not None
    try:
        if max_pixels is not None:
            # Pillow warns above its limit, and raises above twice of it, also for images within others, as in icons.
            Image.MAX_IMAGE_PIXELS = (max_pixels + 1) // 2
        if isinstance(file, io.BytesIO):
            file.seek(0)
        with Image.open(file) as image:
            _check_pixels(image.size, max_pixels, setting)
            yield image
    except Image.DecompressionBombError as error:
        if max_pixels is None:
            max_pixels, setting = 2 * (limit or 0), "twice PIL.Image.MAX_IMAGE_PIXELS"
        width, height = _size_in_head(file)
        got = f"{width} x {height} = {width * height}" if width * height > max_pixels else "more within it"
        raise ValueError(f"expected at most {max_pixels} pixels ({setting}), got {got}") from error
    except _Refused as error:
        raise ValueError(str(error)) from error.__cause__
    except Exception as error:  # damaged files make decoders raise nearly anything
        raise ValueError(reason(error)) from error
    finally:
        # Only where it was changed: another thread may be about to.
        if changed:
            Image.MAX_IMAGE_PIXELS = limit


class _Refused(ValueError):
    """Our own words about a picture, as against those of a decoder."""


def _check_pixels(size: tuple[int, int], max_pixels: int | None, setting: str = "") -> None:
    width, height = size
    if width < 1 or height < 1:
        raise _Refused(f"expected at least one pixel, got {width} x {height}")
    if max_pixels is not None and width * height > max_pixels:
        raise _Refused(f"expected at most {max_pixels} pixels ({setting}), got {width} x {height} = {width * height}")


_without_limit = threading.Lock()  # of two threads, the second would put back what the first had set


def _size_in_head(file: Any) -> tuple[int, int]:
    """Read how large an image says it is; (1, 1) for formats that decode what lies within them to tell."""
    with _without_limit:
        limit = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            if isinstance(file, io.BytesIO):
                file.seek(0)
            with Image.open(file, formats=[name for name in Image.ID if name not in ("ICO", "CUR", "ICNS")]) as image:
                width, height = image.size
                return width, height
        except Exception:
            return (1, 1)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def reason(error: BaseException) -> str:
    """Say in one short line why an image cannot be read; what a decoder says of its own internals is left out."""
    if isinstance(error, _Refused):
        return str(error)
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or of a format that Pillow does not know"
    if isinstance(error, MemoryError):
        return "the image cannot be read: it does not fit into memory"
    if isinstance(error, OSError) and error.strerror:
        return f"the image cannot be read: {error.strerror}"
    text = " ".join(str(error).split())
    # Pillow's own words about files come as OSError; "decoder error -2" and the like say nothing to a user.
    if isinstance(error, OSError) and text.isprintable() and 0 < len(text) <= 120 and "error" not in text:
        return f"the image cannot be read: {text}"
    return "the image cannot be read: it is damaged, or of a kind that Pillow cannot decode"


# Their second frame is no second picture: a phone's depth or gain map, the layers of what the first one shows.
ONE_PICTURE = ("MPO", "PSD")


def upright(image: Image.Image) -> tuple[Image.Image, bool]:
    """Decode a picture, turn it and bring it to RGB; and whether the first of several frames was taken."""
    try:
        _check_pixels(image.size, None)
        image.load()
        _check_pixels(image.size, None)
        more = _first_of_several(image)
        return to_rgb(_turned(image)), more
    except (Image.DecompressionBombError, _Refused):
        raise
    except Exception as error:
        raise _Refused(reason(error)) from error


def _turned(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a damaged EXIF block, beside pixels that are whole
        return image


def _first_of_several(image: Image.Image) -> bool:
    if getattr(image, "format", None) in ONE_PICTURE:
        return False
    try:
        # A PIL image that its owner has moved to a later frame was meant.
        return bool(getattr(image, "is_animated", False)) and image.tell() == 0
    except Exception:  # the frames that follow are damaged
        return True
