"""Figures of maps and answers as they are: plausibility, localisation, gaze, captions; no pass of the model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from tam_fast.evaluation.measures import Case, Figure, NothingToMeasure, Value, measure
from tam_fast.evaluation.passes import Maps

__all__ = ["plausibility_of"]

_TOLERANCE = 15  # pixels: Zhang et al. 2016


@measure(
    "plausibility",
    [
        Figure(
            "obj_iou", "Obj-IoU", about="intersection over union of a noun's map, by Otsu's threshold, with its mask"
        ),
        Figure("func_iou", "Func-IoU", about="share of cells that stay dark for a function word"),
        Figure("precision", "precision", about="share of the chosen pixels that lie on the object"),
        Figure("recall", "recall", about="share of the object that is chosen"),
    ],
    cost="none",
)
def _plausibility(case: Case, maps: Maps) -> Iterator[Value]:
    yield from plausibility_of(case, maps.rasters)


def plausibility_of(case: Case, rasters: NDArray[np.float32]) -> Iterator[Value]:
    """Score maps (T, h, w) of an answer's tokens by words and masks."""
    from tam_fast.evaluation.plausibility import score

    levels = np.floor(np.nan_to_num(rasters).clip(0.0, 1.0) * 255).astype(np.uint8)
    found = score(levels, case.words, case.mask, compat=case.options.compat)
    if found.dropped:
        raise NothingToMeasure(found.dropped)
    for entry in found.words:
        yield Value(entry["figure"], float(entry["value"]), entry["word"], entry["token"], entry["text"])


@measure(
    "localisation",
    [
        Figure("pointing", "pointing", about="whether the brightest point lies on the object"),
        Figure("pointing_15", "pointing, 15 px", about="the same, 15 pixels beside it still hit"),
        Figure("energy", "energy in mask", about="the share of the map's mass that lies on the object"),
        Figure("auroc", "AUROC", about="how surely a cell of the object is brighter than another"),
        Figure("soft_iou", "soft IoU", about="intersection over union without a threshold"),
    ],
    cost="none",
)
def _localisation(case: Case, maps: Maps) -> Iterator[Value]:
    from tam_fast.evaluation import localisation as room

    for place, word in case.objects():
        raster, target = case.word_map(maps, word), case.target(word)
        yield case.value("pointing", room.pointing_game(raster, target), place)
        yield case.value("pointing_15", room.pointing_game(raster, target, _TOLERANCE), place)
        yield case.value("energy", room.energy_in_mask(raster, target), place)
        surely = room.auroc(raster, target)
        if not math.isnan(surely):  # the object is everywhere
            yield case.value("auroc", surely, place)
        yield case.value("soft_iou", room.soft_iou(np.clip(raster, 0.0, 1.0), target), place)


@measure(
    "gaze",
    [
        Figure("nss", "NSS", percent=False, about="the standardised map at fixations"),
        Figure("kl", "KL", better="low", percent=False, about="divergence of the map from the gaze map, in nats"),
    ],
    cost="none",
    words=False,
)
def _gaze(case: Case, maps: Maps) -> Iterator[Value]:
    from tam_fast.evaluation.localisation import kl, nss

    gaze = case.item.extra.get("gaze")
    if gaze is None:
        raise NothingToMeasure("no gaze map")
    seen = case.subject.on_raster(np.asarray(gaze))
    mean = maps.rasters.mean(axis=0)
    yield Value("nss", nss(mean, seen))
    yield Value("kl", kl(mean, seen))


@measure(
    "captions",
    [
        Figure("rouge_l", "ROUGE-L", about="F-measure of the longest common subsequence with the best reference"),
        Figure("meteor", "METEOR", about="words in common with the best reference, by stem and WordNet too"),
    ],
    cost="none",
    of_answer=True,
    words=False,
)
def _captions(case: Case) -> Iterator[Value]:
    from tam_fast.evaluation import captions as room

    references: Sequence[str] = case.item.references
    if not references:
        raise NothingToMeasure("no reference caption")
    yield Value("rouge_l", room.rouge_l(case.text, references))
    yield Value("meteor", room.meteor(case.text, references))
