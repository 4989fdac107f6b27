"""Figures of answers and of their maps, pooled over scenes, with bootstrap intervals: :class:`Tallies`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from tam_fast.demo import scenes as sc
from tam_fast.maps.answer import activation_maps
from tam_fast.maps.layout import Layout
from tam_fast.maps.metrics import iou, iou_ceiling, otsu_threshold

__all__ = ["FUNCTION_WORDS", "METHODS", "SHAPE_OF", "Cover", "Figure", "Report", "Tallies", "measure_maps"]

METHODS: Mapping[str, Mapping[str, Any]] = {
    "CAM": {"kernel_size": 1, "interference": False},
    "ECI only": {"kernel_size": 1, "interference": True},
    "filter only": {"kernel_size": 3, "interference": False},
    "full TAM": {"kernel_size": 3, "interference": True},
}
"""Options of :func:`tam_fast.maps.answer.activation_maps` for the raw maps, each step alone, and both."""

FUNCTION_WORDS = frozenset({"a", "an", "and", "the", "is", "are", ",", "."})
SHAPE_OF = {**{shape: shape for shape in sc.SHAPES}, **{plural: shape for shape, plural in sc.PLURALS.items()}}
"""Nouns, singular and plural, and their shapes."""

Figure: TypeAlias = "tuple[float, float, float]"
"""Value, lower and upper end of its 95 % interval."""

Cover: TypeAlias = "Callable[[str, str, int], NDArray[np.float32]]"
"""(shape, colour, place of the noun among the answer's words) -> share of every cell (rows, columns) that the objects
of that shape, and of that colour unless it is empty, cover."""


@dataclass
class Report:
    """Figures of one set of scenes: ``figures[name]`` is (value, lower, upper), ``settings`` says how they were made.

    ``captions`` are (reference, generated), one a scene.
    """

    settings: dict[str, Any]
    figures: dict[str, Figure]
    captions: list[tuple[str, str]]

    def as_json(self) -> dict[str, Any]:
        """Plain data for :func:`json.dump`."""
        return {
            "settings": self.settings,
            "figures": {name: {"value": v, "low": a, "high": b} for name, (v, a, b) in self.figures.items()},
            "captions": [{"reference": reference, "generated": text} for reference, text in self.captions],
        }


@dataclass
class _Tally:
    """Sums and counts of one figure, one pair a scene."""

    sums: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)

    def mean(self, rows: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
        """Pooled mean; with ``rows`` (B, n) one for every resample of the scenes."""
        sums, counts = np.asarray(self.sums), np.asarray(self.counts, dtype=np.float64)
        if rows is None:
            rows = np.arange(len(sums))[None]
        return np.asarray(sums[rows].sum(axis=1) / np.maximum(counts[rows].sum(axis=1), 1.0))


class Tallies:
    """Figures by name; every scene adds its values to some of them."""

    def __init__(self) -> None:
        self._tallies: dict[str, _Tally] = {}
        self._scenes = 0

    def next_scene(self) -> None:
        """Begin another scene: what is added from now on belongs to it."""
        self._scenes += 1

    def add(self, name: str, values: Sequence[float]) -> None:
        """Add the current scene's values of one figure."""
        tally = self._tallies.setdefault(name, _Tally())
        missing = self._scenes - len(tally.sums)
        tally.sums += [0.0] * missing
        tally.counts += [0] * missing
        tally.sums[-1] += float(sum(values))
        tally.counts[-1] += len(values)

    def count(self, name: str) -> int:
        """Count the values added to a figure."""
        return sum(self._tallies[name].counts) if name in self._tallies else 0

    def figures(self, seed: int, resamples: int) -> dict[str, Figure]:
        """Every figure with its 95 % percentile interval of a bootstrap over scenes, and F1-IoU where both IoUs are."""
        rows = np.random.default_rng(seed).integers(0, self._scenes, (resamples, self._scenes))
        result: dict[str, Figure] = {}

        def note(name: str, value: float, draws: NDArray[np.float64]) -> None:
            low, high = (float(v) for v in np.percentile(draws, [2.5, 97.5]))
            result[name] = (float(value), low, high)

        for tally in self._tallies.values():
            tally.sums += [0.0] * (self._scenes - len(tally.sums))
            tally.counts += [0] * (self._scenes - len(tally.counts))
        for name, tally in self._tallies.items():
            note(name, float(tally.mean()[0]), tally.mean(rows))
        for method in METHODS:
            pair = [self._tallies.get(f"{method}: {kind}") for kind in ("Obj-IoU", "Func-IoU")]
            both = [tally for tally in pair if tally is not None]
            if len(both) == 2:
                value = _harmonic(*(tally.mean() for tally in both))
                note(f"{method}: F1-IoU", float(value[0]), _harmonic(*(tally.mean(rows) for tally in both)))
        return result


def _harmonic(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(2 * a * b / np.maximum(a + b, 1e-12))


def measure_maps(
    tallies: Tallies,
    hidden: torch.Tensor,
    classifier: torch.Tensor,
    ids: Sequence[int],
    layout: Layout,
    words: Sequence[str],
    cover: Cover,
    methods: Sequence[str] = tuple(METHODS),
    absent: bool = True,
) -> None:
    """Add the figures of one answer's maps: peaks, Obj-IoU, Func-IoU and the grid's ceiling.

    Parameters
    ----------
    tallies : Tallies
    hidden : (S, C) tensor
        Final hidden states of the whole sequence but its last token.
    classifier : (V, C) tensor
    ids : sequence of int
        Prompt and answer, (S + 1,).
    layout : Layout
        Its grids are stacked; all must be of one width.
    words : sequence of str
        The answer's tokens, as text without spaces.
    cover : callable
        See :data:`Cover`.
    methods : sequence of str
        Names among :data:`METHODS`.
    absent : bool
        Whether a noun that names what is not there counts as a missed peak; it has none in "there is no star".
    """
    width = layout.grids[0].width
    nouns = [index for index, word in enumerate(words) if word in SHAPE_OF]
    function = [index for index, word in enumerate(words) if word.lower() in FUNCTION_WORDS]
    shown: dict[int, NDArray[np.float32]] = {}
    exactly: dict[int, NDArray[np.float32]] = {}
    for index in nouns:
        shape, before = SHAPE_OF[words[index]], words[index - 1] if index else ""
        shown[index] = cover(shape, "", index)
        exactly[index] = cover(shape, before, index) if before in sc.COLOURS else shown[index]
    present = [index for index in nouns if shown[index].any()]
    tallies.add("ceiling", [iou_ceiling(shown[index]) for index in present])
    for method in methods:
        maps = activation_maps(hidden, classifier, ids, layout, **METHODS[method]).maps.numpy()
        levels = np.floor(255.0 * maps).astype(np.uint8).reshape(len(maps), -1, width)
        thresholds = {index: otsu_threshold(levels[index]) for index in nouns}
        for kind, covered in (("shape", shown), ("object", exactly)):
            counted = nouns if absent else present
            hits = [bool(maps[i].max() > 0 and covered[i].ravel()[maps[i].argmax()] >= 0.5) for i in counted]
            tallies.add(f"{method}: peak, {kind}", [float(hit) for hit in hits])
        tallies.add(f"{method}: Obj-IoU", [iou(levels[i] > thresholds[i], shown[i]) for i in present])
        middle = np.mean(list(thresholds.values())) if thresholds else 0.0
        dark = [float((levels[i] <= middle).mean()) for i in function] if nouns else []
        tallies.add(f"{method}: Func-IoU", dark)
