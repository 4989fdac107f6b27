"""From files, PIL images and arrays to upright RGB pictures: :func:`load_images`, the reading that all share."""

from __future__ import annotations

import errno
import io
import os
import re
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from PIL import Image, ImageOps, UnidentifiedImageError

from tam_fast.models.colours import to_rgb

if TYPE_CHECKING:
    import numpy as np

__all__ = ["ImageLike", "check_sizes", "load_images", "not_a_path", "read_head", "read_image"]

ImageLike: TypeAlias = "Image.Image | str | os.PathLike[str] | np.ndarray[Any, Any]"

_EXPECTED = "a PIL image, a path or a (H, W, 3) uint8 array"


def load_images(images: ImageLike | Sequence[ImageLike]) -> list[Image.Image]:
    """Bring one image, or several, to upright RGB PIL images.

    A file and the PIL image that Pillow makes of it give the same picture, here and on the command line: turned as the
    EXIF orientation says, transparency on white, grey of 16 or 32 bits or of floats scaled to 8 bits
    (:func:`tam_fast.models.colours.to_rgb`). Of an animated file the first frame is taken.

    Parameters
    ----------
    images : PIL image, path, (H, W, 3) uint8 array, or a list or tuple of them
        PIL images and arrays are copied.

    Returns
    -------
    list of PIL.Image.Image

    Raises
    ------
    ValueError
        If there is none, a file is no image, damaged or too large for Pillow's limit, a picture has no pixels, a text
        is a URL or image data, or an array has another shape or type.
    FileNotFoundError
        If there is no such file.
    TypeError
        If one is of another type.

    Warns
    -----
    UserWarning
        If a file has more than one frame.
    """
    if images is None or (isinstance(images, (list, tuple)) and not images):
        raise ValueError("images: expected at least one image, got none")
    if isinstance(images, (list, tuple)):
        return [_load_image(image, f"images[{index}]") for index, image in enumerate(images)]
    return [_load_image(images, "images")]


def _load_image(image: Any, name: str) -> Image.Image:
    import numpy as np

    if isinstance(image, Image.Image):
        try:
            picture, more = _upright(image)
        except (ValueError, Image.DecompressionBombError) as error:
            # What Pillow opened and has not decoded needs its file.
            closed = getattr(image, "tile", None) and getattr(image, "fp", None) is None
            problem = "its file has been closed" if closed else " ".join(str(error).split())
            raise ValueError(f"{name}: expected a PIL image that can be read, got {_kind(image)}: {problem}") from error
        _say_frames(more, name, _kind(image))
        return picture
    if isinstance(image, np.ndarray):
        return _from_array(image, name)
    if not isinstance(image, (str, os.PathLike)):
        raise TypeError(f"{name}: expected {_EXPECTED}, got {_kind(image)}{_advice(image, name)}")
    text = os.fsdecode(os.fspath(image))
    path = _find_file(text, name)
    try:
        picture, more = read_image(path)
    except ValueError as error:
        raise ValueError(f"{name}: expected an image file, got {_shown(text)} ({error})") from error
    _say_frames(more, name, _shown(text))
    return picture


def _say_frames(more: bool, name: str, what: str) -> None:
    if not more:
        return
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).startswith("tam_fast."):
        level, frame = level + 1, frame.f_back
    message = f"{name}: {what} has more than one frame; the first one is taken"
    warnings.warn(message, UserWarning, stacklevel=level)  # the user's line


def _kind(value: Any) -> str:
    """Name a value's type so that torch.Tensor and jax.Array can be told apart, and builtins stay short."""
    kind = type(value)
    module = kind.__module__.partition(".")[0]
    return kind.__name__ if module == "builtins" else f"{module}.{kind.__name__}"


def _advice(value: Any, name: str) -> str:
    """Say what to do with a value of a type that is not taken."""
    if isinstance(value, (bytes, bytearray, memoryview)) or callable(getattr(value, "read", None)):
        source = "io.BytesIO(data)" if isinstance(value, (bytes, bytearray, memoryview)) else "file"
        return f": open it with PIL.Image.open({source}), or decode a path with os.fsdecode"
    if isinstance(value, (list, tuple)):
        return ": lists do not nest; an array written as lists is to be made one with numpy.asarray(..., numpy.uint8)"
    if hasattr(value, "__array__") or hasattr(value, "__array_interface__") or hasattr(value, "__dlpack__"):
        return ": make it a numpy array (H, W, 3) of uint8, 0 to 255, the channels last"
    if name == "images" and hasattr(value, "__iter__"):
        return ": give several images as a list or a tuple"
    return ""


def _from_array(array: np.ndarray[Any, Any], name: str) -> Image.Image:
    import numpy as np

    expected = f"{name}: expected an array (H, W, 3) of uint8, got {array.shape} of {array.dtype}"
    if isinstance(array, np.ma.MaskedArray):
        raise ValueError(f"{expected} with a mask: fill it first, such as array.filled(255)")
    if array.ndim == 4:
        raise ValueError(f"{expected}: give several images as a list, list(array)")
    if array.ndim == 3 and array.shape[2] != 3 and array.shape[0] == 3:
        raise ValueError(f"{expected}: put the channels last, array.transpose(1, 2, 0)")
    if array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise ValueError(expected)
    if array.dtype != np.uint8:
        raise ValueError(f"{expected}: scale it to 0 to 255 and convert it, array.astype(numpy.uint8)")
    # A copy: what the caller writes into the array later is no longer in the picture.
    return Image.fromarray(np.array(array, order="C", subok=False))


# Schemes have two letters or more: C:\ is a drive. Path("https://x") has become https:/x.
_URL = re.compile(r"\s*[a-z][a-z0-9+.-]+:/", re.IGNORECASE)


def _find_file(text: str, name: str) -> Path:
    """Find the file of a path, or say in one short line what the text is instead."""
    problem = not_a_path(text)
    if problem:
        raise ValueError(f"{name}: expected a path, got {problem}")
    path = Path(text)
    try:
        if path.is_file():
            return path
        if text and path.is_dir():
            got = f"the folder {_shown(text)}"
        elif text and path.exists():
            got = f"a device or a pipe at {_shown(text)}"
        else:
            got = f"no file at {_shown(text)}"
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or _reason(error)
        raise ValueError(f"{name}: expected the path of an image, got {_shown(text)} ({problem})") from error
    raise FileNotFoundError(f"{name}: expected an image file, got {got}")


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
            return f"{len(text)} characters, too long for a file's name ({_shown(text, 60)}): decode image data"
    if is_data:
        return f"a data URI of {len(text)} characters: decode it and save it, or give it as a PIL image"
    if not _URL.match(text):
        return None
    is_file = text.lstrip().lower().startswith("file:")
    return f"the URL {_shown(text)}: " + ("give the path itself" if is_file else "download it and give the file")


def _shown(text: str, limit: int = 160) -> str:
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
    with _opened(file, max_pixels, setting) as image:
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
    with _opened(file, max_pixels, setting) as image:
        return _upright(image)


@contextmanager
def _opened(file: Any, max_pixels: int | None, setting: str) -> Iterator[Image.Image]:
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
        raise ValueError(_reason(error)) from error
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


def _reason(error: BaseException) -> str:
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
_ONE_PICTURE = ("MPO", "PSD")


def _upright(image: Image.Image) -> tuple[Image.Image, bool]:
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
        raise _Refused(_reason(error)) from error


def _turned(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a damaged EXIF block, beside pixels that are whole
        return image


def _first_of_several(image: Image.Image) -> bool:
    if getattr(image, "format", None) in _ONE_PICTURE:
        return False
    try:
        # A PIL image that its owner has moved to a later frame was meant.
        return bool(getattr(image, "is_animated", False)) and image.tell() == 0
    except Exception:  # the frames that follow are damaged
        return True


_LONGEST_SHAPE = 200  # what Qwen-VL's processors take; others name no limit
_PROCESSED_PIXELS = 1 << 25


def check_sizes(processor: Any, images: Sequence[Image.Image]) -> None:
    """Refuse pictures so thin that a processor would take gigabytes for them, before it starts.

    A processor that scales the shorter side to a fixed length makes millions of pixels of a thin picture, most of which
    it then cuts away. One whose size is fixed takes any shape. Of others, shapes up to 200 : 1 are taken.

    Parameters
    ----------
    processor : transformers.ProcessorMixin
    images : sequence of PIL images

    Raises
    ------
    ValueError
        Names the image and its size.
    """
    settings = getattr(processor, "image_processor", None)
    size = getattr(settings, "size", None)

    def side(name: str) -> int | None:
        value = size.get(name) if isinstance(size, dict) else getattr(size, name, None)
        return value if isinstance(value, int) and value > 0 else None

    scales = getattr(settings, "do_resize", True) is not False
    shortest, longest = side("shortest_edge"), side("longest_edge")
    for index, image in enumerate(images):
        short, long = sorted(image.size)
        name = f"images[{index}]" if len(images) > 1 else "images"
        got = f"{name}: expected a picture less thin, got {image.width} x {image.height}"
        made = 0
        if getattr(settings, "do_pad", None) is True and hasattr(settings, "pad_to_square"):
            made, how = long * long, "makes a square of it"
        elif not scales or (side("height") and side("width")):
            continue
        elif shortest and not longest:
            made, how = shortest * (shortest * long // short), f"scales its shorter side to {shortest}"
        elif long > _LONGEST_SHAPE * short:
            raise ValueError(f"{got}: the longer side may be {_LONGEST_SHAPE} times the shorter")
        if made > max(_PROCESSED_PIXELS, 4 * short * long):
            raise ValueError(f"{got}: {type(settings).__name__} {how}, which makes {made} pixels")
