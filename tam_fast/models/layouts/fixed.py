"""Grids of models that bring every image to one size: LLaVA-1.5."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tam_fast.maps.grid import Grid
from tam_fast.models.errors import ModelNotSupportedError
from tam_fast.models.layouts.rows import pixtral_grids
from tam_fast.models.layouts.source import VisualInput, visual_runs

__all__ = [
    "centred_grids",
    "crop_box",
    "fixed_grids",
    "gemma3_grids",
    "got_ocr_grids",
    "llava_grids",
    "square_grids",
    "video_llava_grids",
]

# Vision towers whose patches, without the class token, are one row-major raster of the pixels they were given.
_RASTER_TOWERS = ("clip_vision_model", "siglip_vision_model")


def llava_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of model type ``llava``: LLaVA-1.5's, or Pixtral's where that is the vision tower."""
    if source.config.vision_config.model_type == "pixtral":
        return pixtral_grids(source)
    return fixed_grids(source)


def fixed_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of models that bring every image to one size: LLaVA-1.5's 24 x 24.

    The processor scales and crops about the centre; ``box`` says which part of the source is left.

    Parameters
    ----------
    source : VisualInput
        With ``pixel_values`` (n, 3, H, W) among the inputs.

    Returns
    -------
    list of Grid
        One an image.

    Raises
    ------
    ModelNotSupportedError
        If the vision tower is of another kind, or the image tokens are not as many as its patches.
    """
    vision = source.config.vision_config
    if vision.model_type not in _RASTER_TOWERS:
        raise ModelNotSupportedError(
            f"model: expected a vision tower of type {' or '.join(_RASTER_TOWERS)} in model type "
            f"{source.model_type!r}, got {vision.model_type!r}: missing is the layout of its tokens"
        )
    pixels = source.inputs.get("pixel_values")
    sizes = source.sizes()
    images = len(sizes)
    if not isinstance(pixels, Tensor) or pixels.ndim != 4 or pixels.shape[0] != images:
        got = tuple(pixels.shape) if isinstance(pixels, Tensor) else type(pixels).__name__
        raise ModelNotSupportedError(
            f"processor: expected pixel_values ({images}, 3, H, W) for {images} images, got {got}"
        )
    height, width = (int(side) // int(vision.patch_size) for side in pixels.shape[-2:])
    meaning = f"{height} x {width} patches an image"
    runs = visual_runs(source, "image", [height * width] * images, meaning)
    boxes = [crop_box(source.processor.image_processor, size) for size in sizes]
    return [
        Grid(run, height, width, "image", index, 0, box)
        for index, (run, box) in enumerate(zip(runs, boxes, strict=True))
    ]


def _field(size: Any, name: str) -> int | None:
    """Read one entry of a size, which is a dict or an object, by version."""
    value = size.get(name) if isinstance(size, Mapping) else getattr(size, name, None)
    return None if value is None else int(value)


def crop_box(image_processor: Any, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Work out which part of an image is left after a processor's resize and centre crop.

    Parameters
    ----------
    image_processor : transformers image processor
        Its ``do_resize``, ``size``, ``do_center_crop`` and ``crop_size`` are read.
    size : (width, height)
        Of the source, in pixels.

    Returns
    -------
    (x0, y0, x1, y1)
        Fractions of the source's width and height; beyond 0..1 where the crop is larger than the image and pads it.

    Raises
    ------
    ModelNotSupportedError
        If the processor resizes in a way that is not known here.
    """
    width, height = size
    if getattr(image_processor, "do_resize", False):
        target = image_processor.size
        shortest, fixed = _field(target, "shortest_edge"), (_field(target, "width"), _field(target, "height"))
        if shortest is not None and _field(target, "longest_edge") is None:
            short, long = sorted(size)
            # The longer side is cut off to whole pixels, as the processors do.
            other = int(shortest * long / short)
            width, height = (shortest, other) if width <= height else (other, shortest)
        elif fixed[0] is not None and fixed[1] is not None:
            width, height = fixed[0], fixed[1]
        else:
            raise ModelNotSupportedError(
                f"processor: expected a size with shortest_edge, or with height and width, got {target!r}"
            )
    if not getattr(image_processor, "do_center_crop", False):
        return (0.0, 0.0, 1.0, 1.0)
    crop = image_processor.crop_size
    edges: list[tuple[float, float]] = []
    for side, kept in ((width, _field(crop, "width")), (height, _field(crop, "height"))):
        if kept is None:
            raise ModelNotSupportedError(f"processor: expected a crop_size with height and width, got {crop!r}")
        first = (side - kept) // 2
        edges.append((first / side, (first + kept) / side))
    (x0, x1), (y0, y1) = edges
    return (x0, y0, x1, y1)


def video_llava_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of Video-LLaVA."""
    raise ModelNotSupportedError(f"model: the layout of {source.model_type} is not written yet")


def square_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of PaliGemma."""
    raise ModelNotSupportedError(f"model: the layout of {source.model_type} is not written yet")


def gemma3_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of Gemma 3."""
    raise ModelNotSupportedError(f"model: the layout of {source.model_type} is not written yet")


def centred_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of Janus and DeepSeek-VL."""
    raise ModelNotSupportedError(f"model: the layout of {source.model_type} is not written yet")


def got_ocr_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of GOT-OCR 2."""
    raise ModelNotSupportedError(f"model: the layout of {source.model_type} is not written yet")
