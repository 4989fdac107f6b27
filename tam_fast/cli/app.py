"""The table of commands, and the entry point."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Annotated

import typer

from tam_fast.cli.console import EPILOG, Failure, error_line, to_stdout
from tam_fast.cli.help import Grouped

__all__ = ["COMMANDS", "app", "main"]

COMMANDS = ("explain", "compare", "dataset", "models", "methods", "layout", "evaluate", "info")
"""Every name is a module of this folder and the function in it that is the command; ``--help`` keeps their order.

A module whose options are read in a way of their own has a class ``Command`` for that."""

app = typer.Typer(
    name="tam-fast",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EPILOG,
)
for _name in COMMANDS:
    _module = import_module(f"tam_fast.cli.{_name}")
    app.command(cls=getattr(_module, "Command", Grouped), epilog=EPILOG)(getattr(_module, _name))


def main() -> None:
    """Run the command; the entry point ``tam-fast``."""
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        # An answer may hold characters that the terminal's encoding lacks.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        with to_stdout():
            app(prog_name="tam-fast")
    # What the commands do not turn into one: --help and --version to a disk that is full.
    except Failure as failure:
        error_line(str(failure))
        sys.exit(int(failure.code))


def _open_closed_streams() -> None:
    """Put something in the place of standard streams that are closed, lest files that we open become them.

    What is printed on a closed stdout fails, as it does for other programs; what is printed on a closed stderr is lost.
    """
    for handle in range(3):
        if not _is_open(handle):
            nowhere = os.open(os.devnull, os.O_WRONLY if handle == 2 else os.O_RDONLY)
            if nowhere != handle:
                os.dup2(nowhere, handle)
                os.close(nowhere)
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)


def _is_open(handle: int) -> bool:
    try:
        os.fstat(handle)
    except OSError:
        return False
    return True


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
