"""Pictures as JPEG of a bounded size, without anything but their pixels: :func:`encode_all`."""

from __future__ import annotations

import io
from collections.abc import Sequence

from PIL import Image

__all__ = ["encode", "encode_all"]

_BUDGET = 900_000  # bytes of all pictures of a page together
_LEAST = 12_000  # bytes that each may have all the same
_LONGEST = 1440  # pixels
_SMALLEST = 160
_QUALITIES = (88, 80, 70, 60)


def encode_all(images: Sequence[Image.Image | None]) -> list[bytes | None]:
    """Encode the pictures of a page as JPEG, about 900 kB together.

    Parameters
    ----------
    images : sequence of PIL images or None

    Returns
    -------
    list of bytes or None
        None where there was none.
    """
    count = sum(image is not None for image in images)
    budget = max(_LEAST, _BUDGET // max(1, count))
    return [None if image is None else encode(image, budget) for image in images]


def encode(image: Image.Image, budget: int = _BUDGET) -> bytes:
    """Encode a picture as JPEG: its pixels alone, no EXIF, comment or profile.

    Its longer side is 1,440 pixels at most. What is over the budget loses quality first, then size, down to 160 pixels.

    Parameters
    ----------
    image : PIL.Image.Image
    budget : int
        Bytes.

    Returns
    -------
    bytes
    """
    picture = image.convert("RGB")
    longest = min(_LONGEST, max(picture.size))
    while True:
        shown = picture.copy()
        if longest < max(picture.size):
            shown.thumbnail((longest, longest), Image.Resampling.LANCZOS)
        # Pillow would write a comment that it has read.
        shown.info = {}
        data = b""
        for quality in _QUALITIES:
            made = io.BytesIO()
            # Not optimize=True: Pillow gives it too small a buffer for pictures that are all detail, and it fails.
            shown.save(made, format="JPEG", quality=quality, subsampling=0 if quality > 85 else 2)
            data = made.getvalue()
            if len(data) <= budget:
                return data
        if longest <= _SMALLEST:
            return data
        longest = max(_SMALLEST, longest * 3 // 4)
