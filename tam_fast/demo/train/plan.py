"""What is trained, in which order and for how long: :class:`Plan`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["GRID", "IMAGES", "PATCH", "POLISH", "SMOKE", "STAGES", "Phase", "Plan"]

GRID = 20
"""Cells along a side of a picture, as the model is used."""

PATCH = 8
"""Pixels along a side of a cell."""

STAGES = ("language", "warmup", "alignment", "polish", "settle")
"""The stages, in order; each is a field of :class:`Plan`."""

POLISH = ("polish", "settle")
"""Stages that train everything, with text in part of the batches."""

IMAGES: dict[str, float] = {"image": 1.0}
"""Shares of the batches when only single images are learned."""


@dataclass(frozen=True)
class Phase:
    """Some steps at one grid (cells along a side) and batch size."""

    steps: int
    grid: int
    batch: int


@dataclass(frozen=True)
class Plan:
    """The whole schedule.

    ``kinds`` are the shares of batches of one image ("image"), two images ("pair") and a video ("film"). ``talks`` says
    how many conversations are held on each, ``drills`` how many of them are exercises on the coarse grids of the text
    stage; ``textured`` is the share of single images drawn by ``make_scene`` rather than by ``make_varied``. Rates are
    those of the first three stages; later stages begin at ``polish_rate`` of them.
    """

    seed: int = 20
    kinds: dict[str, float] = field(default_factory=lambda: dict(IMAGES))
    language: tuple[Phase, ...] = (Phase(600, 5, 24), Phase(1900, 10, 24), Phase(700, 20, 16))
    warmup: tuple[Phase, ...] = (Phase(600, 10, 32), Phase(150, 20, 24))
    alignment: tuple[Phase, ...] = (Phase(400, 20, 16),)
    polish: tuple[Phase, ...] = (Phase(2300, 20, 16),)
    settle: tuple[Phase, ...] = (Phase(500, 20, 16),)
    talks: int = 4
    drills: int = 2
    textured: float = 0.35
    muon_rate: float = 6e-3
    adam_rate: float = 2e-3
    polish_rate: float = 0.4
    text_share: float = 0.3
    smoothing: float = 0.3
    log_partition: float = 10.0
    log_partition_weight: float = 0.02
    stray_weight: float = 0.2
    slots_judged: int = 128
    validate_every: int = 500
    text_config: dict[str, Any] = field(default_factory=dict)
    vision_config: dict[str, Any] = field(default_factory=dict)


SMOKE = Plan(
    kinds={"image": 0.5, "pair": 0.25, "film": 0.25},
    language=(Phase(6, 5, 8),),
    warmup=(Phase(2, 5, 8),),
    alignment=(Phase(3, 5, 8),),
    polish=(Phase(3, 5, 8),),
    settle=(Phase(2, 5, 8),),
    validate_every=0,
    text_config={"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2},
    vision_config={"depth": 1, "embed_dim": 64, "num_heads": 2, "hidden_size": 64},
)
