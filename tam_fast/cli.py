"""The command ``tam-fast``: see ``tam-fast --help``."""

from __future__ import annotations

import io
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TextIO

import typer

# torch, transformers and Pillow are imported where they are used: --help and usage errors must be quick.
if TYPE_CHECKING:
    from PIL import Image

    from tam_fast.explainer import Explainer, ExplanationStream
    from tam_fast.explanation import Explanation, Word
    from tam_fast.pipeline import Compat

__all__ = ["ExitCode", "app", "main"]


class ExitCode(IntEnum):
    """Exit codes of the command."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    FILE = 3
    MODEL = 4


_EPILOG = """\b
Exit codes:
  0  done
  1  an unexpected failure (--debug shows where)
  2  wrong usage: an option's value, an empty prompt
  3  a file: an image that cannot be read, is none or is too large; results that cannot be written
  4  the model: not found, not supported, or unable to take this input
With several images each is explained on its own; one that fails is reported, the others are still explained, and
the exit code is the first failure's."""

app = typer.Typer(
    name="tam-fast",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=_EPILOG,
)


class _Failure(Exception):
    """What the user is told in one line, and the exit code."""

    def __init__(self, code: ExitCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class CompatName(str, Enum):
    """Other definitions of the maps than this library's own."""

    OFFICIAL = "official"
    PAPER = "paper"


class Dtype(str, Enum):
    """Number formats of the model's weights; ``auto`` leaves them as they are stored."""

    AUTO = "auto"
    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


def main() -> None:
    """Run the command; the entry point ``tam-fast``."""
    for stream in (sys.stdout, sys.stderr):
        # An answer may hold characters that the terminal's encoding lacks.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    app(prog_name="tam-fast")


def _version(wanted: bool) -> None:
    if wanted:
        from tam_fast._version import __version__

        typer.echo(f"tam-fast {__version__}")
        raise typer.Exit


@app.callback()
def _app(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Token Activation Maps: which pixels made a vision-language model say this word?"""


@app.command(epilog=_EPILOG)
def explain(
    images: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="IMAGE",
            help="Image files, '-' for standard input. Without any, a sample scene that comes with the package.",
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
    ] = "inferno",
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
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Explain what a model says about images: where it saw each word.

    For each image, DIR gets NAME.png (every token's overlay in one picture), NAME.safetensors and NAME.json (the
    explanation, for tam_fast.load). Results of an earlier run are replaced; other files are not, unless --force.
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
    with _failures(debug):
        _check(job)
        code = _run(job, images or [], debug)
    if code:
        raise typer.Exit(code)


@app.command(epilog=_EPILOG)
def info(
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON document.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Tell which kernels, devices and versions are in use, and why."""
    with _failures(debug):
        found = _system()
        if as_json:
            _print_json(found)
            return
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(show_header=False, box=None, pad_edge=False)
        for name, value in _flatten(found):
            table.add_row(Text(name, style="bold"), Text(value))
        _console(Console).print(table)


# Running ------------------------------------------------------------------------------------------------


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
class _Source:
    """One image that the user named."""

    name: str
    file: Path | io.BytesIO
    stem: str


@dataclass
class _Outcome:
    """What is reported at the end."""

    results: list[dict[str, Any]] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)

    def fail(self, name: str, failure: _Failure) -> None:
        message = f"{name}: {failure}"
        self.errors.append({"image": name, "code": int(failure.code), "message": message})
        _error_line(message)


def _check(job: _Job) -> None:
    """Refuse option values that cannot work, before anything is loaded."""

    def refuse(option: str, expected: str, got: object) -> NoReturn:
        raise _Failure(ExitCode.USAGE, f"{option}: expected {expected}, got {got!r}")

    if not job.prompt.strip():
        refuse("--prompt", "some text", job.prompt)
    if job.answer is not None and not job.answer.strip():
        refuse("--answer", "some text", job.answer)
    if job.model is not None and not job.model.strip():
        refuse("--model", "a model folder or a model hub id", job.model)
    if job.max_new_tokens < 1:
        refuse("--max-new-tokens", "at least 1", job.max_new_tokens)
    if job.max_pixels < 1:
        refuse("--max-pixels", "at least 1", job.max_pixels)
    if not (1 <= job.kernel_size <= 15 and job.kernel_size % 2):
        refuse("--kernel-size", "an odd number from 1 to 15", job.kernel_size)
    from tam_fast.render import colormap

    try:
        colormap(job.cmap)
    except ValueError as error:
        raise _Failure(ExitCode.USAGE, f"--{error}") from error


def _run(job: _Job, names: Sequence[str], debug: bool) -> int:
    """Explain all images; return the exit code."""
    outcome = _Outcome()
    stdout = sys.stdout
    say = _progress(job.quiet)
    # Whatever libraries print belongs on stderr: stdout is for the results.
    with redirect_stdout(sys.stderr):
        groups = _groups(job, names, outcome)
        if groups:
            _make_folder(job.output)
            say("loading the embedded model" if job.model is None else f"loading {job.model}")
            explainer = _load_explainer(job, debug)
        plan = _Targets(job, groups)
        for number, group in enumerate(groups, 1):
            name = ", ".join(source.name for source in group)
            say(f"[{number}/{len(groups)}] {name}")
            try:
                targets = plan.choose(group)
                explanation = _explain(job, explainer, group)
                _write(job, explanation, targets)
            except Exception as error:
                if debug and not isinstance(error, _Failure):
                    raise
                outcome.fail(name, _as_failure(error))
                continue
            if job.as_json:
                shown = [source.name for source in group] if job.together else name
                files = {kind: str(path) for kind, path in targets.items()}
                outcome.results.append({"image": shown, **_describe(explanation), "files": files})
            elif not job.quiet:
                _show(stdout, name, explanation, targets, job.cmap)
    if job.as_json:
        from tam_fast._version import __version__

        _print_json({"tam_fast": __version__, "results": outcome.results, "errors": outcome.errors})
    return int(outcome.errors[0]["code"]) if outcome.errors else 0


def _explain(job: _Job, explainer: Explainer, group: Sequence[_Source]) -> Explanation:
    pictures = [_decode(source) for source in group]
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
        raise _Failure(ExitCode.MODEL, _one_line(error)) from error


def _watch(steps: ExplanationStream) -> Explanation:
    """Show the answer on stderr's last line while it is written."""
    try:
        for step in steps:
            tail = _printable(" ".join(step.text.split()))[-60:]
            print(f"\r\x1b[Ktam-fast: token {step.index + 1}  {tail}", end="", file=sys.stderr, flush=True)
        return steps.explanation
    finally:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
        steps.close()


# Models -------------------------------------------------------------------------------------------------


def _load_explainer(job: _Job, debug: bool) -> Explainer:
    """Load the model and its processor and put an Explainer around them."""
    import torch
    import transformers

    from tam_fast.explainer import Explainer

    if not debug:
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    device = _device(job.device)
    dtype = job.dtype if job.dtype == "auto" else getattr(torch, job.dtype)
    name = "the embedded model" if job.model is None else repr(job.model)
    try:
        if job.model is None:
            from tam_fast.demo import load_demo

            model, processor = load_demo()
            model = model.to(device) if dtype == "auto" else model.to(device, dtype)
        else:
            from tam_fast.models.processors import load_processor

            _check_folder(job.model)
            # Code that comes with a model is never run (and the question whether to is never asked).
            model = transformers.AutoModelForImageTextToText.from_pretrained(
                job.model, dtype=dtype, trust_remote_code=False
            )
            model = model.to(device).eval()
            processor = load_processor(job.model, trust_remote_code=False)
        return Explainer(model, processor)
    except _Failure:
        raise
    # Whatever is wrong with a model's files surfaces as nearly any type of exception.
    except Exception as error:
        raise _Failure(ExitCode.MODEL, f"--model: cannot use {name}: {_one_line(error)}") from error


def _check_folder(model: str) -> None:
    """Tell a folder that is missing from a hub id, so that a mistyped path is not looked for on the network."""
    path = Path(model)
    # Hub ids of such models are OWNER/NAME.
    looks_like_path = path.is_absolute() or model.startswith((".", "~")) or model.count("/") != 1 or "\\" in model
    if path.is_dir() and not (path / "config.json").is_file():
        raise _Failure(ExitCode.MODEL, f"--model: expected a model folder, got {model!r}, which has no config.json")
    if path.is_file() or (looks_like_path and not path.exists()):
        found = "which is a file" if path.is_file() else "which does not exist"
        expected = "a model folder or a model hub id (OWNER/NAME)"
        raise _Failure(ExitCode.MODEL, f"--model: expected {expected}, got {model!r}, {found}")


def _device(name: str) -> Any:
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        # Fails where torch lacks the device; costs nothing elsewhere.
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise _Failure(
            ExitCode.USAGE, f"--device: expected one that torch can use here, got {name!r} ({_one_line(error, 100)})"
        ) from error
    return device


# Images -------------------------------------------------------------------------------------------------


def _groups(job: _Job, names: Sequence[str], outcome: _Outcome) -> list[list[_Source]]:
    """Find the images and check their heads; what is shown to the model in one prompt forms a group."""
    if not names:
        from tam_fast.demo import sample_scenes

        names = [str(path) for path in sample_scenes()[:1]]
        if not names:
            raise _Failure(ExitCode.FILE, "this installation lacks the sample scenes; name an image")
    if list(names).count("-") > 1:
        raise _Failure(ExitCode.USAGE, "IMAGE: expected '-' (standard input) at most once")

    def find(name: str) -> _Source | None:
        try:
            return _find(name, job.max_pixels)
        except _Failure as failure:
            outcome.fail(name, failure)
            return None

    sources = [source for name in names if (source := find(name)) is not None]
    if job.together:
        return [] if outcome.errors else [sources]
    return [[source] for source in sources]


def _find(name: str, max_pixels: int) -> _Source:
    """Check that a name is that of an image which is not too large, by its head alone."""
    if name == "-":
        source = _Source(name, io.BytesIO(sys.stdin.buffer.read()), "stdin")
    else:
        path = Path(name)
        if not path.exists():
            raise _Failure(ExitCode.FILE, "no such file")
        if path.is_dir():
            raise _Failure(ExitCode.FILE, "expected an image file, got a folder")
        source = _Source(name, path, path.stem)
    with _opened(source) as image:
        width, height = image.size
    if width * height > max_pixels:
        raise _Failure(
            ExitCode.FILE,
            f"expected at most {max_pixels} pixels (--max-pixels), got {width} x {height} = {width * height}",
        )
    return source


@contextmanager
def _opened(source: _Source) -> Iterator[Image.Image]:
    """Open an image; whatever goes wrong with its file or decoder becomes one line."""
    from PIL import Image, UnidentifiedImageError

    limit = Image.MAX_IMAGE_PIXELS
    # --max-pixels takes the place of Pillow's limit, which would only warn at first.
    Image.MAX_IMAGE_PIXELS = None
    try:
        if isinstance(source.file, io.BytesIO):
            source.file.seek(0)
        with Image.open(source.file) as image:
            yield image
    except _Failure:
        raise
    except UnidentifiedImageError as error:
        raise _Failure(ExitCode.FILE, "not an image, or of a format that Pillow does not know") from error
    # Damaged files make decoders raise nearly anything: OSError, SyntaxError, ValueError, struct.error, ...
    except Exception as error:
        raise _Failure(ExitCode.FILE, f"the image cannot be read: {_one_line(error)}") from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _decode(source: _Source) -> Image.Image:
    """Decode an image to upright RGB: the first frame, transparency on white, 16 and 32 bits scaled to 8."""
    from PIL import ImageOps

    with _opened(source) as image:
        image.load()
        upright = ImageOps.exif_transpose(image)
        return _to_rgb(upright)


def _to_rgb(image: Image.Image) -> Image.Image:
    import numpy as np
    from PIL import Image

    if image.mode.startswith("I") or image.mode == "F":
        values = np.nan_to_num(np.asarray(image, dtype=np.float64), nan=0.0, posinf=0.0, neginf=0.0)
        largest = values.max()
        # A whole-number format is 16 bits wide unless it holds more; a float is 0..1 or as large as it is.
        if image.mode == "F":
            top = 1.0 if largest <= 1.0 else 255.0 if largest <= 255.0 else largest
        else:
            top = max(65535.0, largest)
        image = Image.fromarray((values.clip(0.0, top) * (255.0 / top) + 0.5).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(ground, image).convert("RGB")
    return image.convert("RGB")


# Results ------------------------------------------------------------------------------------------------


class _Targets:
    """Chooses the result files of each image: never an input, nor another program's file."""

    def __init__(self, job: _Job, groups: Sequence[Sequence[_Source]]) -> None:
        self._job = job
        self._inputs = [source.file for group in groups for source in group if isinstance(source.file, Path)]
        self._taken: set[str] = set()

    def choose(self, group: Sequence[_Source]) -> dict[str, Path]:
        stem = first = "together" if self._job.together else group[0].stem
        number = 1
        # Lower case: some file systems do not tell a.png from A.png.
        while stem.lower() in self._taken:
            number += 1
            stem = f"{first}-{number}"
        self._taken.add(stem.lower())
        targets = {
            kind: self._job.output / f"{stem}.{suffix}"
            for kind, suffix in (("sheet", "png"), ("arrays", "safetensors"), ("json", "json"))
        }
        existing = [path for path in targets.values() if path.exists()]
        for path in existing:
            if any(path.samefile(source) for source in self._inputs if source.exists()):
                raise _Failure(
                    ExitCode.FILE, f"the result {path} would replace an input; choose another folder with -o"
                )
        if existing and not (self._job.force or _is_ours(targets["json"])):
            raise _Failure(
                ExitCode.FILE,
                f"{existing[0]} exists and is not of an earlier run; choose another folder with -o, or --force",
            )
        return targets


def _is_ours(path: Path) -> bool:
    """Whether a JSON file was written by Explanation.save."""
    from tam_fast.explanation import FORMAT

    try:
        with path.open("rb") as file:
            return f'"format": "{FORMAT}"'.encode() in file.read(200)
    except OSError:
        return False


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or _one_line(error)
        raise _Failure(ExitCode.FILE, f"--output: cannot make the folder {str(folder)!r}: {reason}") from error


def _write(job: _Job, explanation: Explanation, targets: dict[str, Path]) -> None:
    try:
        explanation.save(targets["json"])
        explanation.sheet(cmap=job.cmap).save(targets["sheet"])
    except OSError as error:
        raise _Failure(ExitCode.FILE, f"the results cannot be written: {_one_line(error)}") from error


def _describe(explanation: Explanation) -> dict[str, Any]:
    """Make the part of the JSON document that is about one explanation."""
    strengths = explanation.visual_strength.tolist()
    scales, flats = explanation.maps.scale.tolist(), explanation.maps.flat.tolist()
    return {
        "model": explanation.model,
        "prompt": explanation.prompt,
        "answer": explanation.text,
        "words": [
            {
                "word": word.text,
                "strength": word.strength,
                "characters": list(word.characters),
                "tokens": [word.start, word.stop],
                "peak": _peak(explanation, word),
            }
            for word in explanation.words
        ],
        "tokens": [
            {
                "token": token,
                "id": explanation.token_ids[i],
                "strength": strengths[i],
                "scale": scales[i],
                "flat": flats[i],
                "candidates": [
                    {"token": c.token, "id": c.token_id, "probability": c.probability}
                    for c in explanation.candidates[i]
                ],
            }
            for i, token in enumerate(explanation.tokens)
        ],
        "grids": [
            {"height": grid.height, "width": grid.width, "source": grid.source, "box": list(grid.box)}
            for grid in explanation.layout.grids
        ],
        "seconds": explanation.elapsed,
    }


def _peak(explanation: Explanation, word: Word) -> dict[str, Any] | None:
    """Where a word's map is strongest, as cell and as pixel of the image; None for a map of zeros."""
    peak = explanation.peak(word)
    if peak.value <= 0.0:
        return None
    pixel = None
    if explanation.images:
        width, height = explanation.images[peak.source].size
        pixel = [int(min(max(peak.x, 0.0) * width, width - 1)), int(min(max(peak.y, 0.0) * height, height - 1))]
    return {"grid": peak.grid, "row": peak.row, "column": peak.column, "source": peak.source, "pixel": pixel}


def _show(stdout: TextIO, name: str, explanation: Explanation, targets: dict[str, Path], cmap: str) -> None:
    """Print the sentence, each word on a ground of its strength, and a table of the words."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = _console(Console, stdout)
    grids = ", ".join(f"{height}x{width}" for height, width in explanation.layout.sizes)
    console.print(
        Text(_printable(f"{name}  ({explanation.model}; {len(explanation)} tokens; cells {grids})"), style="dim"),
        soft_wrap=True,
    )
    # Words are kept whole on a terminal; in a file the sentence is one line.
    console.print(_painted(explanation, cmap), soft_wrap=not console.is_terminal)
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("word", overflow="fold")
    for title in ("strength", "peak cell", "pixel", "scale"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("first token's candidates", overflow="fold")
    several = len(explanation.layout.grids) > 1
    for word in explanation.words:
        peak = _peak(explanation, word)
        cell = "-" if peak is None else f"{peak['row']},{peak['column']}"
        if several and peak is not None:
            cell = f"{peak['grid']}:{cell}"
        pixel = "-" if peak is None or peak["pixel"] is None else "{},{}".format(*peak["pixel"])
        likely = "  ".join(
            f"{c.token.strip() or repr(c.token)} {c.probability:.2f}" for c in explanation.candidates[word.start]
        )
        scale = f"{float(explanation.maps.scale[word.start]):.2f}"
        table.add_row(
            *(Text(_printable(text)) for text in (word.text, f"{word.strength:.2f}", cell, pixel, scale, likely))
        )
    if explanation.words:
        console.print(table)
    console.print(Text(f"{targets['sheet']}  {targets['arrays']}  {targets['json']}", style="dim"), soft_wrap=True)
    console.print()


def _painted(explanation: Explanation, cmap: str) -> Any:
    """Make the answer's text, its words on grounds of their strengths (seen on a terminal only)."""
    from rich.text import Text

    from tam_fast.render import colormap

    table = colormap(cmap)
    text = Text(_printable(explanation.text))
    for word in explanation.words:
        red, green, blue = (int(c) for c in table[round(255 * min(max(word.strength, 0.0), 1.0))])
        ink = "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white"
        text.stylize(f"{ink} on rgb({red},{green},{blue})", *word.characters)
    return text


# Talking ------------------------------------------------------------------------------------------------


@contextmanager
def _failures(debug: bool) -> Iterator[None]:
    """Turn whatever goes wrong into one line on stderr and an exit code."""
    try:
        yield
    except (typer.Exit, BrokenPipeError):
        raise
    except Exception as error:
        if debug:
            import traceback

            traceback.print_exc()
        failure = _as_failure(error)
        _error_line(str(failure))
        raise typer.Exit(int(failure.code)) from None


def _as_failure(error: Exception) -> _Failure:
    if isinstance(error, _Failure):
        return error
    return _Failure(ExitCode.FAILURE, f"unexpected {type(error).__name__}: {_one_line(error)} (--debug shows where)")


def _error_line(message: str) -> None:
    print(f"tam-fast: error: {_one_line(message)}", file=sys.stderr)


def _printable(text: str) -> str:
    """Replace control characters one by one: an answer or a file name must not steer the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


def _one_line(error: object, limit: int = 400) -> str:
    text = _printable(" ".join(str(error).split()))
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _progress(quiet: bool) -> Callable[[str], None]:
    start = time.perf_counter()

    def say(message: str) -> None:
        if not quiet:
            seconds = time.perf_counter() - start
            print(f"tam-fast: {seconds:5.1f} s  {_printable(message)}", file=sys.stderr, flush=True)

    return say


def _console(make: Callable[..., Any], file: TextIO | None = None) -> Any:
    """Make a rich console; where there is no terminal to measure, one wide enough for the table."""
    file = sys.stdout if file is None else file
    return make(file=file, highlight=False, width=None if file.isatty() else 120)


def _print_json(document: object) -> None:
    # ASCII: no terminal encoding can spoil it.
    print(json.dumps(document, indent=1))


def _system() -> dict[str, Any]:
    """Gather what ``info`` tells."""
    import platform
    from importlib import metadata

    import torch

    from tam_fast import backend_info
    from tam_fast._version import __version__

    def version(name: str) -> str:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return "not installed"

    packages = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "pillow", "triton")
    versions = {"python": platform.python_version(), **{name: version(name) for name in packages}}
    devices = [f"cpu: {platform.machine()}, {torch.get_num_threads()} threads"]
    devices += [f"cuda:{i}: {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    return {
        "tam-fast": __version__,
        "platform": platform.platform(),
        "devices": devices,
        "versions": versions,
        "backend": backend_info(),
    }


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Walk nested dicts and lists as (dotted name, text)."""
    if isinstance(value, dict) and value:
        for name, item in value.items():
            yield from _flatten(item, f"{prefix}.{name}" if prefix else str(name))
    elif isinstance(value, (list, tuple)):
        yield prefix, ", ".join(map(str, value)) or "none"
    else:
        yield prefix, str(value)
