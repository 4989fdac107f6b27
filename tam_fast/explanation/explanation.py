"""The result of an explanation: :class:`Explanation` answers questions about it and draws it."""

from __future__ import annotations

import bisect
import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image

import tam_fast.render as render
from tam_fast.explanation import files
from tam_fast.explanation.graph import Graph, graph_of
from tam_fast.explanation.kept import KeptStates, one_token
from tam_fast.explanation.words import Candidate, Word, is_whole, split_words
from tam_fast.maps.answer import TokenActivationMaps
from tam_fast.maps.canvas import Canvas
from tam_fast.maps.layout import Layout

__all__ = ["SOURCES", "Explanation", "Peak", "load"]

SOURCES = ("generated", "teacher_forced", "given", "states")
"""Where the states of an explanation can come from."""


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
        The image it shows.
    x, y : float
        The cell's centre in that image, as fractions of its width and height. May lie outside 0..1 where the processor
        padded the image.
    """

    value: float
    grid: int
    row: int
    column: int
    source: int
    x: float
    y: float


@dataclass(eq=False, repr=False)
class Explanation:
    """An answer, and for each of its tokens where in the image the model saw it.

    ``e["circle"]`` is the map of a word, ``e[3]`` that of a token, ``e[2:5]`` or ``e.span(2, 5)`` that of a span.

    Parameters
    ----------
    tokens : list of T str
        The answer's decoded pieces, with leading spaces.
    token_ids : list of T int
    text : str
        The answer as a reader sees it.
    offsets : list of T (int, int)
        Each token's characters in `text`, start and end. Empty for a token that shows nothing, such as the end mark;
        pieces of one character share its range.
    maps : TokenActivationMaps
        The maps (T, N) in [0, 1], the context's relevance (T, K), and the layout.
    candidates : list of T lists of Candidate
        The likeliest tokens of each step, most probable first (three of them, from ``Explainer.explain``). A step's
        list may be empty.
    images : list of PIL images
        The sources, RGB, in the order of ``Grid.source``. May be empty: then nothing can be drawn.
    prompt : str
    context_tokens : list of K str
        The pieces of the prompt and of the answer that :attr:`relevance` is about.
    model : str
        The model's name.
    elapsed : dict of str to float
        Seconds by stage, as far as they were measured.
    source : str
        Where the states come from: ``"generated"`` (the steps of ``generate``), ``"teacher_forced"`` (a pass over the
        generated answer, because its steps could not be shown to be the answer's), ``"given"`` (a pass over an answer
        that was given) or ``"states"`` (made elsewhere).
    states : KeptStates, optional
        The final hidden states, where they were kept (``keep_states=True``): :meth:`what_if` needs them.

    Raises
    ------
    TypeError, ValueError
        If the lengths do not agree with the maps, or an offset lies outside the text.

    Notes
    -----
    A map over one image is one (H, W) tensor: that of its grid, or where it has several (tiles, crops, an overview) all
    of them joined on one raster, see :meth:`tam_fast.Layout.canvas`. Over several images, or frames of a video, it is a
    list of such tensors. :meth:`grid` gives the map on one grid, :meth:`vector` (N,) over all cells.

    The map of several tokens is the elementwise maximum of theirs: a cell counts for a word if it counts for one of its
    pieces. A mean would fade the piece that names the object with those that only complete the spelling. NaN (possible
    with ``compat="official"`` alone) is passed over where another token has a number, and drawn as 0.
    """

    tokens: list[str]
    token_ids: list[int]
    text: str
    offsets: list[tuple[int, int]]
    maps: TokenActivationMaps
    candidates: list[list[Candidate]]
    images: list[Image.Image]
    prompt: str
    context_tokens: list[str]
    model: str
    elapsed: dict[str, float] = field(default_factory=dict)
    source: str = "generated"
    states: KeptStates | None = None

    def __post_init__(self) -> None:
        shapes = tuple(self.maps.maps.shape), tuple(self.maps.relevance.shape)
        cells = self.layout.offsets[-1]
        if len(shapes[0]) != 2 or shapes[0][1] != cells:
            raise ValueError(f"maps: expected maps of shape (tokens, {cells}), got {shapes[0]}")
        if len(shapes[1]) != 2 or shapes[1][0] != shapes[0][0]:
            raise ValueError(f"maps: expected relevance of shape ({shapes[0][0]}, context), got {shapes[1]}")
        for name in ("tokens", "token_ids", "offsets", "candidates"):
            count = len(getattr(self, name))
            if count != shapes[0][0]:
                raise ValueError(f"{name}: expected one for each of {shapes[0][0]} maps, got {count}")
        if len(self.context_tokens) != shapes[1][1]:
            raise ValueError(
                f"context_tokens: expected one for each of {shapes[1][1]} columns of the relevance, "
                f"got {len(self.context_tokens)}"
            )
        if self.source not in SOURCES:
            raise ValueError(f"source: expected one of {', '.join(SOURCES)}, got {self.source!r}")
        self.offsets = [(int(start), int(end)) for start, end in self.offsets]
        for token, (start, end) in enumerate(self.offsets):
            if not 0 <= start <= end <= len(self.text):
                raise ValueError(
                    f"offsets: expected 0 <= start <= end <= {len(self.text)}, the length of the text, "
                    f"got {(start, end)} for token {token}"
                )
        sources = 1 + max(grid.source for grid in self.layout.grids)
        if self.images and len(self.images) != sources:
            raise ValueError(f"images: expected {sources}, the sources of the layout's grids, got {len(self.images)}")
        for image in self.images:
            if not isinstance(image, Image.Image):
                raise TypeError(f"images: expected PIL images, got {type(image).__name__}")
        self.images = [image if image.mode == "RGB" else image.convert("RGB") for image in self.images]

    def __repr__(self) -> str:
        grids = ", ".join(f"{height}x{width}" for height, width in self.layout.sizes)
        return f"Explanation({self.text!r}, {len(self)} tokens, grids {grids}, model {self.model!r})"

    def __len__(self) -> int:
        """Return the number of tokens, T."""
        return len(self.tokens)

    @property
    def layout(self) -> Layout:
        """Where the cells of the maps are, in the sequence and on the images."""
        return self.maps.layout

    @property
    def relevance(self) -> torch.Tensor:
        """How strongly each context token speaks for each token: (T, K) float32, on the scale of the maps."""
        return self.maps.relevance

    @cached_property
    def visual_strength(self) -> torch.Tensor:
        """How much the image speaks for each token: the maximum of its map, (T,) float32 in [0, 1].

        Image and text are normalised together (Eq. 3 of the TAM paper), so the maximum says how strong the best visual
        evidence is against the strongest evidence of any kind: near 1 where the image leads, small where a word of the
        prompt or of the answer so far does. The mean would measure how large an object is. It is also the brightest
        cell of the token's overlay, so that figures and pictures tell the same. 0 for a flat token and where a map is
        all NaN.
        """
        return torch.nan_to_num(self.maps.maps, nan=0.0).amax(dim=1)

    # Words ---------------------------------------------------------------------------------------

    @cached_property
    def words(self) -> list[Word]:
        """The words of the answer in order, without punctuation, each with the tokens that spell it.

        A word is a run of letters, digits and marks; an apostrophe or hyphen, or a point or comma between digits, joins
        two runs. In scripts written without spaces (Chinese, Japanese, Thai, Khmer, ...) the words are the tokens'
        pieces.
        """
        found = (self._word(start, end) for start, end in split_words(self.text, [start for start, _ in self.offsets]))
        return [word for word in found if word is not None]

    def find(self, word: str) -> list[Word]:
        """Find every place of a word or phrase in the answer.

        Parameters
        ----------
        word : str
            Compared without regard to case; a space stands for any white space. Where it occurs as a whole word, only
            those places count; otherwise parts of words do, so ``"circ"`` finds ``"circle"``.

        Returns
        -------
        list of Word
            In the order of the text; empty if there is none.

        Raises
        ------
        TypeError
            If `word` is not a string.
        """
        if not isinstance(word, str):
            raise TypeError(f"word: expected a string, got {type(word).__name__}")
        for form in dict.fromkeys((word, unicodedata.normalize("NFC", word), unicodedata.normalize("NFD", word))):
            pieces = [re.escape(piece) for piece in form.split()]
            if not pieces:
                return []
            places = [match.span() for match in re.finditer(r"\s+".join(pieces), self.text, re.IGNORECASE)]
            whole = [place for place in places if is_whole(self.text, *place)]
            found = (self._word(*place) for place in whole or places)
            if words := [word for word in found if word is not None]:
                return words
        return []

    def __contains__(self, word: object) -> bool:
        return isinstance(word, str) and bool(self.find(word))

    def _word(self, start: int, end: int) -> Word | None:
        """Make the word at characters start..end; None if no token shows any of them."""
        tokens = [i for i, (first, last) in enumerate(self.offsets) if first < end and last > start]
        if not tokens:
            return None
        strength = float(self.visual_strength[tokens[0] : tokens[-1] + 1].max())
        return Word(self.text[start:end], tokens[0], tokens[-1] + 1, (start, end), strength)

    # Maps ----------------------------------------------------------------------------------------

    def _tokens(self, key: int | str | slice | tuple[int, int] | Word) -> tuple[int, int]:
        """Resolve any way of naming tokens to their range (start, stop), which is not empty."""
        if isinstance(key, Word):
            return self._range(key.start, key.stop)
        if isinstance(key, str):
            words = self.find(key)
            if not words:
                known = ", ".join(dict.fromkeys(word.text for word in self.words)) or "none"
                raise KeyError(f"{key!r} is not in the answer; its words are: {known}")
            return words[0].start, words[0].stop
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            if step != 1:
                raise ValueError(f"key: expected a slice of step 1, got step {step}")
            return self._range(start, stop)
        if isinstance(key, tuple):
            if len(key) != 2:
                raise ValueError(f"key: expected a span (start, end), got {key!r}")
            return self._tokens(slice(*key))
        if isinstance(key, bool) or not hasattr(key, "__index__"):
            raise TypeError(
                f"key: expected a token's index, a word, a slice, a span (start, end) or a Word, "
                f"got {type(key).__name__}"
            )
        index = int(key.__index__())
        if not -len(self) <= index < len(self):
            raise IndexError(f"key: expected a token from 0 to {len(self) - 1}, got {index}")
        return index % len(self), index % len(self) + 1

    def _range(self, start: int, stop: int) -> tuple[int, int]:
        if not 0 <= start < stop <= len(self):
            raise ValueError(f"key: expected at least one of {len(self)} tokens, got tokens {start} to {stop}")
        return start, stop

    def vector(self, key: int | str | slice | tuple[int, int] | Word) -> torch.Tensor:
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

    def __getitem__(self, key: int | str | slice | tuple[int, int] | Word) -> torch.Tensor | list[torch.Tensor]:
        """Return the map of a token, word or span: (H, W) float32, or a list of them if there are several images.

        See :meth:`vector` for `key` and what is raised.
        """
        vector = self.vector(key)
        rasters = [canvas.join(vector) for canvas in self._canvases]
        return rasters[0] if len(rasters) == 1 else rasters

    def span(self, start: int, end: int) -> torch.Tensor | list[torch.Tensor]:
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

    def grid(self, key: int | str | slice | tuple[int, int] | Word, g: int = 0) -> torch.Tensor:
        """Return the map of a token, word or span on grid `g`: (H, W) float32.

        See :meth:`vector` for `key` and what is raised; IndexError as well if there is no such grid.
        """
        grids = self.layout.grids
        if not -len(grids) <= g < len(grids):
            raise IndexError(f"g: expected a grid from 0 to {len(grids) - 1}, got {g}")
        start = self.layout.offsets[g % len(grids)]
        return self.vector(key)[start : start + len(grids[g])].reshape(grids[g].shape)

    def what_if(
        self, step: int, token: int | str, *, classifier: torch.Tensor | None = None
    ) -> torch.Tensor | list[torch.Tensor]:
        """Return the map of a token that was not said, as if it stood at one step of the answer.

        What the model had read and written until then stays; no forward pass is made. For the token that was said it is
        its own map.

        Parameters
        ----------
        step : int
            Which token of the answer it stands in place of; negative ones count from the end.
        token : int or str
            An id, or the text of one token, with or without its leading space.
        classifier : (V, C) Tensor, optional
            The lm_head's weight, for an explanation that was loaded: it has the rows of the answer's tokens, of the
            prompt's and of the candidates alone.

        Returns
        -------
        (H, W) float32, or a list of them
            As ``e[step]``.

        Raises
        ------
        ValueError
            If the states were not kept, or the text is not that of one token.
        IndexError, TypeError, KeyError
            If there is no such step, `token` is neither, or its row of the classifier is not there.
        """
        if self.states is None:
            raise ValueError("states: expected an explanation that keeps them, got none: explain(keep_states=True)")
        at, _ = self._tokens(step)
        known = [(c.token, c.token_id) for c in self.candidates[at]]
        number = one_token(token, [*known, *zip(self.tokens, self.token_ids, strict=True)], self.states.tokenizer)
        states = self.states if classifier is None else replace(self.states, rows=classifier.__getitem__)
        if classifier is not None and not 0 <= number < classifier.shape[0]:
            raise ValueError(f"token: expected an id from 0 to {classifier.shape[0] - 1}, got {number}")
        vector = states.maps(at, [number])[0]
        rasters = [canvas.join(vector) for canvas in self._canvases]
        return rasters[0] if len(rasters) == 1 else rasters

    def graph(self, top: int = 3) -> Graph:
        """Say what each token of the answer rests on: its strongest context tokens and where in the images.

        Parameters
        ----------
        top : int
            Context tokens a token at most.

        Returns
        -------
        Graph
            A list of edges (from, to, attributes), JSON-able and as networkx takes it.
        """
        return graph_of(self.maps.maps, self.maps.relevance, self._canvases, self.tokens, self.context_tokens, top)

    @cached_property
    def _canvases(self) -> list[Canvas]:
        return self.layout.canvases()

    def peak(self, key: int | str | slice | tuple[int, int] | Word) -> Peak:
        """Return the strongest cell of the map of a token, word or span.

        See :meth:`vector` for `key` and what is raised. A map of zeros has its peak in its first cell, with value 0.
        """
        vector = torch.nan_to_num(self.vector(key), nan=0.0)
        cell = int(vector.argmax())
        offsets = self.layout.offsets
        g = bisect.bisect_right(offsets, cell) - 1
        grid = self.layout.grids[g]
        row, column = divmod(cell - offsets[g], grid.width)
        x0, y0, x1, y1 = grid.box
        x = x0 + (column + 0.5) / grid.width * (x1 - x0)
        y = y0 + (row + 0.5) / grid.height * (y1 - y0)
        return Peak(float(vector[cell]), g, row, column, grid.source, x, y)

    # Pictures ------------------------------------------------------------------------------------

    def overlay(
        self,
        key: int | str | slice | tuple[int, int] | Word,
        *,
        image: int = 0,
        cmap: str = "inferno",
        opacity: float | None = None,
        size: tuple[int, int] | None = None,
    ) -> Image.Image:
        """Draw the map of a token, word or span on an image.

        The image's grids are joined (:meth:`tam_fast.Layout.canvas`) and placed by their box; where two overlap (tiles
        and an overview), the stronger activation counts. Parts that no grid covers are left as they are, and so is the
        whole image by a flat map.

        Parameters
        ----------
        key : int, str, slice, (int, int) or Word
            As for :meth:`vector`.
        image : int
            Which of :attr:`images`.
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
            As for :meth:`vector`; IndexError if there is no such image, ValueError if the colour map is unknown, the
            opacity or the size is out of range or the explanation holds no images.
        """
        return render.overlay(self._image(image), self._placed(key, image), cmap=cmap, opacity=opacity, size=size)

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
        if not self.images:
            raise ValueError("images: this explanation holds none, so there is nothing to draw on")
        strengths: list[float] = self.visual_strength.tolist()
        cells = [
            render.Cell(token, strengths[i], [self._placed(i, image) for image in range(len(self.images))])
            for i, token in enumerate(self.tokens)
        ]
        sentence = self._painted_text(strengths)
        return render.sheet(
            self.images,
            cells,
            sentence,
            prompt=self.prompt,
            model=self.model,
            cmap=cmap,
            opacity=opacity,
            width=width,
            columns=columns,
            font=font,
        )

    def _painted_text(self, strengths: Sequence[float]) -> list[tuple[str, float | None]]:
        """Cut the text at token borders, each piece with its token's strength; None where no token shows it."""
        pieces: list[tuple[str, float | None]] = []
        place = 0
        for (start, end), strength in zip(self.offsets, strengths, strict=True):
            if start > place:
                pieces.append((self.text[place:start], None))
            if end > place:
                pieces.append((self.text[max(start, place) : end], strength))
                place = end
        if place < len(self.text):
            pieces.append((self.text[place:], None))
        return pieces

    def _image(self, image: int) -> Image.Image:
        if not self.images:
            raise ValueError("images: this explanation holds none, so there is nothing to draw on")
        if not 0 <= image < len(self.images):
            raise IndexError(f"image: expected one from 0 to {len(self.images) - 1}, got {image}")
        return self.images[image]

    def _placed(self, key: int | str | slice | tuple[int, int] | Word, image: int) -> list[render.Raster]:
        vector = self.vector(key)
        return [
            render.Raster(canvas.join(vector).numpy(), canvas.box)
            for canvas in self._canvases
            if canvas.source == image and canvas.frame is None
        ]

    # Files ---------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> tuple[Path, Path]:
        """Write the explanation to two files: ``<path>.safetensors`` (arrays, images) and ``<path>.json`` (the rest).

        The two appear together or not at all: they are written beside, synced and renamed, so that a full disk or an
        interruption leaves what was there before. Files of an earlier ``save`` are replaced, other files are not. The
        images are kept without loss (as PNG), so the pair is all that :func:`load` needs.

        Parameters
        ----------
        path : path
            Where; a suffix ``.safetensors`` or ``.json`` is taken off first. Its folder must exist. A name too long
            for the folder is shortened, in the same way by :func:`load`.
        force : bool
            Replace files of these names even if something else wrote them.

        Returns
        -------
        tuple of 2 paths
            The two files.

        Raises
        ------
        OSError
            If they cannot be written; FileExistsError if a file would be replaced that ``save`` did not write.
        ValueError
            If it holds what no explanation has, and :func:`load` would refuse: a map beyond [0, 1], a relevance, scale,
            probability or time that is not finite, `token_ids` that are not those of the maps, offsets out of order.
        """
        return files.write(path, self, force)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Explanation:
        """Read an explanation that :meth:`save` wrote. The same as :func:`tam_fast.load`."""
        return load(path)


def load(path: str | os.PathLike[str]) -> Explanation:
    """Read an explanation that :meth:`Explanation.save` wrote.

    Nothing in the files is executed: they are JSON and safetensors, and everything in them is checked: shapes, ranges,
    and token ids, offsets and positions against each other.

    Parameters
    ----------
    path : path
        What was given to ``save``: either of the two files, or their common path without suffix.

    Returns
    -------
    Explanation
        Equal to the saved one in every field, bit for bit.

    Raises
    ------
    FileNotFoundError
        If one of the two files is missing.
    ValueError
        If a file is damaged, was written by something else or does not belong to the other; names the file and the
        reason. An image of more than ``2 * PIL.Image.MAX_IMAGE_PIXELS`` pixels is refused as well.
    """
    return files.read(path, Explanation)
