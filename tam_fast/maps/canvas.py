"""One map of an image out of several rasters of it: :class:`Canvas`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tam_fast.maps.grid import Grid

__all__ = ["Canvas", "canvas_of"]

_Box = tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class Canvas:
    """The raster that all grids of one image are joined on.

    A single grid is its own canvas. Several (tiles, crops, an overview) are joined on cells of the smallest cell's size
    over the smallest rectangle that holds all their boxes. Grids of one kind lie beside each other: a cell has the mean
    of theirs, weighted by the area that it shares with each. Kinds lie upon each other: a cell has the largest of
    theirs, so that what is seen in a tile or in the overview alone is seen. Cells that no grid covers are 0.

    Attributes
    ----------
    height, width : int
        Cells down and across.
    box : tuple of 4 floats
        The part of the image that is covered: x0, y0, x1, y1 as fractions of its width and height. May reach beyond
        0..1 where the processor padded the image.
    grids : tuple of int
        Which grids of the layout are joined.
    source : int
        Which image or video they show.
    frame : int or None
        Temporal index of a video; None for images.

    Notes
    -----
    Each raster was filtered on its own, so that beside a seam of two tiles the window of the rank Gaussian filter holds
    the tile's own cells, mirrored, and none of its neighbour's.
    """

    height: int
    width: int
    box: _Box
    grids: tuple[int, ...]
    source: int
    frame: int | None
    _grids: tuple[Grid, ...]
    _offsets: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) in cells."""
        return self.height, self.width

    def join(self, maps: Tensor) -> Tensor:
        """Join maps of all of the layout's cells on the canvas.

        Parameters
        ----------
        maps : (..., N) floating point
            Over the cells of all grids of the layout, in order.

        Returns
        -------
        (..., height, width) float32
            On the device of `maps`. NaN where all that a cell shares with the grids is NaN.

        Raises
        ------
        ValueError
            If there are not N values.
        """
        count = self._offsets[-1]
        if maps.ndim < 1 or maps.shape[-1] != count:
            raise ValueError(f"maps: expected (..., {count}), the cells of the layout, got {tuple(maps.shape)}")
        layers: dict[str, tuple[Tensor, Tensor]] = {}
        for index, grid in zip(self.grids, self._grids, strict=True):
            start = self._offsets[index]
            raster = maps[..., start : start + len(grid)].reshape(*maps.shape[:-1], *grid.shape).float()
            if len(self.grids) == 1:
                return raster.clone()
            down = _shares(self.box[1::2], self.height, grid.box[1::2], grid.height).to(raster.device)
            across = _shares(self.box[0::2], self.width, grid.box[0::2], grid.width).to(raster.device)
            known = ~torch.isnan(raster)
            total = down @ torch.where(known, raster, 0.0) @ across.T
            area = down @ known.float() @ across.T
            before = layers.get(grid.kind)
            layers[grid.kind] = (total, area) if before is None else (before[0] + total, before[1] + area)
        nothing = torch.zeros((self.height, self.width), dtype=torch.bool, device=maps.device)
        for grid in self._grids:
            down = _shares(self.box[1::2], self.height, grid.box[1::2], grid.height).sum(1)
            across = _shares(self.box[0::2], self.width, grid.box[0::2], grid.width).sum(1)
            nothing |= ((down[:, None] * across) > _SLIVER).to(maps.device)
        joined: Tensor | None = None
        for total, area in layers.values():
            mean = torch.where(area > _SLIVER, total / area.clamp_min(_SLIVER), torch.nan)
            joined = mean if joined is None else torch.fmax(joined, mean)
        assert joined is not None
        return torch.where(nothing, joined, 0.0)


_SLIVER = 1e-6  # of a cell's area: less is rounding


def _shares(outer: Sequence[float], cells: int, inner: Sequence[float], parts: int) -> Tensor:
    """Say how much of each of some cells (cells, parts) lies in each part of another division of the same axis."""
    edges = torch.linspace(outer[0], outer[1], cells + 1, dtype=torch.float64)
    marks = torch.linspace(inner[0], inner[1], parts + 1, dtype=torch.float64)
    low = torch.maximum(edges[:-1, None], marks[None, :-1])
    high = torch.minimum(edges[1:, None], marks[None, 1:])
    share = (high - low).clamp_min(0.0) / (edges[1] - edges[0])
    return torch.where(share > _SLIVER, share, 0.0).float()


def canvas_of(grids: Sequence[Grid], offsets: Sequence[int], source: int, frame: int | None) -> Canvas:
    """Build the canvas of one image, or of one frame of a video; see :meth:`tam_fast.Layout.canvas`."""
    wanted = [
        index
        for index, grid in enumerate(grids)
        if grid.source == source and (grid.kind != "video" if frame is None else grid.kind == "video")
        if frame is None or grid.frame == frame
    ]
    if not wanted:
        what = "image" if frame is None else f"frame {frame} of video"
        known = sorted({grid.source for grid in grids if (grid.kind == "video") == (frame is not None)})
        raise IndexError(f"source: expected one of {known}, whose grids there are, got {what} {source}")
    chosen = tuple(grids[index] for index in wanted)
    if len(chosen) == 1:
        return Canvas(
            chosen[0].height, chosen[0].width, chosen[0].box, tuple(wanted), source, frame, chosen, tuple(offsets)
        )
    boxes = [grid.box for grid in chosen]
    box = (
        min(edges[0] for edges in boxes),
        min(edges[1] for edges in boxes),
        max(edges[2] for edges in boxes),
        max(edges[3] for edges in boxes),
    )
    wide = min((grid.box[2] - grid.box[0]) / grid.width for grid in chosen)
    high = min((grid.box[3] - grid.box[1]) / grid.height for grid in chosen)
    width, height = (max(1, round((box[2] - box[0]) / wide)), max(1, round((box[3] - box[1]) / high)))
    return Canvas(height, width, box, tuple(wanted), source, frame, chosen, tuple(offsets))
