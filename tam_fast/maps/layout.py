"""Where the visual cells, the prompt's text and the answer stand in one sequence: :class:`Layout`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from tam_fast.maps.canvas import Canvas, canvas_of
from tam_fast.maps.grid import Grid, are_distinct, check_count, check_positions

__all__ = ["Grid", "Layout"]


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the visual cells, the prompt's text and the answer stand in one sequence.

    Parameters
    ----------
    grids : sequence of Grid
        The rasters, in the order in which their cells appear in a map. No position may belong to two of them. Of a
        prompt without images there are none: its maps have no cells.
    prompt : (n_p,) int64
        Positions of the prompt's text tokens: the context that precedes the answer.
    answer_start : int
        Position of the first generated token; the prompt has ``answer_start`` positions in all.

    Raises
    ------
    TypeError, ValueError
        If a position is not before ``answer_start``, or one position is used twice.
    """

    grids: Sequence[Grid]
    prompt: torch.Tensor
    answer_start: int
    visual_positions: torch.Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.grids, Grid) or not isinstance(self.grids, Sequence):
            raise TypeError(f"grids: expected a sequence of Grid, got {type(self.grids).__name__}")
        grids = tuple(self.grids)
        for grid in grids:
            if not isinstance(grid, Grid):
                raise TypeError(f"grids: expected Grid objects, got {type(grid).__name__}")
        answer_start = check_count(self.answer_start, "answer_start", 1)
        prompt = check_positions(self.prompt, "prompt")
        visual = torch.cat([grid.positions for grid in grids] or [torch.empty(0, dtype=torch.int64)])
        for name, positions in (("grids", visual), ("prompt", prompt)):
            if positions.numel() and int(positions.max()) >= answer_start:
                raise ValueError(
                    f"{name}: expected positions before answer_start = {answer_start}, got {int(positions.max())}"
                )
        every = torch.cat([visual, prompt])
        if not are_distinct(every):
            raise ValueError("grids, prompt: expected every position at most once, got one that is used twice")
        for name, value in (
            ("grids", grids),
            ("prompt", prompt),
            ("answer_start", answer_start),
            ("visual_positions", visual),
        ):
            object.__setattr__(self, name, value)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) of every grid."""
        return [grid.shape for grid in self.grids]

    @property
    def offsets(self) -> list[int]:
        """Where each grid's cells begin in a map (N,), and N itself at the end."""
        offsets = [0]
        for grid in self.grids:
            offsets.append(offsets[-1] + len(grid))
        return offsets

    def canvas(self, source: int = 0, *, frame: int | None = None) -> Canvas:
        """Join the grids of one image: tiles, crops and an overview become one map.

        ::

            layout.canvas(0).join(maps)  # (T, N) -> (T, H, W)

        Parameters
        ----------
        source : int
            Which image; with `frame`, which video.
        frame : int, optional
            Which temporal index of a video.

        Returns
        -------
        Canvas
            The grid's own raster where an image has one grid; else the finest raster that all fit on.

        Raises
        ------
        IndexError
            If no grid shows it.
        """
        return canvas_of(self.grids, self.offsets, source, frame)

    def canvases(self) -> list[Canvas]:
        """List the canvas of every image and of every frame of a video, in the order in which they first appear."""
        shown = dict.fromkeys((grid.source, grid.frame if grid.kind == "video" else None) for grid in self.grids)
        return [self.canvas(source, frame=frame) for source, frame in shown]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Layout):
            return NotImplemented
        return (
            self.answer_start == other.answer_start
            and torch.equal(self.prompt, other.prompt)
            and self.grids == other.grids
        )

    __hash__ = None  # type: ignore[assignment]
