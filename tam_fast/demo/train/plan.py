"""What is trained, in which order and for how long: :class:`Plan`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["GRID", "PATCH", "POLISH", "SMOKE", "STAGES", "Phase", "Plan"]

GRID = 20
"""Cells along a side of a picture, as the model is used."""

PATCH = 8
"""Pixels along a side of a cell."""

STAGES = ("language", "warmup", "alignment", "polish", "settle")
"""The stages, in order; each is a field of :class:`Plan`."""

POLISH = ("polish", "settle")
"""Stages that train everything, with text in part of the batches."""


@dataclass(frozen=True)
class Phase:
    """Some steps at one grid and batch size."""

    steps: int
    grid: int
    batch: int


@dataclass(frozen=True)
class Plan:
    """The whole schedule. The default one made the shipped weights."""

    seed: int = 20
    language: tuple[Phase, ...] = (Phase(800, 10, 48), Phase(250, 14, 32), Phase(600, 20, 20))
    warmup: tuple[Phase, ...] = (Phase(450, 10, 32), Phase(80, 20, 24))
    alignment: tuple[Phase, ...] = (Phase(300, 20, 20),)
    polish: tuple[Phase, ...] = (Phase(350, 20, 20),)
    settle: tuple[Phase, ...] = (Phase(260, 20, 20),)
    muon_rate: float = 6e-3
    adam_rate: float = 2e-3
    polish_rate: float = 0.4
    text_share: float = 0.4
    smoothing: float = 0.3
    log_partition: float = 10.0
    log_partition_weight: float = 0.02
    validate_every: int = 200
    text_config: dict[str, Any] = field(default_factory=dict)
    vision_config: dict[str, Any] = field(default_factory=dict)


SMOKE = Plan(
    language=(Phase(6, 6, 8),),
    warmup=(Phase(2, 6, 8),),
    alignment=(Phase(3, 6, 8),),
    polish=(Phase(3, 6, 8),),
    settle=(Phase(2, 6, 8),),
    validate_every=0,
    text_config={"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2},
    vision_config={"depth": 1, "embed_dim": 64, "num_heads": 2, "hidden_size": 64},
)
