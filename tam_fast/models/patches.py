"""From the frames of a video to the pixel values of a family's vision tower, without torchvision.

Written after the video processors of transformers 5.23. They resize with torchvision, which on a CPU calls the same
functions of torch: bicubic on bytes, as Pillow does it, and bilinear on floats that are then rounded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

__all__ = ["compression_mask", "cut", "fit", "fit_cells", "normalise", "resize", "tower_size"]

_STEEPEST = 200  # the longest shape that these processors take


def fit(
    size: tuple[int, int], factor: int, least: int, most: int, frames: int = 0, temporal: int = 1
) -> tuple[int, int]:
    """Choose the size that frames are resized to: multiples of `factor`, proportions nearly kept, pixels within limits.

    Parameters
    ----------
    size : (int, int)
        Height and width.
    factor : int
        Pixels of a cell's side.
    least, most : int
        Pixels of a frame; with `frames`, of all of them together.
    frames : int
        How many there are, where the limits are of the clip (Qwen3-VL, GLM-4V); 0 where they are a frame's (Qwen2-VL).
    temporal : int
        How many of them make a cell.

    Returns
    -------
    (int, int)
        Height and width.

    Raises
    ------
    ValueError
        If a side is more than 200 times the other, or there are fewer frames than a cell takes.
    """
    height, width = size
    if frames and frames < temporal:
        raise ValueError(f"videos: expected at least {temporal} frames, which make one cell, got {frames}")
    if frames and min(size) < factor:
        scale = max(factor / height, factor / width)
        height, width = int(height * scale), int(width * scale)
    if max(height, width) > _STEEPEST * min(height, width):
        raise ValueError(
            f"videos: expected a longer side of at most {_STEEPEST} times the shorter, got {width} x {height}"
        )
    count = frames or 1
    cells = round(count / temporal) * temporal if frames else 1
    high, wide = round(height / factor) * factor, round(width / factor) * factor
    if cells * high * wide > most:
        scale = math.sqrt(count * height * width / most)
        high, wide = (max(factor, math.floor(side / scale / factor) * factor) for side in (height, width))
    elif cells * high * wide < least:
        scale = math.sqrt(least / (count * height * width))
        high, wide = (math.ceil(side * scale / factor) * factor for side in (height, width))
    return high, wide


def fit_cells(size: tuple[int, int], side: int, most: int) -> tuple[int, int]:
    """Choose the largest size of whole cells that keeps proportions, as Gemma 4 does.

    Parameters
    ----------
    size : (int, int)
        Height and width.
    side : int
        Pixels of a cell's side.
    most : int
        How many cells there may be.

    Returns
    -------
    (int, int)
        Height and width.

    Raises
    ------
    ValueError
        If no cell is left.
    """
    height, width = size
    scale = math.sqrt(most * side**2 / (height * width))
    high, wide = math.floor(scale * height / side), math.floor(scale * width / side)
    if not high and not wide:
        raise ValueError(f"videos: expected frames that fill a cell, got {width} x {height}")
    if not high:
        high, wide = 1, min(width // height, most)
    elif not wide:
        high, wide = min(height // width, most), 1
    return high * side, wide * side


def tower_size(size: tuple[int, int], wanted: Mapping[str, int]) -> tuple[int, int]:
    """Choose the size of frames that a tower of one size takes: ``{"height", "width"}``, or a ``"shortest_edge"``.

    Returns
    -------
    (int, int)
        Height and width.

    Raises
    ------
    ValueError
        If `wanted` names neither.
    """
    if wanted.get("height") and wanted.get("width"):
        return int(wanted["height"]), int(wanted["width"])
    if wanted.get("shortest_edge") and not wanted.get("longest_edge"):
        short, long = sorted(size)
        least = int(wanted["shortest_edge"])
        other = int(least * long / short)
        return (least, other) if size[0] <= size[1] else (other, least)
    raise ValueError(f"processor: expected a size of height and width for the frames of videos, got {dict(wanted)}")


def resize(video: Tensor, size: tuple[int, int], resample: int) -> Tensor:
    """Resize frames (F, 3, H, W) uint8 to a height and width, with antialiasing.

    `resample` is Pillow's number: bilinear (2) and bicubic (3) as torchvision does them, others by Pillow itself.
    """
    if tuple(video.shape[-2:]) == size:
        return video
    if resample == Image.Resampling.BICUBIC:
        return F.interpolate(video, size, mode="bicubic", antialias=True, align_corners=False)
    if resample == Image.Resampling.BILINEAR:
        made = F.interpolate(video.float(), size, mode="bilinear", antialias=True, align_corners=False)
        return made.round_().to(torch.uint8)
    import numpy as np

    frames = (Image.fromarray(frame.permute(1, 2, 0).numpy()) for frame in video)
    turned = [frame.resize(size[::-1], Image.Resampling(resample)) for frame in frames]
    return torch.from_numpy(np.stack([np.asarray(frame) for frame in turned])).permute(0, 3, 1, 2)


def normalise(video: Tensor, settings: Mapping[str, Any]) -> Tensor:
    """Scale and shift frames (F, 3, H, W) uint8 as ``do_rescale``, ``do_normalize`` and their numbers say, to float32.

    With neither they stay bytes.
    """
    scale = float(settings["rescale_factor"]) if settings["do_rescale"] else 1.0
    if not settings["do_normalize"]:
        return video * scale if settings["do_rescale"] else video

    def channels(values: Sequence[float]) -> Tensor:
        return (torch.tensor(values, dtype=torch.float32) * (1.0 / scale)).view(-1, 1, 1)

    return video.float().sub_(channels(settings["image_mean"])).div_(channels(settings["image_std"]))


def cut(
    video: Tensor, patch: int, temporal: int, merge: int, channels_last: bool = False
) -> tuple[Tensor, tuple[int, int, int]]:
    """Cut frames (F, 3, H, W) into patches, those of a cell behind each other.

    Where the last cell lacks frames the last frame is repeated. Within a patch colours come first, then frames, or with
    `channels_last` (Cosmos 3 Edge) both last.

    Returns
    -------
    patches : (t * h * w, 3 * temporal * patch**2)
    grid : (int, int, int)
        t, h and w: how many there are in time, down and across.
    """
    lacking = -len(video) % temporal
    if lacking:
        video = torch.cat([video, video[-1:].expand(lacking, -1, -1, -1)])
    times, high, wide = len(video) // temporal, video.shape[-2] // patch, video.shape[-1] // patch
    # t T c | h m p | w m p  ->  t h w m m | c T p p
    parts = video.reshape(times, temporal, 3, high // merge, merge, patch, wide // merge, merge, patch)
    inner = (5, 8, 2, 1) if channels_last else (2, 1, 5, 8)
    patches = parts.permute(0, 3, 6, 4, 7, *inner).reshape(times * high * wide, 3 * temporal * patch**2)
    return patches, (times, high, wide)


def compression_mask(patches: Tensor, grid: tuple[int, int, int], merge: int) -> Tensor:
    """Tell which cells of a video Video-LLaMA 3 keeps: those that differ from the frame before.

    Kept are all cells of the first frame, those whose pixel values change by more than 0.1 / 255 on average, and of a
    frame in which none does the first.

    Returns
    -------
    (t * h * w / merge**2,) bool
    """
    times, high, wide = grid
    frames = patches.reshape(times, (high // merge) * (wide // merge), -1)
    kept = torch.ones(frames.shape[:2], dtype=torch.bool)
    kept[1:] = (frames[1:] - frames[:-1]).abs().mean(dim=-1) * 255 > 0.1
    kept[:, 0] |= ~kept.any(dim=1)
    return kept.flatten()
