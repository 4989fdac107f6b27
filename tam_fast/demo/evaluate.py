"""Figures of the embedded model on fresh scenes: ``python -m tam_fast.demo.evaluate [--scenes 300] [--json FILE]``.

Every scene is captioned greedily ("Describe this image."), and all answer tokens are explained in four ways: CAM (raw
maps: kernel 1, no causal inference), ECI only (kernel 1), filter only (no causal inference) and full TAM.

Definitions
-----------
precision
    A caption counts when every object it names exists: colour and shape right, and no more of a kind than there are.
coverage
    A caption counts when it names every object: each kind, and a group with its number.
exact
    Both at once, nothing named twice.
object word
    A noun of the caption ("circle", "stars"). Its mask is the visible part of all objects of that shape, as a category
    mask is for a noun of a photograph's caption; a noun that names what is not there has no mask and no IoU.
peak
    An object word counts when the highest cell of its map is at least half covered by an object of the word's shape
    ("shape"), or by one of the very objects that the phrase names, colour included ("object"); the nouns of objects
    that are not there count as misses.
Obj-IoU
    The map is binarised on the grid by Otsu's threshold of its 256 levels; intersection over union with the mask, every
    cell standing for its square of pixels.
Func-IoU
    A function word ("a", "and", ",") has no object: every cell ought to stay dark. Its map is binarised at the mean
    Otsu threshold of the same caption's object words; the figure is the share of dark cells.
F1-IoU
    Harmonic mean of the mean Obj-IoU and the mean Func-IoU.
ceiling
    The best Obj-IoU that any choice of whole cells can reach on the same masks.

Intervals are 95 % percentile intervals of a bootstrap over scenes.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from tam_fast.demo import scenes as sc
from tam_fast.maps.answer import activation_maps
from tam_fast.maps.layout import Layout
from tam_fast.maps.metrics import iou, iou_ceiling, otsu_threshold
from tam_fast.models.capture import capture
from tam_fast.models.inputs import prepare_inputs

__all__ = ["METHODS", "Report", "evaluate", "main", "otsu_threshold"]

METHODS: Mapping[str, Mapping[str, Any]] = {
    "CAM": {"kernel_size": 1, "interference": False},
    "ECI only": {"kernel_size": 1, "interference": True},
    "filter only": {"kernel_size": 3, "interference": False},
    "full TAM": {"kernel_size": 3, "interference": True},
}
FUNCTION_WORDS = frozenset({"a", "an", "and", "the", "is", "are", ",", "."})
DEFAULT_SEED = 2_026
_SHAPE_OF = {**{shape: shape for shape in sc.SHAPES}, **{plural: shape for shape, plural in sc.PLURALS.items()}}


@dataclass
class _Tally:
    """Sums and counts of one figure, one pair a scene."""

    sums: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)

    def add(self, values: list[float]) -> None:
        self.sums.append(float(sum(values)))
        self.counts.append(len(values))

    def mean(self, rows: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
        """Pooled mean; with ``rows`` (B, n) one for every resample of the scenes."""
        sums, counts = np.asarray(self.sums), np.asarray(self.counts, dtype=np.float64)
        if rows is None:
            rows = np.arange(len(sums))[None]
        return np.asarray(sums[rows].sum(axis=1) / np.maximum(counts[rows].sum(axis=1), 1.0))


@dataclass
class Report:
    """Result of :func:`evaluate`: ``figures[name]`` is (value, lower, upper), ``settings`` says how they were made."""

    settings: dict[str, Any]
    figures: dict[str, tuple[float, float, float]]
    captions: list[tuple[str, str]]

    def as_json(self) -> dict[str, Any]:
        """Plain data for :func:`json.dump`."""
        return {
            "settings": self.settings,
            "figures": {name: {"value": v, "low": a, "high": b} for name, (v, a, b) in self.figures.items()},
            "captions": [{"reference": reference, "generated": text} for reference, text in self.captions],
        }


def judge_caption(scene: sc.Scene, text: str) -> tuple[bool, bool, bool]:
    """(precise, complete, exact) of a caption, as the module's docstring defines them."""
    there = {(group.colour, group.shape): group.count for group in scene.groups}
    named: Counter[tuple[str, str]] = Counter()
    stated: dict[tuple[str, str], list[int]] = {}
    for count, colour, shape in sc.parse_caption(text):
        named[colour, shape] += 1
        stated.setdefault((colour, shape), []).append(count)
    precise = bool(named) and all(max(stated[kind]) <= there.get(kind, 0) for kind in named)
    complete = all(count in (max(stated.get(kind, [0])), sum(stated.get(kind, [0]))) for kind, count in there.items())
    return precise, complete, precise and complete and set(named.values()) == {1}


def evaluate(
    scenes: int = 300,
    seed: int = DEFAULT_SEED,
    path: str | Path | None = None,
    resamples: int = 2000,
    progress: Callable[[int], None] | None = None,
) -> Report:
    """Caption and explain fresh scenes with the embedded model.

    Parameters
    ----------
    scenes : int
        How many scenes, at least 1.
    seed : int
        Scene i is ``make_scene(numpy.random.default_rng([seed, i]))``; training and validation use other streams.
    path : str or Path, optional
        A model folder other than the shipped one.
    resamples : int
        Bootstrap resamples.
    progress : callable, optional
        Called with the number of finished scenes.
    """
    if scenes < 1:
        raise ValueError(f"scenes: expected at least 1, got {scenes}")
    from tam_fast.demo import load_demo

    model, processor = load_demo(path)
    names = ["precision", "coverage", "exact", "ceiling"]
    for method in METHODS:
        names += [f"{method}: {kind}" for kind in ("peak, shape", "peak, object", "Obj-IoU", "Func-IoU")]
    tallies = {name: _Tally() for name in names}
    captions: list[tuple[str, str]] = []
    for index in range(scenes):
        scene = sc.make_scene(np.random.default_rng([seed, index]))
        text = _one_scene(model, processor, scene, tallies)
        captions.append((sc.caption(scene), text))
        if progress is not None:
            progress(index + 1)
    rows = np.random.default_rng(seed).integers(0, scenes, (resamples, scenes))
    figures: dict[str, tuple[float, float, float]] = {}

    def note(name: str, value: float, draws: NDArray[np.float64]) -> None:
        low, high = (float(v) for v in np.percentile(draws, [2.5, 97.5]))
        figures[name] = (float(value), low, high)

    for name, tally in tallies.items():
        note(name, float(tally.mean()[0]), tally.mean(rows))
    for method in METHODS:
        pair = [tallies[f"{method}: {kind}"] for kind in ("Obj-IoU", "Func-IoU")]
        whole = [tally.mean() for tally in pair]
        draws = [tally.mean(rows) for tally in pair]
        note(f"{method}: F1-IoU", float(_harmonic(*whole)[0]), _harmonic(*draws))
    settings = {
        "scenes": scenes,
        "seed": seed,
        "prompt": sc.DESCRIBE,
        "resamples": resamples,
        "object words": sum(tallies["CAM: peak, shape"].counts),
        "function words": sum(tallies["CAM: Func-IoU"].counts),
    }
    return Report(settings, figures, captions)


def _harmonic(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(2 * a * b / np.maximum(a + b, 1e-12))


@torch.no_grad()
def _answer(
    model: Any, processor: Any, picture: NDArray[np.uint8], prompt: str
) -> tuple[torch.Tensor, list[int], Layout]:
    """Answer a prompt on one picture greedily: final hidden states (S, C), token ids (S + 1,), layout."""
    inputs = prepare_inputs(model, processor, [Image.fromarray(picture)], prompt)
    with capture(model) as states:
        ids = model.generate(**inputs.inputs, do_sample=False, max_new_tokens=96)[0]
    if int(ids[-1]) == model.generation_config.eos_token_id:
        ids = ids[:-1]
    return states.hidden[: len(ids) - 1], ids.tolist(), inputs.layout


def _one_scene(model: Any, processor: Any, scene: sc.Scene, tallies: dict[str, _Tally]) -> str:
    """Caption and explain one scene; adds to the tallies and returns the caption."""
    picture = sc.render(scene)
    hidden, ids, layout = _answer(model, processor, picture, sc.DESCRIBE)
    words = [processor.tokenizer.decode([token]).strip() for token in ids[layout.answer_start :]]
    text = str(processor.tokenizer.decode(ids[layout.answer_start :]))
    for name, value in zip(("precision", "coverage", "exact"), judge_caption(scene, text), strict=True):
        tallies[name].add([float(value)])
    height, width = layout.grids[0].shape
    pixels = sc.masks(scene, picture.shape[0])
    blocks = pixels.reshape(len(pixels), height, picture.shape[0] // height, width, -1)
    cells = blocks.mean(axis=(2, 4), dtype=np.float32)
    nouns = [index for index, word in enumerate(words) if word in _SHAPE_OF]
    function = [index for index, word in enumerate(words) if word.lower() in FUNCTION_WORDS]
    shown: dict[int, NDArray[np.float32]] = {}
    exactly: dict[int, NDArray[np.float32]] = {}
    for index in nouns:
        shape, before = _SHAPE_OF[words[index]], words[index - 1] if index else ""
        fits = [i for i, item in enumerate(scene.objects) if item.shape == shape]
        shown[index] = cells[fits].sum(axis=0)
        exactly[index] = cells[[i for i in fits if scene.objects[i].colour == before]].sum(axis=0)
    present = [index for index in nouns if shown[index].any()]
    tallies["ceiling"].add([iou_ceiling(shown[index]) for index in present])
    classifier = model.get_output_embeddings().weight.detach()
    for method, options in METHODS.items():
        maps = activation_maps(hidden, classifier, ids, layout, **options).maps.numpy()
        levels = np.floor(255.0 * maps).astype(np.uint8).reshape(-1, height, width)
        thresholds = {index: otsu_threshold(levels[index]) for index in nouns}
        for kind, covered in (("shape", shown), ("object", exactly)):
            hits = [bool(maps[i].max() > 0 and covered[i].ravel()[maps[i].argmax()] >= 0.5) for i in nouns]
            tallies[f"{method}: peak, {kind}"].add([float(hit) for hit in hits])
        tallies[f"{method}: Obj-IoU"].add([iou(levels[i] > thresholds[i], shown[i]) for i in present])
        middle = np.mean(list(thresholds.values())) if thresholds else 0.0
        dark = [float((levels[i] <= middle).mean()) for i in function] if nouns else []
        tallies[f"{method}: Func-IoU"].add(dark)
    return text


def _print(report: Report) -> None:
    from rich.console import Console
    from rich.table import Table

    def cell(name: str) -> str:
        value, low, high = report.figures[name]
        return f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"

    console = Console()
    settings = report.settings
    captions = Table(title=f"Captions of {settings['scenes']} fresh scenes (seed {settings['seed']}), %")
    captions.add_column("figure")
    captions.add_column("value [95 % interval]", justify="right")
    captions.add_row("precision: every named object right in colour and shape", cell("precision"))
    captions.add_row("coverage: all objects named", cell("coverage"))
    captions.add_row("exact: both, nothing twice", cell("exact"))
    console.print(captions)
    sizes = f"{settings['object words']} object words, {settings['function words']} function words"
    maps = Table(title=f"Maps of {sizes}, %")
    maps.add_column("figure")
    for method in METHODS:
        maps.add_column(method, justify="right")
    for kind in ("peak, shape", "peak, object", "Obj-IoU", "Func-IoU", "F1-IoU"):
        maps.add_row(kind, *(cell(f"{method}: {kind}") for method in METHODS))
    console.print(maps)
    console.print(f"Ceiling that the grid sets to Obj-IoU: {cell('ceiling')}")


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Figures of the embedded model on fresh scenes.")
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
