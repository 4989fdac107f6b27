"""Tiles that tokens of the prompt tell apart, the whole image last: Idefics 3, SmolVLM, LFM2-VL, Llama 4, Step 3."""

from __future__ import annotations

import math
from typing import Any

from tam_fast.maps.grid import Grid
from tam_fast.models.layouts.marks import Picture, Square, by_ends, by_names, cut, grids_of, shape_of, sizes_of
from tam_fast.models.layouts.source import Box, VisualInput, field_of, marked_id, runs_of, visual_runs

__all__ = ["idefics3_grids", "lfm2_grids", "llama4_grids", "step3_grids", "unlimited_ocr_grids"]


def idefics3_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of Idefics 3, SmolVLM and Granite Docling: tiles called ``<row_r_col_c>``, then the whole image.

    The image is stretched to whole tiles. An image of one tile is shown once: as ``<global-img>`` by Idefics 3 and
    SmolVLM, as ``<row_1_col_1>`` by Granite Docling.

    Parameters
    ----------
    source : VisualInput
        With ``pixel_values`` (1, n, 3, H, H) among the inputs, all tiles of all images.

    Returns
    -------
    list of Grid

    Raises
    ------
    ModelNotSupportedError
        If names, tiles and visual tokens do not fit together.
    """
    config, vision = source.config, source.config.vision_config
    scale = field_of(config, "scale_factor") or field_of(vision, "scale_factor") or 1
    if source.inputs.get("tile_fine_mask") is not None:  # Granite Docling's fine path: four times as many tokens
        scale //= 2
    count, _, side = shape_of(source, "pixel_values", 5)[1:4]
    square = cut(source, side, int(vision.patch_size), scale)
    runs = runs_of(source)
    if len(runs) != count:
        raise source.refuse(f"{count} runs of image tokens (pixel_values)", f"{len(runs)}")
    tag = next(filter(None, (getattr(source.processor, f"global_image_{name}", None) for name in ("tag", "token"))), "")
    pictures = by_names(source, runs, str(tag) or "<global-img>")
    for picture in pictures:
        if picture.whole is None and sum(map(len, picture.rows)) > 1:
            raise source.refuse("the whole image behind its tiles", f"{sum(map(len, picture.rows))} tiles alone")
    return grids_of(source, runs, pictures, [square] * count)


def lfm2_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of LFM2-VL: tiles called ``<|img_row_r_col_c|>``, then a thumbnail in its own proportions.

    The image is stretched to whole tiles, and to whole cells for the thumbnail. A small image is shown by that alone.

    Parameters
    ----------
    source : VisualInput
        With ``spatial_shapes`` (n, 2) among the inputs: patches of every tile and thumbnail, height first.

    Returns
    -------
    list of Grid

    Raises
    ------
    ValueError
        If the images' sizes are not known, and the processor wrote no names (``use_image_special_tokens``).
    ModelNotSupportedError
        If names, tiles and visual tokens do not fit together.
    """
    factor = field_of(source.config, "downsample_factor") or 1
    shapes = source.rows("spatial_shapes", 2)
    for height, width in shapes:
        if height % factor or width % factor:
            raise source.refuse(f"spatial_shapes of multiples of {factor}", [height, width])
    shapes = [[height // factor, width // factor] for height, width in shapes]
    runs = runs_of(source)
    first, last = (
        str(getattr(source.processor, f"image_{name}_token", default))
        for name, default in (("start", "<|image_start|>"), ("thumbnail", "<|img_thumbnail|>"))
    )
    marks = {marked_id(source, first), marked_id(source, last)} - {None}
    if not marks.intersection(source.input_ids.tolist()):
        parts = visual_runs(source, "image", [h * w for h, w in shapes], f"spatial_shapes / {factor}^2")
        pictures = _unnamed(source, len(shapes), factor)
        return grids_of(source, [(int(part[0]), int(part[-1]) + 1) for part in parts], pictures, shapes)
    if len(runs) != len(shapes):
        raise source.refuse(f"{len(shapes)} runs of image tokens (spatial_shapes)", f"{len(runs)}")
    return grids_of(source, runs, by_names(source, runs, last, first), shapes)


def _unnamed(source: VisualInput, count: int, factor: int) -> list[Picture]:
    """Tell by the images' sizes how many tiles each has, as the processor of LFM2-VL does."""
    images = source.image_processor
    cell = images.encoder_patch_size * factor
    most = images.max_image_tokens * cell**2 * images.max_pixels_tolerance
    tilings = [
        (columns, area // columns)
        for area in range(images.min_tiles, images.max_tiles + 1)
        for columns in range(1, area + 1)
        if area % columns == 0
    ]
    pictures, start = [], 0
    for width, height in source.sizes():
        columns = rows = 1
        area = math.prod(max(images.encoder_patch_size, round(side / cell) * cell) for side in (width, height))
        if images.do_image_splitting and area > most:
            # The nearest proportions; of those as near, more tiles for an image that fills half of them.
            far = math.inf
            for across, down in tilings:
                off = abs(width / height - across / down)
                if off < far or (off == far and 2 * width * height > images.tile_size**2 * across * down):
                    columns, rows, far = across, down, off
        tiles = rows * columns if rows * columns > 1 else 0
        places = [[start + row * columns + column for column in range(columns)] for row in range(rows if tiles else 0)]
        start += tiles
        whole = not tiles or images.use_thumbnail
        pictures.append(Picture(places, start if whole else None))
        start += whole
    if start != count:
        raise source.refuse(f"{start} tiles and whole images", f"{count} (spatial_shapes)")
    return pictures


def llama4_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of Llama 4: tiles between separators, then the whole image behind ``<|image|>``.

    The image keeps its proportions in the upper left of the tiles, so that cells at the right or below, and whole
    tiles, may see padding only; behind the tiles it is stretched. An image of one tile is shown by that alone.

    Parameters
    ----------
    source : VisualInput
        With ``pixel_values`` (n, 3, H, H) among the inputs, all tiles of all images; and the images' sizes.

    Returns
    -------
    list of Grid

    Raises
    ------
    ValueError
        If the images' sizes are not known.
    ModelNotSupportedError
        If separators, tiles and visual tokens do not fit together.
    """
    count, _, side = shape_of(source, "pixel_values", 4)[:3]
    vision = source.config.vision_config
    square = cut(source, side, int(vision.patch_size), round(1 / float(vision.pixel_shuffle_ratio)))
    runs = runs_of(source)
    if len(runs) != count:
        raise source.refuse(f"{count} runs of image tokens (pixel_values)", f"{len(runs)}")
    ids = [*source.input_ids.tolist(), -1]
    across, down, whole = (
        marked_id(source, token) for token in ("<|tile_x_separator|>", "<|tile_y_separator|>", "<|image|>")
    )
    ends = [
        "whole" if ids[start - 1] == whole else "tile" if ids[stop] == across else "row" if ids[stop] == down else ""
        for start, stop in runs
    ]
    pictures = by_ends(source, ends)
    sizes = sizes_of(source, len(pictures))
    largest = bool(getattr(source.image_processor, "resize_to_max_canvas", False))
    canvases = []
    for picture, size in zip(pictures, sizes, strict=True):
        rows, columns = max(len(picture.rows), 1), max(map(len, picture.rows), default=1)
        width, height = _fitted(size, (columns * side, rows * side), None if largest else side)
        canvases.append((columns * side / width, rows * side / height))
    # One tile alone is padded as several are.
    wholes = [(1.0, 1.0) if picture.rows else canvas for picture, canvas in zip(pictures, canvases, strict=True)]
    return grids_of(source, runs, pictures, [square] * count, canvases, wholes)


def _fitted(size: tuple[int, int], canvas: tuple[int, int], most: int | None) -> tuple[int, int]:
    """Fit an image into a canvas (width, height); its sides are enlarged to `most` at most."""
    if most is not None:
        canvas = (min(max(size[0], most), canvas[0]), min(max(size[1], most), canvas[1]))
    across, down = canvas[0] / size[0], canvas[1] / size[1]
    if across < down:
        return canvas[0], max(1, min(math.floor(size[1] * across), canvas[1]))
    return max(1, min(math.floor(size[0] * down), canvas[0])), canvas[1]


def step3_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of Step 3.7: tiles in ``<patch_start>`` and ``<patch_end>``, then the whole image.

    The image is stretched to whole tiles, and to one square behind them. One that is narrow and long is padded to a
    square first, at the right or below.

    Parameters
    ----------
    source : VisualInput
        With ``pixel_values`` (images, 3, H, H) and ``pixel_values_local`` (tiles, 3, h, h) among the inputs; and the
        images' sizes.

    Returns
    -------
    list of Grid

    Raises
    ------
    ValueError
        If the images' sizes are not known.
    ModelNotSupportedError
        If marks, tiles and visual tokens do not fit together.
    """
    patch = int(source.config.vision_config.patch_size)
    counts = {
        name: shape_of(source, name, 4)
        for name in ("pixel_values", "pixel_values_local")
        if source.inputs.get(name) is not None
    }
    squares = {name: cut(source, shape[-1], patch, 4) for name, shape in counts.items()}
    runs = runs_of(source)
    ids = [*source.input_ids.tolist(), -1, -1]
    start_of_whole, end_of_tile, end_of_row = (
        marked_id(source, token) for token in ("<im_start>", "<patch_end>", "<patch_newline>")
    )
    ends = [
        ("row" if ids[stop + 1] in (end_of_row, start_of_whole) else "tile")
        if ids[stop] == end_of_tile
        else "whole"
        if ids[start - 1] == start_of_whole
        else ""
        for start, stop in runs
    ]
    found = ends.count("whole"), len(runs) - ends.count("whole")
    expected = tuple(counts.get(name, (0,))[0] for name in ("pixel_values", "pixel_values_local"))
    if found != expected:
        raise source.refuse(f"{expected[0]} whole images and {expected[1]} tiles", f"{found[0]} and {found[1]}")
    pictures = by_ends(source, ends)
    canvases = []
    for width, height in sizes_of(source, len(pictures)):
        side = max(width, height)
        square = min(width, height) < 32 and side > 4 * min(width, height)
        canvases.append((side / width, side / height) if square else (1.0, 1.0))
    names = ["pixel_values" if end == "whole" else "pixel_values_local" for end in ends]
    return grids_of(source, runs, pictures, [squares[name] for name in names], canvases, wholes=canvases)


def unlimited_ocr_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of Unlimited-OCR: tiles as one raster, then the whole image, each row with one token more.

    The image is stretched to whole tiles, and padded to a square about its centre behind them. Rows end in a newline
    and the image in a separator, under the images' id.

    Parameters
    ----------
    source : VisualInput
        With ``pixel_values`` (images, 3, H, H), ``pixel_values_local`` (tiles, 3, h, h), ``num_local_patches`` (images)
        and ``patches_grid`` (images, 2) among the inputs, columns first; and the images' sizes.

    Returns
    -------
    list of Grid

    Raises
    ------
    ValueError
        If the images' sizes are not known.
    ModelNotSupportedError
        If tiles and visual tokens do not fit together.
    """
    patch = int(source.config.vision_config.sam_config.patch_size)
    images, _, side = shape_of(source, "pixel_values", 4)[:3]
    whole = cut(source, side, patch, 4)
    tile = Square(0)
    if source.inputs.get("pixel_values_local") is not None:
        tile = cut(source, shape_of(source, "pixel_values_local", 4)[-1], patch, 4)
    shapes = source.rows("patches_grid", 2)
    found = source.inputs.get("num_local_patches")
    counts = [] if found is None else [int(count) for count in found]
    if not len(shapes) == len(counts) == images:
        raise source.refuse(f"patches_grid and num_local_patches of {images} images", f"{len(shapes)}, {len(counts)}")
    rasters = [
        (rows * tile.cells, columns * tile.cells) if count else (0, 0)
        for (columns, rows), count in zip(shapes, counts, strict=True)
    ]
    expected = [h * (w + 1) + whole.cells * (whole.cells + 1) + 1 for h, w in rasters]
    grids = []
    runs = visual_runs(source, "image", expected, "tiles, whole image, newlines and a separator")
    for index, (run, (height, width), size) in enumerate(zip(runs, rasters, sizes_of(source, images), strict=True)):
        start = height * (width + 1)
        if height:
            cells = run[:start].reshape(height, width + 1)[:, :-1].flatten()
            grids.append(Grid(cells, height, width, "tile", index, 0, (0.0, 0.0, tile.covered, tile.covered)))
        n = whole.cells
        cells = run[start:-1].reshape(n, n + 1)[:, :-1].flatten()
        box = _padded_about_centre(source.image_processor, size, side, whole.covered)
        grids.append(Grid(cells, n, n, "overview" if height else "image", index, 0, box))
    return grids


def _padded_about_centre(image_processor: Any, size: tuple[int, int], side: int, covered: float) -> Box:
    """Work out which part of an image a square shows that it is padded to."""
    if not image_processor.crop_to_patches and side <= image_processor.maximum_pad_value:
        return (0.0, 0.0, covered, covered)
    scale = side / max(size)
    edges = []
    for content in (round(length * scale) for length in size):
        before = (side - content) // 2
        edges.append((-before / content, (side * covered - before) / content))
    (x0, x1), (y0, y1) = edges
    return (x0, y0, x1, y1)
