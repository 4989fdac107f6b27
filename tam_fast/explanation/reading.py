"""Maps of tokens, words and spans: on an image, a frame, a grid, and where they are strongest."""

from __future__ import annotations

import bisect
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch

from tam_fast.explanation.frames import shown_frames
from tam_fast.explanation.naming import Key, Naming
from tam_fast.maps.canvas import Canvas

__all__ = ["Maps", "Peak", "Reading"]

Maps: TypeAlias = "torch.Tensor | list[torch.Tensor]"
"""A map (H, W), or a list of one an image or frame if there is not exactly one."""


@dataclass(frozen=True)
class Peak:
    """The strongest cell of a map.

    Attributes
    ----------
    value : float
        The map's maximum.
    grid, row, column : int
        The cell; the first one in row-major order where several are equal.
    source : int
        The image it shows; of a video that video.
    x, y : float
        The cell's centre in that image, as fractions of its width and height. May lie outside 0..1 where the processor
        padded the image.
    video : int or None
        The video it shows; None for an image.
    frame : int or None
        Temporal index in that video, as in :meth:`Explanation.frames`.
    time : float or None
        Seconds from the video's beginning: the middle of the times of the frames that this index shows. None where
        they are not known.
    """

    value: float
    grid: int
    row: int
    column: int
    source: int
    x: float
    y: float
    video: int | None = None
    frame: int | None = None
    time: float | None = None


class Reading(Naming):
    """A result whose maps are read by its tokens' names."""

    def vector(self, key: Key) -> torch.Tensor:
        """Return the map of a token, word or span over all grids' cells.

        Parameters
        ----------
        key : int, str, slice, (int, int) or Word
            A token's index (negative ones count from the end); a word or phrase, of which the first place that
            :meth:`find` reports is taken; tokens ``start:end``; or an item of :attr:`words`.

        Returns
        -------
        (N,) float32
            In [0, 1], the grids' cells one after the other. The elementwise maximum of the tokens' maps. A new tensor.

        Raises
        ------
        KeyError
            If a word does not occur; the message lists those that do.
        IndexError
            If there is no such token.
        ValueError
            If a span is empty or a slice has a step.
        TypeError
            If `key` is none of these.
        """
        start, stop = self._tokens(key)
        # fmax, unlike amax, passes over NaN.
        vector: torch.Tensor = self.maps.maps[start].clone()
        for token in range(start + 1, stop):
            vector = torch.fmax(vector, self.maps.maps[token])
        return vector

    def __getitem__(self, key: Key) -> Maps:
        """Return the map of a token, word or span: (H, W) float32, or a list if there is not exactly one image.

        The list has a map an image and a temporal index of a video, in the order of :meth:`tam_fast.Layout.canvases`;
        without images it is empty.

        See :meth:`vector` for `key` and what is raised.
        """
        return self._rasters(self.vector(key))

    def _rasters(self, vector: torch.Tensor) -> Maps:
        """Bring values (N,) over all cells to rasters as :meth:`__getitem__` gives them."""
        rasters = [canvas.join(vector) for canvas in self._canvases]
        return rasters[0] if len(rasters) == 1 else rasters

    def span(self, start: int, end: int) -> Maps:
        """Return the map of tokens ``start:end``, counted as in a Python slice.

        Returns
        -------
        (H, W) float32, or a list of them
            The elementwise maximum over the tokens; one raster an image, a list if there are several.

        Raises
        ------
        ValueError
            If there is no token in the span.
        """
        return self[start:end]

    def grid(self, key: Key, g: int = 0) -> torch.Tensor:
        """Return the map of a token, word or span on grid `g`: (H, W) float32.

        See :meth:`vector` for `key` and what is raised; IndexError as well if there is no such grid.
        """
        grids = self.layout.grids
        if not -len(grids) <= g < len(grids):
            known = (
                f"a grid from 0 to {len(grids) - 1}" if grids else "an explanation with images, whose maps have grids"
            )
            raise IndexError(f"g: expected {known}, got {g}")
        start = self.layout.offsets[g % len(grids)]
        return self.vector(key)[start : start + len(grids[g])].reshape(grids[g].shape)

    def frames(self, key: Key, video: int = 0) -> torch.Tensor:
        """Return the map of a token, word or span on each temporal index of a video.

        Parameters
        ----------
        key : int, str, slice, (int, int) or Word
            As for :meth:`vector`.
        video : int
            Which video.

        Returns
        -------
        (F, H, W) float32
            F temporal indices. Index f shows ``k = ceil(frames / F)`` of the sampled frames: f * k and those after it.

        Raises
        ------
        KeyError, IndexError, ValueError, TypeError
            As for :meth:`vector`; IndexError if there is no such video.
        """
        vector = self.vector(key)
        return torch.stack([canvas.join(vector) for canvas in self._video(video)])

    def _video(self, video: int) -> list[Canvas]:
        """Return the canvases of a video in the order of time."""
        if isinstance(video, bool) or not hasattr(video, "__index__"):
            raise TypeError(f"video: expected a whole number, got {type(video).__name__}")
        found = [canvas for canvas in self._canvases if canvas.frame is not None]
        count = max((canvas.source + 1 for canvas in found), default=0)
        if not 0 <= video < count:
            known = f"one from 0 to {count - 1}" if count else "an explanation of a video"
            raise IndexError(f"video: expected {known}, got {video}")
        return sorted((canvas for canvas in found if canvas.source == video), key=lambda canvas: canvas.frame or 0)

    def _shown(self, video: int, frame: int) -> range | None:
        """Say which sampled frames a temporal index shows; None if the explanation does not hold them."""
        if not self.videos:
            return None
        last = max(canvas.frame or 0 for canvas in self._video(video))
        return shown_frames(len(self.videos[video]), last + 1, frame)

    def _time(self, video: int, frame: int) -> float | None:
        shown = self._shown(video, frame)
        return None if shown is None else self.videos[video].time(shown)

    def peak(self, key: Key) -> Peak:
        """Return the strongest cell of the map of a token, word or span.

        See :meth:`vector` for `key` and what is raised; ValueError as well without images, where maps have no cells. A
        map of zeros has its peak in its first cell, with value 0.
        """
        if not self.layout.grids:
            raise ValueError("images: expected an explanation with images, got one of text alone, whose maps are empty")
        vector = torch.nan_to_num(self.vector(key), nan=0.0)
        cell = int(vector.argmax())
        offsets = self.layout.offsets
        g = bisect.bisect_right(offsets, cell) - 1
        grid = self.layout.grids[g]
        row, column = divmod(cell - offsets[g], grid.width)
        x0, y0, x1, y1 = grid.box
        x = x0 + (column + 0.5) / grid.width * (x1 - x0)
        y = y0 + (row + 0.5) / grid.height * (y1 - y0)
        peak = Peak(float(vector[cell]), g, row, column, grid.source, x, y)
        if grid.kind != "video":
            return peak
        return replace(peak, video=grid.source, frame=grid.frame, time=self._time(grid.source, grid.frame))
