"""Figures of the embedded model on fresh scenes: ``python -m tam_fast.demo.evaluate [--scenes 300] [--json FILE]``.

Of every kind of question (:data:`tam_fast.demo.kinds.KINDS`) that the weights have learned so many cases are drawn and
answered greedily, and all answer tokens are explained in four ways: CAM (raw maps: kernel 1, no causal inference), ECI
only (kernel 1), filter only (no causal inference) and full TAM. What was not learned is said, not measured.

Definitions
-----------
right
    An answer counts when it equals the one that follows from the scene, word for word.
second turns
    The first question is answered by the model itself; only the second answer counts.
precision
    A caption counts when every object it names exists: colour and shape right, and no more of a kind than there are.
coverage
    A caption counts when it names every object: each kind, and a group with its number.
exact
    Both at once, nothing named twice.
object word
    A noun of the answer ("circle", "stars"). Its mask is the visible part of all objects of that shape, as a category
    mask is for a noun of a photograph's caption; a noun that names what is not there has no mask and no IoU. In answers
    about two images only those in the image that the answer speaks of count; in videos a cell of two frames.
peak
    An object word counts when the highest cell of its map is at least half covered by an object of the word's shape
    ("shape"), or by one of the very objects that the phrase names, colour included ("object"); the nouns of objects
    that are not there count as misses, but for those of questions ("there is no star").
Obj-IoU
    The map is binarised on the grid by Otsu's threshold of its 256 levels; intersection over union with the mask, every
    cell standing for its square of pixels.
Func-IoU
    A function word ("a", "and", ",") has no object: every cell ought to stay dark. Its map is binarised at the mean
    Otsu threshold of the same answer's object words; the figure is the share of dark cells.
F1-IoU
    Harmonic mean of the mean Obj-IoU and the mean Func-IoU.
ceiling
    The best Obj-IoU that any choice of whole cells can reach on the same masks.

Intervals are 95 % percentile intervals of a bootstrap over scenes. ``--development`` draws from another seed and shows
the raw maps alone: their density is settled there, before anything is known of causal inference.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from tam_fast.demo import ASSETS
from tam_fast.demo.asking import ask
from tam_fast.demo.figures import FUNCTION_WORDS, METHODS, Figure, Report, Tallies, measure_maps
from tam_fast.demo.kinds import KINDS, Case, judge, judge_caption
from tam_fast.maps.layout import Layout
from tam_fast.models.capture import capture
from tam_fast.models.inputs import prepare_inputs

__all__ = [
    "DEFAULT_SEED",
    "DEVELOPMENT_SEED",
    "FUNCTION_WORDS",
    "METHODS",
    "Evaluation",
    "Part",
    "Report",
    "evaluate",
    "judge_caption",
    "main",
]

DEFAULT_SEED = 2_026
DEVELOPMENT_SEED = 555
_TRIES = 60
_NOTHING_LEARNED = "its words are not in the tokenizer"


@dataclass
class Part:
    """Figures of one kind: ``figures[name]`` is (value, lower, upper); ``answers`` (question, reference, generated)."""

    title: str
    scenes: int
    object_words: int
    function_words: int
    figures: dict[str, Figure]
    answers: list[tuple[str, str, str]]

    def as_json(self) -> dict[str, Any]:
        """Plain data for :func:`json.dump`."""
        return {
            "title": self.title,
            "scenes": self.scenes,
            "object words": self.object_words,
            "function words": self.function_words,
            "figures": {name: {"value": v, "low": a, "high": b} for name, (v, a, b) in self.figures.items()},
            "answers": [dict(zip(("question", "reference", "generated"), row, strict=True)) for row in self.answers],
        }


@dataclass
class Evaluation:
    """Result of :func:`evaluate`: a part for every kind, what was not learned and why, and how all was made."""

    settings: dict[str, Any]
    parts: dict[str, Part] = field(default_factory=dict)
    unlearned: dict[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Plain data for :func:`json.dump`."""
        return {
            "settings": self.settings,
            "kinds": {name: part.as_json() for name, part in self.parts.items()},
            "unlearned": self.unlearned,
        }


def evaluate(
    scenes: int = 300,
    seed: int = DEFAULT_SEED,
    path: str | Path | None = None,
    kinds: Sequence[str] | None = None,
    methods: Sequence[str] = tuple(METHODS),
    resamples: int = 2000,
    progress: Callable[[str, int], None] | None = None,
) -> Evaluation:
    """Ask the embedded model about fresh scenes, and explain its answers.

    Parameters
    ----------
    scenes : int
        How many cases of each kind, at least 1.
    seed : int
        Of captions, scene i is ``make_scene(numpy.random.default_rng([seed, i]))``; every other kind has streams of its
        own, and training and validation others.
    path : str or Path, optional
        A model folder other than the shipped one.
    kinds : sequence of str, optional
        Names among :data:`tam_fast.demo.kinds.KINDS`; by default all.
    methods : sequence of str
        Names among :data:`METHODS`.
    resamples : int
        Bootstrap resamples.
    progress : callable, optional
        Called with the kind and the number of its finished cases.

    Raises
    ------
    ValueError
        If ``scenes`` is below 1, or a kind or method is unknown.
    """
    if scenes < 1:
        raise ValueError(f"scenes: expected at least 1, got {scenes}")
    names = list(KINDS) if kinds is None else list(kinds)
    for argument, given, known in (("kinds", names, KINDS), ("methods", methods, METHODS)):
        unknown = [name for name in given if name not in known]
        if unknown or not given:
            raise ValueError(f"{argument}: expected names among {', '.join(known)}, got {', '.join(unknown)}")
    from tam_fast.demo import load_demo

    model, processor = load_demo(path)
    learned = _learned(Path(path) if path is not None else ASSETS)
    settings = {"scenes": scenes, "seed": seed, "resamples": resamples, "methods": list(methods)}
    report = Evaluation(settings)
    for name in names:
        if KINDS[name].needs not in learned:
            report.unlearned[name] = "not part of its training"
            continue
        cases = [_draw(name, seed, index, processor.tokenizer) for index in range(scenes)]
        found = [case for case in cases if case is not None]
        if not found:
            report.unlearned[name] = _NOTHING_LEARNED
            continue
        report.parts[name] = _one_kind(model, processor, name, found, methods, (seed, resamples), progress)
    return report


def _learned(folder: Path) -> frozenset[str]:
    """Kinds of pictures that the weights were trained on: "image", "pair", "film"."""
    record = folder / "training.json"
    if not record.is_file():
        return frozenset({"image"})
    return frozenset(json.loads(record.read_text(encoding="utf-8"))["learned"])


def _draw(name: str, seed: int, index: int, tokenizer: Any) -> Case | None:
    """Draw case `index` of a kind, one whose question is made of words that the tokenizer has; None if none comes."""
    rng = np.random.default_rng([seed, index] if name == "captions" else [seed, list(KINDS).index(name), index])
    for _ in range(_TRIES):
        case = KINDS[name].draw(rng)
        if case is not None and all(_known(turn.question, tokenizer) for turn in (case.first, case.turn) if turn):
            return case
    return None


def _known(question: str, tokenizer: Any) -> bool:
    """Whether every word of a question is one token."""
    words = question.replace(",", " ,").replace("?", " ?").replace(".", " .").split()
    return len(tokenizer(question).input_ids) == len(words)


def _one_kind(
    model: Any,
    processor: Any,
    name: str,
    cases: Sequence[Case],
    methods: Sequence[str],
    bootstrap: tuple[int, int],
    progress: Callable[[str, int], None] | None,
) -> Part:
    """Ask all cases of a kind."""
    tallies = Tallies()
    answers: list[tuple[str, str, str]] = []
    classifier = model.get_output_embeddings().weight.detach()
    for index, case in enumerate(cases):
        tallies.next_scene()
        before: tuple[tuple[str, str], ...] = ()
        if case.first is not None:
            said = ask(model, processor, case.first.question, case.images, case.film).text
            before = ((case.first.question, said),)
        answer = ask(model, processor, case.turn.question, case.images, case.film, before)
        for figure, value in judge(name, case, answer.text).items():
            tallies.add(figure, [value])
        cover, absent = case.cover(answer.words), name in ("captions", "flat")
        states, words = (answer.hidden, classifier, answer.ids, answer.layout), answer.words
        measure_maps(tallies, *states, words, cover, methods, absent)
        answers.append((case.turn.question, case.turn.answer, answer.text))
        if progress is not None:
            progress(name, index + 1)
    nouns, function = (tallies.count(f"{methods[0]}: {figure}") for figure in ("peak, shape", "Func-IoU"))
    return Part(KINDS[name].title, len(cases), nouns, function, tallies.figures(*bootstrap), answers)


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


_MAPS = ("peak, shape", "peak, object", "Obj-IoU", "Func-IoU", "F1-IoU")


def _cell(figures: Mapping[str, Figure], name: str) -> str:
    if name not in figures:
        return "-"
    value, low, high = figures[name]
    return f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _print(report: Evaluation) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    settings = report.settings
    answers = Table(title=f"Answers on fresh scenes (seed {settings['seed']}), %")
    for title in ("kind", "scenes", "figure"):
        answers.add_column(title)
    answers.add_column("value [95 % interval]", justify="right")
    for part in report.parts.values():
        shares = [name for name in part.figures if ":" not in name and name != "ceiling"]
        for row, name in enumerate(shares):
            first = (part.title, str(part.scenes)) if row == 0 else ("", "")
            answers.add_row(*first, name, _cell(part.figures, name))
    console.print(answers)
    for part in report.parts.values():
        words = f"{part.object_words} object words, {part.function_words} function words"
        maps = Table(title=f"Maps, {part.title}: {words}, %")
        maps.add_column("figure")
        for method in settings["methods"]:
            maps.add_column(method, justify="right")
        for kind in _MAPS:
            maps.add_row(kind, *(_cell(part.figures, f"{method}: {kind}") for method in settings["methods"]))
        console.print(maps)
        console.print(f"Ceiling that the grid sets to Obj-IoU: {_cell(part.figures, 'ceiling')}")
    for name, reason in report.unlearned.items():
        console.print(f"Not measured, {KINDS[name].title}: {reason}")


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Figures of the embedded model on fresh scenes.")
    parser.add_argument("--scenes", type=int, default=300, help="number of scenes of each kind (default 300)")
    parser.add_argument("--seed", type=int, help=f"seed of the scenes (default {DEFAULT_SEED})")
    parser.add_argument("--model", type=Path, help="folder written by tam_fast.demo.train (default: the shipped model)")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), metavar="KIND", help=f"among {', '.join(KINDS)}")
    parser.add_argument(
        "--development",
        action="store_true",
        help=f"seed {DEVELOPMENT_SEED} and raw maps alone, to settle their density",
    )
    parser.add_argument("--json", type=Path, help="also write the figures and all answers to this file")
    options = parser.parse_args(arguments)
    if options.scenes < 1:
        parser.error(f"--scenes: expected at least 1, got {options.scenes}")
    if options.development and options.seed is not None:
        parser.error("--development: expected no --seed beside it")
    from rich.console import Console
    from rich.progress import Progress

    default = DEVELOPMENT_SEED if options.development else DEFAULT_SEED
    seed = default if options.seed is None else options.seed
    methods = ("CAM",) if options.development else tuple(METHODS)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("scenes", total=options.scenes)
        report = evaluate(
            options.scenes,
            seed,
            options.model,
            options.kinds,
            methods,
            progress=lambda kind, done: progress.update(task, completed=done, description=kind),
        )
    _print(report)
    if options.json is not None:
        options.json.write_text(json.dumps(report.as_json(), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
