"""Which figures there are, by name: each a function of an answer and the maps of a method.

A measure of one's own is one function::

    @measure("peak", [Figure("peak", "share of the map at its brightest cell", better="high")], cost="none")
    def peak(case, maps):
        for place, word in case.objects():
            raster = case.word_map(maps, word)
            yield case.value("peak", float(raster.max() / raster.sum()), place)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tam_fast.evaluation.forced import Forced
    from tam_fast.evaluation.passes import Maps, Subject
    from tam_fast.evaluation.words import Word

__all__ = [
    "DEFAULT",
    "FIGURES",
    "MEASURES",
    "Case",
    "Figure",
    "Measure",
    "NothingToMeasure",
    "Options",
    "Value",
    "measure",
    "read_measures",
]


class NothingToMeasure(Exception):
    """An item has nothing of what a measure is of; the message says what is missing."""


@dataclass(frozen=True)
class Figure:
    """What a number of a table is.

    Attributes
    ----------
    name : str
        As rows and ``--figures`` have it.
    title : str
        As tables have it.
    better : "high", "low" or ""
        Which direction is good; "" where there is none.
    percent : bool
        Whether tables show it times 100.
    about : str
        One sentence: what it is.
    """

    name: str
    title: str
    better: str = "high"
    percent: bool = True
    about: str = ""


@dataclass(frozen=True)
class Value:
    """One value that a measure found; see :class:`tam_fast.evaluation.rows.Row`."""

    figure: str
    value: float
    word: int = -1
    token: int = -1
    text: str = ""
    n: int = 1
    points: tuple[float, ...] = ()


@dataclass(frozen=True)
class Options:
    """How figures are made; part of what a folder of rows was made with.

    Attributes
    ----------
    compat : None or "official"
    steps : int
        Of insertion and deletion curves.
    ranks : "cell", "region" or "pixel"
        What is inserted and deleted, one after the other; see :func:`tam_fast.evaluation.curves.curves_of`.
    baseline : str or None
        What stands for what is taken away; None: the mean visual embedding, of pixels black.
    regions : int
        How many, where regions are asked for, and of the linear datamodeling score.
    masks : int
        Random masks of the linear datamodeling score.
    batch_size : int
        Variants that are run at once.
    seed : int
    """

    compat: str | None = None
    steps: int = 32
    ranks: str = "cell"
    baseline: str | None = None
    regions: int = 64
    masks: int = 64
    batch_size: int = 8
    seed: int = 0


@dataclass(eq=False)
class Case:
    """One answer and all that is known of its image.

    Attributes
    ----------
    subject : Subject
        The model's pass over it, and maps.
    item : Item
        Of the data set.
    text : str
        The answer.
    find_words : callable
        Finds the words of the answer, once they are asked for.
    options : Options
    """

    subject: Subject
    item: Any
    text: str
    find_words: Callable[[], Sequence[Word]]
    options: Options = field(default_factory=Options)

    @cached_property
    def words(self) -> Sequence[Word]:
        """The words of the answer; their tokens are places among the maps."""
        return self.find_words()

    @cached_property
    def mask(self) -> NDArray[Any]:
        """Label of each pixel that the model saw, (H, W).

        Raises
        ------
        NothingToMeasure
            If the item has no masks.
        ValueError, OSError
            If it should have, and they cannot be read.
        """
        found = self.item.load_mask(self.subject.image.size, self.subject.canvas.shape)
        if found is None:
            if not self.item.boxes:
                raise NothingToMeasure("no mask")
            found = _painted(self.item.boxes, self.subject.image.size, self.background)
        found = np.asarray(found)
        if found.ndim != 2 or not np.issubdtype(found.dtype, np.integer):
            raise ValueError(f"mask: expected labels (H, W), got {found.shape} of {found.dtype}")
        return found if self.options.compat == "official" else self.subject.on_raster(found, self.background)

    @property
    def background(self) -> int:
        """The label of what belongs to no category."""
        return int(self.item.background)

    @cached_property
    def forced(self) -> Forced:
        """The answer as a model is asked about it again, with parts of the image absent."""
        return self.subject.forced

    @cached_property
    def cache(self) -> dict[str, Any]:
        """What measures keep of an answer for all methods."""
        return {}

    @cached_property
    def _labels(self) -> frozenset[int]:
        return frozenset(int(label) for label in np.unique(self.mask))

    def objects(self) -> list[tuple[int, Word]]:
        """List the words that name something whose mask the image has, each with its place among the words.

        Raises
        ------
        NothingToMeasure
            If there is none.
        """
        found = [(place, word) for place, word in enumerate(self.words) if word.label >= 0]
        if not found:
            raise NothingToMeasure("no word of a category")
        shown = [(place, word) for place, word in found if word.label in self._labels]
        if not shown:
            raise NothingToMeasure("no word whose category the mask has")
        return shown

    def target(self, word: Word) -> NDArray[np.bool_]:
        """Where a word's objects are: (H, W) bool."""
        return np.asarray(self.mask == word.label)

    def word_map(self, maps: Maps, word: Word) -> NDArray[np.float32]:
        """Return the map of a word, (h, w): where one of its tokens is bright."""
        return np.asarray(maps.rasters[list(word.tokens)].max(axis=0))

    def value(self, figure: str, value: float, word: int = -1, **more: Any) -> Value:
        """Make the value of a word, by its place among the words."""
        text = self.words[word].text if word >= 0 else ""
        return Value(figure, float(value), word=word, text=text, **more)


def _painted(
    boxes: Mapping[int, Sequence[Sequence[float]]], size: tuple[int, int], background: int
) -> NDArray[np.int64]:
    """Paint boxes as labels (H, W), the largest first, so that a box upon another shows."""
    width, height = size
    if background in boxes:
        raise ValueError(f"boxes: expected labels other than the background's, got {background}")
    every = [(label, box) for label, some in boxes.items() for box in some]
    every.sort(key=lambda one: -(one[1][2] - one[1][0]) * (one[1][3] - one[1][1]))
    made = np.full((height, width), background, dtype=np.int64)
    for label, (x0, y0, x1, y1) in every:
        rows, columns = slice(max(round(y0), 0), max(round(y1), 0)), slice(max(round(x0), 0), max(round(x1), 0))
        made[rows, columns] = label
    return made


@dataclass(frozen=True)
class Measure:
    """Something to measure, which gives one or several figures.

    Attributes
    ----------
    name : str
    figures : tuple of Figure
    cost : str
        Of one item and method (of one item, if it is of the answer alone), in words.
    of_answer : bool
        Whether it is of the answer and not of a method's maps.
    words : bool
        Whether it asks for the answer's words, which need a tagger.
    function : callable
        ``function(case, maps)``, or ``function(case)`` of the answer, yields :class:`Value`; raises
        :class:`NothingToMeasure` where the item has nothing of it.
    """

    name: str
    figures: tuple[Figure, ...]
    cost: str
    of_answer: bool
    words: bool
    function: Callable[..., Iterable[Value]] = field(repr=False)

    def values(self, case: Case, maps: Maps | None = None) -> list[Value]:
        """Measure an answer, or a method's maps of it.

        Raises
        ------
        NothingToMeasure
            If there is nothing of it.
        ValueError
            If the measure gives a figure that it does not list.
        """
        found = list(self.function(case) if self.of_answer else self.function(case, maps))
        known = {figure.name for figure in self.figures}
        for value in found:
            if value.figure not in known:
                raise ValueError(
                    f"figure: expected one of {', '.join(sorted(known))} of {self.name}, got {value.figure}"
                )
        if not found:
            raise NothingToMeasure("no value")
        return found


_ROOMS = ("measured_maps", "measured_models")
_measures: dict[str, Measure] = {}


class _Measures(Mapping[str, Measure]):
    """Every measure by name; the rooms that register them are loaded when it is read."""

    def __getitem__(self, name: str) -> Measure:
        self._load()
        return _measures[name]

    def __iter__(self) -> Iterator[str]:
        self._load()
        return iter(_measures)

    def __len__(self) -> int:
        self._load()
        return len(_measures)

    def _load(self) -> None:
        for room in _ROOMS:
            import_module(f"tam_fast.evaluation.{room}")


MEASURES: Mapping[str, Measure] = _Measures()
"""Every measure by name, in the order of tables."""


def measure(
    name: str, figures: Sequence[Figure], *, cost: str, of_answer: bool = False, words: bool = True
) -> Callable[[Callable[..., Iterable[Value]]], Callable[..., Iterable[Value]]]:
    """Register a measure; a decorator of its function.

    Raises
    ------
    ValueError
        If the name, or that of a figure, is taken.
    """
    taken = {figure.name for one in _measures.values() for figure in one.figures}
    taken |= {figure.name for figure in _DERIVED}
    for figure in figures:
        if figure.name in taken or not figure.name:
            raise ValueError(f"figures: expected names that are free, got {figure.name!r}")
    if name in _measures or not name or "," in name:
        raise ValueError(f"name: expected one that is free, got {name!r}")

    def take(function: Callable[..., Iterable[Value]]) -> Callable[..., Iterable[Value]]:
        if not function.__module__.startswith(f"{__package__}."):
            len(MEASURES)  # names of the library's are taken, and come first
            if name in _measures:
                raise ValueError(f"name: expected one that is free, got {name!r}")
        _measures[name] = Measure(name, tuple(figures), cost, of_answer, words, function)
        return function

    return take


class _Figures(Mapping[str, Figure]):
    """Every figure by name, also those that are registered later."""

    def __getitem__(self, name: str) -> Figure:
        for figure in (*_DERIVED, *(figure for one in MEASURES.values() for figure in one.figures)):
            if figure.name == name:
                return figure
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        names: list[str] = []
        for one in MEASURES.values():
            names += [figure.name for figure in one.figures]
            if one.name == "plausibility":
                names += [figure.name for figure in _DERIVED]
        return iter(names)

    def __len__(self) -> int:
        return len(list(iter(self)))


_DERIVED = (Figure("f1_iou", "F1-IoU", about="harmonic mean of the pooled Obj-IoU and the pooled Func-IoU"),)
FIGURES: Mapping[str, Figure] = _Figures()
"""Every figure by name, those that tables derive from others included."""

DEFAULT = ("plausibility", "localisation")
"""What is measured if nothing is asked for: what needs maps and masks alone."""


def read_measures(names: Sequence[str] | str | None) -> list[Measure]:
    """Read names of measures, or of figures, whose measures they stand for.

    Raises
    ------
    ValueError
        Lists those that there are.
    """
    wanted = DEFAULT if names is None else names.split(",") if isinstance(names, str) else names
    owners = {figure.name: one for one in MEASURES.values() for figure in one.figures}
    owners |= {figure.name: MEASURES["plausibility"] for figure in _DERIVED} | dict(MEASURES)
    chosen = [name.strip() for name in wanted]
    for name in chosen:
        if name != "all" and name not in owners:
            raise ValueError(f"figures: expected some of {', '.join(MEASURES)}, or figures of theirs, got {name!r}")
    if not chosen:
        raise ValueError(f"figures: expected some of {', '.join(MEASURES)}, got none")
    names_of = {owners[name].name for name in chosen if name != "all"}
    return [one for one in MEASURES.values() if "all" in chosen or one.name in names_of]
