"""Figures that ask the model again: faithfulness, sanity, what attention is like."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tam_fast.evaluation.measures import Case, Figure, NothingToMeasure, Value, measure
from tam_fast.evaluation.passes import Maps, Subject

__all__: list[str] = []

AREAS = tuple(float(area) for area in np.linspace(0.0, 1.0, 33))
"""Shares of the image at which curves are kept."""

_DRAWN = 4_096  # tokens that random answers are drawn from
_BUDGET = 0.1  # share of the image that may be taken away: CSR@10


def _again(case: Case, image: Any = None, token_ids: Sequence[int] | None = None) -> Subject:
    """Ask anew, about another image or with another answer."""
    old = case.subject
    ids = old.token_ids if token_ids is None else token_ids
    return Subject(
        old.explainer, old.image if image is None else image, old.prompt, ids, seed=old.seed, compat=old.compat
    )


def _pixels(case: Case) -> Any:
    """Return what the processor does to pixels, which grey and black need."""
    part = getattr(case.subject.explainer.processor, "image_processor", None)
    mean, spread = (getattr(part, name, None) for name in ("image_mean", "image_std"))
    wanted = case.options.baseline in ("grey", "black") and case.options.ranks != "pixel"
    return (mean, spread) if wanted and mean is not None and spread is not None else None


def _nouns(case: Case) -> list[int]:
    """List the places of the words that name things, with a mask or without."""
    found = [place for place, word in enumerate(case.words) if word.label >= -1 and word.tokens]
    if not found:
        raise NothingToMeasure("no noun")
    return found


# Faithfulness --------------------------------------------------------------------------------------------------------


@measure(
    "insertion",
    [
        Figure(
            "insertion",
            "insertion",
            about="area under the answer's mean probability as the map's highest part is shown",
        ),
        Figure("deletion", "deletion", "low", about="area under it as the highest part is taken away"),
        Figure("insertion_normalised", "insertion, norm.", about="the same, 0 without the image and 1 with all of it"),
        Figure(
            "deletion_normalised", "deletion, norm.", "low", about="the same, 0 without the image and 1 with all of it"
        ),
    ],
    cost="2 steps forwards a method",
    words=False,
)
def _insertion(case: Case, maps: Maps) -> Iterator[Value]:
    from tam_fast.evaluation.curves import curves_of

    options = case.options
    # One map for the whole answer, whose tokens are scored together.
    whole = np.nan_to_num(maps.values).mean(axis=0)[None]
    found = curves_of(
        case.forced,
        whole,
        tokens="all",
        ranks=options.ranks,
        regions=options.regions if options.ranks == "region" else None,
        steps=options.steps,
        baseline=options.baseline,
        normalization=_pixels(case),
        batch_size=options.batch_size,
    )
    for raw, suffix in ((found, ""), (found.normalised(), "_normalised")):
        insertion, deletion = raw.at(AREAS)
        pair = (("insertion", raw.insertion_auc, insertion), ("deletion", raw.deletion_auc, deletion))
        for name, area, curve in pair:
            if math.isfinite(float(area[0])):  # the image may have no effect, which leaves nothing to divide by
                yield Value(f"{name}{suffix}", float(area[0]), points=tuple(float(point) for point in curve[0]))


@measure(
    "lds",
    [
        Figure(
            "lds", "LDS", percent=False, about="Spearman of what the map foretells of random masks with what they do"
        ),
        Figure(
            "ablations", "ablations", percent=False, about="Spearman of regions' scores with what each takes away alone"
        ),
    ],
    cost="masks + regions forwards, for all methods",
)
def _lds(case: Case, maps: Maps) -> Iterator[Value]:
    from tam_fast.evaluation.datamodels import datamodel

    options, asked = case.options, case.forced
    if "datamodel" not in case.cache:
        case.cache["datamodel"] = datamodel(
            asked.model,
            asked.inputs,
            asked.layout,
            asked.token_ids,
            regions=min(options.regions, int(asked.layout.visual_positions.numel())),
            samples=options.masks,
            seed=options.seed,
            batch_size=options.batch_size,
        )
    model = case.cache["datamodel"]
    places = _nouns(case)
    spans = [list(case.words[place].tokens) for place in places]
    shown = np.stack([np.nan_to_num(maps.values[span]).max(axis=0) for span in spans])
    for name, values in (("lds", model.lds(shown, spans)), ("ablations", model.single(shown, spans))):
        for place, value in zip(places, values, strict=True):
            # A map that tells no region from another foretells nothing: 0, not left out.
            yield case.value(name, 0.0 if math.isnan(value) else float(value), place)


@measure(
    "hallucination",
    [
        Figure(
            "amcr", "AMCR", "low", about="least share of the image whose loss rights a wrong yes or no; 1 if none does"
        ),
        Figure("csr", "CSR@10", about="share of wrong answers that the loss of at most a tenth of the image rights"),
    ],
    cost="2 steps forwards and steps answers a method, of wrong answers alone",
    words=False,
)
def _hallucination(case: Case, maps: Maps) -> Iterator[Value]:
    from tam_fast.evaluation.hallucination import correction_area, correction_record, says

    label = case.item.extra.get("label")
    if label not in ("yes", "no"):
        raise NothingToMeasure("no question of yes or no")
    if says(case.text) in (label, None):
        raise NothingToMeasure("no wrong answer")
    subject = case.subject
    record = correction_record(
        subject.explainer, subject.image, subject.prompt, label, maps.rasters[0], steps=case.options.steps
    )
    area = correction_area(record, case.options.compat)
    yield Value("amcr", 1.0 if area is None else area)
    yield Value("csr", float(area is not None and area <= _BUDGET + 1e-12))


# Sanity --------------------------------------------------------------------------------------------------------------


def _alike(case: Case, first: Any, second: Any, places: Sequence[int]) -> Iterator[tuple[int, float]]:
    """Correlate the ranks of words' maps (T, ...) with others; one that has become constant is like nothing."""
    from tam_fast.evaluation.ranks import spearman

    for place in places:
        tokens = list(case.words[place].tokens)
        one, two = (np.asarray(maps)[tokens].max(axis=0).ravel() for maps in (first, second))
        if one.min() == one.max():
            continue  # no order that could change
        value = spearman(one, two)
        yield place, 0.0 if math.isnan(value) else float(value)


@measure(
    "randomised",
    [
        Figure("randomised", "random weights", "low", False, "Spearman with the map by a decoder of random weights"),
        Figure("randomised_last", "random last layer", "low", False, "the same, the last layer alone being random"),
        Figure(
            "randomised_answer", "random answer", "low", False, "Spearman with the map of a random token in its place"
        ),
    ],
    cost="3 times the method, and 3 forwards",
)
def _randomised(case: Case, maps: Maps) -> Iterator[Value]:
    from tam_fast.evaluation.sanity import randomised_layers
    from tam_fast.methods.task import layers_of
    from tam_fast.models.capture import decoder_of

    places = _nouns(case)
    model = case.subject.explainer.model
    count = len(layers_of(decoder_of(model)))
    for name, layers in (("randomised", range(count)), ("randomised_last", [count - 1])):
        with randomised_layers(model, list(layers), case.options.seed):
            other = _again(case).maps(maps.spec).values
        for place, value in _alike(case, maps.values, other, places):
            yield case.value(name, value, place)
    other = _again(case, token_ids=_random_answer(case)).maps(maps.spec).values
    for place, value in _alike(case, maps.values, other, places):
        yield case.value("randomised_answer", value, place)


def _random_answer(case: Case) -> list[int]:
    """Draw words for all of an answer's tokens, none of them the token's own."""
    if "random" not in case.cache:
        tokenizer = case.subject.explainer.processor.tokenizer
        generator = np.random.default_rng([case.options.seed, case.subject.seed])
        special = set(getattr(tokenizer, "all_special_ids", ()))
        some = generator.permutation(len(tokenizer))[:_DRAWN]
        words = [
            int(token) for token in some if token not in special and tokenizer.decode([int(token)]).strip().isalpha()
        ]
        if len(words) < 2:
            raise NothingToMeasure("no words in the tokenizer")
        drawn = []
        for token in case.subject.token_ids:
            word = words[int(generator.integers(len(words)))]
            drawn.append(word if word != token else next(other for other in words if other != token))
        case.cache["random"] = drawn
    found: list[int] = case.cache["random"]
    return found


@measure(
    "stability",
    [
        Figure(
            "stability", "stability", "high", False, "Spearman with the map of the image slightly changed, in four ways"
        )
    ],
    cost="4 times the method, and 4 forwards",
)
def _stability(case: Case, maps: Maps) -> Iterator[Value]:
    from tam_fast.evaluation.sanity import stability

    places = _nouns(case)
    known: dict[bytes, Subject] = case.cache.setdefault("changed", {})

    def made(image: Any) -> NDArray[np.float32]:
        key = image.tobytes()
        if key not in known:
            known[key] = _again(case, image=image)
        rasters = known[key].maps(maps.spec).rasters
        known[key].drop()
        return np.stack([rasters[list(case.words[place].tokens)].max(axis=0) for place in places])

    flat = [np.ptp(maps.rasters[list(case.words[place].tokens)].max(axis=0)) == 0 for place in places]
    for alike in stability(made, case.subject.image, seed=case.options.seed).values():
        for place, value, constant in zip(places, alike.spearman, flat, strict=True):
            if constant:
                continue
            yield case.value("stability", 0.0 if math.isnan(value) else float(value), place)


# Of the answer -------------------------------------------------------------------------------------------------------


@measure(
    "placebo",
    [
        Figure(
            "placebo", "placebo", "low", about="Obj-IoU where a random earlier token's map stands in for the noun's"
        ),
        Figure("placebo_none", "without placebo", about="Obj-IoU of the same maps without it"),
    ],
    cost="1 forward an answer",
    of_answer=True,
)
def _placebo(case: Case) -> Iterator[Value]:
    from tam_fast.evaluation.measured_maps import plausibility_of
    from tam_fast.evaluation.placebo import placebo

    case.objects()
    found = placebo(case.forced, case.subject.seed)
    for name, maps in (("placebo", found.placebo), ("placebo_none", found.maps)):
        for value in plausibility_of(case, case.subject.canvas.join(maps).numpy()):
            if value.figure == "obj_iou":
                yield case.value(name, value.value, value.word, n=value.n)


@measure(
    "motivation",
    [
        Figure(
            "motivation_random", "random pairs", "", False, "correlation of maps' distance with relevance, random pairs"
        ),
        Figure("motivation_related", "related pairs", "", False, "the same, each token with its most relevant one"),
    ],
    cost="1 forward an answer",
    of_answer=True,
    words=False,
)
def _motivation(case: Case) -> Iterator[Value]:
    from tam_fast.evaluation.placebo import pearson, token_pairs

    pairs = token_pairs(case.forced, case.subject.seed)
    for name in ("random", "related"):
        found = pearson(getattr(pairs, f"{name}_distance"), getattr(pairs, f"{name}_relevance"))
        if math.isfinite(found.r):
            yield Value(f"motivation_{name}", found.r)


@measure(
    "attention",
    [
        Figure("attention_mass", "attention to the image", "", about="share of attention that goes to the image"),
        Figure("attention_dispersion", "dispersion", "", False, "entropy of it over cells, 1 where all are alike"),
        Figure("attention_heads", "heads alike", "", False, "mean Spearman of pairs of heads of a layer"),
        Figure("attention_layers", "layers alike", "", False, "mean Spearman of pairs of layers"),
    ],
    cost="1 forward an answer",
    of_answer=True,
    words=False,
)
def _attention(case: Case) -> Iterator[Value]:
    from tam_fast.evaluation.attention_statistics import visual_attention

    found = visual_attention(case.subject.task)
    for name, values in (
        ("mass", found.mass),
        ("dispersion", found.dispersion()),
        ("heads", found.head_consistency()),
        ("layers", found.layer_consistency()),
    ):
        known = values[np.isfinite(values)]
        if known.size:
            yield Value(f"attention_{name}", float(known.mean()))
