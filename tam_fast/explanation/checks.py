"""What the numbers of an explanation can be: checked before they are written, and again when they are read."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Protocol

import torch
from PIL import Image

from tam_fast.explanation.frames import Frames
from tam_fast.explanation.grounding import Contrast
from tam_fast.explanation.words import Candidate
from tam_fast.maps.answer import TokenActivationMaps

__all__ = ["SOURCES", "Values", "check_agreement", "check_nan", "check_values", "count_nan"]

SOURCES = ("generated", "teacher_forced", "given", "states")
"""Where the states of an explanation can come from."""

_ROUNDING = 1e-5  # how far beyond [0, 1] a share may be rounded
_LARGEST = 2**63 - 1  # of ids and positions, which are int64


class Values(Protocol):
    """What is checked of an explanation."""

    tokens: list[str]
    token_ids: list[int]
    text: str
    offsets: list[tuple[int, int]]
    maps: TokenActivationMaps
    candidates: list[list[Candidate]]
    images: list[Image.Image]
    context_tokens: list[str]
    source: str
    steps: list[int] | None
    videos: list[Frames]
    thinking: str | None
    method: str
    contrast: Contrast | None
    messages: list[dict[str, Any]] | None


def check_agreement(explanation: Values) -> None:
    """Check that there is one of everything for each token, and a picture for each source of the grids.

    Raises
    ------
    TypeError, ValueError
        If not; begins with the field's name.
    """
    maps, layout = explanation.maps, explanation.maps.layout
    shapes = tuple(maps.maps.shape), tuple(maps.relevance.shape)
    cells = layout.offsets[-1]
    if len(shapes[0]) != 2 or shapes[0][1] != cells:
        raise ValueError(f"maps: expected maps of shape (tokens, {cells}), got {shapes[0]}")
    if len(shapes[1]) != 2 or shapes[1][0] != shapes[0][0]:
        raise ValueError(f"maps: expected relevance of shape ({shapes[0][0]}, context), got {shapes[1]}")
    for name in ("tokens", "token_ids", "offsets", "candidates"):
        count = len(getattr(explanation, name))
        if count != shapes[0][0]:
            raise ValueError(f"{name}: expected one for each of {shapes[0][0]} maps, got {count}")
    if len(explanation.context_tokens) != shapes[1][1]:
        raise ValueError(
            f"context_tokens: expected one for each of {shapes[1][1]} columns of the relevance, "
            f"got {len(explanation.context_tokens)}"
        )
    if explanation.source not in SOURCES:
        raise ValueError(f"source: expected one of {', '.join(SOURCES)}, got {explanation.source!r}")
    for token, (start, end) in enumerate(explanation.offsets):
        if not 0 <= start <= end <= len(explanation.text):
            raise ValueError(
                f"offsets: expected 0 <= start <= end <= {len(explanation.text)}, the length of the text, "
                f"got {(start, end)} for token {token}"
            )
    _check_steps(explanation.steps, len(explanation.tokens), shapes[1][1], layout.prompt.numel())
    _check_sources(explanation)
    if explanation.thinking is not None and not isinstance(explanation.thinking, str):
        raise TypeError(f"thinking: expected a text, got {type(explanation.thinking).__name__}")
    if not isinstance(explanation.method, str) or not explanation.method:
        raise TypeError(f"method: expected a name, got {explanation.method!r}")
    if explanation.contrast is not None and len(explanation.contrast) != shapes[0][0]:
        raise ValueError(f"contrast: expected one for each of {shapes[0][0]} maps, got {len(explanation.contrast)}")
    _check_messages(explanation.messages)


def _check_steps(steps: Any, tokens: int, context: int, prompt: int) -> None:
    """Check the tokens' places in what was generated: those before the last one are context, behind the prompt's."""
    if steps is not None:
        if not isinstance(steps, list) or not all(
            isinstance(step, int) and not isinstance(step, bool) for step in steps
        ):
            raise TypeError(f"steps: expected a list of whole numbers, got {str(steps)[:60]}")
        if len(steps) != tokens:
            raise ValueError(f"steps: expected one for each of {tokens} maps, got {len(steps)}")
        if any(after <= before for before, after in pairwise([-1, *steps])):
            raise ValueError(f"steps: expected ascending places from 0 on, got {str(steps)[:60]}")
    last = tokens - 1 if steps is None else steps[-1] if steps else 0
    if max(last, 0) + prompt != context:
        raise ValueError(
            f"context_tokens: expected {prompt} of the prompt and {max(last, 0)} of what was generated before the last "
            f"token, got {context}"
        )


def _check_sources(explanation: Values) -> None:
    """Check that there is an image, or a video, for each that the grids show, or none at all."""
    grids = explanation.maps.layout.grids
    for name, is_video, found in (("images", False, explanation.images), ("videos", True, explanation.videos)):
        count = max((grid.source + 1 for grid in grids if (grid.kind == "video") == is_video), default=0)
        if found and len(found) != count:
            raise ValueError(f"{name}: expected {count}, the sources of the layout's grids, got {len(found)}")
    for image in explanation.images:
        if not isinstance(image, Image.Image):
            raise TypeError(f"images: expected PIL images, got {type(image).__name__}")
    for video in explanation.videos:
        if not isinstance(video, Frames):
            raise TypeError(f"videos: expected Frames, got {type(video).__name__}")


def _check_messages(messages: Any) -> None:
    if messages is None:
        return
    if not isinstance(messages, list):
        raise TypeError(f"messages: expected a list of them, got {type(messages).__name__}")
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ValueError(f"messages: expected objects with a role, got {str(message)[:60]}")


def check_values(explanation: Values) -> None:
    """Check ranges, and ids and offsets against each other.

    Raises
    ------
    ValueError
        If something is as no explanation has it; begins with the field's name.
    """
    maps = explanation.maps
    # NaN is neither below nor above: it is counted elsewhere.
    _within("maps", maps.maps, "values in [0, 1]", (maps.maps >= -_ROUNDING) & (maps.maps <= 1 + _ROUNDING), nan=True)
    _within(
        "relevance",
        maps.relevance,
        "finite values >= 0",
        (maps.relevance >= -_ROUNDING) & torch.isfinite(maps.relevance),
    )
    _within("scale", maps.scale, "finite values", torch.isfinite(maps.scale))
    shown = (torch.nan_to_num(maps.maps, nan=0.0) > 0).any(dim=1) & maps.flat
    if maps.maps.shape[1]:
        _within("flat", maps.maps.amax(dim=1), "maps of zeros where it is true", ~shown)
    _within("context_ids", maps.context_ids, "ids >= 0", maps.context_ids >= 0)
    _within("target_ids", maps.target_ids, "ids >= 0", maps.target_ids >= 0)
    _check_ids(explanation.token_ids, maps.target_ids.tolist())
    _check_offsets(explanation.offsets)
    for step, candidates in enumerate(explanation.candidates):
        for candidate in candidates:
            probability = candidate.probability
            if not -_ROUNDING <= probability <= 1 + _ROUNDING:
                raise ValueError(f"candidates: probability: expected 0 to 1, got {probability} for token {step}")
            if not 0 <= candidate.token_id <= _LARGEST:
                expected = "at least 0" if candidate.token_id < 0 else f"at most {_LARGEST}"
                got = str(candidate.token_id)[:60]
                raise ValueError(f"candidates: token_id: expected {expected}, got {got} for token {step}")
    if maps.layout.answer_start > _LARGEST:
        raise ValueError(f"answer_start: expected a position, got {str(maps.layout.answer_start)[:60]}")


def _within(name: str, values: torch.Tensor, expected: str, good: torch.Tensor, nan: bool = False) -> None:
    """Refuse values of which one is not good; with `nan` NaN is."""
    bad = ~(good | torch.isnan(values)) if nan else ~good
    if bool(bad.any()):
        place = tuple(int(index) for index in bad.nonzero()[0])
        raise ValueError(f"{name}: expected {expected}, got {values[place].item():g} at {list(place)}")


def _check_ids(token_ids: Sequence[int], target_ids: Sequence[int]) -> None:
    for token, (token_id, target_id) in enumerate(zip(token_ids, target_ids, strict=True)):
        if token_id != target_id:
            raise ValueError(
                f"token_ids: expected the target_ids of the maps, got {token_id} where they have {target_id} "
                f"(token {token})"
            )


def _check_offsets(offsets: Sequence[tuple[int, int]]) -> None:
    """Refuse characters that stand before those of the token before; tokens may share some, and some have none."""
    shown = [offset for offset in offsets if offset[0] < offset[1]]
    for before, after in pairwise(shown):
        if after[0] < before[0] and after[1] < before[1]:
            raise ValueError(f"offsets: expected them in the order of the text, got {after} after {before}")


def count_nan(maps: torch.Tensor) -> int:
    """Count the cells that are NaN; only ``compat="official"`` has such."""
    return int(torch.isnan(maps).sum())


def check_nan(maps: torch.Tensor, told: Any) -> None:
    """Check the number of NaN cells against what was noted when they were written.

    Parameters
    ----------
    maps : (T, N) float32
    told : int, optional
        None in a file of an earlier version: then any number but all will do.

    Raises
    ------
    ValueError
        If there are others.
    """
    got = count_nan(maps)
    if told is None:
        if got and got == maps.numel():
            raise ValueError(f"maps: expected numbers, got NaN in all of {got} cells")
    elif isinstance(told, bool) or not isinstance(told, int):
        raise ValueError(f"nan_cells: expected int, got {type(told).__name__}")
    elif got != told:
        raise ValueError(f"maps: expected NaN in {told} cells (nan_cells), got it in {got}")
