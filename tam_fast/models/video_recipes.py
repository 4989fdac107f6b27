"""How the video processors of transformers work, and what each is set to: a table of :class:`Recipe`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tam_fast.models.errors import ModelNotSupportedError
from tam_fast.models.patches import compression_mask, cut, fit, fit_cells, normalise, resize, tower_size

__all__ = ["INHERENT", "RECIPES", "Recipe", "Settings"]

Settings = Mapping[str, Any]
_Processed = dict[str, Any]

_BICUBIC = 3
_CLIP = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
_HALF = ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])


def _settings(statistics: tuple[list[float], list[float]], size: Mapping[str, int], **more: Any) -> dict[str, Any]:
    mean, std = statistics
    return {
        "do_resize": True,
        "resample": _BICUBIC,
        "size": dict(size),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
        "return_metadata": False,
        **more,
    }


def _cells(video: Tensor, settings: Settings) -> tuple[Tensor, tuple[int, int, int]]:
    """Resize, normalise and cut one video."""
    patch, temporal, merge = (int(settings[name]) for name in ("patch_size", "temporal_patch_size", "merge_size"))
    if settings["do_resize"]:
        factor = patch * merge * int(settings.get("patch_expand_factor") or 1)
        video = resize(video, _fitted(video, factor, temporal, settings), int(settings["resample"]))
    height, width = video.shape[-2:]
    if height % (patch * merge) or width % (patch * merge):
        raise ValueError(
            f"videos: expected frames of multiples of {patch * merge} pixels, because do_resize is off, got "
            f"{width} x {height}"
        )
    return cut(normalise(video, settings), patch, temporal, merge, bool(settings.get("channels_last")))


def _fitted(video: Tensor, factor: int, temporal: int, settings: Settings) -> tuple[int, int]:
    count = len(video)
    height, width = video.shape[-2:]
    least, most = (int(settings["size"][name]) for name in ("shortest_edge", "longest_edge"))
    limits, capped = settings["limits"], settings.get("cap_pixels_per_frame")
    if limits == "share":
        return fit((height, width), factor, least, most // count)
    if limits == "frame":
        if capped:
            budget = int(settings["max_video_tokens"] * factor * factor * 0.9)
            most = max(min(most, budget * temporal // count), int(least * 1.05))
        return fit((height, width), factor, least, most)
    if capped:
        most = max(min(settings["max_video_tokens"] * factor * factor, most // count), int(least * 1.05)) * count
    return fit((height, width), factor, least, most, count, temporal)


def _patched(videos: Sequence[Tensor], settings: Settings) -> _Processed:
    found = [_cells(video, settings) for video in videos]
    return {
        "pixel_values_videos": torch.cat([patches for patches, _ in found]),
        "video_grid_thw": torch.tensor([grid for _, grid in found]),
    }


def _video_llama(videos: Sequence[Tensor], settings: Settings) -> _Processed:
    found = [_cells(video, settings) for video in videos]
    merge = int(settings["merge_size"])
    masks = [compression_mask(patches, grid, merge) for patches, grid in found]
    kept = torch.cat(masks)
    return {
        "pixel_values_videos": torch.cat([patches for patches, _ in found]),
        "video_grid_thw": torch.tensor([grid for _, grid in found]),
        "video_merge_sizes": torch.full((len(found),), merge),
        "video_compression_mask": kept if settings["use_token_compression"] else torch.ones_like(kept),
    }


def _whole(videos: Sequence[Tensor], settings: Settings) -> _Processed:
    """Frames of the tower's one size."""
    if settings.get("do_center_crop"):
        raise ModelNotSupportedError("processor: expected frames of videos that are not cropped, got do_center_crop")
    made = []
    for video in videos:
        if settings["do_resize"]:
            video = resize(
                video, tower_size((video.shape[-2], video.shape[-1]), settings["size"]), int(settings["resample"])
            )
        made.append(normalise(video, settings))
    return {"pixel_values_videos": made}


def _pooled(videos: Sequence[Tensor], settings: Settings) -> _Processed:
    """Cut frames into patches that are pooled to cells, filled up to one length, each with its column and row."""
    patch, pool, most = (int(settings[name]) for name in ("patch_size", "pooling_kernel_size", "max_soft_tokens"))
    values, places, counts = [], [], []
    for video in videos:
        if settings["do_resize"]:
            size = fit_cells((video.shape[-2], video.shape[-1]), pool * patch, most)
            video = resize(video, size, int(settings["resample"]))
        patches, (_, high, wide) = cut(normalise(video, settings), patch, 1, 1, channels_last=True)
        patches = patches.reshape(len(video), high * wide, -1)
        rows, columns = torch.meshgrid(torch.arange(high), torch.arange(wide), indexing="ij")
        place = torch.stack([columns, rows], dim=-1).reshape(1, -1, 2).repeat(len(video), 1, 1)
        lacking = most * pool**2 - high * wide
        values.append(F.pad(patches, (0, 0, 0, lacking)))
        places.append(F.pad(place, (0, 0, 0, lacking), value=-1))
        counts.append(high * wide // pool**2)
    return {
        "pixel_values_videos": torch.cat(values),
        "video_position_ids": torch.cat(places),
        "num_frames_per_video": [len(video) for video in videos],
        "num_soft_tokens_per_video": counts,
    }


@dataclass(frozen=True)
class Recipe:
    """How a video processor works.

    Attributes
    ----------
    make : callable
        Makes of videos (F, 3, H, W) uint8 and settings what the processor returns.
    settings : mapping
        What it is set to where a folder does not say: its class attributes in transformers.
    names : tuple of str
        What of that a model is given.
    """

    make: Callable[[Sequence[Tensor], Settings], _Processed]
    settings: Settings
    names: tuple[str, ...] = ("pixel_values_videos", "video_grid_thw")


def _native(
    limits: str, statistics: Any, least: int, most: int, patch: int = 14, temporal: int = 2, **more: Any
) -> Recipe:
    size = {"shortest_edge": least, "longest_edge": most}
    numbers = {"patch_size": patch, "temporal_patch_size": temporal, "merge_size": 2, "limits": limits}
    return Recipe(_patched, _settings(statistics, size, **numbers, **more))


_QWEN3 = _native(
    "clip",
    _HALF,
    128 * 32**2,
    768 * 32**2,
    patch=16,
    cap_pixels_per_frame=None,
    max_video_tokens=768,
)

# Class attributes of the video processors of transformers 5.23.
RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "Qwen2VLVideoProcessor": _native(
            "frame", _CLIP, 128 * 28**2, 768 * 28**2, cap_pixels_per_frame=None, max_video_tokens=128000
        ),
        "Qwen3VLVideoProcessor": _QWEN3,
        "CohereCompassVideoProcessor": _QWEN3,
        "Cosmos3EdgeVideoProcessor": _native(
            "clip", _HALF, 64**2, 24 * 1024**2, patch=16, temporal=1, channels_last=True
        ),
        "Glm4vVideoProcessor": _native("clip", _CLIP, 112**2, 28**2 * 2 * 30000),
        "Glm46VVideoProcessor": _native("clip", _CLIP, 112**2, 28**2 * 2 * 30000),
        "GlmgaVideoProcessor": _native("clip", _CLIP, 112**2, 28**2 * 2 * 55790, patch_expand_factor=1),
        "VideoLlama3VideoProcessor": Recipe(
            _video_llama,
            {
                **_native("share", _HALF, 128 * 28**2, 768 * 28**2, temporal=1).settings,
                "use_token_compression": True,
                "return_metadata": True,
            },
            ("pixel_values_videos", "video_grid_thw", "video_merge_sizes", "video_compression_mask"),
        ),
        "Gemma4VideoProcessor": Recipe(
            _pooled,
            _settings(([0.0, 0.0, 0.0], [1.0, 1.0, 1.0]), {}, patch_size=16, pooling_kernel_size=3, max_soft_tokens=70),
            ("pixel_values_videos", "video_position_ids", "num_frames_per_video"),
        ),
        "LlavaOnevisionVideoProcessor": Recipe(
            _whole, _settings(_CLIP, {"height": 384, "width": 384}, do_center_crop=None), ("pixel_values_videos",)
        ),
        "InternVLVideoProcessor": Recipe(
            _whole, _settings(_CLIP, {"height": 384, "width": 384}, do_center_crop=None), ("pixel_values_videos",)
        ),
    }
)

INHERENT = ("limits", "channels_last")
"""Settings that a class has and no folder names."""
