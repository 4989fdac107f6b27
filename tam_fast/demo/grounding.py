"""Whether words are as visual as their score says: ``python -m tam_fast.demo.grounding [--scenes 300] [--json FILE]``.

:func:`tam_fast.explanation.grounding.grounding_of` is checked on fresh scenes with the embedded model, of which it is
known which words are about the picture and which of those are true.

Definitions
-----------
objects
    The model's own captions ("Describe this image."), greedy: nouns of shapes that are in the scene against function
    words ("a", "and", ",", ...).
shapes, colours
    Answers that are given: "The image shows a red circle." of a group of the scene, and the same with a shape (a
    colour) that no object of the scene has. The word that is true against the word in its place that is not.
both
    Shapes and colours together.
AUROC
    How often a word of the first kind has the larger value than one of the second, ties counting half: 0.5 is chance.
    Parts of which less should mean more visual (text mass, entropy, fill, scale) are taken with a minus sign; nothing
    is turned round afterwards.
visual
    Share of words that are marked as visual: score at least 0.5.
with images, without images
    The logarithms of the word's probability themselves, next to their difference (gain): what the model says of its
    words when it is asked for no map.

Intervals are 95 % percentile intervals of a bootstrap over scenes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from tam_fast.demo import scenes as sc
from tam_fast.demo.evaluate import FUNCTION_WORDS, Report
from tam_fast.explain import Explainer
from tam_fast.explanation.grounding import Contrast, Grounding, grounding_of

__all__ = ["DEFAULT_SEED", "KINDS", "MEASURES", "TASKS", "auroc", "evaluate", "main"]

DEFAULT_SEED = 14_300
"""Apart from training, validation, the samples, ``demo.evaluate``, and the development scenes of the score (1414)."""

Values: TypeAlias = "list[list[float]]"  # of each scene

TASKS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "objects": (("object",), ("function",)),
    "shapes": (("true shape",), ("false shape",)),
    "colours": (("true colour",), ("false colour",)),
    "both": (("true shape", "true colour"), ("false shape", "false colour")),
}
"""What is told apart: kinds of words that should have the larger values, and kinds that should not."""

MEASURES: Mapping[str, Callable[[Grounding, Contrast], torch.Tensor]] = {
    "score": lambda g, _: g.score,
    "visual mass": lambda g, _: g.visual_mass,
    "text mass (-)": lambda g, _: -g.text_mass,
    "share": lambda g, _: g.share,
    "entropy (-)": lambda g, _: -g.entropy,
    "fill (-)": lambda g, _: -g.fill,
    "peak": lambda g, _: g.peak,
    "scale (-)": lambda g, _: -g.scale,
    "gain": lambda _, c: c.gain,
    "with images": lambda _, c: c.with_images,
    "without images (-)": lambda _, c: -c.without_images,
}
"""What is compared, larger meaning more visual."""

_NOUNS = {word: shape for shape in sc.SHAPES for word in (shape, sc.PLURALS[shape])}
KINDS = tuple(dict.fromkeys(kind for pair in TASKS.values() for kinds in pair for kind in kinds))
"""Kinds of words."""


def evaluate(
    scenes: int = 300,
    seed: int = DEFAULT_SEED,
    path: str | Path | None = None,
    resamples: int = 2000,
    progress: Callable[[int], None] | None = None,
) -> Report:
    """Ask the embedded model about fresh scenes, and tell its words apart by every measure.

    Parameters
    ----------
    scenes : int
        How many scenes, at least 1.
    seed : int
        Scene i is ``make_scene(numpy.random.default_rng([seed, i]))``.
    path : str or Path, optional
        A model folder other than the shipped one.
    resamples : int
        Bootstrap resamples.
    progress : callable, optional
        Called with the number of finished scenes.

    Returns
    -------
    Report
        Its figures are named ``"TASK: MEASURE"`` (AUROC) and ``"visual: KIND"``.

    Raises
    ------
    ValueError
        If `scenes` is below 1, or no caption of them names an object that is there.
    """
    if scenes < 1:
        raise ValueError(f"scenes: expected at least 1, got {scenes}")
    from tam_fast.demo import load_demo

    explainer = Explainer(*load_demo(path))
    found: dict[str, dict[str, Values]] = {kind: {name: [] for name in MEASURES} for kind in KINDS}
    captions: list[tuple[str, str]] = []
    for index in range(scenes):
        rng = np.random.default_rng([seed, index])
        scene = sc.make_scene(rng)
        captions.append((sc.caption(scene), _one_scene(explainer, scene, rng, found)))
        if progress is not None:
            progress(index + 1)
    rows = np.random.default_rng(seed).integers(0, scenes, (resamples, scenes))
    figures: dict[str, tuple[float, float, float]] = {}
    for task, (more, less) in TASKS.items():
        for name in MEASURES:
            first, second = (_together([found[kind][name] for kind in kinds]) for kinds in (more, less))
            figures[f"{task}: {name}"] = auroc(first, second, rows)
    for kind in KINDS:
        marked = [[float(value >= 0.5) for value in values] for values in found[kind]["score"]]
        figures[f"visual: {kind}"] = _mean(marked, rows)
    settings = {"scenes": scenes, "seed": seed, "prompt": sc.DESCRIBE, "resamples": resamples}
    settings |= {kind: sum(map(len, found[kind]["score"])) for kind in KINDS}
    return Report(settings, figures, captions)


def _together(kinds: list[Values]) -> Values:
    return [list(chain(*scene)) for scene in zip(*kinds, strict=True)]


def auroc(more: Values, less: Values, rows: NDArray[np.int64]) -> tuple[float, float, float]:
    """Area under the ROC curve of values of two kinds, and its 95 % interval over resamples of the scenes.

    Parameters
    ----------
    more, less : list of S lists of float
        Values of each scene; those of `more` should be the larger.
    rows : (B, S) int64
        Scenes of each resample.

    Raises
    ------
    ValueError
        If one of them has no value.
    """
    count = len(more)
    other, owner = np.array(list(chain(*less))), np.repeat(np.arange(count), [len(values) for values in less])
    if not other.size or not any(more):
        raise ValueError("scenes: expected words of both kinds, got none of one: more scenes are needed")
    # wins[i, j]: of a word of scene i against one of scene j; so a resample costs two sums.
    wins = np.zeros((count, count))
    for index, values in enumerate(more):
        for value in values:
            wins[index] += np.bincount(owner, (value > other) + 0.5 * (value == other), minlength=count)
    sizes = np.array([[len(values) for values in kind] for kind in (more, less)], dtype=np.float64)

    def area(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        pairs = (weights @ sizes[0]) * (weights @ sizes[1])
        areas = np.einsum("bi,bi->b", weights @ wins, weights)[pairs > 0] / pairs[pairs > 0]
        return np.asarray(areas)

    drawn = np.stack([np.bincount(row, minlength=count) for row in rows]).astype(np.float64)
    low, high = np.percentile(area(drawn), [2.5, 97.5])
    return float(area(np.ones((1, count)))[0]), float(low), float(high)


def _mean(values: Values, rows: NDArray[np.int64]) -> tuple[float, float, float]:
    """Pooled mean, and its 95 % interval over resamples of the scenes."""
    sums, counts = (np.array([float(f(scene)) for scene in values]) for f in (sum, len))
    drawn = counts[rows].sum(axis=1)
    low, high = np.percentile(sums[rows].sum(axis=1)[drawn > 0] / drawn[drawn > 0], [2.5, 97.5])
    return float(sums.sum() / counts.sum()), float(low), float(high)


def _one_scene(
    explainer: Explainer, scene: sc.Scene, rng: np.random.Generator, found: dict[str, dict[str, Values]]
) -> str:
    """Ask about one scene; adds to what was found and returns the caption."""
    image = Image.fromarray(sc.render(scene))
    for kinds_values in found.values():
        for scenes in kinds_values.values():
            scenes.append([])

    def add(kind: str, token: int, values: Mapping[str, torch.Tensor]) -> None:
        for name, value in values.items():
            found[kind][name][-1].append(float(value[token]))

    words, text, values = _asked(explainer, image, None)
    shapes = {item.shape for item in scene.objects}
    for token, word in enumerate(words):
        if _NOUNS.get(word) in shapes:
            add("object", token, values)
        elif word.lower() in FUNCTION_WORDS:
            add("function", token, values)

    # One group alone, and the same with what is not there.
    group = scene.groups[int(rng.integers(len(scene.groups)))]
    only = replace(scene, objects=tuple(scene.objects[place] for place in group.indices))
    colours = {item.colour for item in scene.objects}
    absent = [shape for shape in sc.SHAPES if shape not in shapes], [name for name in sc.COLOURS if name not in colours]
    shape, colour = (some[int(rng.integers(len(some)))] for some in absent)
    for colour_told, shape_told, kinds in (
        (group.colour, group.shape, ("true shape", "true colour")),
        (group.colour, shape, ("false shape",)),
        (colour, group.shape, ("false colour",)),
    ):
        objects = (replace(item, colour=colour_told, shape=shape_told) for item in only.objects)
        told = replace(only, objects=tuple(objects))
        words, _, values = _asked(explainer, image, sc.caption(told))
        for kind in kinds:
            known = _NOUNS if kind.endswith("shape") else sc.COLOURS
            add(kind, next(token for token, word in enumerate(words) if word in known), values)
    return text


def _asked(
    explainer: Explainer, image: Image.Image, answer: str | None
) -> tuple[list[str], str, Mapping[str, torch.Tensor]]:
    """Explain the model's own answer, or one that is given: its tokens, its text, and each measure (T,)."""
    e = explainer.explain(image, sc.DESCRIBE, answer=answer, grounding="contrast")
    assert e.contrast is not None
    grounding = grounding_of(e.maps, e.contrast)
    values = {name: measure(grounding, e.contrast) for name, measure in MEASURES.items()}
    return [token.strip() for token in e.tokens], e.text, values


def _print(report: Report) -> None:
    from rich.console import Console
    from rich.table import Table

    def cell(name: str) -> str:
        value, low, high = report.figures[name]
        return f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"

    console, settings = Console(), report.settings
    areas = Table(title=f"AUROC on {settings['scenes']} fresh scenes (seed {settings['seed']}), %")
    areas.add_column("measure")
    for task in TASKS:
        areas.add_column(task, justify="right")
    for name in MEASURES:
        areas.add_row(name, *(cell(f"{task}: {name}") for task in TASKS))
    console.print(areas)
    marked = Table(title="Words marked as visual, %")
    for title in ("words", "number", "visual"):
        marked.add_column(title, justify="left" if title == "words" else "right")
    for kind in KINDS:
        marked.add_row(kind, str(settings[kind]), cell(f"visual: {kind}"))
    console.print(marked)
    console.print("In brackets: 95 % intervals of a bootstrap over scenes.")


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Whether words are as visual as their score says.")
    parser.add_argument("--scenes", type=int, default=300, help="number of scenes (default 300)")
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED, help=f"seed of the scenes (default {DEFAULT_SEED})")
    parser.add_argument("--model", type=Path, help="folder written by tam_fast.demo.train (default: the shipped model)")
    parser.add_argument("--json", type=Path, help="also write the figures and all captions to this file")
    options = parser.parse_args(arguments)
    if options.scenes < 1:
        parser.error(f"--scenes: expected at least 1, got {options.scenes}")
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("scenes", total=options.scenes)
        report = evaluate(
            options.scenes, options.seed, options.model, progress=lambda done: progress.update(task, completed=done)
        )
    _print(report)
    if options.json is not None:
        options.json.write_text(json.dumps(report.as_json(), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
