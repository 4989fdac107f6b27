"""What judging maps costs: Obj-IoU, Func-IoU, precision and recall of an answer's words against a mask."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import cv2
import numpy as np

from bench.measure import Peer, WrongResultError, interleave
from bench.records import Record, record
from bench.tables import Options, effort
from tam_fast.evaluation import Scores, Word, score

Array = np.ndarray
GRID, SIZE, WORDS = (17, 23), (480, 640), 8
GOAL = "5,000 images of 8 words at 640x480 in 60 s of one core: 12 ms an image"
CASE = f"an answer of {WORDS} nouns, maps {GRID[0]}x{GRID[1]}, mask {SIZE[1]}x{SIZE[0]}"


@cache
def answer() -> tuple[Array, list[Word], Array]:
    """Smooth maps (8, 17, 23) uint8, words of four objects and a function word, and a mask of labels 1 to 4."""
    rng = np.random.default_rng(7)
    noise = rng.random((WORDS + 1, *GRID), dtype=np.float32)
    smooth = np.stack([cv2.GaussianBlur(one, (0, 0), 2.0) for one in noise])
    low, high = smooth.min(axis=(1, 2), keepdims=True), smooth.max(axis=(1, 2), keepdims=True)
    mask = np.zeros(SIZE, dtype=np.uint8)
    for label, (top, left, height, width) in enumerate(
        ((100, 200, 200, 200), (40, 30, 40, 270), (350, 30, 120, 270), (90, 450, 300, 150)), start=1
    ):
        cv2.ellipse(mask, (left + width // 2, top + height // 2), (width // 2, height // 2), 0, 0, 360, label, -1)
    words = [Word("noun", (place,), 1 + place % 4) for place in range(WORDS)] + [Word("the", (WORDS,), -2)]
    return (255 * (smooth - low) / (high - low)).astype(np.uint8), words, mask


def by_masks(maps: Array, words: list[Word], mask: Array) -> dict[str, list[float]]:
    """Do as one would: OpenCV's Otsu, and masks of booleans for each intersection and union."""
    found: dict[str, list[float]] = {name: [] for name in ("obj_iou", "precision", "recall", "func_iou")}
    thresholds = []
    for word in words:
        if word.label > 0:
            grown = cv2.resize(maps[word.tokens[0]], mask.shape[::-1])
            threshold, _ = cv2.threshold(grown, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
            chosen, there = grown > threshold, mask == word.label
            both = (chosen & there).sum()
            found["obj_iou"].append(both / (chosen | there).sum())
            found["precision"].append(both / chosen.sum())
            found["recall"].append(both / there.sum())
            thresholds.append(threshold)
    found["func_iou"] += [(maps[word.tokens[0]] < np.mean(thresholds)).mean() for word in words if word.label == -2]
    return found


def _check(of: Callable[[Any], dict[str, list[float]]]) -> Callable[[Any], None]:
    expected = by_masks(*answer())

    def check(got: Any) -> None:
        for name, values in of(got).items():
            if not np.allclose(values, expected[name], rtol=0, atol=1e-12) or len(values) != len(expected[name]):
                raise WrongResultError(f"{name}: expected {expected[name]}, got {values}")

    return check


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def measure(part: str, threads: int, options: Options) -> list[Record]:
    """Judge one answer of eight words on one thread, OpenCV's included; ms an image."""
    maps, words, mask = answer()
    names = ("obj_iou", "precision", "recall", "func_iou")

    def of_scores(found: Scores) -> dict[str, list[float]]:
        return {name: getattr(found, name) for name in names}

    peers = [
        Peer("tam_fast", lambda: score(maps, words, mask), _check(of_scores), note=GOAL),
        Peer(
            'tam_fast, compat="official"',
            lambda: score(maps, words, mask, compat="official"),
            _check(of_scores),
        ),
        Peer("OpenCV and boolean masks", lambda: by_masks(maps, words, mask), _check(lambda found: found)),
    ]
    with _one_thread():
        timings = interleave(CASE, peers, **effort(options, 1.0))
    return [record(CASE, timing, "ms", threads) for timing in timings]
