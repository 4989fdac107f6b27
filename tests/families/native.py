"""Families that keep an image's own size: ``image_grid_thw`` over a merge size."""

from __future__ import annotations

from conftest_models import qwen_model, qwen_processor

from families import Built, family

SIZES = [[(170, 60)], [(60, 140)], [(57, 61)], [(90, 60), (60, 120)]]


@family("qwen2_vl")
def _qwen2_vl() -> Built:
    processor = qwen_processor()
    return Built(qwen_model(processor), processor, SIZES)


@family("qwen2_5_vl")
def _qwen2_5_vl() -> Built:
    processor = qwen_processor(name="Qwen2_5_VLProcessor")
    return Built(qwen_model(processor, version="2.5"), processor, SIZES)
