"""The protocol of EAGLE (Chen et al. 2025): pixels by rank on black, probabilities of an answer's words, six figures.

``compat="official"`` does what its program does at commit 03bb45e, faults included; see :func:`pixel_order`. Two more
of its faults lie in how it calls TAM: one token at a time, so that causal inference never runs (:data:`SCRIPT_TAM`),
and in 8 bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tam_fast.evaluation.curves import PIXEL_STEPS, shown_pictures, trapezoid
from tam_fast.evaluation.forced import Forced
from tam_fast.evaluation.localisation import resized
from tam_fast.evaluation.ranks import falling_order, revealed

__all__ = [
    "SCRIPT_TAM",
    "SENSITIVE",
    "Faithfulness",
    "areas_under",
    "faithfulness",
    "perturbed",
    "pixel_order",
    "record",
    "resized_by_opencv",
    "script_levels",
]

SCRIPT_TAM = "cam+rank_gaussian"
"""What TAM is where it is called for one token at a time, as EAGLE's script does: it takes off nothing."""

SENSITIVE = 0.2
"""Words count as sensitive to the image whose probability it raises by more than this."""


def script_levels(map: Any) -> NDArray[np.uint8]:
    """Bring a map in [0, 1] to the 8 bits in which EAGLE's script has TAM's: floor(255 x)."""
    values = np.asarray(map, dtype=np.float64)
    if not (np.isfinite(values).all() and values.size and values.min() >= 0 and values.max() <= 1):
        raise ValueError("map: expected values from 0 to 1, got others")
    return np.floor(255 * values).astype(np.uint8)


def resized_by_opencv(map: Any, size: Sequence[int]) -> NDArray[Any]:
    """Resize a map (h, w) of uint8, float32 or float64 to (H, W) as OpenCV does, bilinearly and in its own dtype.

    Raises
    ------
    ModuleNotFoundError
        If OpenCV is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise ModuleNotFoundError(
            'compat: "official" resizes with OpenCV, which is not installed: pip install "tam-fast[evaluation]"'
        ) from error
    values = np.ascontiguousarray(map)
    if values.ndim != 2 or values.dtype not in (np.uint8, np.float32, np.float64):
        raise TypeError(f"map: expected (h, w) of uint8, float32 or float64, got {values.shape} of {values.dtype}")
    found: NDArray[Any] = cv2.resize(values, (size[1], size[0]))
    return found


def pixel_order(map: Any, size: Sequence[int], compat: str | None = None) -> NDArray[np.int64]:
    """Order the pixels of an image by a map, the highest first.

    Parameters
    ----------
    map : (h, w)
    size : (H, W)
    compat : None or "official"
        None: by value, after bilinear interpolation in float64, ties by place. ``"official"``: numpy's unstable sort of
        the negated map in its own dtype. Unsigned integers wrap: **cells of 0 come first**, before the brightest; and
        the order of ties depends on the processor and numpy's version.

    Returns
    -------
    (H W,) int64
    """
    if compat is None:
        return falling_order(resized(map, (int(size[0]), int(size[1]))))
    if compat != "official":
        raise ValueError(f'compat: expected None or "official", got {compat!r}')
    values = resized_by_opencv(map, size).ravel()
    return np.argsort(np.negative(values))


def perturbed(
    image: Any, map: Any, steps: int = PIXEL_STEPS, compat: str | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Make the pictures of EAGLE's curves: the highest pixels on black, and all but them.

    Parameters
    ----------
    image : (H, W, 3) uint8
    map : (h, w)
    steps : int
        k; after step j the first H W j / k pixels, rounded down.
    compat : None or "official"
        See :func:`pixel_order`.

    Returns
    -------
    insertion, deletion : (k, H, W, 3) uint8
    """
    pixels = np.asarray(image)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise TypeError(f"image: expected (H, W, 3) of uint8, got {pixels.shape} of {pixels.dtype}")
    step = revealed(pixel_order(map, pixels.shape[:2], compat), steps).reshape(pixels.shape[:2])
    count = int(step.max())
    shown = (step[None] <= np.arange(1, count + 1)[:, None, None])[..., None]
    nothing = np.uint8(0)
    return np.where(shown, pixels, nothing), np.where(shown, nothing, pixels)


def record(
    asked: Forced, map: Any, tokens: Sequence[int] | None = None, steps: int = PIXEL_STEPS, compat: str | None = None
) -> dict[str, Any]:
    """Run the protocol for one map of one image: what EAGLE's program writes for it.

    Parameters
    ----------
    asked : Forced
        A fixed answer about one image.
    map : (h, w)
        Over the whole image: ``layout.canvas(0).join(maps)``.
    tokens : sequence of int, optional
        Targets that count; all if None.
    steps : int
    compat : None or "official"
        See :func:`pixel_order`.

    Returns
    -------
    dict
        ``region_area`` (k), ``insertion_word_score`` and ``deletion_word_score`` (k lists of probabilities), and their
        means ``insertion_score``, ``deletion_score`` (k): at steps 1..k, plain lists for JSON.
    """
    if len(asked.images) != 1:
        raise ValueError(f"asked: expected one image, got {len(asked.images)}")
    picture, task = asked.images[0], asked.task()
    chosen = list(range(len(task))) if tokens is None else [int(token) for token in tokens]
    if not chosen or not all(0 <= token < len(task) for token in chosen):
        raise ValueError(f"tokens: expected targets from 0 to {len(task) - 1}, got {tokens!r}")
    size = (picture.height, picture.width)
    step = revealed(pixel_order(map, size, compat), steps).reshape(size)
    black = Image.new("RGB", picture.size)
    told = np.stack(
        [
            asked.with_images(shown).log_probabilities(task).exp().numpy()[chosen]
            for shown in shown_pictures(picture, black, step)
        ]
    )
    count = int(step.max())
    insertion, deletion = told[1 : count + 1], told[count + 2 :]
    return {
        "region_area": [float((step <= number).mean()) for number in range(1, count + 1)],
        "insertion_word_score": insertion.tolist(),
        "deletion_word_score": deletion.tolist(),
        "insertion_score": insertion.mean(axis=1).tolist(),
        "deletion_score": deletion.mean(axis=1).tolist(),
    }


def areas_under(record: Mapping[str, Any]) -> tuple[float, float]:
    """Integrate the curves of a record: (insertion, deletion) AUC. Each starts at area 0 where the other ends."""
    area = [0.0, *record["region_area"]]
    insertion, deletion = list(record["insertion_score"]), list(record["deletion_score"])
    if not len(insertion) == len(deletion) == len(area) - 1 > 0:
        raise ValueError(
            f"record: expected as many scores as areas, got {len(insertion)}, {len(deletion)} and {len(area) - 1}"
        )
    one = trapezoid([deletion[-1], *insertion], area)
    two = trapezoid([insertion[-1], *deletion], area)
    return float(one), float(two)


@dataclass(frozen=True)
class Faithfulness:
    """What EAGLE's program prints of its records: means over images.

    Attributes
    ----------
    insertion_auc, deletion_auc, highest : float
        `highest`: the largest insertion score of each image.
    sensitive_insertion_auc, sensitive_deletion_auc, sensitive_highest : float
        The same of words with p(image) - p(black) above 0.2; NaN if there are none.
    count, sensitive_count : int
        Images, and those that have such words.
    """

    insertion_auc: float
    deletion_auc: float
    highest: float
    sensitive_insertion_auc: float
    sensitive_deletion_auc: float
    sensitive_highest: float
    count: int
    sensitive_count: int


def faithfulness(records: Sequence[Mapping[str, Any]], sensitive: float = SENSITIVE) -> Faithfulness:
    """Sum up records of the protocol.

    Raises
    ------
    ValueError
        If there are none, or one's curves do not fit each other.
    """
    if not records:
        raise ValueError("records: expected at least one, got none")
    plain = [_figures(one) for one in records]
    chosen = [_figures(kept) for kept in (_sensitive(one, sensitive) for one in records) if kept is not None]
    one, two, three = np.mean(plain, axis=0).tolist()
    four, five, six = np.mean(chosen, axis=0).tolist() if chosen else [float("nan")] * 3
    return Faithfulness(one, two, three, four, five, six, len(plain), len(chosen))


def _figures(record: Mapping[str, Any]) -> tuple[float, float, float]:
    return (*areas_under(record), float(max(record["insertion_score"])))


def _sensitive(record: Mapping[str, Any], least: float) -> dict[str, Any] | None:
    """Keep the words that the image makes likelier; None if there are none."""
    insertion, deletion = (
        np.asarray(record[f"{name}_word_score"], dtype=np.float64) for name in ("insertion", "deletion")
    )
    words = insertion[-1] - deletion[-1] > least
    if not words.any():
        return None
    return {
        "region_area": record["region_area"],
        "insertion_score": insertion[:, words].mean(axis=1).tolist(),
        "deletion_score": deletion[:, words].mean(axis=1).tolist(),
    }
