"""One evaluation: frozen answers, the maps of every method of them, and rows that survive whatever ends the run."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tam_fast._version import __version__
from tam_fast.evaluation.data import open_data
from tam_fast.evaluation.data.item import chosen, count_of
from tam_fast.evaluation.frozen import Frozen, freeze
from tam_fast.evaluation.gallery import Gallery
from tam_fast.evaluation.measures import Case, Measure, NothingToMeasure, Options, Value, read_measures
from tam_fast.evaluation.passes import Maps, Spec, Subject, all_methods, read_method
from tam_fast.evaluation.rows import Row, Rows, arrow

if TYPE_CHECKING:
    from tam_fast.evaluation.results import Results
    from tam_fast.evaluation.words import Word
    from tam_fast.explain.explainer import Explainer

__all__ = ["Counts", "Plan", "evaluate", "plan"]

SETTINGS = "evaluation.json"
ANSWERS = "answers"
ALWAYS = ("random", "centre", "uniform")
COSTS = "cost"  # the measure under which seconds stand
_TEXT = 400  # characters of an error that are kept


@dataclass(frozen=True)
class Plan:
    """What is measured, by which methods, and how.

    Attributes
    ----------
    methods : tuple of Spec
        The reference and the maps that know nothing among them.
    measures : tuple of Measure
    options : Options
    scale : "map" or "answer"
    reference : str
        The method that others are compared with.
    """

    methods: tuple[Spec, ...]
    measures: tuple[Measure, ...]
    options: Options
    scale: str
    reference: str

    def units(self) -> list[tuple[str, str]]:
        """List (method, measure) of all that is measured of an item; the method is "" for what is of the answer."""
        of_answer = [("", one.name) for one in self.measures if one.of_answer]
        return of_answer + [
            (spec.name, one.name) for spec in self.methods for one in self.measures if not one.of_answer
        ]

    def costs(self) -> list[str]:
        """Say what an item costs, before it is spent."""
        lines = [f"{spec.name}: {spec.cost}" for spec in self.methods if spec.recipe is not None]
        return lines + [f"{one.name}: {one.cost}" for one in self.measures if one.cost != "none"]

    def settings(self) -> dict[str, Any]:
        """Return what rows of one folder must have in common."""
        options = {spec.name: _plain(spec.options) for spec in self.methods if spec.options}
        return {"scale": self.scale, "options": asdict(self.options), "method_options": options}


def plan(
    model: Any,
    methods: Sequence[str] | str,
    *,
    figures: Sequence[str] | str | None = None,
    scale: str = "map",
    options: Options | None = None,
    method_options: Mapping[str, Mapping[str, Any]] | None = None,
    reference: str = "cam",
) -> Plan:
    """Read what is asked for, and check that the model can be explained so; nothing is run.

    Parameters
    ----------
    model : transformers.PreTrainedModel
    methods : sequence of str, or names with commas
        See :func:`tam_fast.evaluation.passes.read_method`; ``all`` is all that the model can be explained by.
    figures : sequence of str, or names with commas, optional
        See :data:`tam_fast.evaluation.measures.MEASURES`.
    scale : "map" or "answer"
    options : Options, optional
    method_options : mapping, optional
        Options by the method's name.
    reference : str

    Raises
    ------
    ValueError, TypeError, ModelNotSupportedError
        If something is unknown, or the model cannot be explained by a method that is named.
    """
    from tam_fast.methods.attribution import check_method
    from tam_fast.methods.registry import method_of

    names = methods.split(",") if isinstance(methods, str) else list(methods)
    if not names:
        raise ValueError("methods: expected at least one, got none")
    wanted: list[str] = []
    for name in (*names, reference, *ALWAYS):
        wanted += all_methods(model) if name.strip() == "all" else [name.strip()]
    given = dict(method_options or {})
    specs: dict[str, Spec] = {}
    for name in wanted:
        base = name.partition("@")[0].partition("+")[0]
        spec = read_method(name, scale, given.get(base))
        if spec.recipe is not None:
            check_method(method_of(spec.recipe.method), model, spec.options)
            if spec.recipe.interference == "eci_attention":
                check_method(method_of("attention"), model)
        specs.setdefault(spec.name, spec)
    unused = set(given) - {name.partition("@")[0].partition("+")[0] for name in wanted}
    if unused:
        raise ValueError(f"method_options: expected options of methods that are asked for, got {', '.join(unused)}")
    compared = read_method(reference, scale, given.get(reference.partition("@")[0].partition("+")[0])).name
    return Plan(tuple(specs.values()), tuple(read_measures(figures)), options or Options(), scale, compared)


@dataclass
class Counts:
    """What a run did.

    Attributes
    ----------
    items : int
        That were looked at.
    measured : int
        That something was measured of now.
    known : int
        That had been measured before.
    failed : int
        That ended in an error as a whole, now.
    errors : int
        Units (method and measure of an item) that ended in an error, now.
    """

    items: int = 0
    measured: int = 0
    known: int = 0
    failed: int = 0
    errors: int = 0


Progress = Callable[[int, int | None, str], object]


def evaluate(
    data: Any,
    explainer: Explainer,
    methods: Sequence[str] | str = ("tam", "cam"),
    output: str | os.PathLike[str] = "tam-fast-evaluation",
    *,
    figures: Sequence[str] | str | None = None,
    prompt: str | None = None,
    scale: str = "map",
    options: Options | None = None,
    method_options: Mapping[str, Mapping[str, Any]] | None = None,
    reference: str = "cam",
    max_new_tokens: int = 128,
    limit: int | None = None,
    shard: tuple[int, int] | None = None,
    retry: bool = False,
    keep: int = 3,
    resamples: int = 2000,
    progress: Progress | None = None,
    report: bool = True,
    **generate_kwargs: Any,
) -> Results:
    """Measure what methods say of a model's answers, all of the same frozen answers.

    ::

        results = evaluate("demo://scenes?n=300&seed=7", explainer, ["tam", "cam", "attn_lrp"], "results")
        print(results.markdown())

    What was measured stays in `output`, an item at a time: a run that was ended goes on where it was, also with further
    methods, figures or items.

    Parameters
    ----------
    data : Reader, path or text
        See :func:`tam_fast.evaluation.open_data`.
    explainer : Explainer
    methods, figures, scale, options, method_options, reference
        See :func:`plan`. ``random``, ``centre``, ``uniform`` and the reference are added.
    output : path
        A folder: answers, rows, tables, a page.
    prompt : str, optional
        What is asked of items that have no prompt of their own.
    max_new_tokens : int
        Of an answer; **generate_kwargs** go to ``generate``, too.
    limit : int, optional
        Only the first items of the data set.
    shard : (i, n), optional
        Only every n-th item, from the i-th (0 to n - 1); of the same folder, or of one of its own.
    retry : bool
        Try again what ended in an error.
    keep : int
        How many of the worst and of the best items of each method are kept to be looked at.
    resamples : int
        Of the bootstrap.
    progress : callable, optional
        ``progress(done, total, what)``.
    report : bool
        Write tables, page and plots at the end.

    Returns
    -------
    Results
        Of all rows of the folder.

    Raises
    ------
    ValueError, TypeError, ModelNotSupportedError, OSError
        If an argument is wrong, the folder was made with other settings, or it cannot be written. What is wrong with an
        item is a row.
    """
    from tam_fast.evaluation.results import read_results

    asked = plan(
        explainer.model,
        methods,
        figures=figures,
        scale=scale,
        options=options,
        method_options=method_options,
        reference=reference,
    )
    folder = Path(output)
    # A reader that is handed over says what its items are asked; data that are opened here are asked `prompt`.
    own = None if hasattr(data, "fingerprint") else prompt
    reader = open_data(data, prompt=own, compat=asked.options.compat)
    chosen(reader, limit, shard)  # refuses what is wrong before anything is written
    _check_installed(asked, reader, report)
    folder.mkdir(parents=True, exist_ok=True)
    hold(folder, asked)
    counts = Counts()
    tell = progress or (lambda *_: None)
    frozen = freeze(
        explainer,
        reader,
        folder / ANSWERS,
        prompt=prompt,
        max_new_tokens=max_new_tokens,
        seed=asked.options.seed,
        limit=limit,
        shard=shard,
        progress=tell,
        retry=retry,
        **generate_kwargs,
    )
    hold(folder, asked, _described(reader, frozen))
    measure_all(explainer, reader, frozen, asked, folder, counts, limit, shard, retry, keep, tell)
    results = read_results([folder], reference=asked.reference, resamples=resamples, seed=asked.options.seed)
    results = replace(results, counts=counts)
    if report:
        results.write(folder)
    return results


def _check_installed(asked: Plan, reader: Any, report: bool) -> None:
    """Miss what is not installed now, and not at every item."""
    from tam_fast.evaluation.plots import matplotlib_figure
    from tam_fast.evaluation.tagging import load_wordnet, open_tagger

    arrow()
    names = {one.name for one in asked.measures}
    official = asked.options.compat == "official"
    if any(one.words for one in asked.measures) and (official or getattr(reader, "tags", None) is None):
        open_tagger(None)(["dog"])
    if names & {"plausibility", "placebo"}:
        from tam_fast.evaluation.plausibility import resized_levels

        resized_levels(np.zeros((2, 2), dtype=np.uint8), (4, 4))
    if "captions" in names:
        from tam_fast.evaluation.captions import rouge_l

        load_wordnet()
        rouge_l("a", ["a"])
    if report and "insertion" in names:
        matplotlib_figure()


def _described(reader: Any, frozen: Frozen) -> dict[str, str]:
    """Say of what rows are: the data set, the model, and a checksum of all that makes the answers."""
    config = json.dumps(frozen.manifest["config"], sort_keys=True)
    made = hashlib.sha256(config.encode("utf-8")).hexdigest()[:16]
    return {"name": str(getattr(reader, "name", "")), "model": str(frozen.manifest["model"]), "answers": made}


def measure_all(
    explainer: Explainer,
    reader: Any,
    frozen: Frozen,
    asked: Plan,
    folder: Path,
    counts: Counts,
    limit: int | None,
    shard: tuple[int, int] | None,
    retry: bool,
    keep: int,
    tell: Progress,
) -> None:
    """Measure every item that is not measured yet; one part of rows an item."""
    rows, gallery = Rows(folder), Gallery(folder, keep)
    rows.clean()
    units = asked.units()
    total = count_of(reader, limit, shard)
    for index, item in chosen(reader, limit, shard):
        counts.items += 1
        done = rows.done(item.id, retry)
        left = [] if ("", "") in done else [unit for unit in units if unit not in done]
        if left:
            if retry:
                rows.forget_errors(item.id)
            made = _item(explainer, reader, item, index, frozen, asked, left, gallery)
            rows.write(made)
            counts.measured += 1
            counts.failed += any(row.status == "error" and not row.measure for row in made)
            counts.errors += sum(row.status == "error" for row in made)
        else:
            counts.known += 1
        tell(counts.items, total, "measuring")


# One item ------------------------------------------------------------------------------------------------------------


def _item(
    explainer: Explainer,
    reader: Any,
    item: Any,
    index: int,
    frozen: Frozen,
    asked: Plan,
    left: Sequence[tuple[str, str]],
    gallery: Gallery,
) -> list[Row]:
    """Measure what is left of one item; errors are rows."""
    place = Row(index, item.id)
    try:
        case = _case(explainer, reader, item, frozen, asked.options)
    except Exception as error:
        return [replace(place, status="error", error=_said(error))]
    found: list[Row] = []
    measures = {one.name: one for one in asked.measures}
    for name in [measure for method, measure in left if not method]:
        found += _measured(place, measures[name], case, None)[0]
    shown: dict[str, tuple[Maps, list[Value]]] = {}
    for spec in asked.methods:
        wanted = [measures[measure] for method, measure in left if method == spec.name]
        if not wanted:
            continue
        here = replace(place, method=spec.name)
        try:
            maps = case.subject.maps(spec)
        except Exception as error:
            found += [replace(here, measure=one.name, status="error", error=_said(error)) for one in wanted]
            continue
        found.append(replace(here, measure=COSTS, figure="seconds", value=maps.seconds, n=len(case.subject)))
        values: list[Value] = []
        for one in wanted:
            some, plain = _measured(here, one, case, maps)
            found += some
            values += plain
        shown[spec.name] = (maps, values)
    case.subject.drop()
    found.append(replace(place, measure=COSTS, figure="pass_seconds", value=case.subject.seconds))
    with suppress(OSError):  # a picture that cannot be kept is no reason to lose figures
        gallery.offer(case, index, shown)
    return found


def _measured(place: Row, one: Measure, case: Case, maps: Maps | None) -> tuple[list[Row], list[Value]]:
    here = replace(place, measure=one.name)
    try:
        values = one.values(case, maps)
    except NothingToMeasure as reason:
        return [replace(here, status="none", error=str(reason), n=0)], []
    except Exception as error:
        return [replace(here, status="error", error=_said(error), n=0)], []
    rows = [
        replace(
            here,
            figure=value.figure,
            word=value.word,
            token=value.token,
            text=value.text,
            value=float(value.value),
            n=value.n,
            points=value.points,
        )
        for value in values
    ]
    return rows, values


def _said(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    # An error that names no argument of ours is told by its type, too.
    text = text if text.partition(": ")[0].isidentifier() else f"{type(error).__name__}: {text}"
    return text if len(text) <= _TEXT else text[: _TEXT - 3] + "..."


def _case(explainer: Explainer, reader: Any, item: Any, frozen: Frozen, options: Options) -> Case:
    """Put an item and its frozen answer together.

    Raises
    ------
    ValueError, OSError
        If there is no answer, or the image cannot be read.
    """
    answer = frozen[item.id]
    if answer.error:
        raise ValueError(answer.error)
    image = frozen.load_image(item)
    seed = zlib.crc32(item.id.encode("utf-8", "surrogatepass")) ^ options.seed
    # The published script has a map of the end mark, too, and takes it for a word.
    ids = answer.token_ids + (answer.end_ids if options.compat == "official" else ())
    subject = Subject(explainer, image, answer.prompt, ids, seed=seed, compat=options.compat)
    first, official = answer.first, options.compat == "official"

    def find() -> list[Word]:
        named = _words(reader, ids[first:], explainer.processor.tokenizer, item.categories, official)
        # Behind a thinking section the answer's words have the tokens' places among all that was said.
        return [replace(word, tokens=tuple(token + first for token in word.tokens)) for word in named]

    return Case(subject, item, answer.text, find, options)


def _words(reader: Any, ids: Sequence[int], tokenizer: Any, categories: Any, official: bool) -> list[Word]:
    """Find an answer's words; a data set that knows the tags of its own words is asked first."""
    from tam_fast.evaluation.words import words

    if official:
        return words(ids, tokenizer, categories, "official")
    return words(ids, tokenizer, categories, tagger=getattr(reader, "tags", None))


# What a folder was made with -----------------------------------------------------------------------------------------


def hold(folder: Path, asked: Plan, data: Mapping[str, Any] | None = None) -> None:
    """Write down what rows are made with, or see that it is what those of the folder were made with.

    Parameters
    ----------
    folder : Path
    asked : Plan
    data : mapping, optional
        Of what they are; nothing is written before that is known.

    Raises
    ------
    ValueError
        Names each difference.
    """
    path = folder / SETTINGS
    settings = {**asked.settings(), **({} if data is None else {"data": dict(data)})}
    before: dict[str, Any] = {}
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))["settings"]
        apart = _apart({name: before.get(name) for name in settings}, settings)
        if apart:
            raise ValueError(
                f"output: expected a folder that was made with the same settings, got {folder}, made with others: "
                + "; ".join(apart)
            )
        settings["method_options"] = {**before["method_options"], **settings["method_options"]}
    if data is not None and settings != before:
        beside = path.with_suffix(f".{os.getpid()}.tmp")
        document = {"tam_fast": __version__, "settings": settings}
        beside.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        beside.replace(path)


def _apart(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Name the settings in which two runs differ; of methods those that both have."""
    found = []
    for name in sorted({*before, *now}):
        old, new = before.get(name), now.get(name)
        if name == "method_options" and isinstance(old, Mapping) and isinstance(new, Mapping):
            both = set(old) & set(new)
            found += [f"{key}: {old[key]}, not {new[key]}" for key in sorted(both) if old[key] != new[key]]
        elif name == "options" and isinstance(old, Mapping) and isinstance(new, Mapping):
            keys = sorted({*old, *new})
            found += [f"{key}: {old.get(key)}, not {new.get(key)}" for key in keys if old.get(key) != new.get(key)]
        elif old != new:
            found.append(f"{name}: {old}, not {new}")
    return found


def _plain(value: Any) -> Any:
    """Bring options to what JSON has; arrays by their values' checksum."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    array = np.ascontiguousarray(np.asarray(value))
    if array.dtype == object:
        return repr(value)
    return f"{array.dtype}{list(array.shape)} {zlib.crc32(array.tobytes()):08x}"
