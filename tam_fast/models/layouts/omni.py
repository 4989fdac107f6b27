"""Grids of models of images, text and sound that have a layout of their own: Phi-4 multimodal."""

from __future__ import annotations

import torch

from tam_fast.maps.grid import Grid
from tam_fast.models.layouts.source import VisualInput, visual_runs

__all__ = ["phi4_grids"]


def phi4_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of Phi-4 multimodal: all tiles of an image as one raster, then the whole canvas once more.

    The image is scaled into the upper left corner of a canvas of whole tiles, and padded at the right or below. Of the
    raster of the tiles, rows and columns that see nothing but padding are left out; the canvas, stretched to one tile,
    is shown with all of its padding. All stands under the image's id: rows of both end in one token that is no cell,
    and one more stands between them.

    Parameters
    ----------
    source : VisualInput
        With ``image_pixel_values`` (n, crops, 3, side, side), ``image_sizes`` (n, 2), heights and widths of the
        canvases, ``image_attention_mask`` (n, crops, patches, patches), and the images' sizes.

    Returns
    -------
    list of Grid
        Of each image one of kind "tile", then one "overview".

    Raises
    ------
    ModelNotSupportedError
        If the visual tokens of the prompt are not as many as cells, ends of rows and separators.
    """
    sizes, canvases = source.sizes(), source.rows("image_sizes", 2)
    pixels, mask = source.inputs.get("image_pixel_values"), source.inputs.get("image_attention_mask")
    if not isinstance(pixels, torch.Tensor) or not isinstance(mask, torch.Tensor) or mask.ndim != 4:
        raise source.refuse("image_pixel_values and image_attention_mask (n, crops, patches, patches)", "none")
    if len(canvases) != len(sizes):
        raise source.refuse(f"image_sizes of {len(sizes)} images", len(canvases))
    side = int(pixels.shape[-1])
    cells = -(-int(mask.shape[-1]) // 2)  # across and down a tile: patches two by two
    shapes, counts = [], []
    for index, (height, width) in enumerate(canvases):
        rows, columns = height // side, width // side
        # A cell is left out where its first patch is padding.
        seen = mask[index, 1 : 1 + rows * columns, ::2, ::2] > 0
        high = int(seen[::columns, :, 0].sum())
        wide = int(seen[:columns, 0, :].sum())
        shapes.append((high, wide))
        counts.append(high * (wide + 1) + 1 + cells * (cells + 1))
    meaning = f"rows of cells with an end, a separator, {cells} rows of {cells} cells with an end"
    grids: list[Grid] = []
    for index, run in enumerate(visual_runs(source, "image", counts, meaning)):
        (high, wide), (height, width) = shapes[index], canvases[index]
        # What the image takes of its canvas, cut off to whole pixels.
        across, down = width / sizes[index][0], height / sizes[index][1]
        inner_width, inner_height = width, height
        if across < down:
            inner_height = int(sizes[index][1] * across)
        else:
            inner_width = int(sizes[index][0] * down)
        cell = side / cells
        tiles = run[: high * (wide + 1)].reshape(high, wide + 1)[:, :wide].flatten()
        whole = run[high * (wide + 1) + 1 :].reshape(cells, cells + 1)[:, :cells].flatten()
        box = (0.0, 0.0, wide * cell / inner_width, high * cell / inner_height)
        grids.append(Grid(tiles, high, wide, "tile", index, 0, box))
        canvas = (0.0, 0.0, width / inner_width, height / inner_height)
        grids.append(Grid(whole, cells, cells, "overview", index, 0, canvas))
    return grids
