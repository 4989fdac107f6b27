"""Rows of an evaluation that was never run: methods of known figures on some images."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tam_fast.evaluation.rows import Row, Rows

METHODS = ("tam", "cam", "attention", "random")
LEVELS = {"tam": 0.7, "cam": 0.5, "attention": 0.3, "random": 0.1}
SETTINGS = {
    "scale": "map",
    "options": {"compat": None},
    "method_options": {},
    "data": {"name": "made up", "model": "none"},
}


def rows_of(index: int, methods: Sequence[str] = METHODS, curves: bool = False) -> list[Row]:
    """Rows of one item: up to three nouns, two function words, and the answer's figures."""
    generator = np.random.default_rng([5, index])
    nouns = int(generator.integers(1, 4))
    place = Row(index, f"item {index}")
    noise = generator.normal(0, 0.05, (nouns + 2,))
    found = [Row(index, place.item, "", "captions", "rouge_l", value=0.4 + float(noise[0]))]
    for method in methods:
        words = [("obj_iou", word, LEVELS[method]) for word in range(nouns)]
        words += [("func_iou", nouns + word, 0.9 - LEVELS[method] / 2) for word in range(2)]
        for figure, word, level in words:
            value = float(np.clip(level + noise[word] + generator.normal(0, 0.02), 0, 1))
            found.append(Row(index, place.item, method, "plausibility", figure, word, word, f"word{word}", value))
        found.append(Row(index, place.item, method, "cost", "seconds", value=0.01 * LEVELS[method], n=10))
        if curves:
            for figure, sign in (("insertion", 1), ("deletion", -1)):
                points = tuple(float(point) for point in 0.5 + sign * LEVELS[method] * np.linspace(-0.5, 0.5, 9))
                area = float(np.mean(points))
                found.append(Row(index, place.item, method, "insertion", figure, value=area, points=points))
    return found


def write_rows(folder: str | os.PathLike[str], items: Sequence[int], **options: object) -> Path:
    """Write the rows of some items, and the settings that they were made with."""
    store = Rows(folder)
    for index in items:
        store.write(rows_of(index, **options))  # type: ignore[arg-type]
    path = Path(folder)
    (path / "evaluation.json").write_text(json.dumps({"tam_fast": "0", "settings": SETTINGS}), encoding="utf-8")
    return path
