"""Do maps lie where masks say that the object is, and stay dark for words that mean nothing visible: :func:`score`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tam_fast.evaluation.captions import meteor, rouge_l
from tam_fast.maps.metrics import otsu_of_counts

if TYPE_CHECKING:
    from tam_fast.evaluation.words import Word

__all__ = [
    "Overlap",
    "Scores",
    "Target",
    "Targets",
    "add_function",
    "add_object",
    "caption_scores",
    "chosen_above",
    "overlaps",
    "resized_levels",
    "score",
]

_EXACT = 1 << 24  # OpenCV counts in float32, which is exact up to here


@dataclass(frozen=True)
class Scores:
    """What one answer's maps are worth; lists have an entry a word that counts.

    Attributes
    ----------
    obj_iou, precision, recall : list of float
        Of the words that name something the mask has: intersection over union of the chosen pixels with the mask, the
        share of the chosen that lie on it, the share of it that is chosen.
    func_iou : list of float
        Of function words: the share of cells that stay dark.
    rouge_l, meteor : list of float
        One value of the answer, or none if there are no references.
    words : list of dict
        Which word each entry is of: ``figure``, ``value``, ``word`` (place in the words), ``token`` (place in the
        answer; -1 of all its tokens) and ``text``. Of one figure they stand in the order of its list.
    threshold : float
        Below it a cell is dark: the mean of the nouns' thresholds, in levels; NaN if there is none.
    otsu : list of int
        Every threshold, in the order of words and tokens.
    dropped : str
        Why nothing was scored; ``""`` if something could be.
    """

    obj_iou: list[float] = field(default_factory=list)
    func_iou: list[float] = field(default_factory=list)
    precision: list[float] = field(default_factory=list)
    recall: list[float] = field(default_factory=list)
    rouge_l: list[float] = field(default_factory=list)
    meteor: list[float] = field(default_factory=list)
    words: list[dict[str, Any]] = field(default_factory=list)
    threshold: float = math.nan
    otsu: list[int] = field(default_factory=list)
    dropped: str = ""


def score(
    maps: Any,
    words: Sequence[Word],
    mask: Any,
    *,
    references: Sequence[str] | None = None,
    text: str | None = None,
    compat: str | None = None,
) -> Scores:
    """Judge the maps of an answer by its words and a mask (the paper's Sec. 4.1: Obj-IoU, Func-IoU).

    **Obj-IoU** of a word that names something the mask has: each of its tokens' maps is brought to the mask's size,
    and pixels above Otsu's threshold of it are chosen; of its tokens the best counts, with its precision and recall.
    **Func-IoU** of a function word: the share of cells, of the map as it is, below b; the mean over its tokens. b is
    the mean over nouns of their thresholds, of a noun the largest of its tokens'.

    Parameters
    ----------
    maps : (T, h, w) uint8, or floating point in [0, 1]
        A map a token of the answer. Floats become levels, ``floor(255 * map)``.
    words : sequence of Word
        Of :func:`tam_fast.evaluation.words`; their tokens are places among the maps.
    mask : (H, W) integers, or None
        The label of each pixel. None: there is nothing to compare with; Func-IoU's thresholds are those of the maps as
        they are.
    references : sequence of str, optional
        Captions that people wrote, for ROUGE-L and METEOR of `text`.
    text : str, optional
        The answer.
    compat : None or "official"
        ``"official"`` counts as the published script does (:func:`tam_fast.evaluation.official.official_score`).

    Returns
    -------
    Scores

    Raises
    ------
    TypeError
        If maps or mask are of another dtype.
    ValueError
        If a shape is wrong, a value is NaN or not within 0 to 1, or a word's token has no map.
    ModuleNotFoundError
        If OpenCV is missing, or what scores captions; says what to install.
    FileNotFoundError
        If METEOR's WordNet is not where ``NLTK_DATA`` says.

    Notes
    -----
    What differs from the published script:

    - A map whose values are all the same (of the mask's size) chooses nothing: its IoU, precision and recall are 0. It
      has no threshold and does not enter b.
    - b is of the nouns that Obj-IoU counts; only where there are none, of all nouns. End tokens are no words, hence
      enter nothing. If b is 0, or there is no noun with a threshold but nouns there are, cells of 0 are dark.
      Without any noun there is no Func-IoU.
    - A phrase is one word, and two objects side by side are two words: nothing is merged.
    - Where the mask is smaller than the map, pixels are the mean of the cells they cover (OpenCV's INTER_AREA); else
      bilinear (INTER_LINEAR), as there.
    - A map too few is an error, not an answer that is left out.
    """
    levels = _levels(maps)
    labels = _labels(mask)
    _check_words(words)
    if compat == "official":
        from tam_fast.evaluation.official import official_score

        return official_score(levels, words, labels, references=references, text=text)
    if compat is not None:
        raise ValueError(f'compat: expected None or "official", got {compat!r}')
    count = levels.shape[0]
    for word in words:
        if not all(0 <= token < count for token in word.tokens):
            raise ValueError(f"words: expected tokens of the {count} maps, got {word.tokens} for {word.text!r}")
    found = _judged(levels, words, labels)
    rouge, met = caption_scores(references, text)
    return replace(found, rouge_l=rouge, meteor=met)


def _judged(levels: NDArray[np.uint8], words: Sequence[Word], labels: NDArray[Any] | None) -> Scores:
    found = Scores()
    counted: list[float] = []
    rest: list[tuple[int, Word]] = []
    size = levels.shape[1:] if labels is None else labels.shape
    targets = Targets(labels)
    nouns = 0
    for place, word in enumerate(words):
        if word.label < -1:
            continue
        nouns += 1
        target = targets.of(word.label)
        if target is None:
            rest.append((place, word))
            continue
        several = [overlaps(resized_levels(levels[token], size), target) for token in word.tokens]
        found.otsu.extend(one.threshold for one in several)
        counted += _highest(several)
        best = max(range(len(several)), key=lambda index: several[index].iou)
        add_object(found, place, word, word.tokens[best], several[best])
    if not found.obj_iou:
        for _, word in rest:
            several = [overlaps(resized_levels(levels[token], size), None) for token in word.tokens]
            found.otsu.extend(one.threshold for one in several)
            counted += _highest(several)
    if not nouns:
        return found
    threshold = float(np.mean(counted)) if counted else 0.0
    for place, word in enumerate(words):
        if word.label == -2:
            dark = np.mean([float(np.mean(levels[token] < max(threshold, 1.0))) for token in word.tokens])
            add_function(found, place, word, float(dark))
    return replace(found, threshold=threshold)


def _highest(several: Sequence[Overlap]) -> list[float]:
    """Return a word's threshold, the largest of its tokens' that have one."""
    known = [float(one.threshold) for one in several if one.varies]
    return [max(known)] if known else []


# What the published rules use, too -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Overlap:
    """A map's chosen pixels and a target.

    Attributes
    ----------
    threshold : int
        Otsu's; what is above it is chosen.
    chosen, inside, target : int
        Pixels that are chosen, those of them in the target, those of the target.
    varies : bool
        Whether the map has two different values.
    """

    threshold: int
    chosen: int
    inside: int
    target: int
    varies: bool

    @property
    def iou(self) -> float:
        """Intersection over union; 0 if both are empty."""
        union = self.chosen + self.target - self.inside
        return self.inside / union if union else 0.0

    @property
    def precision(self) -> float:
        """Share of the chosen pixels that are in the target; 0 if none is chosen."""
        return self.inside / self.chosen if self.chosen else 0.0

    @property
    def recall(self) -> float:
        """Share of the target that is chosen; 0 if there is no target."""
        return self.inside / self.target if self.target else 0.0


@dataclass(frozen=True, eq=False)
class Target:
    """The pixels of a label.

    Attributes
    ----------
    box : (slice, slice)
        Rows and columns that hold them all.
    pixels : (h, w) uint8
        1 where they are, within the box.
    area : int
        How many they are.
    """

    box: tuple[slice, slice]
    pixels: NDArray[np.uint8]
    area: int


class Targets:
    """The pixels of each label, found once a label.

    Parameters
    ----------
    labels : (H, W) integers, or None
    """

    def __init__(self, labels: NDArray[Any] | None) -> None:
        self._labels = labels
        self._made: dict[int, Target | None] = {}

    def of(self, label: int) -> Target | None:
        """Return where a label is; None if it is nowhere, or none (negative)."""
        if label < 0 or self._labels is None:
            return None
        if label not in self._made:
            self._made[label] = _target(self._labels == label)
        return self._made[label]


def _target(there: NDArray[np.bool_]) -> Target | None:
    rows, columns = (np.flatnonzero(there.any(axis=axis)) for axis in (1, 0))
    if not rows.size:
        return None
    box = slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
    pixels = np.ascontiguousarray(there[box]).view(np.uint8)
    return Target(box, pixels, int(np.count_nonzero(pixels)))


def overlaps(levels: NDArray[np.uint8], target: Target | None, *, constant: bool = False) -> Overlap:
    """Choose the pixels above Otsu's threshold, and count them, by a histogram of the map and one of the target's.

    Parameters
    ----------
    levels : (H, W) uint8
    target : Target, or None
    constant : bool
        Whether a map that is the same everywhere chooses all its pixels, as Otsu's threshold 0 has it (if it is not 0).
    """
    every = _histogram(levels, None)
    threshold = otsu_of_counts(every)
    varies = bool(np.count_nonzero(every) > 1)
    chosen = int(every[threshold + 1 :].sum()) if varies or constant else 0
    if target is None:
        return Overlap(threshold, chosen, 0, 0, varies)
    inside = int(_histogram(levels[target.box], target.pixels)[threshold + 1 :].sum()) if chosen else 0
    return Overlap(threshold, chosen, inside, target.area, varies)


def chosen_above(levels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the chosen pixels of a map (h, w) at a size (H, W), to be drawn: those that :func:`score` counts."""
    grown = resized_levels(levels, size)
    found = overlaps(grown, None)
    return np.asarray(grown > found.threshold) if found.chosen else np.zeros(grown.shape, dtype=np.bool_)


def resized_levels(levels: NDArray[np.uint8], size: tuple[int, ...], *, linear: bool = False) -> NDArray[np.uint8]:
    """Bring a map (h, w) to a size (H, W) by OpenCV: bilinear; where it shrinks, the mean, unless `linear`.

    Raises
    ------
    ModuleNotFoundError
        If OpenCV is missing; says what to install.
    """
    cv2 = _cv2()
    height, width = int(size[0]), int(size[1])
    if levels.shape == (height, width):
        return levels
    shrinks = height < levels.shape[0] or width < levels.shape[1]
    how = cv2.INTER_AREA if shrinks and not linear else cv2.INTER_LINEAR
    grown: NDArray[np.uint8] = cv2.resize(levels, (width, height), interpolation=how)
    return grown


def _histogram(levels: NDArray[np.uint8], pixels: NDArray[np.uint8] | None) -> NDArray[np.int64]:
    if levels.size > _EXACT:
        kept = levels.reshape(-1) if pixels is None else levels[pixels.view(np.bool_)]
        return np.bincount(kept, minlength=256)
    counts = _cv2().calcHist([levels], [0], pixels, [256], [0, 256])
    return np.asarray(counts.reshape(-1), dtype=np.int64)


def add_object(found: Scores, place: int, word: Word, token: int, overlap: Overlap, *, undefined: float = 0.0) -> None:
    """Add a word's Obj-IoU, precision (`undefined` if nothing is chosen) and recall."""
    precision = overlap.precision if overlap.chosen else undefined
    for figure, value in (("obj_iou", overlap.iou), ("precision", precision), ("recall", overlap.recall)):
        getattr(found, figure).append(value)
        found.words.append(_row(figure, value, place, token, word))


def add_function(found: Scores, place: int, word: Word, dark: float) -> None:
    """Add a function word's share of dark cells."""
    found.func_iou.append(dark)
    found.words.append(_row("func_iou", dark, place, word.tokens[0] if len(word.tokens) == 1 else -1, word))


def _row(figure: str, value: float, place: int, token: int, word: Word) -> dict[str, Any]:
    return {"figure": figure, "value": value, "word": place, "token": token, "text": word.text}


def caption_scores(references: Sequence[str] | None, text: str | None) -> tuple[list[float], list[float]]:
    """Return ROUGE-L and METEOR as :class:`Scores` has them: nothing without references."""
    if references is None or (not isinstance(references, str) and not len(references)):
        return [], []
    if text is None:
        raise ValueError("text: expected the answer, which references are compared with, got None")
    return [rouge_l(text, references)], [meteor(text, references)]


# What is given -------------------------------------------------------------------------------------------------------


def _levels(maps: Any) -> NDArray[np.uint8]:
    if hasattr(maps, "detach"):
        maps = maps.detach().cpu()
    values = np.asarray(maps)
    if values.ndim != 3 or 0 in values.shape[1:]:
        raise ValueError(f"maps: expected (T, h, w), got shape {values.shape}")
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    if not np.issubdtype(values.dtype, np.floating):
        raise TypeError(f"maps: expected uint8, or floating point from 0 to 1, got {values.dtype}")
    if values.size and not (values.min() >= 0 and values.max() <= 1):
        raise ValueError(f"maps: expected values from 0 to 1, got {values.min()} to {values.max()}")
    levels: NDArray[np.uint8] = np.floor(values * 255).astype(np.uint8)
    return levels


def _labels(mask: Any) -> NDArray[Any] | None:
    if mask is None:
        return None
    labels = np.asarray(mask)
    if labels.ndim != 2 or not labels.size:
        raise ValueError(f"mask: expected (H, W), got shape {labels.shape}")
    if not (np.issubdtype(labels.dtype, np.integer) or labels.dtype == np.bool_):
        raise TypeError(f"mask: expected whole numbers, got {labels.dtype}")
    return labels


def _check_words(words: Sequence[Word]) -> None:
    for word in words:
        if not word.tokens:
            raise ValueError(f"words: expected words with tokens, got {word.text!r} without")
        if min(word.tokens) < 0:
            raise ValueError(f"words: expected tokens of at least 0, got {word.tokens} for {word.text!r}")


def _cv2() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise ModuleNotFoundError(
            "evaluation: expected OpenCV, which resizes maps, got none: pip install 'tam-fast[evaluation]'"
        ) from error
    return cv2
