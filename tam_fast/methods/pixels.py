"""Taking cells away in the pixels that a model is given, which are then encoded again: :class:`Pixels`.

Processors put pixels in orders of their own: patches merged two by two, windows, tiles, an overview. Which cell sees
which pixel is asked of the model itself: with the attention of its vision encoder silenced, gradients of the visual
embeddings, with the cells' numbers written into their signs bit by bit, arrive at each pixel as the number of its cell.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tam_fast.methods.task import Task, hooked, is_pixels
from tam_fast.methods.vision import vision_blocks
from tam_fast.models.errors import ModelNotSupportedError

__all__ = ["PIXEL_BASELINES", "Pixels", "cells_of_pixels"]

PIXEL_BASELINES = ("grey", "black", "mean", "blur")

MERGED = frozenset(
    (
        *("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "qwen4_exp"),
        *("qwen2_5_omni_thinker", "qwen3_omni_moe_thinker", "cosmos3_omni", "dots3_note", "exaone4_5", "lfm3_vl"),
        *("cohere_compass", "ernie4_5_vl_moe", "hyperclovax_vision_v2", "minimax_m3_vl"),
        *("glm4v", "glm4v_moe", "glm46v", "glm_ocr", "glmga"),
    )
)
"""Model types whose patches are Qwen2-VL's: (channels, frames, rows, columns) each, merged cell after cell."""

_ATTENDS = re.compile("attn|attention", re.IGNORECASE)
_NORM = re.compile("norm", re.IGNORECASE)
_BLUR = 1.0  # standard deviation, in the larger side of a cell


class Pixels:
    """The pixels of a task with some cells absent.

    Parameters
    ----------
    task : Task
    method : str
        Which asks; for messages.
    baseline : str
        ``"grey"`` (0.5 of 0..1), ``"black"``, ``"mean"`` (of the cells' pixels, by channel and source; where the order
        of channels in a patch is not known, the mean patch) or ``"blur"`` (Gaussian of a standard deviation of one
        cell, edges mirrored).
    normalization : (mean, standard deviation), optional
        What the processor does to pixels of 0..1: numbers, or three each. ``image_mean`` and ``image_std`` of its image
        processor.

    Raises
    ------
    ValueError
        If there are no pixels, or the normalization is needed and not given.
    ModelNotSupportedError
        If a pixel is seen by several cells, or a cell by none, or `baseline` cannot be made of the model's pixels.
    """

    def __init__(self, task: Task, method: str, baseline: str, normalization: Any = None) -> None:
        self._inputs = task.inputs
        self._cells = cells_of_pixels(task, method)
        shift = _shift(baseline, normalization)
        sources = _sources(task)
        self._absent = {}
        for name, cells in self._cells.items():
            made = _absent(task, name, cells, sources, baseline, shift)
            if made is None:
                raise _refused(
                    task.model,
                    method,
                    f"needs pixels whose places and channels are known for baseline={baseline!r}, and {name} "
                    f"{tuple(cells.shape)} is of another kind",
                )
            self._absent[name] = made

    def inputs(self, kept: Tensor) -> dict[str, Any]:
        """Return the model's inputs where some cells (N,) are absent: bool, or how much stays in 0..1."""
        others = dict(self._inputs)
        for name, cells in self._cells.items():
            value, absent = self._inputs[name], self._absent[name]
            part = kept.to(value.device)[cells.clamp_min(0)]
            if part.dtype == torch.bool:
                others[name] = torch.where(part | (cells < 0), value, absent)
            else:
                part = torch.where(cells < 0, 1.0, part.float())
                others[name] = (part * value.float() + (1 - part) * absent.float()).to(value)
        return others


def _refused(model: Any, method: str, reason: str) -> ModelNotSupportedError:
    return ModelNotSupportedError(f"method: {method!r} {reason} in {type(model).__name__}")


def cells_of_pixels(task: Task, method: str) -> dict[str, Tensor]:
    """Find which visual cell sees each value of the model's pixels: 0..N-1, -1 if none; int64, by input, as it is.

    Raises
    ------
    ValueError
        If there are no pixels among the inputs.
    ModelNotSupportedError
        If a pixel is seen by several cells even without attention (overlapping convolutions, interpolation), or a cell
        sees none.
    """
    names = [name for name, value in task.inputs.items() if is_pixels(name, value)]
    if not names:
        raise ValueError(
            f"baseline: expected pixels among the inputs to replace, got {', '.join(sorted(task.inputs))}: "
            'use "mean_embedding", "zero" or an embedding'
        )
    model, count = task.model, task.visual.numel()
    with torch.inference_mode(False), torch.enable_grad():
        leaves = [task.inputs[name].detach().clone().requires_grad_() for name in names]
        given = {**task.inputs, **dict(zip(names, leaves, strict=True))}
        with hooked(_attentions(model), lambda _index, _module, _given, output: _silent(output)):
            call = task.with_inputs(given).decoder_call()
        visual = call.embeddings[0, task.visual.to(call.embeddings.device)]
        if not visual.requires_grad:
            raise _refused(model, method, "needs visual embeddings that depend on the pixels, found none that do")
        drawn = torch.randn(visual.shape[1], generator=torch.Generator().manual_seed(0)).to(visual)

        def arrived(signs: Tensor) -> list[Tensor]:
            score = (visual * drawn * signs.to(visual)[:, None]).sum()
            found = torch.autograd.grad(score, leaves, retain_graph=True, allow_unused=True)
            return [torch.zeros_like(leaf) if part is None else part for part, leaf in zip(found, leaves, strict=True)]

        base = arrived(torch.ones(count))
        for name, plain in zip(names, base, strict=True):
            if not bool(plain.any()):
                raise _refused(model, method, f"needs visual embeddings that depend on {name}, found none that do")
        cells = [torch.zeros(leaf.shape, dtype=torch.int64, device=leaf.device) for leaf in leaves]
        for bit in range(max(count - 1, 1).bit_length()):
            signs = 1.0 - 2.0 * ((torch.arange(count) >> bit) & 1)
            for number, (told, plain) in enumerate(zip(arrived(signs), base, strict=True)):
                if bool(((told.abs() - plain.abs()).abs() > 1e-3 * plain.abs()).any()):
                    raise _refused(
                        model,
                        method,
                        f"with pixels taken away needs pixels that one cell each sees, and several see those of "
                        f"{names[number]}",
                    )
                cells[number] += ((told * plain) < 0).long() << bit
    found = {
        name: torch.where(plain != 0, cell, -1).detach() for name, cell, plain in zip(names, cells, base, strict=True)
    }
    seen = torch.cat([cell[cell >= 0].unique() for cell in found.values()]).unique()
    if seen.numel() != count:
        raise _refused(
            model,
            method,
            f"with pixels taken away needs pixels of every cell, and of {count} only {seen.numel()} see some",
        )
    return found


def _attentions(model: Any) -> list[torch.nn.Module]:
    """List what attends in the blocks of a model's vision encoders."""
    return [
        child
        for block in vision_blocks(model)
        for name, child in block.named_children()
        if _ATTENDS.search(name) and not _NORM.search(name)
    ]


def _silent(output: Any) -> Any:
    if isinstance(output, tuple):
        return (torch.zeros_like(output[0]), *output[1:])
    return torch.zeros_like(output)


# What stands where a cell is absent ----------------------------------------------------------------


def _shift(baseline: str, normalization: Any) -> Tensor | None:
    """Say what a grey or black pixel is to the model: one value, or three; None for other baselines."""
    if baseline not in ("grey", "black"):
        if normalization is not None:
            raise ValueError(f"normalization: expected None with baseline={baseline!r}, got {normalization!r}")
        return None
    try:
        mean, spread = (torch.as_tensor(np.asarray(part, dtype=np.float64)).flatten() for part in normalization)
    except (TypeError, ValueError) as error:
        raise ValueError(
            "normalization: expected (mean, standard deviation) of pixels, such as image_mean and image_std of the "
            f"image processor, for baseline={baseline!r}, got {normalization!r}"
        ) from error
    if {mean.numel(), spread.numel()} - {1, 3} or not bool((spread > 0).all()):
        raise ValueError(f"normalization: expected numbers or three each, deviations above 0, got {normalization!r}")
    made = ((0.5 if baseline == "grey" else 0.0) - mean) / spread
    return made[:1] if bool((made == made[0]).all()) else made


def _sources(task: Task) -> Tensor:
    """Number the image or video that each visual cell shows: (N,) int64."""
    numbers: dict[tuple[bool, int], int] = {}
    parts = []
    for grid in task.layout.grids:
        key = (grid.kind == "video", grid.source)
        parts.append(torch.full((len(grid),), numbers.setdefault(key, len(numbers))))
    return torch.cat(parts)


def _absent(
    task: Task, name: str, cells: Tensor, sources: Tensor, baseline: str, shift: Tensor | None
) -> Tensor | None:
    """Make what stands for absent cells, in the shape of an input of pixels; None if it cannot be made of it."""
    value = task.inputs[name]
    if shift is not None and shift.numel() == 1:
        return torch.full_like(value, float(shift))
    planes = _planes(task, name, value)
    if baseline == "mean" and planes is None:
        return _mean_patch(value, cells, sources)
    if planes is None:
        return None
    pictures, seen = planes.unfold(value.float()), planes.unfold(cells)
    if shift is not None:
        made = [shift.to(picture)[:, None, None].expand_as(picture).clone() for picture in pictures]
    elif baseline == "mean":
        made = _means(pictures, seen, sources)
    else:
        sizes = [_cell_size(task, cell) for cell in seen]
        if any(size is None for size in sizes):
            return None
        made = [_blurred(picture, _BLUR * float(size or 0)) for picture, size in zip(pictures, sizes, strict=True)]
    return planes.fold(made).to(value)


@dataclass(frozen=True)
class _Planes:
    """How an input of pixels is a list of pictures (n, 3, H, W), and back."""

    unfold: Callable[[Tensor], list[Tensor]]
    fold: Callable[[Sequence[Tensor]], Tensor]


def _planes(task: Task, name: str, value: Tensor) -> _Planes | None:
    if value.ndim >= 4 and value.shape[-3] == 3:
        return _Planes(
            lambda pixels: [pixels.reshape(-1, *pixels.shape[-3:])],
            lambda pictures: pictures[0].reshape(value.shape),
        )
    if value.ndim >= 4 and value.shape[-1] == 3:
        return _Planes(
            lambda pixels: [pixels.movedim(-1, -3).reshape(-1, 3, *pixels.shape[-3:-1])],
            lambda pictures: pictures[0].movedim(-3, -1).reshape(value.shape),
        )
    return _native_planes(task, name, value)


def _native_planes(task: Task, name: str, value: Tensor) -> _Planes | None:
    """Lay patches (P, 3 t p p), merged m by m cell after cell, as Qwen2-VL's processor makes them, to pictures."""
    sizes = task.inputs.get("video_grid_thw" if name == "pixel_values_videos" else "image_grid_thw")
    config = getattr(task.model.config, "vision_config", None)
    side, merge = getattr(config, "patch_size", None), getattr(config, "spatial_merge_size", None)
    if (
        task.model.config.model_type not in MERGED
        or value.ndim != 2
        or sizes is None
        or not isinstance(side, int)
        or not isinstance(merge, int)
    ):
        return None
    frames, left = divmod(value.shape[1], 3 * side * side)
    shapes = [tuple(int(number) for number in size) for size in sizes.tolist()]
    if left or not frames or sum(t * h * w for t, h, w in shapes) != value.shape[0]:
        return None
    if any(h % merge or w % merge for _, h, w in shapes):
        return None

    def unfold(pixels: Tensor) -> list[Tensor]:
        made = []
        for part, (t, h, w) in zip(pixels.split([t * h * w for t, h, w in shapes]), shapes, strict=True):
            laid = part.reshape(t, h // merge, w // merge, merge, merge, 3, frames, side, side)
            laid = laid.permute(0, 6, 5, 1, 3, 7, 2, 4, 8)
            made.append(laid.reshape(t * frames, 3, h * side, w * side))
        return made

    def fold(pictures: Sequence[Tensor]) -> Tensor:
        made = []
        for picture, (t, h, w) in zip(pictures, shapes, strict=True):
            laid = picture.reshape(t, frames, 3, h // merge, merge, side, w // merge, merge, side)
            made.append(laid.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(t * h * w, -1))
        return torch.cat(made)

    return _Planes(unfold, fold)


def _means(pictures: list[Tensor], seen: list[Tensor], sources: Tensor) -> list[Tensor]:
    """Fill pictures (n, 3, H, W) with the mean of their source's pixels that a cell sees, by channel."""
    made = [torch.zeros_like(picture) for picture in pictures]
    sources = sources.to(pictures[0].device)
    for source in sources.unique():
        inside = [(cell >= 0) & (sources[cell.clamp_min(0)] == source) for cell in seen]
        for channel in range(3):
            found = [picture[:, channel][mask[:, channel]] for picture, mask in zip(pictures, inside, strict=True)]
            mean = torch.cat(found).mean()
            for one, mask in zip(made, inside, strict=True):
                one[:, channel][mask[:, channel]] = mean
    return made


def _mean_patch(value: Tensor, cells: Tensor, sources: Tensor) -> Tensor | None:
    """Fill patches (.., P, D), of an order of channels that is not known, with the mean patch of their source."""
    if value.ndim < 2:
        return None
    flat, seen = value.float().flatten(0, -2), cells.flatten(0, -2)
    made, sources = torch.zeros_like(flat), sources.to(value.device)
    patch = seen.amax(dim=1)
    for source in sources.unique():
        inside = (patch >= 0) & (sources[patch.clamp_min(0)] == source)
        made[inside] = flat[inside].mean(dim=0)
    return made.reshape(value.shape).to(value)


def _cell_size(task: Task, cells: Tensor) -> float | None:
    """Measure the larger side, in pixels, of cells that form rasters in pictures (n, 3, H, W); None if they do not."""
    offsets = torch.tensor(task.layout.offsets, device=cells.device)
    size = 0.0
    for picture in cells[:, 0]:
        numbers = picture[picture >= 0].unique()
        if not numbers.numel():
            continue
        grids, counts = torch.bucketize(numbers, offsets, right=True).sub(1).unique(return_counts=True)
        for grid, count in zip(grids.tolist(), counts.tolist(), strict=True):
            if count == 1 < len(task.layout.grids[grid]):
                return None  # a patch by itself, without its neighbours
            inside = (picture >= offsets[grid]) & (picture < offsets[grid + 1])
            width = task.layout.grids[grid].width
            at = picture - offsets[grid]
            row, column = at // width, at % width
            by_row = _constant(row, inside, 1)
            by_column = _constant(column, inside, 0)
            if by_row is None or by_column is None:
                return None
            size = max(size, by_row, by_column)
    return size or None


def _constant(numbers: Tensor, inside: Tensor, along: int) -> float | None:
    """Check that numbers (H, W) are the same along an axis and rise over the other; how many pixels each has."""
    lowest = torch.where(inside, numbers, numbers.new_tensor(2**62)).amin(dim=along)
    highest = torch.where(inside, numbers, -1).amax(dim=along)
    used = highest >= 0
    if not torch.equal(lowest[used], highest[used]) or bool((highest[used].diff() < 0).any()):
        return None
    return float(used.sum()) / max(int(highest[used].unique().numel()), 1)


def _blurred(pictures: Tensor, deviation: float) -> Tensor:
    """Blur pictures (n, 3, H, W) by a Gaussian, edges mirrored."""
    for axis in (-2, -1):
        length = pictures.shape[axis]
        reach = min(int(np.ceil(3 * deviation)), length - 1)
        offsets = torch.arange(-reach, reach + 1, device=pictures.device)
        weights = torch.exp(-0.5 * (offsets / deviation) ** 2).to(pictures)
        places = (torch.arange(length, device=pictures.device)[:, None] + offsets).abs()
        places = torch.where(places >= length, 2 * (length - 1) - places, places)
        kernel = torch.zeros((length, length), device=pictures.device)
        kernel.scatter_add_(1, places, (weights / weights.sum()).expand(length, -1))
        pictures = (pictures.movedim(axis, -1) @ kernel.T).movedim(-1, axis)
    return pictures
