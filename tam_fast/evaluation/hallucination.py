"""Whether taking away what a map blames corrects a wrong answer of yes or no: AMCR and CSR, after EAGLE's RePOPE runs.

The model is asked anew with less and less of the image, what the map is highest on going first. A map that found what
made it answer wrongly needs to take little away.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from tam_fast.evaluation.curves import PIXEL_STEPS
from tam_fast.evaluation.eagle import areas_under
from tam_fast.evaluation.forced import forced
from tam_fast.evaluation.localisation import resized
from tam_fast.evaluation.ranks import falling_order, region_order, revealed
from tam_fast.explain.explainer import Explainer
from tam_fast.models.images import load_images

__all__ = ["BUDGET", "LABELS", "Hallucination", "correction_area", "correction_record", "hallucination", "says"]

LABELS = ("yes", "no")

BUDGET = 0.1
"""Share of the image that CSR allows to be taken away: CSR@10 %."""

_WORD = re.compile(r"[^\W\d_]+")


def says(text: str, compat: str | None = None) -> str | None:
    """Tell whether an answer says "yes" or "no": by its first word, or "not at all"; None if it says neither.

    With ``compat="official"`` by its first letters, so that "Not sure." and "Nothing" say "no", too.
    """
    if compat not in (None, "official"):
        raise ValueError(f'compat: expected None or "official", got {compat!r}')
    if compat == "official":
        return next((label for label in LABELS if text.strip().lower().startswith(label)), None)
    words = _WORD.findall(text.lower())
    if words[:3] == ["not", "at", "all"]:
        return "no"
    return words[0] if words and words[0] in LABELS else None


def correction_area(record: Mapping[str, Any], compat: str | None = None) -> float | None:
    """Return the least share of the image that was taken away when the answer first was right; None if it never was.

    Parameters
    ----------
    record : mapping
        ``region_area`` (k), the shares that were shown, rising to all of it; ``revised_answering`` (k), the answers at
        them; ``label``, the right one, "yes" or "no".
    compat : None or "official"
        See :func:`says`.

    Notes
    -----
    Steps are looked through from the whole image down; what is taken away is 1 - area.
    """
    areas, texts, label = record["region_area"], record["revised_answering"], record["label"]
    if label not in LABELS:
        raise ValueError(f"record: expected label 'yes' or 'no', got {label!r}")
    if len(areas) != len(texts) or not len(areas):
        raise ValueError(f"record: expected an answer for each area, got {len(texts)} for {len(areas)}")
    for area, text in sorted(zip(areas, texts, strict=True), key=lambda step: -step[0]):
        if says(text, compat) == label:
            return 1.0 - float(area)
    return None


@dataclass(frozen=True)
class Hallucination:
    """Figures of wrong answers under correction.

    Attributes
    ----------
    amcr : float
        Average minimal correction region: the mean share taken away, 1 where nothing corrected the answer. Lower is
        better.
    csr : float
        Correction success rate: the share of items corrected with at most `budget` taken away.
    insertion_auc, deletion_auc, highest : float
        Of the right answer's probability.
    corrected, count : int
        How many were corrected at all, and how many there are.
    """

    amcr: float
    csr: float
    insertion_auc: float
    deletion_auc: float
    highest: float
    corrected: int
    count: int


def hallucination(
    records: Sequence[Mapping[str, Any]], budget: float = BUDGET, compat: str | None = None
) -> Hallucination:
    """Sum up records of correction.

    Parameters
    ----------
    records : sequence of mapping
        As :func:`correction_record` makes them.
    budget : float
    compat : None or "official"
        ``"official"``: CSR is the share *of the items that were corrected*; those that never were are left out, and a
        map that corrects one item at once has 100 %. By default it is that of all items.

    Returns
    -------
    Hallucination
        With ``compat="official"`` and nothing corrected, `csr` is NaN.
    """
    if not records:
        raise ValueError("records: expected at least one, got none")
    found = [correction_area(one, compat) for one in records]
    corrected = [area for area in found if area is not None]
    within = sum(area <= budget + 1e-12 for area in corrected)
    of = len(corrected) if compat == "official" else len(found)
    curves = np.mean([(*areas_under(one), max(one["insertion_score"])) for one in records], axis=0).tolist()
    return Hallucination(
        float(np.mean([1.0 if area is None else area for area in found])),
        within / of if of else float("nan"),
        curves[0],
        curves[1],
        curves[2],
        len(corrected),
        len(found),
    )


def correction_record(
    explainer: Explainer,
    image: Any,
    prompt: str,
    label: str,
    map: Any,
    *,
    regions: Any = None,
    steps: int | None = PIXEL_STEPS,
    words: Mapping[str, str] | None = None,
    max_new_tokens: int = 8,
    progress: Callable[[int, int], object] | None = None,
) -> dict[str, Any]:
    """Ask a model anew, with less and less of an image on black, about a question that it answered wrongly.

    Parameters
    ----------
    explainer : Explainer
    image : image
    prompt : str
        A question of yes or no.
    label : "yes" or "no"
        The right answer.
    map : (h, w)
        Over the whole image: what made the model answer wrongly, which is taken away first. (EAGLE's program turns maps
        round, 1 - x, and shows the highest first, which is the same.)
    regions : (H, W) integers, optional
        What is taken away at once, by the map's mean: superpixels such as :func:`tam_fast.methods.regions.slic` finds.
        Pixels if None.
    steps : int, optional
        None: each region by itself.
    words : mapping, optional
        What "yes" and "no" are in the model's answers; ``{"yes": "Yes", "no": "No"}``. The probability of the right
        one's first token is that of the curves.
    max_new_tokens : int
    progress : callable, optional
        ``progress(done, total)``, in questions asked.

    Returns
    -------
    dict
        ``region_area``, ``insertion_score``, ``deletion_score``, ``revised_answering`` (k) and ``label``: plain values
        for JSON. `region_area` is what is shown on insertion: it rises to 1, the whole image.
    """
    if label not in LABELS:
        raise ValueError(f"label: expected 'yes' or 'no', got {label!r}")
    pictures = load_images(image)
    if len(pictures) != 1:
        raise ValueError(f"image: expected one, got {len(pictures)}")
    picture = pictures[0]
    size = (picture.height, picture.width)
    blamed = resized(map, size)
    if regions is None:
        step = revealed(falling_order(-blamed), steps).reshape(size)
    else:
        labels = np.asarray(regions)
        if labels.shape != size or labels.min() < 0:
            raise ValueError(f"regions: expected labels {size} from 0, got shape {labels.shape}")
        step = revealed(region_order(-blamed, labels), steps)[labels]
    said = {"yes": "Yes", "no": "No", **(words or {})}
    asked = forced(explainer, picture, said[label], prompt)
    task = asked.task()
    whole = np.asarray(picture)
    count = int(step.max())
    made: dict[str, Any] = {
        name: [] for name in ("region_area", "insertion_score", "deletion_score", "revised_answering")
    }
    for number in range(1, count + 1):
        inside = step <= number
        shown, left = (Image.fromarray(np.where(part[:, :, None], whole, np.uint8(0))) for part in (inside, ~inside))
        made["region_area"].append(float(inside.mean()))
        for name, other in (("insertion_score", shown), ("deletion_score", left)):
            told = asked.with_images(other).log_probabilities(task)
            made[name].append(float(told[0].exp()))
        made["revised_answering"].append(_answer(explainer, shown, prompt, max_new_tokens))
        if progress is not None:
            progress(number, count)
    return {**made, "label": label}


def _answer(explainer: Explainer, image: Image.Image, prompt: str, max_new_tokens: int) -> str:
    return explainer.explain(image, prompt, max_new_tokens=max_new_tokens, do_sample=False).text
