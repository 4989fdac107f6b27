"""``tam-fast evaluate``: what methods' maps are worth on a data set, all on the same frozen answers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from tam_fast.cli import options
from tam_fast.cli.console import (
    Debug,
    ExitCode,
    Failure,
    failures,
    one_line,
    print_json,
    printable,
    progress,
    rich_console,
    shortened,
    to_stdout,
)
from tam_fast.cli.loading import Dtype, load_explainer
from tam_fast.cli.method import option_value

if TYPE_CHECKING:
    from tam_fast.evaluation.results import Results

__all__ = ["evaluate"]

OUTPUT = Path("tam-fast-evaluation")
_EVERY = 25  # items between two lines about progress where there is no terminal

_MEASURED = "What is measured"
_MODEL = "The model"
_RUN = "The run"
_RESULTS = "Results"

# Arguments of the library by the options that they come from.
_OPTIONS = {
    **{
        name: f"--{name}"
        for name in ("figures", "scale", "limit", "shard", "prompt", "reference", "resamples", "steps")
    },
    **{name: f"--{name}" for name in ("ranks", "baseline", "regions", "masks", "layout", "output", "methods", "seed")},
    **{"method": "--methods", "refine": "--methods", "data": "DATA", "method_options": "--method-option"},
    **{"max_new_tokens": "--max-new-tokens", "batch_size": "--batch-size", "columns": "--column", "compat": "--compat"},
    **{"n": "DATA: n", "kind": "DATA: kind", "box_format": "--column: box_format"},
}


class OfficialName(str, Enum):
    """The other definition that there is."""

    OFFICIAL = "official"


class Ranks(str, Enum):
    """What insertion and deletion show or take away, one after the other."""

    CELL = "cell"
    REGION = "region"
    PIXEL = "pixel"


def _option(panel: str, *names: str, help: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel=panel)


def evaluate(
    data: Annotated[
        list[str],
        typer.Argument(
            metavar="DATA",
            help="A data set: demo://scenes?n=300&seed=7, a folder or a file; with --report folders of earlier runs.",
            show_default=False,
        ),
    ],
    methods: Annotated[
        str,
        _option(
            _MEASURED,
            "--methods",
            metavar="M,M,...",
            help="METHOD[+INTERFERENCE][+FILTER][@SCALE], with commas; all: every one that the model can be explained "
            "by. random, centre, uniform and the reference are added.",
        ),
    ] = "tam,cam",
    method_option: Annotated[
        list[str] | None,
        _option(
            _MEASURED, "--method-option", metavar="METHOD.NAME=VALUE", help="An option of a method, rise.samples=2000."
        ),
    ] = None,
    figures: Annotated[
        str | None,
        _option(_MEASURED, "--figures", metavar="F,F,...", help="What is measured, with commas; all: everything."),
    ] = None,
    scale: Annotated[
        options.ScaleName, _option(_MEASURED, "--scale", help="What maps of other methods than TAM are scaled by.")
    ] = options.ScaleName.MAP,
    compat: Annotated[
        OfficialName | None, _option(_MEASURED, "--compat", help="Words, maps and figures as the published script's.")
    ] = None,
    reference: Annotated[
        str, _option(_MEASURED, "--reference", metavar="METHOD", help="The method that others are compared with.")
    ] = "cam",
    ranks: Annotated[
        Ranks, _option(_MEASURED, "--ranks", help="What insertion and deletion show or take away, one after the other.")
    ] = Ranks.CELL,
    steps: Annotated[int, _option(_MEASURED, "--steps", help="Steps of insertion and deletion.")] = 32,
    baseline: Annotated[
        str | None,
        _option(
            _MEASURED,
            "--baseline",
            help="What stands for what is taken away: mean_embedding, zero; grey, black, mean, blur (of pixels).",
        ),
    ] = None,
    regions: Annotated[
        int, _option(_MEASURED, "--regions", help="How many regions, where regions are asked for.")
    ] = 64,
    masks: Annotated[int, _option(_MEASURED, "--masks", help="Random masks of the linear datamodeling score.")] = 64,
    prompt: Annotated[
        str | None,
        _option(
            _MODEL, "-p", "--prompt", metavar="TEXT", help='What to ask; "Describe this image." if nothing says more.'
        ),
    ] = None,
    model: options.Model = None,
    device: options.Device = "auto",
    dtype: options.DtypeOption = Dtype.AUTO,
    max_new_tokens: options.MaxNewTokens = options.MAX_NEW_TOKENS,
    layout: Annotated[
        str | None,
        _option(
            _RUN,
            "--layout",
            help="How the data lie: coco, anno, folder, boxes, table; told from the files if not given.",
        ),
    ] = None,
    column: Annotated[
        list[str] | None,
        _option(
            _RUN, "--column", metavar="NAME=COLUMN", help="Which column of a table is what, such as image=picture."
        ),
    ] = None,
    limit: Annotated[int | None, _option(_RUN, "--limit", metavar="N", help="Only the first N items.")] = None,
    shard: Annotated[
        str | None, _option(_RUN, "--shard", metavar="I/N", help="Only every N-th item, from the I-th: 0/4 to 3/4.")
    ] = None,
    seed: Annotated[int, _option(_RUN, "--seed", help="Of random maps, masks and resamples.")] = 0,
    batch_size: Annotated[
        int, _option(_RUN, "--batch-size", help="How many variants of an image are run at once.")
    ] = 8,
    retry: Annotated[bool, _option(_RUN, "--retry", help="Try again what ended in an error.")] = False,
    output: Annotated[
        Path | None,
        _option(_RESULTS, "-o", "--output", metavar="DIR", help=f"Folder for the results; {OUTPUT} if not given."),
    ] = None,
    report: Annotated[
        bool, _option(_RESULTS, "--report", help="Only make tables and page anew, from the rows of the folders DATA.")
    ] = False,
    resamples: Annotated[int, _option(_RESULTS, "--resamples", help="Of the bootstrap over images.")] = 2000,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure what methods say of a model's answers: figures with intervals, all on the same frozen answers.

    Results stay in DIR, an item at a time: a run that was ended goes on where it was, also with further methods,
    figures or items. What is wrong with an item is counted, not fatal; the exit code is 0 unless nothing worked.
    """
    with failures(debug), _said_plainly():
        if report:
            results = _report(data, output, reference, resamples, seed)
        else:
            if len(data) != 1:
                raise Failure(ExitCode.USAGE, f"DATA: expected one data set without --report, got {len(data)}")
            asked = _Asked(
                methods=[name.strip() for name in methods.split(",") if name.strip()],
                figures=None if figures is None else [name.strip() for name in figures.split(",") if name.strip()],
                method_options=_method_options(method_option or []),
                columns=dict(_pair(text, "--column", "NAME=COLUMN") for text in column or []),
                shard=_shard(shard),
                options={
                    **{"compat": None if compat is None else compat.value, "steps": steps, "ranks": ranks.value},
                    **{
                        "baseline": baseline,
                        "regions": regions,
                        "masks": masks,
                        "batch_size": batch_size,
                        "seed": seed,
                    },
                },
            )
            # Whatever libraries print belongs on stderr: stdout is for the results.
            with redirect_stdout(sys.stderr):
                _check(asked)
                say = progress(quiet)
                say("loading the embedded model" if model is None else f"loading {shortened(model)}")
                explainer = load_explainer(model, device, dtype.value, debug)
                results = _evaluate(
                    data[0],
                    explainer,
                    asked,
                    say,
                    quiet,
                    output=output or OUTPUT,
                    layout=layout,
                    prompt=prompt,
                    scale=scale.value,
                    reference=reference,
                    max_new_tokens=max_new_tokens,
                    limit=limit,
                    retry=retry,
                    resamples=resamples,
                )
        if as_json:
            print_json(results.as_json())
        elif not quiet:
            with to_stdout() as stdout:
                _show(results, stdout, output or (Path(data[0]) if report else OUTPUT))
        if not results.worked:
            why = f"; the first: {results.examples[0]}" if results.examples else ""
            raise Failure(
                ExitCode.FAILURE, f"DATA: expected an item that can be measured, got none of {results.items}{why}"
            )


@dataclass(frozen=True)
class _Asked:
    """What was asked for, read but not yet looked up."""

    methods: list[str]
    figures: list[str] | None
    method_options: dict[str, dict[str, Any]]
    columns: dict[str, str]
    shard: tuple[int, int] | None
    options: dict[str, Any]


def _check(asked: _Asked) -> None:
    """Refuse what is unknown before anything is loaded."""
    from tam_fast.evaluation.measures import read_measures
    from tam_fast.evaluation.passes import read_method

    read_measures(asked.figures)
    for name in asked.methods:
        if name != "all":
            read_method(name)


def _evaluate(
    data: str,
    explainer: Any,
    asked: _Asked,
    say: Callable[[str], None],
    quiet: bool,
    *,
    layout: str | None,
    **rest: Any,
) -> Results:
    from tam_fast.evaluation.data import open_data
    from tam_fast.evaluation.measures import Options
    from tam_fast.evaluation.run import evaluate, plan

    chosen = Options(**asked.options)
    arguments: dict[str, Any] = {"figures": asked.figures, "options": chosen, "method_options": asked.method_options}
    planned = plan(explainer.model, asked.methods, scale=rest["scale"], reference=rest["reference"], **arguments)
    reader = open_data(data, prompt=rest["prompt"], layout=layout, compat=chosen.compat, **asked.columns)
    say(f"{len(planned.methods)} methods x {', '.join(one.name for one in planned.measures)}; an item costs:")
    for line in planned.costs():
        say(f"  {line}")
    with _told(say, quiet) as told:
        return evaluate(reader, explainer, asked.methods, shard=asked.shard, progress=told, **arguments, **rest)


def _report(folders: Sequence[str], output: Path | None, reference: str, resamples: int, seed: int) -> Results:
    from tam_fast.evaluation.results import read_results

    results = read_results(folders, reference=reference, resamples=resamples, seed=seed)
    results.write(output or Path(folders[0]))
    return results


@contextmanager
def _told(say: Callable[[str], None], quiet: bool) -> Iterator[Callable[[int, int | None, str], object]]:
    """Show how far the run is: a bar on a terminal, else a line every few items."""
    if quiet:
        yield lambda *_: None
    elif sys.stderr.isatty():
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=rich_console(sys.stderr), transient=True) as bar:
            tasks: dict[str, Any] = {}

            def move(done: int, total: int | None, what: str) -> None:
                if what not in tasks:
                    tasks[what] = bar.add_task(what, total=total)
                bar.update(tasks[what], completed=done, total=total)

            yield move
    else:

        def line(done: int, total: int | None, what: str) -> None:
            if done % _EVERY == 0 or done == total:
                say(f"{what}: {done}" + ("" if total is None else f" of {total}"))

        yield line


def _show(results: Results, stdout: TextIO, output: Path) -> None:
    """Print the table for people."""
    from rich.table import Table
    from rich.text import Text

    from tam_fast.evaluation.tables import best, figure_of, shown

    console = rich_console(stdout, width=180)
    tops = {name: best(results, name) for name in results.figures}

    def text_of(method: str, name: str) -> Text:
        cell = results.cell(method, name)
        text = "–" if cell is None else shown(cell.value, figure_of(name))
        return Text(text, style="bold" if method in tops[name] else "")

    titles = {name: figure_of(name).title for name in results.figures}
    if results.cells:
        table = Table(box=None, pad_edge=False)
        # What is more goes down.
        down = len(results.figures) > max(len(results.methods), 7)
        table.add_column("figure" if down else "method", no_wrap=True)
        for head in results.methods if down else titles.values():
            table.add_column(head, justify="right", overflow="fold")
        if down:
            for name, title in titles.items():
                table.add_row(Text(title), *(text_of(method, name) for method in results.methods))
        else:
            for method in results.methods:
                table.add_row(Text(method), *(text_of(method, name) for name in results.figures))
        console.print(table)
    for cell in results.answers:
        figure = figure_of(cell.figure)
        low, high = shown(cell.low, figure), shown(cell.high, figure)
        console.print(Text(f"of the answers: {figure.title} {shown(cell.value, figure)} [{low}, {high}]"))
    failed = f", {results.failed} failed" if results.failed else ""
    errors = sum(results.errors.values())
    console.print(Text(f"{results.items} items{failed}{f', {errors} errors' if errors else ''}"))
    for example in results.examples:
        console.print(Text(printable(f"  {one_line(example, 160)}")))
    for name in ("report.html", "table.md", "table.tex", "table.csv", "rows.parquet"):
        console.print(Text(printable(f"  {output / name}")))


# What was given ------------------------------------------------------------------------------------------------------


def _pair(text: str, option: str, form: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise Failure(ExitCode.USAGE, f"{option}: expected {form}, got {shortened(text)!r}")
    return name, value


def _method_options(given: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Read METHOD.NAME=VALUE by the types of the methods' defaults."""
    from tam_fast.methods import METHODS

    found: dict[str, dict[str, Any]] = {}
    for text in given:
        path, value = _pair(text, "--method-option", "METHOD.NAME=VALUE")
        method, dot, name = path.partition(".")
        if not (dot and method and name):
            raise Failure(ExitCode.USAGE, f"--method-option: expected METHOD.NAME=VALUE, got {shortened(text)!r}")
        if method not in METHODS:
            raise Failure(ExitCode.USAGE, f"--method-option: expected a method, got {shortened(method)!r}")
        known = METHODS[method].options
        if name not in known:
            listed = f"one of {', '.join(known)}" if known else "none"
            raise Failure(ExitCode.USAGE, f"--method-option: expected {listed} with {method}, got {shortened(name)!r}")
        found.setdefault(method, {})[name] = option_value(known[name], name, value)
    return found


def _shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    first, slash, second = text.partition("/")
    if not (slash and first.isdecimal() and second.isdecimal() and int(first) < int(second)):
        raise Failure(ExitCode.USAGE, f"--shard: expected I/N with 0 <= I < N, got {shortened(text)!r}")
    return int(first), int(second)


@contextmanager
def _said_plainly() -> Iterator[None]:
    """Turn what the library refuses into a failure in the words of the command line."""
    from tam_fast.models.errors import ModelNotSupportedError

    try:
        yield
    except ModelNotSupportedError as error:
        raise Failure(ExitCode.MODEL, f"--methods: {one_line(error)}") from error
    except ModuleNotFoundError as error:
        raise Failure(ExitCode.FAILURE, one_line(error)) from error
    except (ValueError, TypeError) as error:
        name, colon, rest = str(error).partition(": ")
        if not (colon and name in _OPTIONS):
            raise
        raise Failure(ExitCode.USAGE, f"{_OPTIONS[name]}: {one_line(rest)}") from error
