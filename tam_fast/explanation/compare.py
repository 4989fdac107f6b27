"""Explanations side by side, their words aligned: :func:`compare`."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from tam_fast.explanation.page import check_path, page_of, save_page
from tam_fast.explanation.pictures import Pictures
from tam_fast.explanation.words import Word
from tam_fast.render.page import PageData, page
from tam_fast.render.table import Entry, table

if TYPE_CHECKING:
    from tam_fast.explanation.explanation import Explanation

__all__ = ["Comparison", "Row", "aligned", "compare"]


@dataclass(frozen=True)
class Row:
    """What several explanations say at one place.

    Attributes
    ----------
    text : str
        The word, as the first that says it does.
    words : tuple of (int or None)
        For each explanation an index into its ``words``; None where it does not say it here.
    """

    text: str
    words: tuple[int | None, ...]


@dataclass(frozen=True, eq=False)
class Comparison:
    """Explanations of the same images, side by side, their words aligned. Made by :func:`compare`.

    Attributes
    ----------
    explanations : list of Explanation
        One a column.
    titles : list of str
        What tells the columns apart.
    rows : list of Row
        The words in the order in which they are said.
    """

    explanations: list[Explanation]
    titles: list[str]
    rows: list[Row]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.rows)} words of {', '.join(self.titles)})"

    def __len__(self) -> int:
        """Return the number of columns."""
        return len(self.explanations)

    def strengths(self) -> torch.Tensor:
        """Return each word's visual strength: (rows, columns) float32, NaN where a column lacks it."""
        found = torch.full((len(self.rows), len(self)), torch.nan)
        for number, row in enumerate(self.rows):
            for column, word in enumerate(self._words(row)):
                if word is not None:
                    found[number, column] = word.strength
        return found

    def sheet(
        self,
        words: Sequence[str] | None = None,
        *,
        cmap: str = "inferno",
        opacity: float | None = None,
        width: int = 1600,
        font: str | os.PathLike[str] | None = None,
    ) -> Image.Image:
        """Draw the maps of the words in one picture, one row a word, all on one scale of colours.

        Parameters
        ----------
        words : sequence of str, optional
            Which of the rows, compared without regard to case; all if not given.
        cmap, opacity, font
            As for :meth:`Explanation.sheet`.
        width : int
            Pixels at most.

        Returns
        -------
        PIL.Image.Image
            RGB. Of several images and of videos each cell shows the one where the word is strongest.

        Raises
        ------
        KeyError
            If a word is in no row; the message lists those that are.
        ValueError
            If there are no images, or an option is outside its range.
        OSError
            If `font` cannot be read.
        """
        rows = self._chosen(words)
        cells = [
            (
                row.text,
                [
                    None if word is None else _entry(e, word)
                    for e, word in zip(self.explanations, self._words(row), strict=True)
                ],
            )
            for row in rows
        ]
        prompts = list(dict.fromkeys(" ".join(e.prompt.split()) for e in self.explanations))
        head = prompts[0] if len(prompts) == 1 else ""
        return table(self.titles, cells, head=head, cmap=cmap, opacity=opacity, width=width, font=font)

    def page_data(self, *, title: str | None = None, cmap: str = "inferno") -> PageData:
        """Return what an HTML page shows of them: one column each, the same words pointed at together."""
        rows = [row.words for row in self.rows]
        return page_of(self.explanations, title=title, titles=self.titles, rows=rows, cmap=cmap)

    def save_html(
        self, path: str | os.PathLike[str], *, title: str | None = None, cmap: str = "inferno", force: bool = False
    ) -> Path:
        """Write one HTML file in which a word that is pointed at shows its map in every column, on one scale.

        Parameters, returns and errors are those of :meth:`Explanation.save_html`.
        """
        check_path(path, force)
        return save_page(path, page(self.page_data(title=title, cmap=cmap)), force)

    def _words(self, row: Row) -> list[Word | None]:
        return [None if n is None else e.words[n] for e, n in zip(self.explanations, row.words, strict=True)]

    def _chosen(self, words: Sequence[str] | None) -> list[Row]:
        if words is None:
            return self.rows
        if isinstance(words, str):
            raise TypeError(f"words: expected a sequence of words, got the string {words!r}")
        known = [row.text.casefold() for row in self.rows]
        for word in words:
            if word.casefold() not in known:
                listed = ", ".join(dict.fromkeys(row.text for row in self.rows)) or "none"
                raise KeyError(f"{word!r} is in no row; the words are: {listed}")
        wanted = {word.casefold() for word in words}
        return [row for row in self.rows if row.text.casefold() in wanted]


def compare(explanations: Iterable[Explanation], titles: Sequence[str] | None = None) -> Comparison:
    """Put explanations of the same images side by side: of several models, prompts or methods.

    ::

        e = explainer.explain(image)
        other = explainer.explain(image, answer=e.token_ids, method="cam", scale="answer")
        tam_fast.compare([e, other]).save_html("compared.html")

    Their maps are all in [0, 1] and drawn on one scale of colours, 0 to 1. TAM's are on the common scale of image and
    text (Eq. 3 of the TAM paper); those of other methods are scaled by each map's own extremes, or, with
    ``scale="answer"``, by those of the whole answer, so that a faint word stays faint.

    Parameters
    ----------
    explanations : iterable of Explanation
        At least one.
    titles : sequence of str, optional
        The columns'. If not given, what differs: models, methods, prompts; numbers where nothing does.

    Returns
    -------
    Comparison
        Where two answers are the same their words are aligned one to one. Else what they begin and end with alike is,
        and between these their longest runs of words in common (:class:`difflib.SequenceMatcher`); without regard to
        case, column after column.

    Raises
    ------
    TypeError, ValueError
        If one is no explanation, there is none, they are not of the same images and videos, or there is not one title
        each.
    """
    from tam_fast.explanation.explanation import Explanation

    found = list(explanations)
    if not found:
        raise ValueError("explanations: expected at least one, got none")
    for number, e in enumerate(found):
        if not isinstance(e, Explanation):
            raise TypeError(f"explanations[{number}]: expected an Explanation, got {type(e).__name__}")
    for number, e in enumerate(found[1:], 1):
        _check_same(found[0], e, number)
    names = _titles(found) if titles is None else [str(title) for title in titles]
    if len(names) != len(found):
        raise ValueError(f"titles: expected one for each of {len(found)} explanations, got {len(names)}")
    rows = aligned([[word.text for word in e.words] for e in found])
    return Comparison(found, names, rows)


def aligned(columns: Sequence[Sequence[str]]) -> list[Row]:
    """Align the words of several texts.

    Parameters
    ----------
    columns : sequence of sequences of str

    Returns
    -------
    list of Row
        Every word of every column is in one row, in its column's order.
    """
    rows: list[tuple[str, list[int | None]]] = []
    for column, words in enumerate(columns):
        old, new = [text.casefold() for text, _ in rows], [word.casefold() for word in words]
        merged: list[tuple[str, list[int | None]]] = []
        for kind, i0, i1, j0, j1 in _changes(old, new):
            if kind == "equal":
                merged += [(text, [*known, j0 + k]) for k, (text, known) in enumerate(rows[i0:i1])]
                continue
            merged += [(text, [*known, None]) for text, known in rows[i0:i1]]
            merged += [(words[j], [*[None] * column, j]) for j in range(j0, j1)]
        rows = merged
    return [Row(text, tuple(known)) for text, known in rows]


def _changes(old: Sequence[str], new: Sequence[str]) -> list[tuple[str, int, int, int, int]]:
    """Return difflib's opcodes from one sequence of words to another.

    What both begin and end with is paired at once: in a text that repeats itself the longest run in common may lie
    elsewhere.
    """
    most = min(len(old), len(new))
    head = next((n for n in range(most) if old[n] != new[n]), most)
    tail = next((n for n in range(most - head) if old[-1 - n] != new[-1 - n]), most - head)
    middle = old[head : len(old) - tail], new[head : len(new) - tail]
    found = [("equal", 0, head, 0, head)]
    for kind, i0, i1, j0, j1 in difflib.SequenceMatcher(None, *middle, autojunk=False).get_opcodes():
        found.append((kind, head + i0, head + i1, head + j0, head + j1))
    return [*found, ("equal", len(old) - tail, len(old), len(new) - tail, len(new))]


def _check_same(first: Explanation, e: Explanation, number: int) -> None:
    """Refuse explanations of other images and videos; what one of the two does not hold is not compared."""
    for name, ours, theirs in (
        ("images", first.images, e.images),
        ("videos", [f for v in first.videos for f in v.frames], [f for v in e.videos for f in v.frames]),
    ):
        if not ours or not theirs:
            continue
        if name == "images" and len(ours) != len(theirs):
            raise ValueError(
                f"explanations[{number}]: expected {len(ours)} images, as explanations[0] has, got {len(theirs)}"
            )
        # Models may take other frames of the same video.
        if name == "images" and any(
            a.size != b.size or a.tobytes() != b.tobytes() for a, b in zip(ours, theirs, strict=True)
        ):
            raise ValueError(f"explanations[{number}]: expected the images of explanations[0], got others")
        if name == "videos" and ours[0].size != theirs[0].size:
            raise ValueError(f"explanations[{number}]: expected the videos of explanations[0], got others")


def _titles(explanations: Sequence[Explanation]) -> list[str]:
    """Name columns by what tells them apart."""
    parts: list[list[str]] = [[e.model for e in explanations], [e.method for e in explanations]]
    parts.append([" ".join(e.prompt.split()) for e in explanations])
    telling = [part for part in parts if len(set(part)) > 1] or [parts[0]]
    names = [", ".join(names) for names in zip(*telling, strict=True)]
    if len(set(names)) == len(names):
        return names
    return [f"{name} ({number})" if len(names) > 1 else name for number, name in enumerate(names, 1)]


def _entry(e: Pictures, word: Word) -> Entry:
    """Draw a word where it is strongest."""
    peak: Any = e.peak(word) if e.layout.grids and word.strength > 0 else None
    vector = e.vector(word)
    if peak is not None and peak.video is not None:
        picture, rasters = e._scene(vector, None, peak.video, peak.frame)
        return Entry(picture, rasters, word.strength, e._moment(peak.video, peak.frame))
    several = len(e.images) > 1
    image = peak.source if peak is not None and e.images else None
    picture, rasters = e._scene(vector, image, None, None)
    return Entry(picture, rasters, word.strength, f"image {(image or 0) + 1}" if several else "")
