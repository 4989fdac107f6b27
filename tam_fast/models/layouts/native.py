"""Grids of models that keep an image's own size: Qwen2-VL and its successors."""

from __future__ import annotations

import re
from dataclasses import replace

import torch
from torch import Tensor

from tam_fast.maps.grid import Grid
from tam_fast.models.errors import ModelNotSupportedError
from tam_fast.models.layouts.source import VisualInput, field_of, token_id, visual_runs

__all__ = [
    "glm_grids",
    "minimax_grids",
    "native_grids",
]


def native_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of models that keep an image's own size: ``image_grid_thw`` over ``spatial_merge_size`` squared.

    One grid an image; a video gives one a temporal patch, ``frame`` counting them. The processor scales an image to
    multiples of a cell and crops nothing, so that a grid covers its whole source. Timestamps and marks between the
    frames of a video are no cells.

    Parameters
    ----------
    source : VisualInput
        With ``image_grid_thw`` and ``video_grid_thw`` (n, 3) among the inputs, in patches.

    Returns
    -------
    list of Grid

    Raises
    ------
    ModelNotSupportedError
        If the visual tokens of the prompt are not as many as the cells.
    """
    grids: list[Grid] = []
    for kind in ("image", "video"):
        shapes, meaning = _shapes(source, kind)
        runs = visual_runs(source, kind, [t * h * w for t, h, w in shapes], meaning)
        for index, (shape, run) in enumerate(zip(shapes, runs, strict=True)):
            grids += _frames(run, shape, kind, index)
    return _in_order(grids)


def glm_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of GLM-4.1V and its successors: native grids, whose videos stand under the image's id.

    Parameters
    ----------
    source : VisualInput
        As for :func:`native_grids`. Where there are images and videos, the tokens between ``<|begin_of_video|>`` and
        ``<|end_of_video|>`` (``config.video_start_token_id``, ``config.video_end_token_id``) are the videos'.

    Returns
    -------
    list of Grid

    Raises
    ------
    ModelNotSupportedError
        If the visual tokens of the prompt are not as many as the cells.
    """
    ids = source.input_ids
    token = token_id(source.config, "image")
    visual = ids == (-1 if token is None else token)
    sizes = {kind: _shapes(source, kind) for kind in ("image", "video")}
    if sizes["video"][0] and sizes["image"][0]:
        opened, closed = (
            (ids == int(getattr(source.config, f"video_{end}_token_id", -1))).cumsum(0) for end in ("start", "end")
        )
        in_video = opened > closed
    else:
        in_video = torch.full_like(visual, bool(sizes["video"][0]))
    grids: list[Grid] = []
    for kind, places in (("image", visual & ~in_video), ("video", visual & in_video)):
        shapes, meaning = sizes[kind]
        cells = [t * h * w for t, h, w in shapes]
        positions = torch.nonzero(places).flatten()
        if positions.numel() != sum(cells):
            raise source.refuse(
                f"{' + '.join(map(str, cells)) or '0'} tokens of {kind}s ({meaning})",
                f"{positions.numel()} with id {token}",
            )
        for index, (shape, run) in enumerate(zip(shapes, positions.split(cells), strict=True)):
            grids += _frames(run, shape, kind, index)
    return _in_order(grids)


def minimax_grids(source: VisualInput) -> list[Grid]:
    """Build the grids of MiniMax-M3: native grids, whose long videos have several rows in ``video_grid_thw``.

    A row is a segment of a video. ``num_chunks_per_video`` says how many a video has; the processor does not return it,
    but it may be put among the inputs. Without it, a segment goes on with the video before it if it has its size and
    stands right behind it: nothing between their frames but marks and a timestamp, later than the one before.

    Parameters
    ----------
    source : VisualInput
        As for :func:`native_grids`.

    Returns
    -------
    list of Grid

    Raises
    ------
    ModelNotSupportedError
        If the visual tokens of the prompt are not as many as the cells.
    """
    grids = native_grids(source)
    segments = _shapes(source, "video")[0]
    if len(segments) < 2:
        return grids
    rows: list[list[Grid]] = [[] for _ in segments]
    for grid in grids:
        if grid.kind == "video":
            rows[grid.source].append(grid)
    told = source.inputs.get("num_chunks_per_video")
    if told is not None:
        counts = [int(count) for count in torch.as_tensor(told).flatten().tolist()]
        if sum(counts) != len(segments):
            raise source.refuse(f"{len(segments)} segments (video_grid_thw)", f"num_chunks_per_video {counts}")
        firsts = {sum(counts[:index]) for index in range(len(counts))}
    else:
        firsts = {
            index for index, row in enumerate(rows) if index == 0 or not _goes_on(source, rows[index - 1][-1], row[0])
        }
    video, frame = -1, 0
    joined = [grid for grid in grids if grid.kind != "video"]
    for index, row in enumerate(rows):
        if index in firsts:
            video, frame = video + 1, 0
        for grid in row:
            joined.append(replace(grid, source=video, frame=frame))
            frame += 1
    return _in_order(joined)


_TIMESTAMP = re.compile(r"\]<\]([0-9.]+) seconds\[>\[")
_WRITTEN = 48  # tokens, more than a timestamp and the marks around it take


def _goes_on(source: VisualInput, before: Grid, after: Grid) -> bool:
    """Whether a frame belongs to the video of the last frame of the segment before its own."""
    first, last, then = int(before.positions[0]), int(before.positions[-1]), int(after.positions[0])
    between = _written(source, last + 1, then)
    if before.shape != after.shape or _TIMESTAMP.sub("", between).strip():
        return False
    later = _TIMESTAMP.findall(between)
    earlier = _TIMESTAMP.findall(_written(source, max(0, first - _WRITTEN), first))
    return not later or not earlier or float(later[-1]) > float(earlier[-1])


def _written(source: VisualInput, start: int, stop: int) -> str:
    return str(source.processor.tokenizer.decode(source.input_ids[start:stop], skip_special_tokens=True))


def _shapes(source: VisualInput, kind: str) -> tuple[list[tuple[int, int, int]], str]:
    """Read frames, rows and columns of cells of every image or video, and say where they come from."""
    vision = getattr(source.config, "vision_config", None)
    merge = field_of(vision, "spatial_merge_size", "merge_size")
    if merge is None:
        raise ModelNotSupportedError(
            f"model: expected config.vision_config.spatial_merge_size, got none for model type {source.model_type!r}"
        )
    name = f"{kind}_grid_thw"
    # ERNIE joins frames of a video behind its tower, and doubles an image to do so.
    frames = (field_of(vision, "temporal_merge_size") or 1) if kind == "video" else 1
    rows = source.rows(name, 3)
    for time, height, width in rows:
        if time % frames or height % merge or width % merge:
            raise source.refuse(f"{name} of multiples of {frames} x {merge} x {merge}", [time, height, width])
    meaning = f"{name} / {merge}^2" if frames == 1 else f"{name} / {frames} / {merge}^2"
    return [(time // frames, height // merge, width // merge) for time, height, width in rows], meaning


def _frames(run: Tensor, shape: tuple[int, int, int], kind: str, index: int) -> list[Grid]:
    _, height, width = shape
    return [Grid(part, height, width, kind, index, frame) for frame, part in enumerate(run.split(height * width))]


def _in_order(grids: list[Grid]) -> list[Grid]:
    return sorted(grids, key=lambda grid: int(grid.positions[0]))
