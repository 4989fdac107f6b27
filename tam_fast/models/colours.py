"""Pictures of any mode as RGB: :func:`to_rgb`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    import numpy as np

__all__ = ["to_rgb"]


def to_rgb(image: Image.Image) -> Image.Image:
    """Bring a PIL image of any mode to RGB: transparency on white, 16 and 32 bits scaled to 8.

    Grey of 16 bits is scaled by 65535; of 32 bits by 255, 65535 or its largest value, the first that holds it; of
    floats by 1, 255 or its largest value. Values below zero shift black down to the smallest, and white to the largest
    unless all lie within -1 and 1. NaN is black; infinities are black and white.

    Parameters
    ----------
    image : PIL.Image.Image

    Returns
    -------
    PIL.Image.Image
        A new one, without the other's metadata.

    Raises
    ------
    ValueError
        If Pillow cannot convert the mode.
    """
    if image.mode.startswith("I") or image.mode == "F":
        return _from_grey(image)
    if image.mode == "LAB":
        image = _from_lab(image)
    elif image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        key = image.info.get("transparency")
        if image.mode == "RGB" and isinstance(key, tuple) and max(key) > 255:
            # Of 16 bits a channel, of which Pillow keeps the upper 8.
            image = image.copy()
            image.info["transparency"] = tuple(value >> 8 for value in key)
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    picture = Image.new("RGB", image.size)
    picture.paste(image.convert("RGB"))
    return picture


def _from_grey(image: Image.Image) -> Image.Image:
    """Scale grey of 16 or 32 bits, or of floats, to 8 bits."""
    import numpy as np

    values = np.asarray(image)
    # In strips: the same in float64 would take eight bytes a pixel several times over.
    rows = max(1, (1 << 20) // values.shape[1])
    strips = [slice(row, row + rows) for row in range(0, values.shape[0], rows)]
    extremes = [_extremes(values[place]) for place in strips]
    smallest, largest = min(low for low, _ in extremes), max(high for _, high in extremes)
    if smallest > largest:
        smallest = largest = 0.0
    bottom, top = min(smallest, 0.0), largest
    if image.mode == "F":
        if bottom >= -1.0 and largest <= 1.0:
            top = 1.0
        elif bottom == 0.0:
            top = max(255.0, largest)
    elif image.mode.startswith("I;16"):
        top = max(65535.0, largest)
    elif bottom == 0.0:
        top = 255.0 if largest <= 255.0 else max(65535.0, largest)
    scale = 255.0 / ((top - bottom) or 1.0)
    grey = np.empty(values.shape, np.uint8)
    for place in strips:
        numbers = np.nan_to_num(values[place].astype(np.float64), nan=bottom, posinf=top, neginf=bottom)
        grey[place] = (numbers.clip(bottom, top) - bottom) * scale + 0.5
    key = image.info.get("transparency")
    if isinstance(key, int):
        grey[values == key] = 255
    return Image.fromarray(grey).convert("RGB")


def _extremes(values: np.ndarray[Any, Any]) -> tuple[float, float]:
    """Return the smallest and the largest finite value; plus and minus infinity where there is none."""
    import numpy as np

    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if finite.size else (math.inf, -math.inf)


def _from_lab(image: Image.Image) -> Image.Image:
    from PIL import ImageCms

    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
    assert converted is not None  # only in place is there nothing to return
    return converted
