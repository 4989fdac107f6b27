"""``tam-fast compare``: one image under several models, prompts or methods, its words side by side."""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from tam_fast.cli import options
from tam_fast.cli.asking import Job, check, translated
from tam_fast.cli.console import (
    Debug,
    ExitCode,
    Failure,
    failures,
    print_json,
    printable,
    progress,
    rich_console,
    shortened,
    to_stdout,
)
from tam_fast.cli.help import Spreading
from tam_fast.cli.loading import Dtype, load_explainer
from tam_fast.cli.method import method_arguments, told, translated_option
from tam_fast.cli.questions import Question, find_questions
from tam_fast.cli.results import Targets, check_output, kind_of, make_folder
from tam_fast.cli.videos import check_video

if TYPE_CHECKING:
    from tam_fast.explain import Explainer
    from tam_fast.explanation import Comparison, Explanation

__all__ = ["Command", "compare"]

Command = Spreading
EMBEDDED = "embedded"
_MOST = 16  # columns

_COMPARED = "What is compared"


def _several(name: str, metavar: str, text: str) -> Any:
    return typer.Option(name, metavar=metavar, help=text, rich_help_panel=_COMPARED)


def compare(
    image: Annotated[
        str | None,
        typer.Argument(
            metavar="IMAGE",
            help="An image or video file, '-' for standard input; a sample scene of the package without one. It "
            "stands before the options.",
            show_default=False,
        ),
    ] = None,
    models: Annotated[
        list[str] | None,
        _several("--models", "ID_OR_PATH...", f"Model folders or hub ids; '{EMBEDDED}' is the package's own."),
    ] = None,
    prompts: Annotated[list[str] | None, _several("--prompts", "TEXT...", "What to ask the model.")] = None,
    methods: Annotated[
        list[str] | None,
        _several("--methods", "METHOD...", "Whose maps, also as one list with commas: tam,cam,cam+eci,cam+rgf."),
    ] = None,
    prompt: options.Prompt = None,
    model: options.Model = None,
    answer: options.Answer = None,
    same_answer: Annotated[
        bool,
        typer.Option(
            "--same-answer",
            help="Explain the first one's answer under all models or prompts, instead of each one's own.",
            rich_help_panel="The model",
        ),
    ] = False,
    device: options.Device = "auto",
    dtype: options.DtypeOption = Dtype.AUTO,
    max_new_tokens: options.MaxNewTokens = options.MAX_NEW_TOKENS,
    max_pixels: options.MaxPixels = options.MAX_PIXELS,
    fps: options.Fps = None,
    num_frames: options.NumFrames = None,
    scale: options.Scale = options.ScaleName.ANSWER,
    kernel_size: options.KernelSize = 3,
    output: options.Output = options.OUTPUT,
    cmap: options.Cmap = options.CMAP,
    force: options.Force = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    debug: Debug = False,
) -> None:
    """Compare where several models, prompts or methods saw the words that they say about one image.

    Exactly one of --models, --prompts and --methods has at least two values: the columns. Equal words stand in one row,
    and all are drawn on one scale of colours. The folder OUT gets NAME-compared.html (a page on which a word that is
    pointed at shows its map in every column) and NAME-compared.png; an OUT that ends in .html, .png or .jpg is that one
    file.

    Methods explain the same tokens. Models and prompts have answers of their own, unless there is --answer or
    --same-answer. Of methods, tam is the whole, cam the raw map, cam+eci adds causal inference alone and cam+rgf the
    filter alone; maps of other methods than tam are scaled by those of all of the answer (--scale map: each by itself).
    """
    job = Job(
        prompt=prompt,
        videos=(),
        fps=fps,
        num_frames=num_frames,
        together=False,
        text_only=False,
        messages=None,
        turn=None,
        max_pixels=max_pixels,
        model=model,
        device=device,
        dtype=dtype.value,
        max_new_tokens=max_new_tokens,
        answer=answer,
        prefix=None,
        targets=None,
        words=(),
        patterns=(),
        context="turn",
        contrast=False,
        method="tam",
        method_options=(),
        scale="map",
        compat=None,
        kernel_size=kernel_size,
        output=output,
        cmap=cmap,
        force=force,
        as_json=as_json,
        quiet=quiet,
    )
    with failures(debug):
        given = {"--models": models or [], "--prompts": prompts or [], "--methods": _split(methods or [])}
        columns = _columns(job, given, scale.value)
        if same_answer and answer is not None:
            raise Failure(ExitCode.USAGE, "--same-answer: expected none with --answer, got both")
        for column in columns:
            check(column.job, [] if image is None else [image])
        _run(columns, [] if image is None else [image], same_answer or bool(methods), debug)


@dataclass(frozen=True)
class _Column:
    """One explanation that is to be made."""

    title: str
    job: Job


def _split(methods: Sequence[str]) -> list[str]:
    return [name.strip() for text in methods for name in text.split(",")]


def _columns(job: Job, given: dict[str, list[str]], scale: str) -> list[_Column]:
    """Say what stands in each column; refuse what is no comparison."""
    some = [option for option, values in given.items() if values]
    if len(some) != 1:
        got = " and ".join(some) or "none"
        raise Failure(ExitCode.USAGE, f"--models: expected one of --models, --prompts and --methods, got {got}")
    (option,) = some
    values = given[option]
    if not 2 <= len(values) <= _MOST:
        raise Failure(ExitCode.USAGE, f"{option}: expected 2 to {_MOST} to compare, got {len(values)}")
    for number, value in enumerate(values):
        if not value.strip():
            raise Failure(ExitCode.USAGE, f"{option}: expected some text, got {value!r}")
        if value in values[:number]:
            raise Failure(ExitCode.USAGE, f"{option}: expected each once, got {shortened(value)!r} twice")
    taken = {"--models": ("--model", job.model), "--prompts": ("--prompt", job.prompt)}.get(option)
    if taken is not None and taken[1] is not None:
        raise Failure(ExitCode.USAGE, f"{taken[0]}: expected none with {option}, got {shortened(taken[1])!r}")
    if option == "--models":
        # Pages name no folders but the model's own.
        names = [Path(value).name if Path(value).is_dir() else value for value in values]
        names = [f"{name} ({n})" if names.count(name) > 1 else name for n, name in enumerate(names, 1)]
        jobs = [replace(job, model=None if _is_embedded(value) else value) for value in values]
        return [_Column(name, one) for name, one in zip(names, jobs, strict=True)]
    if option == "--prompts":
        return [_Column(value, replace(job, prompt=value)) for value in values]
    return [_Column(value, replace(job, method=value, scale="map" if value == "tam" else scale)) for value in values]


def _is_embedded(name: str) -> bool:
    return name == EMBEDDED and not Path(name).is_dir()


def _run(columns: Sequence[_Column], names: Sequence[str], same_answer: bool, debug: bool) -> None:
    """Make all explanations, put them side by side, write and print them."""
    job, stdout = columns[0].job, sys.stdout
    say = progress(job.quiet)
    # Whatever libraries print belongs on stderr: stdout is for the results.
    with redirect_stdout(sys.stderr):
        question = _question(job, names)
        kind = _check_output(job.output, question)
        make_folder(job.output)
        inputs: list[str | Path] = [name for name in names if name != "-"]
        inputs += [source.file for source in question.sources() if isinstance(source.file, Path)]
        inputs += [column.job.model for column in columns if column.job.model is not None]
        plan = Targets(job.output, inputs, job.force, ["page", "sheet"] if kind is None else [kind])
        targets = plan.choose(f"{question.stem}-compared")
        explanations = _explain_all(columns, question, same_answer, debug, say)

        from tam_fast.explanation.compare import compare

        compared = compare(explanations, [column.title for column in columns])
        plan.check(targets)  # again: explanations take long
        title = ", ".join(Path(source.name).name for source in question.sources())
        files = _write(compared, targets, job.cmap, title)
    if job.as_json:
        print_json(_document(compared, question, files))
    elif not job.quiet:
        with to_stdout(stdout):
            _show(stdout, compared)
            last = files.get("page") or next(iter(files.values()))
            print(f"open {printable(str(last))}", file=stdout)


def _question(job: Job, names: Sequence[str]) -> Question:
    failed: list[tuple[str, Failure]] = []
    questions = find_questions(job, names, lambda name, failure: failed.append((name, failure)))
    for name, failure in failed:
        raise Failure(failure.code, f"{shortened(name) or repr(name)}: {failure}")
    return questions[0]


def _check_output(output: Path, question: Question) -> str | None:
    kind = kind_of(output)
    if kind == "film":
        shown = shortened(str(output))
        raise Failure(ExitCode.USAGE, f"--output: expected a folder, or a name in .html, .png or .jpg, got {shown!r}")
    check_output(output, [question])
    return kind


def _explain_all(
    columns: Sequence[_Column], question: Question, same_answer: bool, debug: bool, say: Any
) -> list[Explanation]:
    """Explain column by column; a model is loaded once for columns that follow each other."""
    found: list[Explanation] = []
    explainer: Explainer | None = None
    loaded: tuple[str | None] | None = None
    for number, column in enumerate(columns, 1):
        job = column.job
        asked = question if job.prompt is None else replace(question, prompt=job.prompt)
        if explainer is None or loaded != (job.model,):
            # One model at a time in memory.
            explainer = None
            gc.collect()
            say("loading the embedded model" if job.model is None else f"loading {shortened(job.model)}")
            explainer = load_explainer(job.model, job.device, job.dtype, debug)
            loaded = (job.model,)
        say(f"[{number}/{len(columns)}] {shortened(column.title)}")
        answer: Any = None
        if same_answer and found:
            # Methods explain the very tokens; another model has tokens of its own for the text.
            answer = _generated(found[0]) if job.model == columns[0].job.model else found[0].text
        try:
            found.append(_explain(job, explainer, asked, answer))
        except Failure as failure:
            raise Failure(failure.code, f"{shortened(column.title)}: {failure}") from failure
    return found


def _generated(explanation: Explanation) -> list[int]:
    """Return the ids of all that was generated, a thinking section too, up to the last explained token."""
    prompt = len(explanation.context_tokens) - (explanation.places[-1] if explanation.places else 0)
    return [*explanation.maps.context_ids[prompt:].tolist(), *explanation.token_ids[-1:]]


def _explain(job: Job, explainer: Explainer, question: Question, answer: Any) -> Explanation:
    """Make one explanation, of an answer if there is one; what the library refuses becomes a failure."""
    asked = question.arguments(job.max_pixels, job.quiet)
    images = asked.pop("images", None)
    given = {**job.arguments(), **job.explained()}
    if answer is not None:
        given.pop("do_sample", None)
        given["answer"] = answer
    try:
        with told(job) as passes:
            chosen = method_arguments(job, images, passes)
            return explainer.explain(images, **asked, **given, **chosen)
    except (ValueError, NotImplementedError) as error:
        # A frame that cannot be decoded is found only now: then it is the file that is refused, and not by the model.
        for video in question.all_videos():
            check_video(video, job.max_pixels, job.fps, job.num_frames)
        raise translated_option(job, error) or translated(job, error) from error


def _write(compared: Comparison, targets: dict[str, Path], cmap: str, title: str) -> dict[str, Path]:
    """Write page and picture, together or not at all."""
    from tam_fast.explanation.replacing import encode_picture, replace_files
    from tam_fast.render.page import page

    files: dict[str, bytes] = {}
    if "page" in targets:
        files["page"] = page(compared.page_data(title=title, cmap=cmap)).encode()
    if "sheet" in targets:
        files["sheet"] = encode_picture(compared.sheet(cmap=cmap), targets["sheet"].suffix)
    replace_files({targets[kind]: data for kind, data in files.items()})
    return {kind: targets[kind] for kind in files}


def _document(compared: Comparison, question: Question, files: dict[str, Path]) -> dict[str, Any]:
    """Return what --json prints."""
    from tam_fast._version import __version__

    strengths = compared.strengths()
    return {
        "tam_fast": __version__,
        **question.label,
        "columns": [
            {"title": title, "model": e.model, "method": e.method, "prompt": e.prompt, "text": e.text}
            for title, e in zip(compared.titles, compared.explanations, strict=True)
        ],
        "rows": [
            {
                "word": row.text,
                "strength": [None if n is None else v for n, v in zip(row.words, values, strict=True)],
            }
            for row, values in zip(compared.rows, strengths.tolist(), strict=True)
        ],
        "files": {kind: str(path) for kind, path in files.items()},
    }


def _show(stdout: TextIO, compared: Comparison) -> None:
    """Print each word's visual strength in every column."""
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, pad_edge=False, header_style="dim")
    shown.add_column("word", overflow="fold")
    for title in compared.titles:
        shown.add_column(Text(printable(shortened(title, 40))), justify="right", overflow="fold")
    for row, values in zip(compared.rows, compared.strengths().tolist(), strict=True):
        cells = ["-" if n is None else f"{v:.2f}" for n, v in zip(row.words, values, strict=True)]
        shown.add_row(*(Text(printable(text)) for text in (row.text, *cells)))
    rich_console(stdout).print(shown)
