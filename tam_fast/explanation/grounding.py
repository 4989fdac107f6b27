"""How visual each token of an answer is, and from what that is seen: :class:`Grounding`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from tam_fast.explanation.words import Word

__all__ = ["Contrast", "Grounding", "grounding_of"]

# Chosen on development scenes of the embedded model, see grounding_of.
_EVIDENCE = 0.07
_STEEPNESS = 2
_VISUAL = 0.5


class _Maps(Protocol):
    """What is read of :class:`tam_fast.maps.answer.TokenActivationMaps`."""

    @property
    def maps(self) -> Tensor: ...
    @property
    def relevance(self) -> Tensor: ...
    @property
    def scale(self) -> Tensor: ...
    @property
    def flat(self) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Contrast:
    """What the images do to the probability of each token.

    Attributes
    ----------
    with_images, without_images : (T,) float32
        Natural logarithms of the model's probability for each explained token, given all that stands before it, and the
        same when the images are taken out of the prompt.

    Raises
    ------
    TypeError, ValueError
        If they are no float32 tensors of one length, or hold what is no logarithm of a probability (NaN, Inf, above 0).
    """

    with_images: Tensor
    without_images: Tensor

    def __post_init__(self) -> None:
        for name in ("with_images", "without_images"):
            value = getattr(self, name)
            if not isinstance(value, Tensor):
                raise TypeError(f"{name}: expected a torch.Tensor (T,), got {type(value).__name__}")
            if value.ndim != 1 or value.dtype != torch.float32:
                raise ValueError(f"{name}: expected (T,) float32, got {tuple(value.shape)} of {value.dtype}")
            wrong = value[~(torch.isfinite(value) & (value <= 0))]
            if wrong.numel():
                raise ValueError(f"{name}: expected finite logarithms of probabilities, got {float(wrong[0])}")
        if self.with_images.shape != self.without_images.shape:
            raise ValueError(
                f"without_images: expected {len(self.with_images)} values as with_images has, "
                f"got {len(self.without_images)}"
            )

    def __len__(self) -> int:
        return len(self.with_images)

    @property
    def gain(self) -> Tensor:
        """How much more probable the images make each token: the difference of the logarithms, (T,) float32."""
        return self.with_images - self.without_images


@dataclass(frozen=True, eq=False)
class Grounding:
    """How visual each token (or word) is, and the parts from which that is seen.

    All are (T,) tensors, float32 but for `flat`, and never NaN. NaN in a map (``compat="official"``) counts as 0. A
    flat token has zeros but for `scale` and `gain`; where there are no images, all of the map's parts are 0.

    The two masses are on the common scale of Eq. 3 of the TAM paper. Each is the mean of the values weighted by
    themselves (the contraharmonic mean, sum of squares over sum): how strong the evidence is where it lies. Values of 0
    do not count, and every value twice is the same as once. So neither the number of cells on the same picture, nor
    images beside it that stay dark, nor words of the prompt that do not matter change it; a sum would grow with all of
    them, and a mean would measure how large the object is and how long the prompt.

    Attributes
    ----------
    score : (T,)
        How visual the token is, in [0, 1]; see :func:`grounding_of`.
    visual_mass : (T,)
        Of the map, in [0, 1].
    text_mass : (T,)
        Of the relevance of the context tokens, in [0, 1].
    share : (T,)
        ``visual_mass / (visual_mass + text_mass)``; 0 where both are.
    entropy : (T,)
        Of the map as a distribution over its N cells, over log N: 0 is one cell, 1 all alike. 0 for a map of zeros.
        The same map on more cells has a larger one; `fill` stays.
    fill : (T,)
        The share of the cells that the map fills: the exponential of the entropy in nats, over N. In (0, 1], 0 for a
        map of zeros.
    peak : (T,)
        Maximum of the map.
    scale : (T,)
        s of Eq. 5: how much of what the context explains was found in the token's raw map. At least 0, not bounded.
    flat : (T,) bool
        Nothing to see: map and relevances are one constant.
    gain : (T,) or None
        With a contrast: :attr:`Contrast.gain`. No part of the score, which does not depend on what else was asked for.
    """

    score: Tensor
    visual_mass: Tensor
    text_mass: Tensor
    share: Tensor
    entropy: Tensor
    fill: Tensor
    peak: Tensor
    scale: Tensor
    flat: Tensor
    gain: Tensor | None = None

    def __len__(self) -> int:
        """Return the number of tokens, T."""
        return len(self.score)

    @property
    def visual(self) -> Tensor:
        """Whether the score is at least 0.5: (T,) bool."""
        return self.score >= _VISUAL

    def word(self, start: int, stop: int) -> Grounding:
        """Return the grounding of a word, tokens ``start, ..., stop - 1``: tensors of length 1.

        It is that of the token with the highest score, the first of several: the piece that names the thing speaks for
        the word, as in its map (the maximum of its tokens' maps), and those that only complete the spelling do not fade
        it. All parts are that one token's, so that they still explain its score. `gain` is the sum, for the probability
        of a word is the product of its tokens'. `flat` if all are.

        Raises
        ------
        IndexError
            If these are not at least one of the tokens.
        """
        if not 0 <= start < stop <= len(self):
            raise IndexError(f"start: expected at least one of {len(self)} tokens, got tokens {start} to {stop}")
        # A token that is not flat may also have score 0, and comes first.
        seen = torch.where(self.flat[start:stop], -1.0, self.score[start:stop])
        best = start + int(seen.argmax())
        one = {name: getattr(self, name)[best : best + 1] for name in _PARTS}
        return Grounding(**one, gain=None if self.gain is None else self.gain[start:stop].sum(dim=0, keepdim=True))

    def words(self, words: Sequence[Word]) -> Grounding:
        """Return the grounding of words, such as ``e.words``: tensors with one value each, see :meth:`word`."""
        found = [self.word(word.start, word.stop) for word in words]
        joined = {name: torch.cat([self._none(name), *(getattr(one, name) for one in found)]) for name in _PARTS}
        gains = [one.gain for one in found if one.gain is not None]
        return Grounding(**joined, gain=None if self.gain is None else torch.cat([self.gain[:0], *gains]))

    def _none(self, name: str) -> Tensor:
        part: Tensor = getattr(self, name)[:0]
        return part

    def to_dict(self) -> dict[str, Any]:
        """Return lists by name, as JSON takes them; ``gain`` only with a contrast."""
        lists = {name: getattr(self, name).tolist() for name in _PARTS}
        return lists if self.gain is None else {**lists, "gain": self.gain.tolist()}


_PARTS = ("score", "visual_mass", "text_mass", "share", "entropy", "fill", "peak", "scale", "flat")


def grounding_of(maps: _Maps, contrast: Contrast | None = None) -> Grounding:
    """Say how visual each token of an answer is.

    The score is a logistic function of the logarithm of one number, the evidence: ``visual_mass * (1 - fill)``, how
    strong the map is where it lies, less the more of the picture it lies on, for what is everywhere singles nothing
    out::

        score = evidence**2 / (evidence**2 + 0.07**2)

    It is 0.5 where the evidence is 0.07 of the strongest evidence of any kind for this token, in image or text: the
    common scale of Eq. 3 already measures one against the other, so `text_mass` is not counted again. It is 0 for flat
    tokens, maps of zeros or of one constant, and prompts without images. The same picture on a finer grid, and context
    tokens without relevance, leave it as it is.

    The form and both constants were chosen on 200 scenes of the embedded model. Nothing in it is that model's, but on
    another one 0.5 may lie elsewhere; there, compare scores with each other.

    Parameters
    ----------
    maps : TokenActivationMaps
        Read are ``maps`` (T, N) in [0, 1] (or uint8), ``relevance`` (T, K), ``scale`` (T,) and ``flat`` (T,).
    contrast : Contrast, optional
        Gives :attr:`Grounding.gain`.

    Returns
    -------
    Grounding
        On the device of the maps.

    Raises
    ------
    ValueError
        If the lengths do not agree.
    """
    count = maps.maps.shape[0]
    for name, length in (("relevance", len(maps.relevance)), ("scale", len(maps.scale)), ("flat", len(maps.flat))):
        if length != count:
            raise ValueError(f"maps: expected {name} of {count} tokens, as there are maps, got {length}")
    if contrast is not None and len(contrast) != count:
        raise ValueError(f"contrast: expected one value for each of {count} tokens, got {len(contrast)}")
    flat = maps.flat.bool()
    cells, words = _on_scale(maps.maps, flat), _on_scale(maps.relevance, flat)
    visual, text = _mass(cells), _mass(words)
    whole = visual + text
    entropy, fill = _spread(cells)
    evidence = (visual * (1.0 - fill)) ** _STEEPNESS
    return Grounding(
        score=evidence / (evidence + _EVIDENCE**_STEEPNESS),
        visual_mass=visual,
        text_mass=text,
        share=torch.where(whole > 0, visual / whole, 0.0),
        entropy=entropy,
        fill=fill,
        peak=_peak(cells),
        scale=torch.nan_to_num(maps.scale.float()),
        flat=flat,
        gain=None if contrast is None else contrast.gain.to(flat.device),
    )


def _on_scale(values: Tensor, flat: Tensor) -> Tensor:
    """Bring values (T, n) to float32 in [0, 1], NaN and flat tokens to 0."""
    if values.dtype == torch.uint8:
        values = values.float() / 255.0
    return torch.nan_to_num(values.float(), nan=0.0).clamp(0.0, 1.0).masked_fill(flat[:, None], 0.0)


def _peak(values: Tensor) -> Tensor:
    return values.amax(dim=1) if values.shape[1] else values.new_zeros(len(values))


def _mass(values: Tensor) -> Tensor:
    """Mean of values (T, n), weighted by themselves: (T,)."""
    total = values.sum(dim=1, dtype=torch.float64)
    squares = (values * values).sum(dim=1, dtype=torch.float64)
    mass = torch.where(total > 0, squares / total, 0.0)
    return torch.minimum(mass.float(), _peak(values))  # rounding


def _spread(values: Tensor) -> tuple[Tensor, Tensor]:
    """Entropy of values (T, n) as distributions over log n, and the share of n that they fill: (T,) each."""
    count = values.shape[1]
    total = values.sum(dim=1, dtype=torch.float64)
    nats = torch.log(total) + torch.special.entr(values).sum(dim=1, dtype=torch.float64) / total
    nats = torch.where(total > 0, nats, 0.0).clamp(0.0, math.log(max(count, 1)))
    entropy = nats / math.log(count) if count > 1 else torch.zeros_like(nats)
    return entropy.float(), torch.where(total > 0, nats.exp() / max(count, 1), 0.0).float()
