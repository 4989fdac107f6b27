"""Maps that look at no answer, to stand in every table: random, centre-prior and uniform ones.

A method that does not beat them on some figure says nothing by it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from tam_fast.maps.layout import Layout
from tam_fast.methods.regions import cell_places

__all__ = ["BASELINES", "baseline_maps", "centre_maps", "random_maps", "uniform_maps"]

CENTRE = 0.25
"""Standard deviation of the centre prior, in sides of the image."""


def random_maps(layout: Layout, count: int, seed: int = 0) -> Tensor:
    """Draw maps (T, N) float32 of independent values in [0, 1), each token's and cell's its own.

    The same seed draws the same; give each item a seed of its own.
    """
    generator = np.random.default_rng(seed)
    return torch.from_numpy(generator.random((count, _cells(layout)), dtype=np.float32))


def centre_maps(layout: Layout, count: int, seed: int = 0, spread: float = CENTRE) -> Tensor:
    """Make maps (T, N) float32 of a Gaussian at the centre of each image or frame, 1 there.

    exp(-(x^2 + y^2) / (2 spread^2)), x and y from the centre, in sides of the image: wider where the image is. Cells of
    tiles and overview stand where they are in the whole image. `seed` is ignored.
    """
    del seed
    if not spread > 0:
        raise ValueError(f"spread: expected a number above 0, got {spread!r}")
    made = torch.zeros(_cells(layout), dtype=torch.float64)
    for canvas in layout.canvases():
        cells, edges = cell_places(layout, canvas)
        from_centre = (edges[:, :2] + edges[:, 2:]) / 2 - 0.5
        made[cells] = torch.exp(-(from_centre**2).sum(dim=1) / (2 * spread**2))
    return made.float().expand(count, -1).clone()


def uniform_maps(layout: Layout, count: int, seed: int = 0) -> Tensor:
    """Make maps (T, N) float32 that are 1 everywhere.

    They are on their scale already: brought to [0, 1] by its extremes, a constant map would be 0. `seed` is ignored.
    """
    del seed
    return torch.ones((count, _cells(layout)))


BASELINES: Mapping[str, Callable[..., Tensor]] = MappingProxyType(
    {"random": random_maps, "centre": centre_maps, "uniform": uniform_maps}
)
"""Functions ``(layout, count, seed) -> (T, N) float32 in [0, 1]`` by the names they have in tables."""


def baseline_maps(name: str, layout: Layout, count: int, seed: int = 0) -> Tensor:
    """Make the maps (T, N) of a baseline by its name.

    Raises
    ------
    ValueError
        If there is none of this name.
    """
    if name not in BASELINES:
        raise ValueError(f"name: expected one of {', '.join(BASELINES)}, got {name!r}")
    return BASELINES[name](layout, count, seed)


def _cells(layout: Layout) -> int:
    return int(layout.visual_positions.numel())
