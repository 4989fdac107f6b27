"""``tam-fast dataset``: explanations of a whole data set, as Parquet; gone on with after any interruption."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tam_fast.cli.console import Debug, ExitCode, Failure, failures, one_line, print_json, printable, tell, to_stdout
from tam_fast.cli.loading import Dtype, check_folder, load_explainer, quiet_libraries

if TYPE_CHECKING:
    from tam_fast.dataset import Progress, Report

__all__ = ["dataset"]


class EngineName(str, Enum):
    """What schedules the work."""

    LOCAL = "local"
    RAY = "ray"


class MapsFormat(str, Enum):
    """Number formats of the maps that are kept."""

    UINT8 = "uint8"
    FLOAT16 = "float16"


_CODES = {
    "input": ExitCode.FILE,
    "output": ExitCode.FILE,
    "id": ExitCode.FILE,
    "states": ExitCode.FILE,
    "folder": ExitCode.MODEL,
    "model": ExitCode.MODEL,
}
"""Exit codes of what is wrong with an argument, by its name."""

_MAX_NEW_TOKENS, _METHOD = 128, "tam"

_INPUT, _ROWS, _MODEL, _OUTPUT, _RUN = "Input", "Columns", "Model", "Output", "Run"


def _option(group: str, *names: str, help: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel=group)


def dataset(
    source: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="A folder of images, Parquet, Arrow, JSON lines or tar files, or one such file; with --show a folder "
            "that this command wrote.",
        ),
    ],
    output: Annotated[
        Path | None, _option(_OUTPUT, "-o", "--output", metavar="DIR", help="Where the parts go.")
    ] = None,
    prompt: Annotated[
        str | None,
        _option(
            _INPUT,
            "-p",
            "--prompt",
            metavar="TEXT_OR_COLUMN",
            help='What each image is asked ("Describe this image." if not given), or the column that holds it.',
        ),
    ] = None,
    id: Annotated[str | None, _option(_ROWS, "--id", metavar="COLUMN", help="Ids; path or file:row if none.")] = None,
    image: Annotated[
        str | None,
        _option(_ROWS, "--image", metavar="COLUMN", help="Images: bytes or paths; several columns by commas."),
    ] = None,
    answer: Annotated[
        str | None,
        _option(_ROWS, "--answer", metavar="COLUMN", help="Answers to explain, in place of generated ones."),
    ] = None,
    allow_outside: Annotated[
        bool, _option(_INPUT, "--allow-outside", help="Take images outside the input's folder.")
    ] = False,
    model: Annotated[
        str | None,
        _option(_MODEL, "-m", "--model", metavar="ID_OR_PATH", help="A model folder or hub id; else the embedded one."),
    ] = None,
    device: Annotated[str, _option(_MODEL, "--device", help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    dtype: Annotated[Dtype, _option(_MODEL, "--dtype", help="Number format of the weights.")] = Dtype.AUTO,
    max_new_tokens: Annotated[int, _option(_MODEL, "--max-new-tokens", help="The longest answer.")] = _MAX_NEW_TOKENS,
    method: Annotated[str, _option(_MODEL, "--method", help="Whose maps; see `tam-fast methods`.")] = _METHOD,
    maps: Annotated[
        str, _option(_OUTPUT, "--maps", help="Maps that are kept: tokens, words, none, or top:K tokens.")
    ] = "tokens",
    maps_format: Annotated[MapsFormat, _option(_OUTPUT, "--maps-format", help="Of each cell.")] = MapsFormat.UINT8,
    shard_rows: Annotated[int, _option(_OUTPUT, "--shard-rows", help="Rows of a part.")] = 64,
    overwrite: Annotated[bool, _option(_OUTPUT, "--overwrite", help="Begin anew; remove what is there.")] = False,
    batch_size: Annotated[int, _option(_RUN, "--batch-size", help="Rows that run together.")] = 8,
    retry_errors: Annotated[bool, _option(_RUN, "--retry-errors", help="Explain error rows anew.")] = False,
    max_errors: Annotated[
        int | None, _option(_RUN, "--max-errors", help="Stop when there are more error rows than this.")
    ] = None,
    engine: Annotated[EngineName, _option(_RUN, "--engine", help="One process, or a Ray cluster.")] = EngineName.LOCAL,
    workers: Annotated[int | None, _option(_RUN, "--workers", help="Of the Ray cluster.")] = None,
    gpus_per_worker: Annotated[float | None, _option(_RUN, "--gpus-per-worker", help="Of the Ray cluster.")] = None,
    address: Annotated[
        str | None, _option(_RUN, "--address", metavar="HOST:PORT", help="A Ray cluster; else one of its own.")
    ] = None,
    states: Annotated[
        Path | None,
        _option(_MODEL, "--states", metavar="DIR", help="Hidden states of --answer that vLLM wrote, ID.safetensors."),
    ] = None,
    show: Annotated[str | None, _option(_OUTPUT, "--show", metavar="ID", help="Print one row of INPUT.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print progress as lines of JSON.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print errors alone.")] = False,
    debug: Debug = False,
) -> None:
    """Explain every row of a data set: text, words, scores and maps as Parquet, in DIR.

    It may be stopped at any moment, and goes on where it was when the same command is run again; rows that came to the
    input since are added. Ctrl-C ends the part at work, a second one stops at once.

    What cannot be explained becomes an error row; the exit code is 5 as long as there are any.
    """
    with failures(debug):
        if show is not None:
            _show(source, show, as_json)
            return
        if output is None:
            raise Failure(ExitCode.USAGE, "--output: expected a folder (-o DIR), got none")
        options = {"workers": workers, "gpus_per_worker": gpus_per_worker, "address": address}
        given = {name: value for name, value in options.items() if value is not None}
        if given and engine is EngineName.LOCAL:
            raise Failure(
                ExitCode.USAGE, f"--{next(iter(given)).replace('_', '-')}: expected none without --engine ray"
            )
        arguments: dict[str, Any] = {
            "id": id,
            "image": image,
            "answer": answer,
            "maps": maps,
            "maps_format": maps_format.value,
            "shard_rows": shard_rows,
            "batch_size": batch_size,
            "overwrite": overwrite,
            "retry_errors": retry_errors,
            "max_errors": max_errors,
            "allow_outside": allow_outside,
            "engine": engine.value,
            "explain": {"max_new_tokens": max_new_tokens, "method": method},
            **given,
        }
        if states is not None:
            arguments |= {"states": str(states), "explain": _options_with_states(max_new_tokens, method)}
        if prompt is not None:
            arguments["prompt"] = prompt
        report = _run(source, output, model, device, dtype.value, arguments, as_json, quiet, debug)
        if as_json or not quiet:
            with to_stdout() as stdout:
                print(json.dumps(_document(report)) if as_json else _told(report), file=stdout)
    if not report.finished:
        raise typer.Exit(int(ExitCode.FAILURE))
    if report.errors:
        raise typer.Exit(int(ExitCode.ERROR_ROWS))


def _run(
    source: str,
    output: Path,
    model: str | None,
    device: str,
    dtype: str,
    arguments: dict[str, Any],
    as_json: bool,
    quiet: bool,
    debug: bool,
) -> Report:
    from tam_fast.dataset import Locked, TooManyErrors, run

    chosen: Any = model
    if arguments["engine"] == "local" and "states" not in arguments:
        chosen = load_explainer(model, device, dtype, debug)
    else:
        if model is not None:
            check_folder(model)
        if not debug:
            quiet_libraries()
        arguments |= {"device": device, "dtype": dtype}
    try:
        with _stopped_by_signals(quiet) as stop, _shown(as_json, quiet) as progress:
            return run(source, output, model=chosen, stop=stop, progress=progress, **arguments)
    except (ValueError, TypeError) as error:
        name = str(error).partition(":")[0]
        code = _CODES.get(name, ExitCode.USAGE)
        raise Failure(code, str(error)) from error
    except Locked as error:
        raise Failure(ExitCode.FILE, str(error)) from error
    except ModuleNotFoundError as error:
        raise Failure(ExitCode.FAILURE, str(error)) from error
    except TooManyErrors as error:
        raise Failure(ExitCode.FAILURE, str(error)) from error


def _options_with_states(max_new_tokens: int, method: str) -> dict[str, Any]:
    """Nothing is generated, and what is not recorded cannot be attributed by other methods."""
    for name, value, default in (("max-new-tokens", max_new_tokens, _MAX_NEW_TOKENS), ("method", method, _METHOD)):
        if value != default:
            raise Failure(ExitCode.USAGE, f"--{name}: expected none with --states, got {value}")
    return {}


@contextmanager
def _stopped_by_signals(quiet: bool) -> Iterator[threading.Event]:
    """Turn the first Ctrl-C or SIGTERM into an event; the second one stops at once."""
    stop = threading.Event()

    def asked(_number: int, _frame: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        if not quiet:
            tell("tam-fast: ending the part at work; once more stops at once")

    before = {number: signal.signal(number, asked) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _shown(as_json: bool, quiet: bool) -> Iterator[Any]:
    """Show how far the run is: a bar on a terminal, lines of JSON, or nothing."""
    if as_json:
        yield _lines
    elif quiet or not sys.stderr.isatty():
        yield None
    else:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
        with Bars(*columns, console=Console(file=sys.stderr), transient=True) as bars:
            task = bars.add_task("", total=None, rate="")

            def advance(now: Progress) -> None:
                rate = f"{now.explained / max(now.seconds, 1e-9):.1f} rows/s"
                rate += f", {now.errors} errors" if now.errors else ""
                bars.update(task, completed=now.rows, total=now.total, rate=rate)

            yield advance


def _lines(now: Progress) -> None:
    rate = now.explained / max(now.seconds, 1e-9)
    left = (now.total - now.rows) / rate if rate > 0 else None
    entry = {"rows": now.rows, "total": now.total, "errors": now.errors, "rows_per_second": round(rate, 3)}
    with to_stdout() as stdout:
        print(json.dumps({**entry, "seconds_left": None if left is None else round(left, 1)}), file=stdout)


def _document(report: Report) -> dict[str, Any]:
    return {
        "output": str(report.output),
        "rows": report.rows,
        "done": report.done,
        "errors": report.errors,
        "explained": report.explained,
        "seconds": round(report.seconds, 3),
    }


def _told(report: Report) -> str:
    text = f"{report.done} of {report.rows} rows in {printable(str(report.output))}"
    text += f", {report.explained} of them now, in {report.seconds:.1f} s"
    if report.errors:
        text += f"; {report.errors} error rows (--retry-errors explains them anew)"
    return text if report.finished else f"{text}; run the same command again to go on"


def _show(folder: str, name: str, as_json: bool) -> None:
    """Print one row of a data set."""
    from tam_fast.dataset import open_dataset

    try:
        opened = open_dataset(folder)
    except ValueError as error:
        raise Failure(ExitCode.FILE, str(error)) from error
    try:
        record = opened.record(name)
    except KeyError as error:
        raise Failure(ExitCode.USAGE, f"--show: {error.args[0]}") from error
    kept = {key: value for key, value in record.items() if key not in ("maps", "relevance")}
    if as_json:
        print_json(kept)
        return
    with to_stdout() as stdout:
        print(f"{printable(name)}: {record['status']}", file=stdout)
        if record["status"] != "ok":
            print(one_line(record["error"], 2000), file=stdout)
            return
        print(printable(record["text"]), file=stdout)
        for word in record["words"]:
            print(f"  {word['strength']:5.2f}  {printable(word['text'])}", file=stdout)
