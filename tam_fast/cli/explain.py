"""``tam-fast explain``: what a model says about what it is shown, and where it saw each word."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from tam_fast.cli import options
from tam_fast.cli.asking import Job, check, translated
from tam_fast.cli.console import (
    Debug,
    Failure,
    as_failure,
    error_line,
    failures,
    print_json,
    printable,
    progress,
    shortened,
    tell,
    to_stdout,
)
from tam_fast.cli.document import describe
from tam_fast.cli.loading import Dtype, load_explainer
from tam_fast.cli.method import method_arguments, told, translated_option
from tam_fast.cli.questions import Question, find_questions
from tam_fast.cli.results import Targets, check_output, kind_of, make_folder, write
from tam_fast.cli.terminal import show
from tam_fast.cli.videos import check_video

if TYPE_CHECKING:
    from tam_fast.explain import Explainer, ExplanationStream
    from tam_fast.explanation import Explanation

__all__ = ["explain"]


def explain(
    images: options.Images = None,
    prompt: options.Prompt = None,
    videos: options.Videos = None,
    fps: options.Fps = None,
    num_frames: options.NumFrames = None,
    together: options.Together = False,
    text_only: options.TextOnly = False,
    messages: options.Messages = None,
    turn: options.Turn = None,
    max_pixels: options.MaxPixels = options.MAX_PIXELS,
    model: options.Model = None,
    device: options.Device = "auto",
    dtype: options.DtypeOption = Dtype.AUTO,
    max_new_tokens: options.MaxNewTokens = options.MAX_NEW_TOKENS,
    answer: options.Answer = None,
    prefix: options.Prefix = None,
    targets: options.TargetsOption = None,
    words: options.Word = None,
    patterns: options.Regex = None,
    context: options.Context = options.ContextName.TURN,
    contrast: options.Contrast = False,
    method: options.Method = "tam",
    method_options: options.MethodOption = None,
    scale: options.Scale = options.ScaleName.MAP,
    compat: options.Compat = None,
    kernel_size: options.KernelSize = 3,
    output: options.Output = options.OUTPUT,
    cmap: options.Cmap = options.CMAP,
    force: options.Force = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    debug: Debug = False,
) -> None:
    """Explain what a model says about images, videos or a conversation: where it saw each word.

    For each image or video, the folder OUT gets NAME.html (a page to open and hand around: point at a word, and its map
    appears), NAME.png (every token's overlay in one picture), NAME.safetensors and NAME.json (the explanation, for
    tam_fast.load). An OUT that ends in .html, .png or .jpg is the page or the picture of one explanation, one in .mp4
    or .gif a video with the map of a word: the first --word, else the strongest. Results of an earlier run are
    replaced; other files are not, unless --force; inputs never.

    The sentence is printed with each word's visual strength: the maximum of its map, 1 where the image is the strongest
    evidence for the word, near 0 where the text before it is. Words that are not visual stand in brackets.

    Another method's maps (--method) have their own scale: of them the strength of a word says nothing about the text.
    """
    job = Job(
        prompt=prompt,
        videos=tuple(videos or ()),
        fps=fps,
        num_frames=num_frames,
        together=together,
        text_only=text_only,
        messages=messages,
        turn=turn,
        max_pixels=max_pixels,
        model=model,
        device=device,
        dtype=dtype.value,
        max_new_tokens=max_new_tokens,
        answer=answer,
        prefix=prefix,
        targets=None if targets is None else targets.value,
        words=tuple(words or ()),
        patterns=tuple(patterns or ()),
        context=context.value,
        contrast=contrast,
        method=method,
        method_options=tuple(method_options or ()),
        scale=scale.value,
        compat=None if compat is None else compat.value,
        kernel_size=kernel_size,
        output=output,
        cmap=cmap,
        force=force,
        as_json=as_json,
        quiet=quiet,
    )
    with failures(debug):
        check(job, images or [])
        code = _run(job, images or [], debug)
    if code:
        raise typer.Exit(code)


@dataclass
class _Outcome:
    """What is reported at the end."""

    results: list[dict[str, Any]] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)

    def fail(self, name: str, failure: Failure) -> None:
        message = f"{shortened(name) or repr(name)}: {failure}"
        self.errors.append({"image": name, "code": int(failure.code), "message": message})
        error_line(message)


def _run(job: Job, names: Sequence[str], debug: bool) -> int:
    """Make all explanations; return the exit code."""
    outcome = _Outcome()
    stdout, deaf = sys.stdout, False
    pages: list[Path] = []
    say = progress(job.quiet)
    # Whatever libraries print belongs on stderr: stdout is for the results.
    with redirect_stdout(sys.stderr):
        questions = find_questions(job, names, outcome.fail)
        if questions:
            check_output(job.output, questions)
            make_folder(job.output)
            say("loading the embedded model" if job.model is None else f"loading {shortened(job.model)}")
            explainer = load_explainer(job.model, job.device, job.dtype, debug)
            inputs, kind = _inputs(job, names, questions), kind_of(job.output)
            plan = Targets(job.output, inputs, job.force, *([] if kind is None else [[kind]]))
        for number, question in enumerate(questions, 1):
            say(f"[{number}/{len(questions)}] {shortened(question.name)}")
            try:
                targets = plan.choose(question.stem)
                explanation = _explain(job, explainer, question)
                plan.check(targets)  # again: an explanation takes long
                files = write(explanation, targets, job.cmap, _title(question), *job.words[:1])
            except Exception as error:
                if debug and not isinstance(error, Failure):
                    raise
                outcome.fail(question.name, as_failure(error))
                continue
            if job.as_json:
                paths = {kind: str(path) for kind, path in files.items()}
                options = {"method_options": list(job.method_options)} if job.method_options else {}
                outcome.results.append({**question.label, **describe(explanation), **options, "files": paths})
            elif not (job.quiet or deaf):
                try:
                    with to_stdout(stdout):
                        show(stdout, question.name, explanation, files, job.cmap)
                except Failure as failure:
                    # The others are still explained: their files are what counts.
                    outcome.fail(question.name, failure)
                    deaf = True
                pages += [files["page"]] if "page" in files else []
    if pages and not deaf:
        with to_stdout(stdout):
            more = f" (and {len(pages) - 1} more beside it)" if len(pages) > 1 else ""
            print(f"open {printable(str(pages[0]))}{more}", file=stdout)
    if job.as_json:
        from tam_fast._version import __version__

        try:
            print_json({"tam_fast": __version__, "results": outcome.results, "errors": outcome.errors})
        except Failure as failure:
            outcome.fail("--json", failure)
    return int(outcome.errors[0]["code"]) if outcome.errors else 0


def _title(question: Question) -> str:
    """Name a page after the files that it shows, without the folders that they lie in."""
    return ", ".join(Path(source.name).name for source in question.sources())


def _inputs(job: Job, names: Sequence[str], questions: Sequence[Question]) -> list[str | Path]:
    """Gather what no result may replace: everything that was named, also what was refused, and the sample scene."""
    named = [*names, *job.videos, *(() if job.messages is None else (job.messages,))]
    inputs: list[str | Path] = [name for name in named if name != "-"]
    files = (source.file for question in questions for source in question.sources())
    inputs += [file for file in files if isinstance(file, Path)]
    return inputs if job.model is None else [*inputs, job.model]


def _explain(job: Job, explainer: Explainer, question: Question) -> Explanation:
    """Make one explanation; what the library refuses becomes a failure."""
    asked = question.arguments(job.max_pixels, job.quiet)
    images = asked.pop("images", None)
    try:
        if job.watchable and not job.quiet and sys.stderr.isatty():
            return _watch(explainer.stream(images, **asked, **job.arguments()))
        with told(job) as progress:
            chosen = method_arguments(job, images, progress)
            return explainer.explain(images, **asked, **job.arguments(), **job.explained(), **chosen)
    except TypeError as error:
        # A value of another type than an option of the method takes; of anything else it would be a fault of ours.
        refused = translated_option(job, error)
        if refused is None:
            raise
        raise refused from error
    except (ValueError, NotImplementedError) as error:
        # A frame that cannot be decoded is found only now: then it is the file that is refused, and not by the model.
        for video in question.all_videos():
            check_video(video, job.max_pixels, job.fps, job.num_frames)
        raise translated_option(job, error) or translated(job, error) from error


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
