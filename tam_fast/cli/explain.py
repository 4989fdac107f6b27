"""``tam-fast explain``: what a model says about images, and where it saw each word."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from tam_fast.cli.console import (
    Debug,
    ExitCode,
    Failure,
    as_failure,
    error_line,
    failures,
    one_line,
    print_json,
    printable,
    progress,
    shortened,
    tell,
    to_stdout,
)
from tam_fast.cli.images import Source, decode, find_images
from tam_fast.cli.loading import Dtype, load_explainer
from tam_fast.cli.results import Targets, describe, make_folder, show, write

if TYPE_CHECKING:
    from tam_fast.explain import Explainer, ExplanationStream
    from tam_fast.explanation import Explanation
    from tam_fast.maps.tokens import Compat

__all__ = ["explain"]

_CMAP = "inferno"


class CompatName(str, Enum):
    """Other definitions of the maps than this library's own."""

    OFFICIAL = "official"
    PAPER = "paper"


def explain(
    images: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="IMAGE",
            help="Image files or pipes, '-' for standard input. Without any, a sample scene of the package.",
            show_default=False,
        ),
    ] = None,
    prompt: Annotated[str, typer.Option("-p", "--prompt", help="What to ask the model.")] = "Describe this image.",
    model: Annotated[
        str | None,
        typer.Option(
            "-m",
            "--model",
            metavar="ID_OR_PATH",
            help="A model folder or a model hub id. Without it, the small model that comes with the package.",
        ),
    ] = None,
    answer: Annotated[
        str | None, typer.Option("--answer", help="Explain this answer, instead of letting the model write one.")
    ] = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="Folder for the results; made if it is missing.")
    ] = Path("tam-fast-out"),
    together: Annotated[
        bool, typer.Option("--together", help="Show all images to the model in one prompt, in this order.")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", help="Longest answer, in tokens.")] = 128,
    cmap: Annotated[
        str,
        typer.Option("--cmap", help="inferno, viridis, jet (the paper's look), or any of matplotlib, if installed."),
    ] = _CMAP,
    max_pixels: Annotated[
        int, typer.Option("--max-pixels", help="Refuse larger images, by the size in the file's head.")
    ] = 64_000_000,
    compat: Annotated[
        CompatName | None,
        typer.Option("--compat", help="Reproduce the official program, or the paper's equations to the letter."),
    ] = None,
    kernel_size: Annotated[
        int, typer.Option("--kernel-size", help="Side of the filter's window: odd, 1 to 15; 1 switches it off.")
    ] = 3,
    device: Annotated[
        str, typer.Option("--device", help="auto (the GPU, if torch has one), cpu, cuda, cuda:1, ...")
    ] = "auto",
    dtype: Annotated[Dtype, typer.Option("--dtype", help="The model's number format.")] = Dtype.AUTO,
    force: Annotated[
        bool, typer.Option("--force", help="Replace files of these names even if another program wrote them.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document instead of text; nothing else goes to stdout.")
    ] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print nothing but errors (and --json).")] = False,
    debug: Debug = False,
) -> None:
    """Explain what a model says about images: where it saw each word.

    For each image, DIR gets NAME.png (every token's overlay in one picture), NAME.safetensors and NAME.json (the
    explanation, for tam_fast.load). Results of an earlier run are replaced; other files are not, unless --force; inputs
    never.
    The sentence is printed with each word's visual strength: the maximum of its map, 1 where the image is the strongest
    evidence for the word, near 0 where the text before it is.
    """
    job = _Job(
        prompt=prompt,
        model=model,
        answer=answer,
        output=output,
        together=together,
        max_new_tokens=max_new_tokens,
        cmap=cmap,
        max_pixels=max_pixels,
        compat=None if compat is None else compat.value,
        kernel_size=kernel_size,
        device=device,
        dtype=dtype.value,
        force=force,
        as_json=as_json,
        quiet=quiet,
    )
    with failures(debug):
        _check(job)
        code = _run(job, images or [], debug)
    if code:
        raise typer.Exit(code)


@dataclass(frozen=True)
class _Job:
    """The options of ``explain``."""

    prompt: str
    model: str | None
    answer: str | None
    output: Path
    together: bool
    max_new_tokens: int
    cmap: str
    max_pixels: int
    compat: Compat
    kernel_size: int
    device: str
    dtype: str
    force: bool
    as_json: bool
    quiet: bool


@dataclass
class _Outcome:
    """What is reported at the end."""

    results: list[dict[str, Any]] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)

    def fail(self, name: str, failure: Failure) -> None:
        message = f"{shortened(name) or repr(name)}: {failure}"
        self.errors.append({"image": name, "code": int(failure.code), "message": message})
        error_line(message)


def _check(job: _Job) -> None:
    """Refuse option values that cannot work, before anything is loaded."""

    def refuse(option: str, expected: str, got: object) -> NoReturn:
        raise Failure(ExitCode.USAGE, f"{option}: expected {expected}, got {got!r}")

    if not job.prompt.strip():
        refuse("--prompt", "some text", job.prompt)
    if job.answer is not None and not job.answer.strip():
        refuse("--answer", "some text", job.answer)
    for option, text in (("--prompt", job.prompt), ("--answer", job.answer or "")):
        if any("\ud800" <= character <= "\udfff" for character in text):
            refuse(option, "text in UTF-8", shortened(text))
    if job.model is not None and not job.model.strip():
        refuse("--model", "a model folder or a model hub id", job.model)
    if job.max_new_tokens < 1:
        refuse("--max-new-tokens", "at least 1", job.max_new_tokens)
    if job.max_pixels < 1:
        refuse("--max-pixels", "at least 1", job.max_pixels)
    if not (1 <= job.kernel_size <= 15 and job.kernel_size % 2):
        refuse("--kernel-size", "an odd number from 1 to 15", job.kernel_size)
    # The default is there; to ask would import numpy before the first line of progress.
    if job.cmap != _CMAP:
        from tam_fast.render import colormap

        try:
            colormap(job.cmap)
        except ValueError as error:
            raise Failure(ExitCode.USAGE, f"--{error}") from error


def _run(job: _Job, names: Sequence[str], debug: bool) -> int:
    """Explain all images; return the exit code."""
    outcome = _Outcome()
    stdout, deaf = sys.stdout, False
    say = progress(job.quiet)
    # Whatever libraries print belongs on stderr: stdout is for the results.
    with redirect_stdout(sys.stderr):
        groups = _groups(job, names, outcome)
        if groups:
            make_folder(job.output)
            say("loading the embedded model" if job.model is None else f"loading {shortened(job.model)}")
            explainer = load_explainer(job.model, job.device, job.dtype, debug)
            plan = Targets(job.output, _inputs(job, names, groups), job.force)
        for number, group in enumerate(groups, 1):
            name = ", ".join(source.name for source in group)
            say(f"[{number}/{len(groups)}] {shortened(name)}")
            try:
                targets = plan.choose("together" if job.together else group[0].stem)
                explanation = _explain(job, explainer, group)
                plan.check(targets)  # again: an explanation takes long
                write(explanation, targets, job.cmap)
            except Exception as error:
                if debug and not isinstance(error, Failure):
                    raise
                outcome.fail(name, as_failure(error))
                continue
            if job.as_json:
                shown = [source.name for source in group] if job.together else name
                files = {kind: str(path) for kind, path in targets.items()}
                outcome.results.append({"image": shown, **describe(explanation), "files": files})
            elif not (job.quiet or deaf):
                try:
                    with to_stdout(stdout):
                        show(stdout, name, explanation, targets, job.cmap)
                except Failure as failure:
                    # The others are still explained: their files are what counts.
                    outcome.fail(name, failure)
                    deaf = True
    if job.as_json:
        from tam_fast._version import __version__

        try:
            print_json({"tam_fast": __version__, "results": outcome.results, "errors": outcome.errors})
        except Failure as failure:
            outcome.fail("--json", failure)
    return int(outcome.errors[0]["code"]) if outcome.errors else 0


def _inputs(job: _Job, names: Sequence[str], groups: Sequence[Sequence[Source]]) -> list[str | Path]:
    """Gather what no result may replace: everything that was named, also what was refused, and the sample scene."""
    inputs: list[str | Path] = [name for name in names if name != "-"]
    inputs += [source.file for group in groups for source in group if isinstance(source.file, Path)]
    return inputs if job.model is None else [*inputs, job.model]


def _groups(job: _Job, names: Sequence[str], outcome: _Outcome) -> list[list[Source]]:
    """Find the images; what is shown to the model in one prompt forms a group."""
    sources = find_images(names, job.max_pixels, outcome.fail)
    if job.together:
        return [] if outcome.errors else [sources]
    return [[source] for source in sources]


def _explain(job: _Job, explainer: Explainer, group: Sequence[Source]) -> Explanation:
    pictures = [decode(source, job.max_pixels, job.quiet) for source in group]
    images = pictures if job.together else pictures[0]
    options: dict[str, Any] = {
        "prompt": job.prompt,
        "kernel_size": job.kernel_size,
        "max_new_tokens": job.max_new_tokens,
    }
    # The likeliest answer, the same at every run, whatever the model's own settings say about sampling.
    greedy: dict[str, Any] = {"do_sample": False}
    try:
        if job.answer is not None:
            return explainer.explain(images, answer=job.answer, compat=job.compat, **options)
        if job.compat is None and not job.quiet and sys.stderr.isatty():
            return _watch(explainer.stream(images, **options, **greedy))
        return explainer.explain(images, compat=job.compat, **options, **greedy)
    except (ValueError, NotImplementedError) as error:
        raise Failure(ExitCode.MODEL, one_line(error)) from error


def _watch(steps: ExplanationStream) -> Explanation:
    """Show the answer on stderr's last line while it is written."""
    try:
        for step in steps:
            tail = printable(" ".join(step.text.split()))[-60:]
            tell(f"\r\x1b[Ktam-fast: token {step.index + 1}  {tail}", end="")
        return steps.explanation
    finally:
        tell("\r\x1b[K", end="")
        steps.close()
