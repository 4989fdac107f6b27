"""The worst and the best items of each method, kept small enough to be drawn without the model: :class:`Gallery`."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tam_fast.evaluation.rows import stem_of

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

    from tam_fast.evaluation.measures import Case, Value
    from tam_fast.evaluation.passes import Maps

__all__ = ["JUDGED_BY", "Gallery", "Shown", "gathered", "score_of", "shown_of"]

JUDGED_BY = ("obj_iou", "auroc", "energy")
"""The figures by which items are worst or best: the first of these that was measured."""

_FOLDER = "pictures"
_SIDE = 448  # pixels of the longer side of a kept picture
_WORDS = 6


@dataclass
class Shown:
    """What is kept of an item.

    Attributes
    ----------
    item, text : str
        Its id, and the answer.
    index : int
    figure : str
        What items are judged by.
    image : str
        JPEG in base64, at most 448 pixels a side.
    box : list of 4 floats
        The part of the image that maps cover.
    shape : list of 2 int
        Cells of a map, (h, w).
    words : list of dict
        ``place``, ``text`` of the words that have a value.
    scores : dict of str to float
        Mean of the figure that items are judged by, by method.
    values : dict of str to dict of str to float
        By method and the word's place.
    maps : dict of str to dict of str to str
        By method and the word's place: uint8, row-major, in base64.
    """

    item: str
    text: str
    index: int
    figure: str
    image: str
    box: list[float]
    shape: list[int]
    words: list[dict[str, Any]]
    scores: dict[str, float] = field(default_factory=dict)
    values: dict[str, dict[str, float]] = field(default_factory=dict)
    maps: dict[str, dict[str, str]] = field(default_factory=dict)

    def picture(self) -> Image:
        """Return the picture, RGB."""
        from PIL import Image as images

        return images.open(io.BytesIO(base64.b64decode(self.image))).convert("RGB")

    def raster(self, method: str, place: str) -> NDArray[np.float32]:
        """Return the map of a word by a method, (h, w) in [0, 1]."""
        levels = np.frombuffer(base64.b64decode(self.maps[method][place]), dtype=np.uint8)
        return np.asarray(levels.reshape(self.shape) / 255, dtype=np.float32)


def score_of(values: Sequence[Value]) -> tuple[str, float, dict[int, float]] | None:
    """Say how good an item's maps are: the figure that it is judged by, its mean, and each word's value."""
    for figure in JUDGED_BY:
        found = [value for value in values if value.figure == figure and np.isfinite(value.value) and value.word >= 0]
        if found:
            mean = sum(value.value * value.n for value in found) / max(sum(value.n for value in found), 1)
            return figure, mean, {value.word: value.value for value in found}
    return None


def shown_of(case: Case, index: int, measured: Mapping[str, tuple[Maps, Sequence[Value]]]) -> Shown | None:
    """Make what is kept of an item; None if nothing in it is judged by words."""
    scores = {method: score for method, (_, values) in measured.items() if (score := score_of(values)) is not None}
    places = sorted({place for _, _, words in scores.values() for place in words})[:_WORDS]
    if not places:
        return None
    made = Shown(
        item=case.item.id,
        text=case.text,
        index=index,
        figure=next(iter(scores.values()))[0],
        image=_jpeg(case.subject.image),
        box=[float(edge) for edge in case.subject.canvas.box],
        shape=list(case.subject.canvas.shape),
        words=[{"place": place, "text": case.words[place].text} for place in places],
    )
    for method, (_, mean, words) in scores.items():
        maps = measured[method][0]
        made.scores[method] = mean
        made.values[method] = {str(place): words[place] for place in places if place in words}
        made.maps[method] = {}
        for place in places:
            raster = np.nan_to_num(case.word_map(maps, case.words[place])).clip(0.0, 1.0)
            levels = np.floor(raster * 255).astype(np.uint8)
            made.maps[method][str(place)] = base64.b64encode(levels.tobytes()).decode("ascii")
    return made


def _jpeg(image: Image) -> str:
    small = image.convert("RGB")
    small.thumbnail((_SIDE, _SIDE))
    out = io.BytesIO()
    small.save(out, "JPEG", quality=85)
    return base64.b64encode(out.getvalue()).decode("ascii")


class Gallery:
    """The worst and best items in a folder: a file an item, as many as `keep` of each kind for each method.

    Parameters
    ----------
    folder : path
        Files go to ``pictures/`` in it.
    keep : int
    """

    def __init__(self, folder: str | os.PathLike[str], keep: int = 3) -> None:
        self.folder = Path(folder) / _FOLDER
        self.keep = keep
        self._scores: dict[str, dict[str, float]] = {}  # by file, by method
        for path in sorted(self.folder.glob("*.json")) if self.folder.is_dir() else ():
            self._scores[path.stem] = _read(path).scores

    def offer(self, case: Case, index: int, measured: Mapping[str, tuple[Maps, Sequence[Value]]]) -> bool:
        """Keep an item if it is among the worst or best of some method; return whether it is."""
        scores = {method: score[1] for method, (_, values) in measured.items() if (score := score_of(values))}
        stem = stem_of(case.item.id)
        if not self.keep or not scores:
            return False
        tried = {**self._scores, stem: {**self._scores.get(stem, {}), **scores}}
        kept = _chosen(tried, self.keep)
        if stem not in kept:
            return False
        shown = shown_of(case, index, measured)
        if shown is None:
            return False
        if stem in self._scores:
            shown = _joined(_read(self._path(stem)), shown)
        self.folder.mkdir(parents=True, exist_ok=True)
        beside = self._path(stem).with_suffix(f".{os.getpid()}.tmp")
        try:
            beside.write_text(json.dumps(asdict(shown)), encoding="utf-8")
            beside.replace(self._path(stem))
        finally:
            with suppress(OSError):
                beside.unlink(missing_ok=True)
        for gone in set(self._scores) - kept:  # those of other processes are theirs
            self._path(gone).unlink(missing_ok=True)
        self._scores = {name: tried[name] for name in kept}
        return True

    def _path(self, stem: str) -> Path:
        return self.folder / f"{stem}.json"


def _joined(old: Shown, new: Shown) -> Shown:
    """Put the methods of two runs over one item together."""
    words = {word["place"]: word for word in [*old.words, *new.words]}
    return Shown(
        **{
            **asdict(new),
            "words": [words[place] for place in sorted(words)],
            "scores": {**old.scores, **new.scores},
            "values": {**old.values, **new.values},
            "maps": {**old.maps, **new.maps},
        }
    )


def _chosen(scores: Mapping[str, Mapping[str, float]], keep: int) -> set[str]:
    """Name the items that are among the worst or best of a method."""
    kept: set[str] = set()
    for method in {method for one in scores.values() for method in one}:
        order = sorted((one[method], stem) for stem, one in scores.items() if method in one)
        kept |= {stem for _, stem in (*order[:keep], *order[-keep:])}
    return kept


def _read(path: Path) -> Shown:
    return Shown(**json.loads(path.read_text(encoding="utf-8")))


def gathered(folders: Iterable[str | os.PathLike[str]], keep: int = 3) -> list[Shown]:
    """Read the galleries of several folders (shards), and keep what is worst and best among all, by place."""
    found: dict[str, Shown] = {}
    for folder in folders:
        root = Path(folder) / _FOLDER
        for path in sorted(root.glob("*.json")) if root.is_dir() else ():
            found[path.stem] = _joined(found[path.stem], _read(path)) if path.stem in found else _read(path)
    kept = _chosen({stem: shown.scores for stem, shown in found.items()}, keep)
    return sorted((shown for stem, shown in found.items() if stem in kept), key=lambda shown: shown.index)
