"""Talks of unequal length without padding: :class:`Talks`, :class:`Raster`, :func:`pack`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Raster", "Talks", "pack"]


@dataclass(frozen=True)
class Raster:
    """Where M rows stand in a raster of ``height`` x ``width`` places, row by row: ``spots`` (M,) int64."""

    height: int
    width: int
    spots: Tensor

    def fill(self, rows: Tensor) -> Tensor:
        """Put rows (M, ...) in their places (height, width, ...), the others being 0."""
        raster = rows.new_zeros(self.height * self.width, *rows.shape[1:])
        raster[self.spots] = rows
        return raster.view(self.height, self.width, *rows.shape[1:])

    def read(self, raster: Tensor) -> Tensor:
        """Take the rows (M, ...) out of their places (height, width, ...)."""
        return raster.flatten(0, 1).index_select(0, self.spots)


@dataclass(frozen=True)
class Talks:
    """The M tokens of all talks of a batch that predict another, sample by sample, talk by talk.

    ``ids``, ``targets`` and ``weights`` (M,) are the tokens, the ones that follow, and the loss weights of those;
    ``samples`` and ``places`` (M,) say whose they are, and where in their talk. Attention needs rectangles:
    ``by_sample`` has a line for every sample, ``by_talk`` one for every talk.
    """

    ids: Tensor
    targets: Tensor
    weights: Tensor
    samples: Tensor
    places: Tensor
    by_sample: Raster
    by_talk: Raster


def pack(tokens: Tensor, weights: Tensor) -> Talks:
    """Pack padded `tokens` (B, T, L) int64; what is padding has no weight in `weights` (B, T, L) float32.

    The last token of a talk predicts nothing and is left out.
    """
    followed = weights[:, :, 1:] > 0
    samples, numbers, places = followed.nonzero(as_tuple=True)
    counts = followed.sum(dim=(1, 2))
    room, length = int(counts.max()), int(places.max()) + 1
    columns = torch.arange(len(samples)) - (counts.cumsum(0) - counts)[samples]
    batch, talks = tokens.shape[:2]
    return Talks(
        ids=tokens[:, :, :-1][followed],
        targets=tokens[:, :, 1:][followed],
        weights=weights[:, :, 1:][followed],
        samples=samples,
        places=places,
        by_sample=Raster(batch, room, samples * room + columns),
        by_talk=Raster(batch * talks, length, (samples * talks + numbers) * length + places),
    )
