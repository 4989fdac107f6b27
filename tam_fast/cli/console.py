"""Talking to the user: failures and exit codes, text that is safe to print, progress, JSON."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import IntEnum
from typing import TYPE_CHECKING, Annotated, TextIO, TypeAlias

import typer

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "EPILOG",
    "Debug",
    "ExitCode",
    "Failure",
    "as_failure",
    "error_line",
    "failures",
    "one_line",
    "print_json",
    "printable",
    "progress",
    "reason",
    "rich_console",
    "shortened",
    "tell",
    "to_stdout",
]


class ExitCode(IntEnum):
    """Exit codes of the command."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    FILE = 3
    MODEL = 4
    ERROR_ROWS = 5


EPILOG = """\b
Exit codes:
  0  done
  1  an unexpected failure (--debug shows where)
  2  wrong usage: an option's value, options that contradict each other, an empty prompt
  3  a file: an input that cannot be read, is of another kind or too large; results or an output that cannot be written
  4  the model: not found, not supported, or unable to take this input; its answer lacks the words to explain
  5  a data set is finished, and there are error rows
With several images each is explained on its own; one that fails is reported, the others are still explained, and
the exit code is the first failure's."""
"""What stands at the end of every help text."""

Debug: TypeAlias = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
"""The option that every command has; its value goes to :func:`failures`."""


class Failure(Exception):
    """What the user is told in one line, and the exit code.

    Parameters
    ----------
    code : ExitCode
        Says whose fault it is.
    message : str
        What was expected and what was got.
    """

    def __init__(self, code: ExitCode, message: str) -> None:
        super().__init__(message)
        self.code = code


@contextmanager
def failures(debug: bool) -> Iterator[None]:
    """Turn whatever goes wrong into one line on stderr and an exit code; with `debug` the traceback comes first."""
    try:
        yield
    except (typer.Exit, BrokenPipeError):
        raise
    except Exception as error:
        if debug:
            import traceback

            tell(traceback.format_exc(), end="")
        failure = as_failure(error)
        error_line(str(failure))
        raise typer.Exit(int(failure.code)) from None


def as_failure(error: Exception) -> Failure:
    """Say what an error is to the user: a file's, or one that nobody foresaw."""
    if isinstance(error, Failure):
        return error
    if isinstance(error, OSError):
        return Failure(ExitCode.FILE, reason(error, file=True))
    return Failure(ExitCode.FAILURE, f"unexpected {type(error).__name__}: {one_line(error)} (--debug shows where)")


def reason(error: OSError, file: bool = False) -> str:
    """Say in plain words what the system has against a file; with `file` also which."""
    text = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {text}" if file and isinstance(error.filename, str) else text


def tell(text: str, end: str = "\n") -> None:
    """Print on stderr; that it is closed or full is no reason to stop."""
    with suppress(OSError, ValueError):
        print(text, end=end, file=sys.stderr, flush=True)


def error_line(message: str) -> None:
    """Print an error on stderr."""
    tell(f"tam-fast: error: {one_line(message)}")


@contextmanager
def to_stdout(stdout: TextIO | None = None) -> Iterator[TextIO]:
    """Print on stdout (or `stdout`) in a block after which all of it has arrived.

    Raises
    ------
    BrokenPipeError
        If the reader has gone away.
    Failure
        If it cannot be written otherwise: the disk is full.
    """
    stream = sys.stdout if stdout is None else stdout
    try:
        yield stream
        stream.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        _discard(stream)
        raise Failure(ExitCode.FILE, f"standard output cannot be written: {reason(error)}") from error


def _discard(stream: TextIO) -> None:
    """Lead a stream nowhere, so that what it still holds does not fail again when Python ends."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def printable(text: str) -> str:
    """Replace control characters one by one: an answer or a file name must not steer the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


def one_line(error: object, limit: int = 400) -> str:
    """Make an error's text one printable line of at most `limit` characters."""
    text = printable(" ".join(str(error).split()))
    return text if len(text) <= limit else text[: limit - 3] + "..."


def shortened(name: str, limit: int = 160) -> str:
    """Cut the middle out of a name that would fill a message."""
    half = limit // 2
    return name if len(name) <= limit else f"{name[:half]}...{name[-half:]}"


def progress(quiet: bool) -> Callable[[str], None]:
    """Return a function that prints a line on stderr, with the seconds since now; with `quiet` it prints nothing."""
    start = time.perf_counter()

    def say(message: str) -> None:
        if not quiet:
            seconds = time.perf_counter() - start
            tell(f"tam-fast: {seconds:5.1f} s  {printable(message)}")

    return say


def rich_console(file: TextIO | None = None, width: int = 120) -> Console:
    """Make a rich console of stdout or `file`; where there is no terminal to measure, it is `width` columns wide."""
    from rich.console import Console

    file = sys.stdout if file is None else file
    return Console(file=file, highlight=False, width=None if file.isatty() else width)


def print_json(document: object) -> None:
    """Print a JSON document on stdout, in ASCII: no terminal encoding can spoil it."""
    with to_stdout() as stdout:
        print(json.dumps(document, indent=1), file=stdout)
