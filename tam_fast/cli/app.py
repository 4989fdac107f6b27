"""The table of commands, and the entry point."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Annotated

import typer

from tam_fast.cli.console import EPILOG

__all__ = ["COMMANDS", "app", "main"]

COMMANDS = ("explain", "info")
"""Every name is a module of this folder and the function in it that is the command; ``--help`` keeps their order."""

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
    app.command(epilog=EPILOG)(getattr(import_module(f"tam_fast.cli.{_name}"), _name))


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
