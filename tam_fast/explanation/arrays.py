"""Pictures and kept states as the arrays of an explanation's file; what is read is checked."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from tam_fast.explanation.entries import entry, items, number
from tam_fast.explanation.frames import Frames
from tam_fast.explanation.grounding import Contrast
from tam_fast.explanation.kept import KeptStates, Rows
from tam_fast.maps.answer import check_options
from tam_fast.maps.layout import Layout

__all__ = [
    "contrast_arrays",
    "kept_arrays",
    "picture_arrays",
    "read_contrast",
    "read_images",
    "read_kept",
    "read_videos",
    "video_arrays",
]

_CONTRAST = ("with_images", "without_images")


def picture_arrays(images: Iterable[Image.Image], name: str = "image") -> dict[str, torch.Tensor]:
    """Make an array of bytes of each picture: PNG, without loss."""
    made: dict[str, torch.Tensor] = {}
    for index, image in enumerate(images):
        buffer = io.BytesIO()
        image.save(buffer, format="PNG", compress_level=3)
        made[f"{name}.{index}"] = torch.from_numpy(np.frombuffer(buffer.getvalue(), dtype=np.uint8).copy())
    return made


def video_arrays(videos: Iterable[Frames]) -> dict[str, torch.Tensor]:
    """Make an array of bytes of each frame of each video."""
    made: dict[str, torch.Tensor] = {}
    for index, video in enumerate(videos):
        made |= picture_arrays(video.frames, f"video.{index}")
    return made


def contrast_arrays(contrast: Contrast | None) -> dict[str, torch.Tensor]:
    """Gather the two arrays of a contrast, if there is one."""
    if contrast is None:
        return {}
    return {f"contrast.{name}": getattr(contrast, name).cpu() for name in _CONTRAST}


def read_contrast(tensors: Mapping[str, torch.Tensor]) -> Contrast | None:
    """Read a contrast, which checks its values; None if there is none."""
    found = {name: tensors[f"contrast.{name}"] for name in _CONTRAST if f"contrast.{name}" in tensors}
    if not found:
        return None
    if len(found) != len(_CONTRAST):
        raise ValueError(f"contrast: expected both its arrays, got {next(iter(found))} alone")
    try:
        return Contrast(**found)
    except (TypeError, ValueError) as error:
        raise ValueError(f"contrast: {error}") from error


def read_images(document: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> list[Image.Image]:
    """Read the images, of which there must be as many arrays as the document says: a wrong number costs no time."""
    count = entry(document, "images", int)
    got = sum(name.startswith("image.") for name in tensors)
    if count != got:
        raise ValueError(f"images: expected as many as image arrays, which are {got}, got {count}")
    return [_read_picture(tensors, f"image.{index}") for index in range(count)]


def read_videos(document: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> list[Frames]:
    """Read the videos, of whose frames there must be as many arrays as the document says."""
    # Files of earlier versions have none.
    given = items({"videos": [], **document}, "videos", dict)
    counts = [entry(video, "frames", int) for video in given]
    got = sum(name.startswith("video.") for name in tensors)
    if sum(counts) != got or any(count < 1 for count in counts):
        raise ValueError(f"videos: expected as many frames as video arrays, which are {got}, got {str(counts)[:60]}")
    videos = []
    for index, (video, count) in enumerate(zip(given, counts, strict=True)):
        times = None
        if video.get("times") is not None:
            times = [number(time, "videos: times") for time in entry(video, "times", list)]
        frames = [_read_picture(tensors, f"video.{index}.{place}") for place in range(count)]
        try:
            videos.append(Frames(frames, times))
        except ValueError as error:
            raise ValueError(f"videos: {error}") from error
    return videos


def _read_picture(tensors: Mapping[str, torch.Tensor], name: str) -> Image.Image:
    data = tensors.get(name)
    if data is None or data.dtype != torch.uint8 or data.ndim != 1:
        raise ValueError(f"expected the array {name!r} to be a vector of bytes, got another")
    try:
        with warnings.catch_warnings():
            # Between Pillow's limit and twice that it only warns.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data.numpy().tobytes()), formats=("PNG",))
            image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"expected the array {name!r} to be a PNG image, got {reason}") from error
    if image.mode != "RGB":
        raise ValueError(f"expected the array {name!r} to be an RGB image, got mode {image.mode}")
    # A plain image without the file's metadata, as it was given.
    return Image.frombytes("RGB", image.size, image.tobytes())


_KEPT = ("hidden", "token_ids", "positions", "row_ids", "rows")


def kept_arrays(states: KeptStates, candidates: Iterable[int]) -> dict[str, torch.Tensor]:
    """Gather what is written of states that were kept; of the classifier the rows of the tokens at hand."""
    layout, every = states.layout, states.token_ids
    said = [every[layout.prompt], every[layout.answer_start :], torch.tensor(list(candidates), dtype=torch.int64)]
    ids = torch.unique(torch.cat(said))
    made = {
        "hidden": states.hidden.cpu().contiguous(),
        "token_ids": every,
        "positions": torch.cat([layout.visual_positions, layout.prompt, torch.tensor([layout.answer_start])]),
        "row_ids": ids,
        "rows": states.rows(ids).detach().to("cpu", states.hidden.dtype).contiguous(),
    }
    return {f"states.{name}": made[name] for name in _KEPT}


def read_kept(
    document: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], layout: Layout, last: int
) -> KeptStates | None:
    """Read states that were kept up to the token at place `last`, and check them; None if there are none."""
    found = [tensors.get(f"states.{name}") for name in _KEPT]
    if all(value is None for value in found):
        return None
    hidden, token_ids, positions, row_ids, rows = found
    sizes = [len(grid) for grid in layout.grids]
    if (
        hidden is None
        or token_ids is None
        or positions is None
        or row_ids is None
        or rows is None
        or hidden.ndim != 2
        or not hidden.is_floating_point()
        or tuple(token_ids.shape) != (hidden.shape[0] + 1,)
        or tuple(rows.shape) != (row_ids.numel(), hidden.shape[1])
        or rows.dtype != hidden.dtype
        or any(value.dtype != torch.int64 or value.ndim != 1 for value in (token_ids, positions, row_ids))
        or positions.numel() != sum(sizes) + layout.prompt.numel() + 1
        or bool((row_ids.diff() <= 0).any())
        or not bool(torch.isfinite(hidden).all() and torch.isfinite(rows).all())
    ):
        raise ValueError("states: expected the five arrays of states that were kept, got others")
    *parts, prompt, start = positions.split([*sizes, layout.prompt.numel(), 1])
    if hidden.shape[0] - int(start) != last:
        raise ValueError("states: expected a state for each token but the last, got another number of them")
    grids = [replace(grid, positions=part) for grid, part in zip(layout.grids, parts, strict=True)]
    kernel_size = entry({"kernel_size": 3, **document}, "kernel_size", int)
    check_options(None, kernel_size)
    return KeptStates(hidden, token_ids, Layout(grids, prompt, int(start)), Rows(row_ids, rows), None, kernel_size)
