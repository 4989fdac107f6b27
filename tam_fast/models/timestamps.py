"""Times that processors write beside the frames of a video, which are none of the user's words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tam_fast.maps.grid import Grid
from tam_fast.models.family import Family

__all__ = ["without_timestamps"]

_MARKS = 2  # control tokens at most between a frame and its time
_LENGTH = 32  # tokens, more than any time takes


def without_timestamps(
    processor: Any, family: Family, input_ids: Tensor, grids: Sequence[Grid], positions: Tensor
) -> Tensor:
    """Leave the times of frames out of what was taken for the user's text.

    Parameters
    ----------
    processor : transformers.ProcessorMixin
    family : Family
        ``before_frame`` and ``behind_frame`` say what a time looks like and where it stands.
    input_ids : (P,) int64
    grids : sequence of Grid
    positions : (n,) int64
        Of text tokens, ascending.

    Returns
    -------
    (m,) int64
        Those of `positions` that are no part of a time beside a frame.
    """
    frames = [grid for grid in grids if grid.kind == "video"]
    sides = [(-1, family.before_frame), (1, family.behind_frame)]
    if not frames or not any(pattern for _, pattern in sides):
        return positions
    text = set(positions.tolist())
    written: set[int] = set()
    for step, pattern in sides:
        if not pattern:
            continue
        time = re.compile(f"(?:{pattern})$" if step < 0 else f"(?:{pattern})")
        for grid in frames:
            edge = int(grid.positions[0 if step < 0 else -1]) + step
            for _ in range(_MARKS):
                edge += 0 if edge in text else step
            places: list[int] = []
            while edge in text and len(places) < _LENGTH:
                places.append(edge)
                edge += step
            written.update(_matched(processor, input_ids, places[::step], time))
    return torch.tensor([place for place in positions.tolist() if place not in written], dtype=torch.int64)


def _matched(processor: Any, input_ids: Tensor, places: Sequence[int], time: re.Pattern[str]) -> list[int]:
    """Find which of some neighbouring tokens spell a time, at the end or at the beginning as the pattern says."""
    if not places:
        return []
    spelt = processor.tokenizer.convert_ids_to_tokens(input_ids[list(places)].tolist())
    # Times are ASCII, of which vocabularies spell only the space in another way.
    pieces = [str(piece).replace("\u0120", " ").replace("\u2581", " ") for piece in spelt]
    joined = "".join(pieces)
    found = time.search(joined) if time.pattern.endswith("$") else time.match(joined)
    if found is None:
        return []
    matched, start = [], 0
    for place, piece in zip(places, pieces, strict=True):
        if found.start() <= start and start + len(piece) <= found.end():
            matched.append(place)
        start += len(piece)
    return matched
