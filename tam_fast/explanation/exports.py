"""An explanation as others take it: arrays, tables, masks, boxes and polygons of a word."""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from tam_fast.explanation.drawings import Drawings
from tam_fast.explanation.naming import Key
from tam_fast.explanation.reading import Peak
from tam_fast.explanation.words import Word
from tam_fast.maps.metrics import otsu_threshold
from tam_fast.maps.outlines import RunLengths, bounds, polygons, run_lengths
from tam_fast.render import levels_on

__all__ = ["Box", "Exports", "Threshold"]

Threshold: TypeAlias = float | Literal["otsu"]
Box: TypeAlias = tuple[int, int, int, int]
Found = TypeVar("Found")


class Exports(Drawings):
    """A result that is handed on."""

    def to_numpy(self, key: Key | None = None) -> NDArray[np.float32] | list[NDArray[np.float32]]:
        """Return maps as numpy arrays, on the rasters of :meth:`__getitem__`.

        Parameters
        ----------
        key : int, str, slice, (int, int) or Word, optional
            As for :meth:`vector`; all tokens if not given.

        Returns
        -------
        (T, H, W) float32, or a list of them
            In [0, 1]; a list if there is not exactly one image. With `key` (H, W). New arrays.

        Raises
        ------
        KeyError, IndexError, ValueError, TypeError
            As for :meth:`vector`.
        """
        maps = self.maps.maps if key is None else self.vector(key)
        found = [canvas.join(maps).cpu().numpy() for canvas in self._canvases]
        return found[0] if len(found) == 1 else found

    def to_dataframe(self) -> Any:
        """Return a table of the words, one row each.

        Returns
        -------
        pandas.DataFrame
            Columns: ``word``; ``start`` and ``stop``, its tokens; ``strength``; ``grounding`` (NaN with other methods'
            maps); ``image``, ``video``, ``frame`` and ``time`` of its strongest cell; ``peak_x`` and ``peak_y``, the
            centre of that cell, and ``peak_box``, (x0, y0, x1, y1), its edges, all in pixels of the image, beyond which
            they may lie where a processor padded it; ``box``, :meth:`box` on that image or frame; ``relevance``, the
            largest that a context token has for the word, and ``context``, that token. Missing is None or NaN: places
            where the map is 0, pixels where the explanation holds no image.

        Raises
        ------
        ImportError
            If pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError("pandas: expected it for to_dataframe: pip install pandas") from error
        rows = [self._row(word) for word in self.words]
        columns = {name: [row[name] for row in rows] for name in _COLUMNS}
        return pandas.DataFrame({name: pandas.Series(columns[name], dtype=_COLUMNS[name]) for name in _COLUMNS})

    def _row(self, word: Word) -> dict[str, Any]:
        row: dict[str, Any] = {name: math.nan if kind == "float64" else None for name, kind in _COLUMNS.items()}
        row |= {"word": word.text, "start": word.start, "stop": word.stop, "strength": word.strength}
        if word.grounding is not None:
            row["grounding"] = word.grounding
        relevance = torch.nan_to_num(self.relevance[word.start : word.stop].float(), nan=0.0)
        if relevance.numel():
            best = int(relevance.amax(dim=0).argmax())
            row |= {"relevance": float(relevance[:, best].max()), "context": self.context_tokens[best]}
        if word.strength > 0:
            peak = self.peak(word)
            row |= {"image": None if peak.video is not None else peak.source, "video": peak.video, "frame": peak.frame}
            row["time"] = math.nan if peak.time is None else peak.time
            row |= self._pixels(word, peak)
        return row

    def _pixels(self, word: Word, peak: Peak) -> dict[str, Any]:
        """Say where a word's strongest cell and its box lie, in pixels; nothing where there is no picture."""
        pictures = self.images if peak.video is None else self.videos
        if peak.source >= len(pictures):
            return {}
        if peak.video is None:
            width, height = self.images[peak.source].size
        else:
            width, height = self.videos[peak.source].frames[0].size
        grid = self.layout.grids[peak.grid]
        x0, y0, x1, y1 = grid.box
        left, right = ((x0 + (x1 - x0) * (peak.column + edge) / grid.width) * width for edge in (0, 1))
        top, bottom = ((y0 + (y1 - y0) * (peak.row + edge) / grid.height) * height for edge in (0, 1))
        boxes = self.box(word, video=peak.video)
        if isinstance(boxes, list):
            place = peak.source if peak.video is None else [c.frame for c in self._video(peak.video)].index(peak.frame)
            boxes = boxes[place]
        return {
            "peak_x": peak.x * width,
            "peak_y": peak.y * height,
            "peak_box": (left, top, right, bottom),
            "box": boxes,
        }

    def mask(
        self, key: Key, threshold: Threshold = "otsu", *, video: int | None = None
    ) -> NDArray[np.bool_] | list[NDArray[np.bool_]]:
        """Return which pixels a word is seen at: its map, enlarged as :meth:`overlay` draws it, above a threshold.

        Parameters
        ----------
        key : int, str, slice, (int, int) or Word
            As for :meth:`vector`.
        threshold : "otsu" or float
            ``"otsu"``: Otsu's, of the levels of all pixels that the map covers, in all images together
            (:func:`tam_fast.maps.metrics.otsu_threshold`). A number from 0 to 1: an activation.
        video : int, optional
            Which of :attr:`videos`; the first if there are no images.

        Returns
        -------
        (H, W) bool, or a list of them
            In the image's pixels; a list if there are several images. Of a video (F, H, W), its temporal indices as
            in :meth:`frames`. Where the map is 0 nothing is inside, whatever the threshold.

        Raises
        ------
        KeyError, IndexError, ValueError, TypeError
            As for :meth:`vector`; ValueError if the threshold is out of range or the explanation holds no images,
            IndexError if there is no such video.
        """
        masks = self._masks(key, threshold, video)
        if video is not None or not self.images:
            return np.stack(masks)
        return masks[0] if len(masks) == 1 else masks

    def box(
        self, key: Key, threshold: Threshold = "otsu", *, video: int | None = None
    ) -> Box | list[Box | None] | None:
        """Return the smallest box around all that :meth:`mask` holds.

        Parameters
        ----------
        key, threshold, video
            As for :meth:`mask`.

        Returns
        -------
        (x0, y0, x1, y1), or a list of them
            Edges in pixels, so that ``image.crop(box)`` shows it; None where nothing is inside. A list if there are
            several images, or of a video, one a temporal index.

        Raises
        ------
        KeyError, IndexError, ValueError, TypeError
            As for :meth:`mask`.
        """
        return self._each([bounds(mask) for mask in self._masks(key, threshold, video)], video)

    def polygons(
        self, key: Key, threshold: Threshold = "otsu", *, video: int | None = None
    ) -> list[list[int]] | list[list[list[int]]]:
        """Return the outlines of :meth:`mask` as COCO's ``segmentation`` has them.

        Parameters
        ----------
        key, threshold, video
            As for :meth:`mask`.

        Returns
        -------
        list of [x0, y0, x1, y1, ...], or a list of such lists
            One polygon a connected part, in pixels, along the edges of pixels; holes are filled, see
            :func:`tam_fast.maps.outlines.polygons`. A list of lists if there are several images, or of a video.

        Raises
        ------
        KeyError, IndexError, ValueError, TypeError
            As for :meth:`mask`.
        """
        found: list[list[list[int]]] = [polygons(mask) for mask in self._masks(key, threshold, video)]
        return found[0] if video is None and len(self.images) == 1 else found

    def rle(
        self, key: Key, threshold: Threshold = "otsu", *, video: int | None = None, compressed: bool = False
    ) -> RunLengths | list[RunLengths]:
        """Return :meth:`mask` as COCO's run lengths.

        Parameters
        ----------
        key, threshold, video
            As for :meth:`mask`.
        compressed : bool
            Write the counts as the text that pycocotools takes.

        Returns
        -------
        dict, or a list of them
            ``{"size": [height, width], "counts": [...]}``, JSON-able, see :class:`tam_fast.maps.outlines.RunLengths`. A
            list if there are several images, or of a video.

        Raises
        ------
        KeyError, IndexError, ValueError, TypeError
            As for :meth:`mask`.
        """
        return self._each([run_lengths(mask, compressed) for mask in self._masks(key, threshold, video)], video)

    def _each(self, found: list[Found], video: int | None) -> Found | list[Found]:
        """Return what was found of the one image itself, of several or of a video as the list that it is."""
        return found[0] if video is None and len(self.images) == 1 else found

    def _masks(self, key: Key, threshold: Threshold, video: int | None) -> list[NDArray[np.bool_]]:
        """Cut the map on each image, or on each temporal index of a video, at one threshold."""
        _check(threshold)
        vector = self.vector(key)
        if video is None and self.images:
            drawn = [
                levels_on(picture.size, self._placed(vector, number)) for number, picture in enumerate(self.images)
            ]
        else:
            if not self.images and not self.videos:
                raise ValueError("images: expected an explanation that holds some, whose pixels are meant, got none")
            clip = 0 if video is None else video
            canvases = self._video(clip)
            if clip >= len(self.videos):
                raise ValueError("videos: expected an explanation that holds its videos, got one without")
            size = self.videos[clip].frames[0].size
            drawn = [levels_on(size, self._placed(vector, clip, canvas.frame)) for canvas in canvases]
        if threshold == "otsu":
            levels = np.concatenate([level[covered] for level, covered in drawn])
            limit = float(otsu_threshold(levels)) if levels.size else 0.0
        else:
            limit = 255.0 * float(threshold)
        return [level > limit for level, _ in drawn]


# What the columns of a table hold.
_COLUMNS = {
    "word": "object",
    "start": "int64",
    "stop": "int64",
    "strength": "float64",
    "grounding": "float64",
    "image": "Int64",
    "video": "Int64",
    "frame": "Int64",
    "time": "float64",
    "peak_x": "float64",
    "peak_y": "float64",
    "peak_box": "object",
    "box": "object",
    "relevance": "float64",
    "context": "object",
}


def _check(threshold: Any) -> None:
    if isinstance(threshold, str):
        if threshold != "otsu":
            raise ValueError(f"threshold: expected 'otsu' or a number from 0 to 1, got {threshold!r}")
        return
    if isinstance(threshold, bool) or not isinstance(threshold, (int, float, np.number)):
        raise TypeError(f"threshold: expected 'otsu' or a number from 0 to 1, got {type(threshold).__name__}")
    if not 0.0 <= float(threshold) <= 1.0:
        raise ValueError(f"threshold: expected 'otsu' or a number from 0 to 1, got {threshold}")
