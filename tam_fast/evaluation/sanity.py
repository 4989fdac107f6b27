"""Sanity checks: does a map change when the model, or the answer, is another, and stay when the image hardly is?

A map that looks the same with random weights shows the image, not what the model made of it (Adebayo et al. 2018). All
take a function that makes maps, so that any method can be checked: ``lambda: attribute(model, ..., "attn_lrp").maps``.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from tam_fast.evaluation.ranks import average_ranks, spearman
from tam_fast.methods.task import layers_of
from tam_fast.models.capture import decoder_of
from tam_fast.models.wrappers import unwrap

__all__ = [
    "CHANGES",
    "Randomised",
    "Similarity",
    "random_answers",
    "randomisation",
    "randomised_layers",
    "rank_ssim",
    "shifted",
    "similarity",
    "stability",
]

Maps: TypeAlias = Any
"""(T, h, w) or (T, N), an ndarray or Tensor."""

_WINDOW = 7
_SMALL = (0.01**2, 0.03**2)  # of values in 0..1, as SSIM has them


# How alike two maps are ------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Similarity:
    """How alike maps are, pair by pair.

    Attributes
    ----------
    spearman : (T,) float64
        Of all cells; NaN where a map is constant.
    ssim : (T,) float64 or None
        See :func:`rank_ssim`; None of maps (T, N), which have no rows.
    """

    spearman: NDArray[np.float64]
    ssim: NDArray[np.float64] | None


def similarity(first: Maps, second: Maps) -> Similarity:
    """Compare maps (T, h, w), or (T, N), with others of the same tokens: 1 where they are ordered alike.

    Only orders count, so that no scale does.
    """
    one, two = _maps(first, "first"), _maps(second, "second")
    if one.shape != two.shape:
        raise ValueError(f"second: expected shape {one.shape}, as first, got {two.shape}")
    ranks = spearman(one.reshape(len(one), -1), two.reshape(len(two), -1))
    if one.ndim == 2:
        return Similarity(ranks, None)
    return Similarity(ranks, np.array([rank_ssim(*pair) for pair in zip(one, two, strict=True)]))


def rank_ssim(first: Any, second: Any, window: int = _WINDOW) -> float:
    """Return the structural similarity of two maps' ranks: where Spearman takes all cells together, this looks locally.

    Ranks are brought to 0..1, ties have their mean; the mean of SSIM (Wang et al. 2004, Eq. 13, constants 0.01^2 and
    0.03^2) over all square windows that fit, each cell counting alike.

    Parameters
    ----------
    first, second : (h, w)
    window : int
        Side; smaller where the map is.

    Returns
    -------
    float
        At most 1, of maps of one order.
    """
    one, two = _ranked(first, "first"), _ranked(second, "second")
    if one.shape != two.shape:
        raise ValueError(f"second: expected shape {one.shape}, as first, got {two.shape}")
    sides = tuple(min(window, side) for side in one.shape)
    means = [_box(values, sides) for values in (one, two, one * one, two * two, one * two)]
    a, b = means[0], means[1]
    spread_a, spread_b, across = means[2] - a * a, means[3] - b * b, means[4] - a * b
    top = (2 * a * b + _SMALL[0]) * (2 * across + _SMALL[1])
    bottom = (a * a + b * b + _SMALL[0]) * (spread_a + spread_b + _SMALL[1])
    return float((top / bottom).mean())


def _ranked(map: Any, name: str) -> NDArray[np.float64]:
    values = np.asarray(map, dtype=np.float64)
    if values.ndim != 2 or not values.size or np.isnan(values).any():
        raise ValueError(f"{name}: expected (h, w) without NaN, got shape {values.shape}")
    return ((average_ranks(values.ravel()) - 1) / max(values.size - 1, 1)).reshape(values.shape)


def _box(values: NDArray[np.float64], sides: Sequence[int]) -> NDArray[np.float64]:
    windows = np.lib.stride_tricks.sliding_window_view(values, tuple(sides))
    found: NDArray[np.float64] = windows.mean(axis=(-2, -1))
    return found


def _maps(maps: Maps, name: str) -> NDArray[np.float64]:
    given = np.asarray(maps.detach().cpu() if isinstance(maps, torch.Tensor) else maps, dtype=np.float64)
    if given.ndim not in (2, 3) or not given.size:
        raise ValueError(f"{name}: expected maps (T, h, w) or (T, N), got shape {given.shape}")
    return given


# Random weights --------------------------------------------------------------------------------------------------


@contextmanager
def randomised_layers(model: Any, layers: Sequence[int], seed: int = 0) -> Iterator[None]:
    """Give some layers of a model's decoder random weights, inside a ``with`` block.

    The values of each parameter are shuffled: scale and distribution stay, what was learned is gone. A layer has the
    same random weights whichever others have some. Afterwards, also after an exception, all are as they were, bit for
    bit.

    Parameters
    ----------
    model : transformers.PreTrainedModel
    layers : sequence of int
        Of the text decoder; negative ones count from the end.
    seed : int

    Raises
    ------
    ValueError
        If there is no such layer, or it has no weights that can be shuffled (of a meta device, offloaded).
    """
    every = layers_of(decoder_of(unwrap(model)))
    chosen = []
    for layer in layers:
        if isinstance(layer, bool) or not hasattr(layer, "__index__") or not -len(every) <= layer < len(every):
            raise ValueError(f"layers: expected numbers from 0 to {len(every) - 1}, got {layer!r}")
        chosen.append(int(layer.__index__()) % len(every))
    parameters: dict[int, tuple[torch.nn.Parameter, tuple[int, int]]] = {}
    for number in sorted(set(chosen)):
        found = [value for value in every[number].parameters() if value.is_floating_point()]
        if not found or any(value.is_meta for value in found):
            raise ValueError(
                f"layers: expected weights in memory, got none in layer {number} of {type(model).__name__}"
            )
        for place, value in enumerate(found):
            parameters.setdefault(id(value), (value, (number, place)))  # shared ones once
    kept = {key: value.detach().clone() for key, (value, _) in parameters.items()}
    try:
        with torch.no_grad():
            for value, (number, place) in parameters.values():
                generator = torch.Generator().manual_seed(_mixed(seed, number, place))
                order = torch.randperm(value.numel(), generator=generator).to(value.device)
                value.copy_(value.detach().flatten()[order].view_as(value))
        yield
    finally:
        with torch.no_grad():
            for key, (value, _) in parameters.items():
                value.copy_(kept[key])


def _mixed(*numbers: int) -> int:
    return int(np.random.SeedSequence([number % 2**32 for number in numbers]).generate_state(1, np.uint64)[0] >> 1)


@dataclass(frozen=True, eq=False)
class Randomised:
    """One step of a check by random weights.

    Attributes
    ----------
    layers : tuple of int
        Which have random weights.
    similarity : Similarity
        Of the maps with those of the model as it is.
    """

    layers: tuple[int, ...]
    similarity: Similarity


def randomisation(
    model: Any,
    maps: Callable[[], Maps],
    how: str = "cascading",
    layers: Sequence[int] | None = None,
    seed: int = 0,
    progress: Callable[[int, int], object] | None = None,
) -> list[Randomised]:
    """Compare maps of a model with those that it has with random weights, layer by layer.

    Parameters
    ----------
    model : transformers.PreTrainedModel
    maps : callable
        Makes the maps (T, h, w) or (T, N) anew, of the same fixed answer.
    how : "cascading" or "independent"
        From the last layer down, each step with one more; or each by itself.
    layers : sequence of int, optional
        Which, in this order; all of the decoder from the last to the first if None.
    seed : int
    progress : callable, optional
        ``progress(done, total)``.

    Returns
    -------
    list of Randomised
    """
    if how not in ("cascading", "independent"):
        raise ValueError(f"how: expected 'cascading' or 'independent', got {how!r}")
    count = len(layers_of(decoder_of(unwrap(model))))
    order = list(range(count - 1, -1, -1)) if layers is None else list(layers)
    if not order:
        raise ValueError("layers: expected at least one, got none")
    before = _maps(maps(), "maps")
    found = []
    for step in range(len(order)):
        chosen = order[: step + 1] if how == "cascading" else [order[step]]
        with randomised_layers(model, chosen, seed):
            after = maps()
        found.append(Randomised(tuple(int(layer) % count for layer in chosen), similarity(before, after)))
        if progress is not None:
            progress(step + 1, len(order))
    return found


# Random answers --------------------------------------------------------------------------------------------------


def random_answers(
    maps: Callable[[list[int]], Maps], answer: Sequence[int], vocabulary: Sequence[int], count: int = 1, seed: int = 0
) -> list[Similarity]:
    """Compare maps of an answer with those of random tokens at its places.

    Each token of a random answer is drawn from those of `vocabulary` that differ from the answer's at its place. A map
    that is the same for a random token explains the image, not the token.

    Parameters
    ----------
    maps : callable
        Makes the maps (T, h, w) or (T, N) of an answer of T tokens that is given: ``maps(token_ids)``.
    answer : sequence of T int
    vocabulary : sequence of int
        To draw from: words, no special tokens.
    count : int
        How many random answers.
    seed : int

    Returns
    -------
    list of Similarity
        One a random answer.
    """
    words = np.unique(np.asarray(list(vocabulary), dtype=np.int64))
    tokens = [int(token) for token in answer]
    if not tokens or words.size < 2:
        raise ValueError(f"vocabulary: expected at least two tokens for an answer, got {words.size} for {len(tokens)}")
    if count < 1:
        raise ValueError(f"count: expected a number from 1, got {count!r}")
    generator = np.random.default_rng(seed)
    before = _maps(maps(tokens), "maps")
    found = []
    for _ in range(count):
        drawn = [int(generator.choice(words[words != token])) for token in tokens]
        found.append(similarity(before, maps(drawn)))
    return found


# Small changes of the image --------------------------------------------------------------------------------------


def _brightness(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    del generator
    return Image.fromarray(np.clip(np.asarray(image, dtype=np.float64) * 1.1, 0, 255).round().astype(np.uint8))


def _jpeg(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    del generator
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=75)
    with Image.open(io.BytesIO(buffer.getvalue())) as opened:
        found: Image.Image = opened.convert("RGB")
        return found


def _noise(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    pixels = np.asarray(image, dtype=np.float64)
    return Image.fromarray(np.clip(pixels + generator.normal(0, 5, pixels.shape), 0, 255).round().astype(np.uint8))


def _shift(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    del generator
    down, right = _steps(image)
    pixels = np.asarray(image)
    rows = np.clip(np.arange(image.height) - down, 0, None)
    columns = np.clip(np.arange(image.width) - right, 0, None)
    return Image.fromarray(pixels[rows][:, columns])


def _steps(image: Image.Image) -> tuple[int, int]:
    """How far "shift" moves, down and right: 2 % of the sides, at least a pixel."""
    return max(round(0.02 * image.height), 1), max(round(0.02 * image.width), 1)


CHANGES: Mapping[str, Callable[[Image.Image, np.random.Generator], Image.Image]] = MappingProxyType(
    {"shift": _shift, "brightness": _brightness, "jpeg": _jpeg, "noise": _noise}
)
"""Small changes of an image: 2 % down and right (edges repeated), 10 % brighter, JPEG of quality 75, noise of a
standard deviation of 5 of 255."""


def shifted(map: Any, down: float, right: float) -> NDArray[np.float64]:
    """Shift a map (h, w) by parts of its height and width, bilinearly; edges are repeated."""
    values = np.asarray(map, dtype=np.float64)
    for axis, part in ((0, down), (1, right)):
        length = values.shape[axis]
        at = np.clip(np.arange(length) - part * length, 0, length - 1)
        low = np.floor(at).astype(np.int64)
        high = np.minimum(low + 1, length - 1)
        weight = (at - low).reshape((-1, 1) if axis == 0 else (1, -1))
        values = np.take(values, low, axis) * (1 - weight) + np.take(values, high, axis) * weight
    return values


def stability(
    maps: Callable[[Image.Image], Maps],
    image: Image.Image,
    changes: Mapping[str, Callable[[Image.Image, np.random.Generator], Image.Image]] | None = None,
    seed: int = 0,
) -> dict[str, Similarity]:
    """Compare maps of an image with those of the same image slightly changed.

    Parameters
    ----------
    maps : callable
        Makes the maps (T, h, w), over the whole image, of the same fixed answer about an image: ``maps(image)``.
    image : PIL image
    changes : mapping of name to ``change(image, generator) -> image``, optional
        :data:`CHANGES` if not given. What is called "shift" there moves the map along: it is compared with the map that
        is shifted as far.
    seed : int

    Returns
    -------
    dict of str to Similarity
    """
    picture = image.convert("RGB")
    before = _maps(maps(picture), "maps")
    if before.ndim != 3:
        raise ValueError(f"maps: expected (T, h, w), got shape {before.shape}")
    found = {}
    for name, change in (CHANGES if changes is None else changes).items():
        other = change(picture, np.random.default_rng(seed))
        if other.size != picture.size:
            raise ValueError(f"changes: expected pictures of {picture.size}, got {other.size} of {name!r}")
        wanted = before
        if change is _shift:
            down, right = _steps(picture)
            wanted = np.stack([shifted(map, down / picture.height, right / picture.width) for map in before])
        found[name] = similarity(wanted, maps(other))
    return found
