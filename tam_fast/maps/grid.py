"""One raster of sequence positions: :class:`Grid`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

__all__ = ["Grid", "are_distinct", "check_count", "check_positions"]


def check_positions(value: Any, name: str) -> torch.Tensor:
    """Check and copy a vector of sequence positions to an int64 CPU tensor (n,)."""
    if isinstance(value, range):
        value = list(value)
    try:
        tensor = torch.as_tensor(np.asarray(value) if isinstance(value, (list, tuple)) else value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name}: expected a vector of integers, got {type(value).__name__}") from error
    if tensor.numel() == 0:
        tensor = tensor.to(torch.int64)
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise TypeError(f"{name}: expected integers, got dtype {tensor.dtype}")
    if tensor.ndim != 1:
        raise ValueError(f"{name}: expected one dimension, got shape {tuple(tensor.shape)}")
    # A private copy: the frozen dataclass must not change when the caller's array does.
    tensor = tensor.detach().to(device="cpu", dtype=torch.int64, copy=True)
    # numpy is quicker with few numbers, and an image may have many tiles.
    lowest = int(tensor.numpy().min(initial=0))
    if lowest < 0:
        raise ValueError(f"{name}: expected positions >= 0, got {lowest}")
    return tensor


def are_distinct(positions: torch.Tensor) -> bool:
    """Whether no position (n,) occurs twice."""
    values = positions.numpy()
    return bool((values[1:] > values[:-1]).all()) or np.unique(values).size == values.size


def check_count(value: Any, name: str, minimum: int) -> int:
    """Check a whole number that is at least `minimum`."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name}: expected an integer, got {type(value).__name__}")
    number = int(value.__index__())
    if number < minimum:
        raise ValueError(f"{name}: expected at least {minimum}, got {number}")
    return number


@dataclass(frozen=True, eq=False)
class Grid:
    """One raster of visual positions: an image, a tile of one, or a frame (or frame pair) of a video.

    Parameters
    ----------
    positions : (height * width,) int64
        Sequence positions of the raster's cells, row-major. Copied to the CPU.
    height, width : int
        Cells down and across.
    kind : str
        ``"image"``: the whole image in one raster; ``"overview"``: the same beside tiles or crops of it; ``"tile"``:
        one of several, or several that form one raster; ``"crop"``: cut out and enlarged; ``"video"``: a frame.
    source : int
        Which of the caller's images or videos this raster shows, counted from 0.
    frame : int
        Temporal index within a video, 0 for images.
    box : tuple of 4 floats
        Part of the source that the raster covers: x0, y0, x1, y1 as fractions of its width and height. A box may reach
        beyond 0..1 where the processor padded the image.

    Raises
    ------
    TypeError, ValueError
        If a field has the wrong type, the number of positions is not ``height * width``, a position occurs twice, or
        the box is empty.
    """

    positions: torch.Tensor
    height: int
    width: int
    kind: str = "image"
    source: int = 0
    frame: int = 0
    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        positions = check_positions(self.positions, "positions")
        height, width = check_count(self.height, "height", 1), check_count(self.width, "width", 1)
        if positions.numel() != height * width:
            raise ValueError(
                f"positions: expected height * width = {height} * {width} = {height * width} positions, "
                f"got {positions.numel()}"
            )
        if not are_distinct(positions):
            raise ValueError("positions: expected distinct positions, got one that occurs twice")
        box = tuple(float(edge) for edge in self.box)
        if len(box) != 4 or not (box[0] < box[2] and box[1] < box[3]):
            raise ValueError(f"box: expected (x0, y0, x1, y1) with x0 < x1 and y0 < y1, got {self.box!r}")
        for name, value in (
            ("positions", positions),
            ("height", height),
            ("width", width),
            ("source", check_count(self.source, "source", 0)),
            ("frame", check_count(self.frame, "frame", 0)),
            ("box", box),
        ):
            object.__setattr__(self, name, value)

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) in cells."""
        return self.height, self.width

    def __len__(self) -> int:
        return self.height * self.width

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Grid):
            return NotImplemented
        return torch.equal(self.positions, other.positions) and all(
            getattr(self, name) == getattr(other, name)
            for name in ("height", "width", "kind", "source", "frame", "box")
        )

    __hash__ = None  # type: ignore[assignment]
