"""Families that bring every image to one size."""

from __future__ import annotations

from conftest_models import llava_model, llava_processor

from families import Built, family

SIZES = [[(170, 60)], [(60, 140)], [(57, 61)], [(90, 60), (60, 120)]]


@family("llava")
def _llava() -> Built:
    processor = llava_processor()
    return Built(llava_model(processor), processor, SIZES)
