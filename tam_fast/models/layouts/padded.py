"""Grids of models that keep an image's own size and pad it to whole cells: Kimi K2.5, GLM-5, Inkling."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

from tam_fast.maps.grid import Grid
from tam_fast.models.errors import ModelNotSupportedError
from tam_fast.models.layouts.source import VisualInput, field_of, visual_runs

__all__ = ["glm5_grids", "inkling_grids", "inkling_mm_grids", "kimi_grids"]


def kimi_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of Kimi K2.5: images that are at most made smaller, then padded at the right and below.

    ::

        scale = min(1, sqrt(max_patches / patches), side / height, side / width)

    Parameters
    ----------
    source : VisualInput
        With ``image_grid_thw`` (n, 3) among the inputs, in patches, and the sizes of the images.

    Returns
    -------
    list of Grid
        One an image. Its box reaches beyond 1 where cells are padding, by less than a cell.

    Raises
    ------
    ModelNotSupportedError
        If the grids are not those of images of these sizes, or not as many cells as visual tokens; or there is a video.
    ValueError
        If the sizes of the images are not known.
    """
    kernel = source.config.vision_config.merge_kernel_size
    merge = [int(side) for side in (kernel if isinstance(kernel, Sequence) else (kernel, kernel))]
    processor = source.image_processor
    patch = int(processor.patch_size)
    shapes = _shapes(source, merge)
    contents = []
    for shape, (width, height) in zip(shapes, source.sizes(), strict=True):
        content = (width, height)
        if processor.do_resize:
            side = field_of(processor.size, "max_height")
            if side is None:
                raise ModelNotSupportedError(f"processor: expected a size with max_height, got {processor.size!r}")
            content = _kimi_content(width, height, patch, int(processor.max_patches), side * patch)
        expected = tuple(-(-edge // (patch * by)) for edge, by in zip(content[::-1], merge, strict=True))
        if expected != shape:
            raise source.refuse(
                f"{expected[0]} x {expected[1]} cells of an image of {width} x {height} pixels",
                f"{shape[0]} x {shape[1]}",
            )
        contents.append(content)
    return _padded(source, shapes, contents, (patch * merge[0], patch * merge[1]))


def _kimi_content(width: int, height: int, patch: int, most: int, side: int) -> tuple[int, int]:
    """Work out (width, height) of an image before it is padded; sides are at most `side` pixels, patches `most`."""
    patches = max(1, height // patch) * max(1, width // patch)
    scale = min(1.0, math.sqrt(most / patches), side / height, side / width)
    return min(side, max(1, int(width * scale))), min(side, max(1, int(height * scale)))


def glm5_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of GLM-5: images that are fitted into a canvas of whole cells at its top left.

    An image is made smaller where the canvas is smaller, and larger only where it has fewer pixels than
    ``min_image_tokens`` cells.

    Parameters
    ----------
    source : VisualInput
        As for :func:`kimi_grids`.

    Returns
    -------
    list of Grid
        One an image. Its box reaches beyond 1 where cells are padding.

    Raises
    ------
    ModelNotSupportedError
        If the grids are not those of images of these sizes, or not as many cells as visual tokens; or there is a video.
    ValueError
        If the sizes of the images are not known.
    """
    merge = int(source.config.vision_config.spatial_merge_size)
    processor = source.image_processor
    cell = int(processor.patch_size) * merge
    shapes = _shapes(source, (merge, merge))
    contents = []
    for shape, (width, height) in zip(shapes, source.sizes(), strict=True):
        content = canvas = (shape[1] * cell, shape[0] * cell)
        if processor.do_resize:
            least, most = int(processor.min_image_tokens), int(processor.max_image_tokens)
            expected = _glm5_shape(width, height, cell, least, most)
            if expected != shape:
                raise _unfit(source, expected, (width, height), shape)
            scale = min(canvas[1] / height, canvas[0] / width)
            if width * height >= cell**2 * least:
                scale = min(1.0, scale)
            content = (_within(width * scale, canvas[0]), _within(height * scale, canvas[1]))
        contents.append(content)
    return _padded(source, shapes, contents, (cell, cell))


def _glm5_shape(width: int, height: int, cell: int, least: int, most: int) -> tuple[int, int]:
    """Work out rows and columns of the canvas of an image: whole cells, `least` at least and `most` at most."""

    def cells(width: int, height: int) -> tuple[int, int]:
        return -(-height // cell), -(-width // cell)

    shape = cells(width, height)
    if math.prod(shape) < least:
        scale = math.sqrt(least * cell**2 / (width * height))
        shape = cells(math.ceil(width * scale), math.ceil(height * scale))
    if math.prod(shape) > most:

        def shrunk(rows: int) -> tuple[int, int]:
            return cells(max(1, width * rows // height), rows)

        # The largest height in pixels that fits.
        best = bisect_right(range(1, height + 1), most, key=lambda rows: math.prod(shrunk(rows)))
        shape = shrunk(best) if best else (1, 1)
    return shape


def _within(length: float, most: int) -> int:
    return max(1, min(most, math.floor(length)))


def inkling_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of Inkling 2: images of their own size, padded at the right and below to whole cells.

    Parameters
    ----------
    source : VisualInput
        With ``image_grid_thw`` (n, 3) among the inputs, in cells, and the sizes of the images.

    Returns
    -------
    list of Grid
        One an image. Its box reaches beyond 1 where cells are padding, by less than a cell.

    Raises
    ------
    ModelNotSupportedError
        If the grids are not those of images of these sizes, or not as many cells as visual tokens.
    ValueError
        If the sizes of the images are not known.
    """
    size = source.image_processor.size
    cell = (field_of(size, "height"), field_of(size, "width"))
    if cell[0] is None or cell[1] is None:
        raise ModelNotSupportedError(f"processor: expected a size with height and width, got {size!r}")
    shapes = _shapes(source, (1, 1))
    for shape, (width, height) in zip(shapes, source.sizes(), strict=True):
        expected = (-(-height // cell[0]), -(-width // cell[1]))
        if shape != expected:
            raise source.refuse(
                f"{expected[0]} x {expected[1]} cells of an image of {width} x {height} pixels",
                f"{shape[0]} x {shape[1]}",
            )
    return _padded(source, shapes, source.sizes(), (cell[0], cell[1]))


def inkling_mm_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of Inkling: images padded at the right and below, by a whole column where they need none.

    An image of w x h pixels has ``w // cell + 1`` columns and ``ceil(h / cell)`` rows, after its sides were multiplied
    by the processor's ``rescale_image_frac``.

    Parameters
    ----------
    source : VisualInput
        With the sizes of the images; the inputs say nothing of them.

    Returns
    -------
    list of Grid
        One an image. Its box reaches beyond 1 where cells are padding, by a cell at most.

    Raises
    ------
    ModelNotSupportedError
        If there are not as many cells as visual tokens.
    ValueError
        If the sizes of the images are not known.
    """
    processor = source.image_processor
    cell = field_of(processor.size, "height")
    if cell is None:
        raise ModelNotSupportedError(f"processor: expected a size with height, got {processor.size!r}")
    contents = [_inkling_content(processor, size) for size in source.sizes()]
    shapes = [(-(-height // cell), width // cell + 1) for width, height in contents]
    return _padded(source, shapes, contents, (cell, cell))


def _inkling_content(processor: Any, size: tuple[int, int]) -> tuple[int, int]:
    """Work out (width, height) of an image before it is padded."""
    factor, most = processor.rescale_image_frac, processor.rescale_image_max_upscaled_long_edge
    if factor is None:
        return size
    long = max(size)
    target = long * factor
    if most is not None:
        target = min(target, max(most, long))
    ratio = target / long
    return size if ratio == 1 else (math.floor(size[0] * ratio + 0.5), math.floor(size[1] * ratio + 0.5))


def _unfit(
    source: VisualInput, expected: Sequence[int], size: tuple[int, int], shape: tuple[int, int]
) -> ModelNotSupportedError:
    return source.refuse(
        f"{expected[0]} x {expected[1]} cells of an image of {size[0]} x {size[1]} pixels", f"{shape[0]} x {shape[1]}"
    )


def _shapes(source: VisualInput, merge: Sequence[int]) -> list[tuple[int, int]]:
    """Read rows and columns of cells of every image, as many as there are sizes."""
    if source.rows("video_grid_thw", 3):
        raise ModelNotSupportedError(
            f"model: expected images only for model type {source.model_type!r}, got a video: its frames are padded, "
            "and the inputs do not say by how much"
        )
    rows = source.rows("image_grid_thw", 3)
    for time, height, width in rows:
        if time != 1 or height % merge[0] or width % merge[1]:
            raise source.refuse(f"image_grid_thw of multiples of 1 x {merge[0]} x {merge[1]}", [time, height, width])
    if len(source.sizes()) != len(rows):
        raise source.refuse(f"{len(source.sizes())} images (image_sizes)", f"{len(rows)} (image_grid_thw)")
    return [(height // merge[0], width // merge[1]) for _, height, width in rows]


def _padded(
    source: VisualInput,
    shapes: Sequence[tuple[int, int]],
    contents: Sequence[tuple[int, int]],
    cell: tuple[int, int],
) -> list[Grid]:
    """Lay cells of `cell` (height, width) pixels over images of (width, height) pixels, from their top left."""
    runs = visual_runs(source, "image", [rows * columns for rows, columns in shapes], "rows x columns of padded images")
    return [
        Grid(run, rows, columns, "image", index, 0, (0.0, 0.0, columns * cell[1] / width, rows * cell[0] / height))
        for index, (run, (rows, columns), (width, height)) in enumerate(zip(runs, shapes, contents, strict=True))
    ]
