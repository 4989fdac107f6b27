"""``tam-fast models``: which families of models are supported, and how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from tam_fast.cli.console import Debug, ExitCode, Failure, failures, print_json, rich_console, to_stdout

if TYPE_CHECKING:
    from tam_fast.models.supported import Support

__all__ = ["models"]


def models(
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON document.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a table in Markdown.")] = False,
    debug: Debug = False,
) -> None:
    """List the families of models, how their visual tokens are laid out, and what cannot be explained.

    "verified" layouts were proven by painting pictures; a model type that is not listed goes a generic way, with a
    warning, if its configuration marks visual positions.
    """
    with failures(debug):
        if as_json and markdown:
            raise Failure(ExitCode.USAGE, "--markdown: expected none with --json")
        from tam_fast.models.supported import support

        found = support()
        if as_json:
            print_json({model_type: asdict(entry) for model_type, entry in found.items()})
            return
        if markdown:
            with to_stdout() as stdout:
                print(*_markdown(found), sep="\n", file=stdout)
            return
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False)
        for name in ("model type", "family", "status", "layout", "videos", "example"):
            table.add_column(name, no_wrap=True)
        for model_type, entry in found.items():
            if entry.status != "impossible":
                video = "yes" if entry.videos else ""
                row = (model_type, entry.title, entry.status, entry.group, video, entry.example)
                table.add_row(*map(Text, row))
        with to_stdout() as stdout:
            console = rich_console(stdout, width=180)
            console.print(table)
            for status in ("generic", "unbuilt", "impossible"):
                for reason, names in _by_reason(found, status).items():
                    console.print(Text(f"\n{status}: {', '.join(names)}\n  {reason}"))


def _markdown(found: Mapping[str, Support]) -> list[str]:
    lines = ["| model type | family | layout | status | videos | example |", "|---|---|---|---|---|---|"]
    for model_type, entry in found.items():
        status = f"{entry.status}: {entry.reason}" if entry.reason else entry.status
        example = f"`{entry.example}`" if entry.example else ""
        video = "yes" if entry.videos else ""
        lines.append(f"| `{model_type}` | {entry.title} | {entry.group} | {status} | {video} | {example} |")
    return lines


def _by_reason(found: Mapping[str, Support], status: str) -> dict[str, list[str]]:
    """Gather the model types of a status that share a reason."""
    groups: dict[str, list[str]] = {}
    for model_type, entry in found.items():
        if entry.status == status and entry.reason:
            groups.setdefault(entry.reason, []).append(model_type)
    return groups
