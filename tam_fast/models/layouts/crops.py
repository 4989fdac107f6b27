"""Grids of models of one fixed raster an image that may be asked for crops or tiles of it: Gemma 3, GOT-OCR 2."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tam_fast.maps.grid import Grid
from tam_fast.models.layouts.source import Box, VisualInput, runs_of, visual_runs
from tam_fast.models.layouts.tiles import nearest_canvas

__all__ = ["gemma3_grids", "got_ocr_grids"]

_WHOLE: Box = (0.0, 0.0, 1.0, 1.0)
_CROPS_FOLLOW = "and here are some crops to help you see better"  # Gemma 3's processor between an image and its crops


def gemma3_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of Gemma 3: the whole image, stretched, and behind it the crops of pan and scan, if asked for.

    Crops are strips across the longer side, each of ceil(side / n) pixels. How many an image has follows from the text
    around them; where it does not, because images follow without a word, from the processor's rule.

    Parameters
    ----------
    source : VisualInput
        With ``pixel_values`` (n, 3, side, side) among the inputs; and the images' sizes if there are crops.

    Returns
    -------
    list of Grid
        Of each image one of kind "image", or one "overview" and its crops.

    Raises
    ------
    ValueError
        If there are crops and the images' sizes are missing.
    ModelNotSupportedError
        If the visual tokens are not as many as the pictures' cells, or crops do not follow the processor's rule.
    """
    pixels = _squares(source)
    vision = source.config.vision_config
    patch, side = int(vision.patch_size), int(pixels.shape[-1])
    # Cells are means of patches; what makes no whole cell is left out.
    pooled = (side // patch) // math.isqrt(int(source.config.mm_tokens_per_image))
    cells = (side // patch) // max(pooled, 1)
    part = cells * pooled * patch / side
    runs = visual_runs(source, "image", [cells * cells] * int(pixels.shape[0]), f"{cells} x {cells} a picture")
    grids: list[Grid] = []
    place = 0
    for index, crops in enumerate(_crops(source, runs)):
        boxes = [_WHOLE, *(_strips(source.sizes()[index], crops) if crops else [])]
        for number, box in enumerate(boxes):
            kind = "crop" if number else "overview" if crops else "image"
            grids.append(Grid(runs[place], cells, cells, kind, index, 0, _begin(box, part)))
            place += 1
    return grids


def _crops(source: VisualInput, runs: list[Tensor]) -> list[int]:
    """Say how many crops follow each image."""
    tokenizer = source.processor.tokenizer
    flagged = []
    for index, (before, after) in enumerate(itertools.pairwise(runs)):
        between = source.input_ids[int(before[-1]) + 1 : int(after[0])]
        if _CROPS_FOLLOW in str(tokenizer.decode(between, skip_special_tokens=True)):
            flagged.append(index)
    if not flagged or (source.image_sizes is not None and len(source.image_sizes) == len(runs)):
        return [0] * len(runs)
    images = len(source.sizes())
    if len(flagged) == images and flagged[0] == 0:
        return [stop - start - 1 for start, stop in zip(flagged, [*flagged[1:], len(runs)], strict=True)]
    expected = [_number_of_crops(source, size) for size in source.sizes()]
    starts = [sum(expected[:index]) + index for index in range(images)]
    if sum(expected) + images != len(runs) or flagged != [
        start for start, crops in zip(starts, expected, strict=True) if crops
    ]:
        counts = " + ".join(str(1 + crops) for crops in expected)
        raise source.refuse(f"{counts} pictures (images and crops)", f"{len(runs)}, with crops behind {flagged}")
    return expected


def _number_of_crops(source: VisualInput, size: tuple[int, int]) -> int:
    """Count the crops of an image of some size (width, height): the rule of pan and scan."""
    least = int(_setting(source, "pan_and_scan_min_crop_size", 256))
    most = int(_setting(source, "pan_and_scan_max_num_crops", 4))
    short, long = sorted(size)
    if long / short < float(_setting(source, "pan_and_scan_min_ratio_to_activate", 1.2)):
        return 0
    count = min(most, max(2, min(long // least, math.floor(long / short + 0.5))))
    return count if min(math.ceil(long / count), short) >= least else 0


def _strips(size: tuple[int, int], count: int) -> list[Box]:
    """Cut an image (width, height) into strips across its longer side."""
    width, height = size
    side = max(size)
    step = math.ceil(side / count)
    edges = [(start / side, min(start + step, side) / side) for start in range(0, step * count, step)]
    return [(low, 0.0, high, 1.0) if width >= height else (0.0, low, 1.0, high) for low, high in edges]


def got_ocr_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of GOT-OCR 2 and PP-Chart2Table: the whole image, or tiles and then the whole if asked for.

    With ``crop_to_patches`` an image is stretched over a canvas of tiles (:func:`tam_fast.models.layouts.tiles
    .nearest_canvas`); its tiles, row-major, and the whole stand in one run.

    Parameters
    ----------
    source : VisualInput
        With ``pixel_values`` (n, 3, side, side) among the inputs; and the images' sizes if there are tiles.

    Returns
    -------
    list of Grid
        Of each image one of kind "image", or its tiles and one "overview".

    Raises
    ------
    ValueError
        If there are tiles and the images' sizes are missing.
    ModelNotSupportedError
        If the visual tokens are not as many as the pictures' cells, or tiles do not follow the processor's rule.
    """
    pixels = _squares(source)
    patch, side = int(source.config.vision_config.patch_size), int(pixels.shape[-1])
    patches = side // patch
    # Two convolutions halve the raster of patches, and round up.
    cells = math.ceil(patches / 4)
    part = cells * 4 * patch / side
    pictures = int(pixels.shape[0])
    runs = visual_runs(source, "image", [cells * cells] * pictures, f"{cells} x {cells} a picture")
    canvases = _canvases(source, pictures, cells * cells, side)
    grids: list[Grid] = []
    place = 0
    for index, (columns, rows) in enumerate(canvases):
        tiles = columns * rows if columns * rows > 1 else 0
        for number in range(tiles):
            row, column = divmod(number, columns)
            box = (column / columns, row / rows, (column + 1) / columns, (row + 1) / rows)
            grids.append(Grid(runs[place], cells, cells, "tile", index, 0, _begin(box, part)))
            place += 1
        grids.append(Grid(runs[place], cells, cells, "overview" if tiles else "image", index, 0, _begin(_WHOLE, part)))
        place += 1
    return grids


def _canvases(source: VisualInput, pictures: int, count: int, side: int) -> list[tuple[int, int]]:
    """Say how many columns and rows of tiles each image has."""
    images = pictures if source.image_sizes is None else len(source.image_sizes)
    # No image has two pictures: two tiles come with the whole. What stands together may be several images.
    alone = all(stop - start in (count, 2 * count) for start, stop in runs_of(source))
    if images == pictures and (alone or source.image_sizes is not None):
        return [(1, 1)] * pictures
    least, most = int(_setting(source, "min_patches", 1)), int(_setting(source, "max_patches", 12))
    canvases = [nearest_canvas(size, (side, side), least, most) for size in source.sizes()]
    expected = [columns * rows + (columns * rows > 1) for columns, rows in canvases]
    # Where other tokens stand between two pictures, one image ends.
    ends = set(itertools.accumulate(expected))
    found = list(itertools.accumulate((stop - start) // count for start, stop in runs_of(source)))
    if sum(expected) != pictures or not ends.issuperset(found):
        raise source.refuse(
            f"{' + '.join(map(str, expected))} pictures (tiles and whole images, with min_patches {least} and "
            f"max_patches {most})",
            f"{pictures}, in runs that end behind {', '.join(map(str, found))}",
        )
    return canvases


def _begin(box: Box, part: float) -> Box:
    """Take the first part of a box across and down: that on which there are cells."""
    return (box[0], box[1], box[0] + part * (box[2] - box[0]), box[1] + part * (box[3] - box[1]))


def _squares(source: VisualInput) -> Tensor:
    """Read the pixels (n, 3, side, side)."""
    pixels = source.inputs.get("pixel_values")
    if not isinstance(pixels, Tensor) or pixels.ndim != 4 or pixels.shape[-1] != pixels.shape[-2]:
        got = tuple(pixels.shape) if isinstance(pixels, Tensor) else type(pixels).__name__
        raise source.refuse("pixel_values (n, 3, side, side)", got)
    return pixels


def _setting(source: VisualInput, name: str, default: Any) -> Any:
    """Read what the image processor was given, else what the processor hands to it, else what transformers does."""
    switched = any(getattr(source.image_processor, switch, False) for switch in ("do_pan_and_scan", "crop_to_patches"))
    own = getattr(source.image_processor, name, None)
    if switched and own is not None:
        return own
    options = getattr(source.processor, "images_kwargs", None)
    value = options.get(name) if isinstance(options, Mapping) else None
    if value is None:
        value = own
    return default if value is None else value
