"""Grids of models that keep an image's own size, but say it in other ways: Video-LLaMA 3, Nemotron-H, HunYuan-VL."""

from __future__ import annotations

import torch

from tam_fast.maps.grid import Grid
from tam_fast.models.errors import ModelNotSupportedError
from tam_fast.models.layouts.source import VisualInput, visual_runs

__all__ = ["hunyuan_grids", "nemotron_grids", "video_llama3_grids"]


def video_llama3_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of Video-LLaMA 3, whose images and videos say each how many patches are merged.

    Parameters
    ----------
    source : VisualInput
        With ``image_grid_thw`` (n, 3) and ``image_merge_sizes`` (n,) among the inputs, and the same of videos.

    Returns
    -------
    list of Grid
        One an image, and one a frame of a video.

    Raises
    ------
    ModelNotSupportedError
        If the visual tokens of the prompt are not as many as the cells; or tokens of a video were left out
        (``use_token_compression``), so that its frames form no raster.
    """
    kept = source.inputs.get("video_compression_mask")
    if kept is not None and not bool(torch.as_tensor(kept).all()):
        kept = torch.as_tensor(kept)
        raise ModelNotSupportedError(
            f"processor: expected every token of a video of model type {source.model_type!r}, got "
            f"{int(kept.sum())} of {kept.numel()}: those of cells that hardly change were left out, and what is left "
            "forms no raster; set use_token_compression=False in the video processor"
        )
    grids: list[Grid] = []
    for kind in ("image", "video"):
        shapes = []
        rows = source.rows(f"{kind}_grid_thw", 3)
        merges = torch.as_tensor(source.inputs.get(f"{kind}_merge_sizes", [])).flatten().tolist()
        if len(merges) != len(rows):
            raise source.refuse(f"{len(rows)} numbers in {kind}_merge_sizes", len(merges))
        for (time, height, width), merge in zip(rows, map(int, merges), strict=True):
            if merge < 1 or height % merge or width % merge:
                raise source.refuse(f"{kind}_grid_thw of multiples of 1 x {merge} x {merge}", [time, height, width])
            shapes.append((time, height // merge, width // merge))
        meaning = f"{kind}_grid_thw / {kind}_merge_sizes^2"
        runs = visual_runs(source, kind, [time * height * width for time, height, width in shapes], meaning)
        for index, (run, (_, height, width)) in enumerate(zip(runs, shapes, strict=True)):
            frames = run.split(height * width)
            grids += [Grid(cells, height, width, kind, index, frame) for frame, cells in enumerate(frames)]
    return sorted(grids, key=lambda grid: int(grid.positions[0]))


def nemotron_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of Nemotron-H Omni: ``image_grid_hw`` over the side of ``downsample_ratio``.

    Parameters
    ----------
    source : VisualInput
        With ``image_grid_hw`` (n, 2) among the inputs, in patches.

    Returns
    -------
    list of Grid
        One an image, which covers all of it.

    Raises
    ------
    ModelNotSupportedError
        If the image tokens of the prompt are not as many as the cells; frames of videos are such tokens.
    """
    merge = round(1 / float(source.config.downsample_ratio))
    rows = source.rows("image_grid_hw", 2)
    for height, width in rows:
        if height % merge or width % merge:
            raise source.refuse(f"image_grid_hw of multiples of {merge} x {merge}", [height, width])
    shapes = [(height // merge, width // merge) for height, width in rows]
    runs = visual_runs(source, "image", [height * width for height, width in shapes], f"image_grid_hw / {merge}^2")
    return [Grid(run, *shape, "image", index) for index, (run, shape) in enumerate(zip(runs, shapes, strict=True))]


def hunyuan_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of HunYuan-VL: rows that end in a newline, between a beginning and an end, all of one id.

    Parameters
    ----------
    source : VisualInput
        With ``image_grid_thw`` (n, 3) among the inputs, in patches.

    Returns
    -------
    list of Grid
        One an image, which covers all of it.

    Raises
    ------
    ModelNotSupportedError
        If the image tokens of the prompt are not as many as cells, newlines, beginnings and ends.
    """
    merge = int(source.config.vision_config.spatial_merge_size)
    rows = source.rows("image_grid_thw", 3)
    for time, height, width in rows:
        if time != 1 or height % merge or width % merge:
            raise source.refuse(f"image_grid_thw of multiples of 1 x {merge} x {merge}", [time, height, width])
    shapes = [(height // merge, width // merge) for _, height, width in rows]
    counts = [height * (width + 1) + 2 for height, width in shapes]
    runs = visual_runs(source, "image", counts, f"rows x (columns + 1) + 2, of image_grid_thw / {merge}^2")
    return [
        Grid(run[1:-1].reshape(height, width + 1)[:, :-1].reshape(-1), height, width, "image", index)
        for index, (run, (height, width)) in enumerate(zip(runs, shapes, strict=True))
    ]
