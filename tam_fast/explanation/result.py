"""What an explanation is made of, and that its parts agree: :class:`Result`."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from PIL import Image

from tam_fast.explanation.checks import check_agreement
from tam_fast.explanation.frames import Frames
from tam_fast.explanation.grounding import Contrast, Grounding, grounding_of
from tam_fast.explanation.kept import KeptStates
from tam_fast.explanation.words import Candidate
from tam_fast.maps.answer import TokenActivationMaps
from tam_fast.maps.canvas import Canvas
from tam_fast.maps.layout import Layout

__all__ = ["Result"]


@dataclass(eq=False, repr=False)
class Result:
    """The fields of an :class:`Explanation`, which says what they are."""

    tokens: list[str]
    token_ids: list[int]
    text: str
    offsets: list[tuple[int, int]]
    maps: TokenActivationMaps
    candidates: list[list[Candidate]]
    images: list[Image.Image]
    prompt: str
    context_tokens: list[str]
    model: str
    elapsed: dict[str, float] = field(default_factory=dict)
    source: str = "generated"
    states: KeptStates | None = None
    steps: list[int] | None = None
    videos: list[Frames] = field(default_factory=list)
    thinking: str | None = None
    contrast: Contrast | None = None
    messages: list[dict[str, Any]] | None = None
    method: str = "tam"

    def __post_init__(self) -> None:
        self.offsets = [(int(start), int(end)) for start, end in self.offsets]
        check_agreement(self)
        self.images = [image if image.mode == "RGB" else image.convert("RGB") for image in self.images]

    def __repr__(self) -> str:
        grids = ", ".join(f"{height}x{width}" for height, width in self.layout.sizes[:4])
        more = len(self.layout.sizes) - 4
        shown = f"grids {grids}{f' and {more} more' if more > 0 else ''}" if grids else "no grids"
        return f"{type(self).__name__}({self.text!r}, {len(self)} tokens, {shown}, model {self.model!r})"

    def __len__(self) -> int:
        """Return the number of tokens, T."""
        return len(self.tokens)

    @property
    def layout(self) -> Layout:
        """Where the cells of the maps are, in the sequence and on the images."""
        return self.maps.layout

    @property
    def relevance(self) -> torch.Tensor:
        """How strongly each context token speaks for each token: (T, K) float32, on the scale of the maps."""
        return self.maps.relevance

    @property
    def places(self) -> list[int]:
        """Place of each token in what was generated: :attr:`steps`, or 0 to T - 1 where that is None."""
        return list(range(len(self))) if self.steps is None else self.steps

    @cached_property
    def visual_strength(self) -> torch.Tensor:
        """How much the image speaks for each token: the maximum of its map, (T,) float32 in [0, 1].

        Image and text are normalised together (Eq. 3 of the TAM paper), so the maximum says how strong the best visual
        evidence is against the strongest evidence of any kind: near 1 where the image leads, small where a word of the
        prompt or of the answer so far does. The mean would measure how large an object is. It is also the brightest
        cell of the token's overlay, so that figures and pictures tell the same. 0 for a flat token, where a map is all
        NaN, and without images.
        """
        if not self.maps.maps.shape[1]:
            return self.maps.maps.new_zeros(len(self))
        return torch.nan_to_num(self.maps.maps, nan=0.0).amax(dim=1)

    @cached_property
    def grounding(self) -> Grounding:
        """How visual each token is: a score (T,) in [0, 1] and its parts, see :class:`Grounding`.

        With a :attr:`contrast` also what the images do to each token's probability. Of a word:
        ``e.grounding.word(word.start, word.stop)``, and its score is :attr:`Word.grounding`.

        Raises
        ------
        ValueError
            If the maps are another method's: the score weighs image and text on TAM's common scale (Eq. 3).
        """
        if self.method != "tam":
            got = f"those of {self.method!r}"
            raise ValueError(f"grounding: expected maps of method 'tam', whose scale image and text share, got {got}")
        return grounding_of(self.maps, self.contrast)

    @cached_property
    def _canvases(self) -> list[Canvas]:
        return self.layout.canvases()
