"""From files, their bytes, PIL images, arrays and tensors to upright RGB pictures: :func:`load_images`."""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from PIL import Image

from tam_fast.models.arrays import is_array, read_pixels
from tam_fast.models.files import find_file, not_a_path, read_head, read_image, shown, upright

if TYPE_CHECKING:
    import numpy as np
    import torch

__all__ = ["ImageLike", "check_sizes", "kind_of", "load_image", "load_images", "not_a_path", "read_head", "read_image"]

ImageLike: TypeAlias = (
    "Image.Image | str | os.PathLike[str] | bytes | bytearray | memoryview | np.ndarray[Any, Any] | torch.Tensor"
)

_EXPECTED = "a PIL image, a path, an image file's bytes, or an array (H, W, 3) of uint8 or (3, H, W) of floats"


def load_images(images: ImageLike | Sequence[ImageLike]) -> list[Image.Image]:
    """Bring one image, or several, to upright RGB PIL images.

    A file, its bytes and the PIL image that Pillow makes of it give the same picture, here and on the command line:
    turned as the EXIF orientation says, transparency on white, grey of 16 or 32 bits or of floats scaled to 8 bits
    (:func:`tam_fast.models.colours.to_rgb`). Of an animated file the first frame is taken. Nothing is ever fetched.

    Parameters
    ----------
    images : PIL image, path, bytes, array, tensor, or a list or tuple of them
        ``bytes``, ``bytearray`` and ``memoryview`` are those of an image file. Arrays and tensors are (H, W, 3) uint8
        or (3, H, W) floats in [0, 1], see :func:`tam_fast.models.arrays.read_pixels`. All are copied.

    Returns
    -------
    list of PIL.Image.Image

    Raises
    ------
    ValueError
        If there is none, a file is no image, damaged or too large for Pillow's limit, a picture has no pixels, a text
        is a URL or image data, or an array has another shape, type or range.
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
        return [load_image(image, f"images[{index}]") for index, image in enumerate(images)]
    return [load_image(images, "images")]


def load_image(image: Any, name: str) -> Image.Image:
    """Bring one image to RGB as :func:`load_images` does; `name` is what it is called in messages."""
    if isinstance(image, Image.Image):
        try:
            picture, more = upright(image)
        except (ValueError, Image.DecompressionBombError) as error:
            # What Pillow opened and has not decoded needs its file.
            closed = getattr(image, "tile", None) and getattr(image, "fp", None) is None
            problem = "its file has been closed" if closed else " ".join(str(error).split())
            got = f"{kind_of(image)}: {problem}"
            raise ValueError(f"{name}: expected a PIL image that can be read, got {got}") from error
        _say_frames(more, name, kind_of(image))
        return picture
    if is_array(image):
        return Image.fromarray(read_pixels(image, name))
    if isinstance(image, (bytes, bytearray, memoryview)):
        return _from_bytes(bytes(image), name)
    if not isinstance(image, (str, os.PathLike)):
        raise TypeError(f"{name}: expected {_EXPECTED}, got {kind_of(image)}{_advice(image, name)}")
    text = os.fsdecode(os.fspath(image))
    path = find_file(text, name)
    try:
        picture, more = read_image(path)
    except ValueError as error:
        raise ValueError(f"{name}: expected an image file, got {shown(text)} ({error})") from error
    _say_frames(more, name, shown(text))
    return picture


def _from_bytes(data: bytes, name: str) -> Image.Image:
    what = f"{len(data)} bytes"
    try:
        picture, more = read_image(io.BytesIO(data))
    except ValueError as error:
        raise ValueError(f"{name}: expected the bytes of an image file, got {what} ({error})") from error
    _say_frames(more, name, f"a file of {what}")
    return picture


def _say_frames(more: bool, name: str, what: str) -> None:
    if not more:
        return
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).startswith("tam_fast."):
        level, frame = level + 1, frame.f_back
    message = f"{name}: {what} has more than one frame; the first one is taken"
    warnings.warn(message, UserWarning, stacklevel=level)  # the user's line


def kind_of(value: Any) -> str:
    """Name a value's type so that torch.Tensor and jax.Array can be told apart, and builtins stay short."""
    kind = type(value)
    module = kind.__module__.partition(".")[0]
    return kind.__name__ if module == "builtins" else f"{module}.{kind.__name__}"


def _advice(value: Any, name: str) -> str:
    """Say what to do with a value of a type that is not taken."""
    if callable(getattr(value, "read", None)):
        return ": give what it reads, file.read(), or the path"
    if isinstance(value, (list, tuple)):
        return ": lists do not nest; an array written as lists is to be made one with numpy.asarray(..., numpy.uint8)"
    if hasattr(value, "__array__") or hasattr(value, "__array_interface__") or hasattr(value, "__dlpack__"):
        return ": make it a numpy array (H, W, 3) of uint8, 0 to 255, the channels last"
    if name == "images" and hasattr(value, "__iter__"):
        return ": give several images as a list or a tuple"
    return ""


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
