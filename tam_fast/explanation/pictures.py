"""Pictures of an explanation: the map of a word on an image or a frame, all tokens on one sheet."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image

import tam_fast.render as render
from tam_fast.explanation.naming import Key
from tam_fast.explanation.reading import Reading

__all__ = ["Pictures"]

_NONE = "images: this explanation holds none, so there is nothing to draw on"


class Pictures(Reading):
    """A result that can be drawn."""

    def overlay(
        self,
        key: Key,
        *,
        image: int | None = None,
        video: int | None = None,
        frame: int | None = None,
        cmap: str = "inferno",
        opacity: float | None = None,
        size: tuple[int, int] | None = None,
    ) -> Image.Image:
        """Draw the map of a token, word or span on an image, or on a frame of a video.

        The image's grids are joined (:meth:`tam_fast.Layout.canvas`) and placed by their box; where two overlap (tiles
        and an overview), the stronger activation counts. Parts that no grid covers are left as they are, and so is the
        whole image by a flat map.

        Parameters
        ----------
        key : int, str, slice, (int, int) or Word
            As for :meth:`vector`.
        image : int, optional
            Which of :attr:`images`; the first if neither this nor `video` is given and there are any.
        video : int, optional
            Which of :attr:`videos`; the first if there are no images.
        frame : int, optional
            Temporal index of the video, as in :meth:`frames`: the first of the frames that it shows is drawn on. If not
            given, the one where this map is strongest, the first of several.
        cmap : str
            ``"inferno"`` or ``"viridis"`` (perceptually uniform), drawn more opaque the stronger the activation is.
            ``"jet"`` is the paper's look: the colours cover all cells at one opacity. Others need matplotlib.
        opacity : float, optional
            Opacity in [0, 1] at full activation, 0.85 if not given; with ``"jet"`` everywhere, 0.5 if not given.
        size : (int, int), optional
            Width and height of the picture in pixels; the image's own if not given.

        Returns
        -------
        PIL.Image.Image
            RGB.

        Raises
        ------
        KeyError, IndexError, ValueError, TypeError
            As for :meth:`vector`; IndexError if there is no such image, video or frame, ValueError if both an image and
            a video are asked for, the colour map is unknown, the opacity or the size is out of range or the explanation
            holds no images.
        """
        picture, rasters = self._scene(self.vector(key), image, video, frame)
        return render.overlay(picture, rasters, cmap=cmap, opacity=opacity, size=size)

    def _scene(
        self, vector: torch.Tensor, image: int | None, video: int | None, frame: int | None
    ) -> tuple[Image.Image, list[render.Raster]]:
        """Choose the image or the frame that a map is drawn on, as :meth:`overlay` says, and place the map there."""
        if image is not None and (video is not None or frame is not None):
            raise ValueError(f"image: expected none with a video or a frame of one, got {image}")
        if video is None and frame is None and (image is not None or self.images or not self.videos):
            place = 0 if image is None else image
            return self._picture(place), self._placed(vector, place)
        clip = 0 if video is None else video
        canvases = self._video(clip)
        known = [canvas.frame or 0 for canvas in canvases]
        if frame is None:
            highest = [float(torch.nan_to_num(canvas.join(vector), nan=0.0).max()) for canvas in canvases]
            frame = known[highest.index(max(highest))]
        if frame not in known:
            raise IndexError(f"frame: expected one from 0 to {known[-1]}, got {frame}")
        return self._still(clip, frame), self._placed(vector, clip, frame)

    def sheet(
        self,
        *,
        cmap: str = "inferno",
        opacity: float | None = None,
        width: int = 1600,
        columns: int | None = None,
        font: str | os.PathLike[str] | None = None,
    ) -> Image.Image:
        """Draw one picture with every token's overlay, captioned with the token and its visual strength.

        Above the overlays stand the images as they are, the prompt and the answer, each token on a ground of its
        strength.

        Tokens that are strongest in a video follow below, by the frame of their peak: each frame with its time, the
        answer with the ground of its own tokens alone, and their overlays.

        Parameters
        ----------
        cmap, opacity
            As for :meth:`overlay`.
        width : int
            Width of the picture in pixels, at least 320; the height follows.
        columns : int, optional
            Overlays side by side; chosen by the number of tokens and images if not given.
        font : path, optional
            A TrueType font. If not given, Pillow's own, or a common system font if that lacks a character of the texts.

        Returns
        -------
        PIL.Image.Image
            RGB.

        Raises
        ------
        ValueError
            If the explanation holds no images or an option is outside its range.
        OSError
            If `font` cannot be read.
        """
        if not self.images and not self.videos:
            raise ValueError(_NONE)
        options: dict[str, Any] = {
            "cmap": cmap,
            "opacity": opacity,
            "width": width,
            "columns": columns,
            "font": font,
        }
        strengths: list[float] = self.visual_strength.tolist()
        groups: dict[tuple[int, int], list[int]] = {}
        others: list[int] = []
        for token, strength in enumerate(strengths):
            peak = self.peak(token) if self.videos and strength > 0 else None
            if peak is None or peak.video is None or peak.frame is None:
                others.append(token)
            else:
                groups.setdefault((peak.video, peak.frame), []).append(token)
        vectors = {token: self.vector(token) for token in range(len(self))}
        images = self.images or [image for clip in self.videos for image in _first_and_last(clip.frames)]
        cells = [
            render.Cell(
                self.tokens[token],
                strengths[token],
                [self._placed(vectors[token], image) if self.images else [] for image in range(len(images))],
            )
            for token in others
        ]
        sentence = self._painted_text(dict(enumerate(strengths)))
        pages = [render.sheet(images, cells, sentence, prompt=self.prompt, model=self.model, **options)]
        for (video, frame), tokens in sorted(groups.items()):
            cells = [
                render.Cell(self.tokens[token], strengths[token], [self._placed(vectors[token], video, frame)])
                for token in tokens
            ]
            sentence = self._painted_text({token: strengths[token] for token in tokens})
            still = self._still(video, frame)
            pages.append(render.sheet([still], cells, sentence, prompt=self._moment(video, frame), **options))
        return pages[0] if len(pages) == 1 else _stacked(pages)

    def _moment(self, video: int, frame: int) -> str:
        """Say when a temporal index of a video is."""
        time = self._time(video, frame)
        when = f"frame {frame}" if time is None else f"{time:.2f} s"
        return when if len(self.videos) == 1 else f"video {video}, {when}"

    def _painted_text(self, strengths: Mapping[int, float]) -> list[tuple[str, float | None]]:
        """Cut the text at token borders, each piece with its token's strength; None where it has none."""
        pieces: list[tuple[str, float | None]] = []
        place = 0
        for token, (start, end) in enumerate(self.offsets):
            if start > place:
                pieces.append((self.text[place:start], None))
            if end > place:
                pieces.append((self.text[max(start, place) : end], strengths.get(token)))
                place = end
        if place < len(self.text):
            pieces.append((self.text[place:], None))
        return pieces

    def _picture(self, image: int) -> Image.Image:
        if not self.images:
            raise ValueError(_NONE)
        if not 0 <= image < len(self.images):
            raise IndexError(f"image: expected one from 0 to {len(self.images) - 1}, got {image}")
        return self.images[image]

    def _still(self, video: int, frame: int) -> Image.Image:
        """Return the first of the sampled frames that a temporal index of a video shows."""
        shown = self._shown(video, frame)
        if shown is None:
            raise ValueError(_NONE.replace("images", "videos"))
        return self.videos[video].frames[shown[0]]

    def _placed(self, vector: torch.Tensor, source: int, frame: int | None = None) -> list[render.Raster]:
        return [
            render.Raster(canvas.join(vector).numpy(), canvas.box)
            for canvas in self._canvases
            if canvas.source == source and canvas.frame == frame
        ]


def _first_and_last(frames: Sequence[Image.Image]) -> list[Image.Image]:
    return [frames[0], frames[-1]] if len(frames) > 1 else [frames[0]]


def _stacked(pages: Sequence[Image.Image]) -> Image.Image:
    """Put pages of one width below each other."""
    whole = Image.new("RGB", (pages[0].width, sum(page.height for page in pages)))
    top = 0
    for page in pages:
        whole.paste(page, (0, top))
        top += page.height
    return whole
