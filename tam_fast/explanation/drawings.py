"""More pictures of a word: a plate in the paper's look, a matplotlib axes, a video file."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

import tam_fast.render as render
from tam_fast.explanation.naming import Key
from tam_fast.explanation.page import page_of
from tam_fast.explanation.pictures import Pictures
from tam_fast.explanation.replacing import check_replaceable, replace_files
from tam_fast.explanation.words import Word
from tam_fast.render import Passage, Phrase, Shot, colormap, encode_video, paces
from tam_fast.render.video import SUFFIXES

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Drawings"]

_LONG = 60  # frames from which on one is told how far their encoding is
_HIGHEST = 720  # pixels of a film's shorter side


class Drawings(Pictures):
    """A result that can be drawn in other ways."""

    def plate(
        self,
        key: Key,
        *,
        image: int | None = None,
        video: int | None = None,
        frame: int | None = None,
        cmap: str = "jet",
        opacity: float | None = None,
        width: int = 900,
        font: str | os.PathLike[str] | None = None,
    ) -> Image.Image:
        """Draw a word as the paper's plates do: its map on the image, and below it all that was said.

        Prompt and answer are coloured by what each token says for the word, on the same scale as the map. The word is
        framed, what came after it is grey; below stand the likeliest tokens in the place of its first one.

        Parameters
        ----------
        key : int, str, slice, (int, int) or Word
            As for :meth:`vector`. Of several tokens a context token has the largest relevance for one of them.
        image, video, frame : int, optional
            As for :meth:`overlay`; all images side by side if none is given and there are any.
        cmap, opacity
            As for :meth:`overlay`; ``"jet"`` is the paper's.
        width : int
            Width of the picture in pixels, at least 240; the height follows.
        font : path, optional
            A TrueType font. If not given, Pillow's own, or one of the system's if that lacks a character of the texts.

        Returns
        -------
        PIL.Image.Image
            RGB. Of a text without images the text alone.

        Raises
        ------
        KeyError, IndexError, ValueError, TypeError
            As for :meth:`overlay`; ValueError if the width is too small.
        OSError
            If `font` cannot be read.
        """
        start, stop = self._tokens(key)
        vector = self.vector(key)
        if image is None and video is None and frame is None and (self.images or not self.videos):
            pictures = [(picture, self._placed(vector, number)) for number, picture in enumerate(self.images)]
        else:
            pictures = [self._scene(vector, image, video, frame)]
        note = [self.model, *([] if self.method == "tam" else [self.method])]
        if bool(self.maps.flat[start:stop].all()):
            note.append("flat: nothing to see")
        return render.plate(
            pictures,
            self._passages(start, stop),
            candidates=[(candidate.token, candidate.probability) for candidate in self.candidates[start]],
            note=" · ".join(note),
            cmap=cmap,
            opacity=opacity,
            width=width,
            font=font,
        )

    def _passages(self, start: int, stop: int) -> list[Passage]:
        """Lay out all that was said, coloured for tokens start..stop."""
        prompt = len(self.context_tokens) - (self.places[-1] if self.places else 0)
        first, last = prompt + self.places[start], prompt + self.places[stop - 1]
        relevance = torch.nan_to_num(self.relevance[start:stop].float(), nan=0.0).amax(dim=0).tolist()

        def phrase(text: str, place: int | None) -> Phrase:
            if place is None:
                return Phrase(text)
            if place < first:
                return Phrase(text, relevance[place] if place < len(relevance) else None)
            return Phrase(text, is_target=place <= last, is_later=place > last)

        sections = page_of([self]).columns[0].sections
        return [
            Passage(section.role, [phrase(run.text, run.place) for run in section.runs])
            for section in sections
            if any(run.text.strip() for run in section.runs)
        ]

    def plot(
        self,
        key: Key,
        ax: Any = None,
        *,
        image: int | None = None,
        video: int | None = None,
        frame: int | None = None,
        cmap: str = "inferno",
        opacity: float | None = None,
        colorbar: bool | None = None,
    ) -> Any:
        """Draw the map of a word on an image into axes of matplotlib.

        Parameters
        ----------
        key : int, str, slice, (int, int) or Word
            As for :meth:`vector`.
        ax : matplotlib.axes.Axes, optional
            Where; those of a new figure if not given.
        image, video, frame : int, optional
            As for :meth:`overlay`.
        cmap, opacity
            As for :meth:`overlay`.
        colorbar : bool, optional
            With a colour bar from 0 to 1, which takes its room from the axes. If not given, in a new figure alone.

        Returns
        -------
        matplotlib.axes.Axes
            Titled with the word. Its coordinates are pixels of the image, so that boxes can be drawn on it.

        Raises
        ------
        KeyError, IndexError, ValueError, TypeError
            As for :meth:`overlay`.
        ImportError
            If matplotlib is not installed.
        """
        start, stop = self._tokens(key)
        drawn = self.overlay(key, image=image, video=video, frame=frame, cmap=cmap, opacity=opacity)
        try:
            from matplotlib import colors
            from matplotlib.cm import ScalarMappable
        except ImportError as error:
            raise ImportError("matplotlib: expected it for plot: pip install matplotlib; overlay needs none") from error
        if colorbar is None:
            colorbar = ax is None
        if ax is None:
            from matplotlib import pyplot

            ax = pyplot.figure(layout="constrained").add_subplot()
        ax.imshow(drawn, extent=(0, drawn.width, drawn.height, 0))
        ax.set_title(self._caption(start, stop), parse_math=False)
        ax.set_axis_off()
        if colorbar:
            table = colors.ListedColormap(colormap(cmap) / 255.0, name=cmap)
            ax.figure.colorbar(ScalarMappable(colors.Normalize(0.0, 1.0), table), ax=ax, shrink=0.8)
        return ax

    def _caption(self, start: int, stop: int) -> str:
        """Return the text that some tokens show."""
        places = [place for place in self.offsets[start:stop] if place[0] < place[1]]
        text = self.text[places[0][0] : places[-1][1]] if places else "".join(self.tokens[start:stop])
        return " ".join(text.split()) or repr("".join(self.tokens[start:stop]))

    def save_video(
        self,
        path: str | os.PathLike[str],
        key: Key | None = None,
        *,
        video: int = 0,
        fps: float | None = None,
        cmap: str = "inferno",
        opacity: float | None = None,
        font: str | os.PathLike[str] | None = None,
        force: bool = False,
    ) -> Path:
        """Write the frames of a video as a film, each with the map of a word at its time.

        Below each frame stand the word, the time, and how strong the word is from beginning to end.

        Parameters
        ----------
        path : path
            Ends in ``.mp4`` (H.264; needs PyAV: ``pip install 'tam-fast[video]'``) or ``.gif``. Its folder must exist.
            An earlier film is replaced, another file is not.
        key : int, str, slice, (int, int) or Word, optional
            As for :meth:`vector`; the word that is strongest in the video if not given.
        video : int
            Which of :attr:`videos`.
        fps : float, optional
            Frames a second. If not given, each is shown until the next one was taken, or half a second where the times
            are not known.
        cmap, opacity, font
            As for :meth:`overlay` and :meth:`sheet`.
        force : bool
            Replace a file of this name even if something else wrote it.

        Returns
        -------
        path
            The file. Frames are those that the model was shown, no more than 720 pixels on their shorter side.

        Raises
        ------
        KeyError, IndexError, ValueError, TypeError
            As for :meth:`vector`; IndexError if there is no such video, ValueError if the path ends otherwise, or the
            rate or the colour map are out of range.
        OSError
            If it cannot be written; FileExistsError if a file would be replaced that is no film of this library.
        ImportError
            If PyAV is not installed and the path ends in ``.mp4``.
        """
        place = Path(path)
        if place.suffix.lower() not in SUFFIXES:
            raise ValueError(f"path: expected a name that ends in {' or '.join(SUFFIXES)}, got {str(path)!r}")
        check_replaceable([place], force)
        data = self.film(place.suffix, key, video=video, fps=fps, cmap=cmap, opacity=opacity, font=font)
        replace_files({place: data})
        return place

    def film(
        self,
        suffix: str,
        key: Key | None = None,
        *,
        video: int = 0,
        fps: float | None = None,
        cmap: str = "inferno",
        opacity: float | None = None,
        font: str | os.PathLike[str] | None = None,
    ) -> bytes:
        """Return what :meth:`save_video` writes to a file of this suffix, ``".mp4"`` or ``".gif"``."""
        canvases = self._video(video)
        if not self.videos:
            raise ValueError("videos: this explanation holds none, so there is nothing to draw on")
        key = self._strongest(video) if key is None else key
        vector, caption = self.vector(key), self._caption(*self._tokens(key))
        clip = self.videos[video]
        durations = paces(clip.times, len(clip), fps)
        shots: list[Shot] = []
        for canvas in canvases:
            shown = self._shown(video, canvas.frame or 0) or range(0)
            rasters = self._placed(vector, video, canvas.frame)
            for number in shown:
                time = None if clip.times is None else clip.times[number]
                label = f"frame {number}" if time is None else f"{time:.2f} s"
                shots.append(Shot(clip.frames[number], rasters, label))
        # A last temporal index without frames of its own shows the last frame once more.
        shots = shots[: len(clip)]
        pictures = render.film(shots, caption, cmap=cmap, opacity=opacity, font=font, highest=_HIGHEST)
        with _told(len(shots)) as advance:

            def counted() -> Iterator[Image.Image]:
                for picture in pictures:
                    yield picture
                    advance()

            return encode_video(counted(), durations[: len(shots)], suffix.lower())

    def _strongest(self, video: int) -> Word | int:
        """Name the word that is strongest in a video, the first of several; a token where there are no words."""
        canvases = self._video(video)

        def strength(key: Key) -> float:
            vector = self.vector(key)
            return max(float(torch.nan_to_num(canvas.join(vector), nan=0.0).max()) for canvas in canvases)

        keys: list[Word | int] = [*self.words] or [*range(len(self))]
        if not keys:
            raise ValueError("key: expected an explanation of at least one token, got none")
        return max(keys, key=strength)


@contextmanager
def _told(count: int) -> Iterator[Callable[[], object]]:
    """Show how many of many frames are encoded, where somebody may look."""
    if count < _LONG or sys.stderr is None or not sys.stderr.isatty() or importlib.util.find_spec("rich") is None:
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("frames", total=count)
        yield lambda: bar.advance(task)
