"""Grids of models that bring every image to one size: LLaVA-1.5, PaliGemma, Janus and others."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from tam_fast.maps.grid import Grid
from tam_fast.models.errors import ModelNotSupportedError
from tam_fast.models.layouts.crops import gemma3_grids, got_ocr_grids
from tam_fast.models.layouts.rows import pixtral_grids
from tam_fast.models.layouts.source import Box, VisualInput, field_of, visual_runs

__all__ = [
    "centred_grids",
    "chameleon_grids",
    "crop_box",
    "fixed_grids",
    "gemma3_grids",
    "got_ocr_grids",
    "llava_grids",
    "square_grids",
    "video_llava_grids",
]

# Vision towers whose patches are one row-major raster of the pixels they were given, and whether a class token leads.
_RASTER_TOWERS = {"clip_vision_model": True, "siglip_vision_model": False}


def llava_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of model type ``llava``: LLaVA-1.5's, or Pixtral's where that is the vision tower."""
    if source.config.vision_config.model_type == "pixtral":
        return pixtral_grids(source)
    return fixed_grids(source)


def fixed_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of models whose tower's patches are the visual tokens: LLaVA-1.5's 24 x 24.

    The processor scales and crops about the centre, or pads to a square; ``box`` says which part of the source a grid
    covers. Where that does not depend on the image's size (PaliGemma stretches), sizes are not needed.

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
    ValueError
        If the images' sizes are needed and missing.
    ModelNotSupportedError
        If the vision tower is of another kind, or the image tokens are not as many as its patches.
    """
    return _patches(source, "pixel_values")


def video_llava_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of Video-LLaVA's images: as :func:`fixed_grids`, under another name of the pixels.

    Parameters
    ----------
    source : VisualInput
        With ``pixel_values_images`` or ``pixel_values`` among the inputs.

    Returns
    -------
    list of Grid

    Raises
    ------
    ValueError, ModelNotSupportedError
        As :func:`fixed_grids`.
    """
    return _patches(source, "pixel_values_images" if "pixel_values_images" in source.inputs else "pixel_values")


def square_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of models with as many visual tokens for every image, a square: Gemma 3n, FastVLM.

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
    ValueError
        If the images' sizes are needed and missing.
    ModelNotSupportedError
        If the image tokens are no square an image.
    """
    pixels = _pixels(source, "pixel_values")
    images = int(pixels.shape[0])
    total = _count(source)
    side = math.isqrt(total // images)
    if side * side * images != total:
        raise source.refuse(f"a square of visual tokens for each of {images} images", total)
    return _grids(source, images, (side, side), f"{side} x {side} an image")


def chameleon_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of Chameleon: one code of its VQ encoder a cell, which halves the picture's sides several times.

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
    ValueError
        If the images' sizes are needed and missing.
    ModelNotSupportedError
        If the image tokens are not as many as the codes.
    """
    pixels = _pixels(source, "pixel_values")
    cell = 2 ** (len(source.config.vq_config.channel_multiplier) - 1)
    height, width = (int(side) // cell for side in pixels.shape[-2:])
    part = (width * cell / int(pixels.shape[-1]), height * cell / int(pixels.shape[-2]))
    return _grids(source, int(pixels.shape[0]), (height, width), f"{height} x {width} codes an image", part)


def centred_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of Janus and DeepSeek-VL: the image is padded to a square about its centre.

    Parameters
    ----------
    source : VisualInput
        With ``pixel_values`` (n, 3, side, side) among the inputs, and the images' sizes.

    Returns
    -------
    list of Grid
        One an image; its box reaches beyond the image, and cells of padding see nothing.

    Raises
    ------
    ValueError
        If the images' sizes are missing.
    ModelNotSupportedError
        If the image tokens are not as many as the patches.
    """
    pixels = _pixels(source, "pixel_values")
    patch = int(source.config.vision_config.patch_size)
    cells = tuple(int(side) // patch for side in pixels.shape[-2:])
    settings = source.image_processor
    # The hybrid model's smaller picture is made of its larger one, padding included.
    size = getattr(settings, "high_res_size", None) or settings.size
    target, least = field_of(size, "height") or 0, int(getattr(settings, "min_size", 1))

    def framed(image: tuple[int, int]) -> Box:
        if not getattr(settings, "do_pad", True):
            return (0.0, 0.0, 1.0, 1.0)
        if settings.do_resize:
            # Python's own rounding, half to even, as the processor's.
            scale = target / max(image)
            image = (max(round(image[0] * scale), least), max(round(image[1] * scale), least))
        return _squared(image)

    part = (cells[1] * patch / int(pixels.shape[-1]), cells[0] * patch / int(pixels.shape[-2]))
    meaning = f"{cells[0]} x {cells[1]} patches an image"
    return _grids(source, int(pixels.shape[0]), (cells[0], cells[1]), meaning, part, framed)


def crop_box(image_processor: Any, size: tuple[int, int]) -> Box:
    """Work out which part of an image is left after a processor's padding to a square, resize and centre crop.

    Parameters
    ----------
    image_processor : transformers image processor
        Its ``do_resize``, ``size``, ``do_center_crop`` and ``crop_size`` are read; and ``do_pad``, where it is one that
        pads to a square.
    size : (width, height)
        Of the source, in pixels.

    Returns
    -------
    (x0, y0, x1, y1)
        Fractions of the source's width and height; beyond 0..1 where the processor pads.

    Raises
    ------
    ModelNotSupportedError
        If the processor resizes in a way that is not known here.
    """
    width, height = size
    square: Box = (0.0, 0.0, 1.0, 1.0)
    if _pads_to_square(image_processor):
        square = _squared(size)
        width = height = max(size)
    if getattr(image_processor, "do_resize", False):
        target = image_processor.size
        shortest, fixed = field_of(target, "shortest_edge"), (field_of(target, "width"), field_of(target, "height"))
        if shortest is not None and field_of(target, "longest_edge") is None:
            short, long = sorted((width, height))
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
        return square
    crop = image_processor.crop_size
    edges: list[tuple[float, float]] = []
    for side, kept in ((width, field_of(crop, "width")), (height, field_of(crop, "height"))):
        if kept is None:
            raise ModelNotSupportedError(f"processor: expected a crop_size with height and width, got {crop!r}")
        first = (side - kept) // 2
        edges.append((first / side, (first + kept) / side))
    return _inside(square, (edges[0][0], edges[1][0], edges[0][1], edges[1][1]))


def _pads_to_square(image_processor: Any) -> bool:
    return bool(getattr(image_processor, "do_pad", False)) and hasattr(image_processor, "pad_to_square")


def _squared(size: tuple[int, int]) -> Box:
    """Say which part of an image, far beyond it, a square about its centre is."""
    side = max(size)
    (left, top), (width, height) = ((side - edge) // 2 for edge in size), size
    return (-left / width, -top / height, (side - left) / width, (side - top) / height)


def _inside(outer: Box, part: Box) -> Box:
    """Turn fractions of a box into fractions of what the box is a part of."""
    width, height = outer[2] - outer[0], outer[3] - outer[1]
    return (
        outer[0] + part[0] * width,
        outer[1] + part[1] * height,
        outer[0] + part[2] * width,
        outer[1] + part[3] * height,
    )


def _patches(source: VisualInput, name: str) -> list[Grid]:
    """Build grids of a vision tower's patches."""
    vision = source.config.vision_config
    if vision.model_type not in _RASTER_TOWERS:
        raise ModelNotSupportedError(
            f"model: expected a vision tower of type {' or '.join(_RASTER_TOWERS)} in model type "
            f"{source.model_type!r}, got {vision.model_type!r}: missing is the layout of its tokens"
        )
    pixels = _pixels(source, name)
    patch = int(vision.patch_size)
    height, width = (int(side) // patch for side in pixels.shape[-2:])
    # "full" keeps the class token, which stands under the image's id and is no cell.
    full = getattr(source.config, "vision_feature_select_strategy", "default") == "full"
    leading = int(full and _RASTER_TOWERS[vision.model_type])
    # Pixels at the end that make no whole patch are not looked at.
    part = (width * patch / int(pixels.shape[-1]), height * patch / int(pixels.shape[-2]))
    meaning = f"{height} x {width} patches an image" + (" and a class token" if leading else "")
    return _grids(source, int(pixels.shape[0]), (height, width), meaning, part, leading=leading)


def _grids(
    source: VisualInput,
    images: int,
    shape: tuple[int, int],
    meaning: str,
    part: tuple[float, float] = (1.0, 1.0),
    framed: Callable[[tuple[int, int]], Box] | None = None,
    leading: int = 0,
) -> list[Grid]:
    """Make a grid an image.

    `part` says which share of the processed picture the cells cover, across and down; `framed` which part of a source
    of some size that picture shows (:func:`crop_box` if not given); `leading` how many tokens precede an image's cells.
    """
    settings = source.image_processor
    if framed is None and not _depends_on_size(settings):
        boxes = [crop_box(settings, (1, 1))] * images
    else:
        sizes = source.sizes()
        if len(sizes) != images:
            raise ValueError(f"image_sizes: expected (width, height) of {images} images, got {len(sizes)}")
        boxes = [crop_box(settings, size) if framed is None else framed(size) for size in sizes]
    height, width = shape
    runs = visual_runs(source, "image", [leading + height * width] * images, meaning)
    return [
        Grid(run[leading:], height, width, "image", index, 0, _inside(box, (0.0, 0.0, *part)))
        for index, (run, box) in enumerate(zip(runs, boxes, strict=True))
    ]


def _depends_on_size(image_processor: Any) -> bool:
    """Whether the part of an image that is left depends on the image's size."""
    if _pads_to_square(image_processor):
        return True
    stretched = getattr(image_processor, "do_resize", False) and field_of(image_processor.size, "height") is not None
    return bool(getattr(image_processor, "do_center_crop", False)) and not stretched


def _pixels(source: VisualInput, name: str) -> Tensor:
    """Read the pixels (n, 3, H, W)."""
    pixels = source.inputs.get(name)
    images = "n" if source.image_sizes is None else len(source.image_sizes)
    if not isinstance(pixels, Tensor) or pixels.ndim != 4 or images not in ("n", pixels.shape[0]):
        got = tuple(pixels.shape) if isinstance(pixels, Tensor) else type(pixels).__name__
        raise ModelNotSupportedError(f"processor: expected {name} ({images}, 3, H, W) for {images} images, got {got}")
    return pixels


def _count(source: VisualInput) -> int:
    """Count the image tokens."""
    from tam_fast.models.layouts.source import runs_of

    return sum(stop - start for start, stop in runs_of(source))
