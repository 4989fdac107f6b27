"""``tam-fast methods``: what can explain beside TAM, what it needs and costs, and whether a model can."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tam_fast.cli.console import Debug, ExitCode, Failure, failures, print_json, printable, rich_console, to_stdout

if TYPE_CHECKING:
    from tam_fast.methods import Method

__all__ = ["methods"]

BEHIND = {
    "interference": {
        "eci": "what context tokens explain, by textual relevance: the paper's causal inference",
        "eci_mean": "the same, each context token counting as much",
        "eci_attention": "the same, by attention to the context tokens",
        "feature_surgery": "what the maps of all tokens have in common",
    },
    "filter": {
        "rank_gaussian": "the paper's filter; rgf for short",
        "gaussian": "a Gaussian of the window's size",
        "median": "the median of the window",
        "adaptive_median": "the median, of a window that grows while it is an extreme",
    },
    "scale": {
        "map": "each map by its own extremes",
        "answer": "all maps of the answer by their common extremes",
    },
}
"""What can stand behind a method's name, and how its maps are scaled."""


def methods(
    model: Annotated[
        str | None,
        typer.Option(
            "-m",
            "--model",
            metavar="ID_OR_PATH",
            help="Also say which of them this model folder or model hub id can be explained by; it is loaded.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON document.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a table in Markdown.")] = False,
    debug: Debug = False,
) -> None:
    """List the methods that --method of explain takes: what each needs and costs, its options, and its paper.

    Needs: final hidden states, gradients, attention (queries and keys of the layers), or many forwards. T is the number
    of tokens that are explained, N that of visual cells, K that of regions.
    """
    with failures(debug):
        if markdown and (as_json or model is not None):
            other = "--json" if as_json else "--model"
            raise Failure(ExitCode.USAGE, f"--markdown: expected none with {other}")
        if model is not None and not model.strip():
            raise Failure(ExitCode.USAGE, f"--model: expected a model folder or a model hub id, got {model!r}")
        from tam_fast.methods import METHODS

        reasons = None if model is None else _reasons(model, debug)
        if as_json:
            print_json(_document(METHODS, reasons))
        elif markdown:
            with to_stdout() as stdout:
                print(*_markdown(METHODS), sep="\n", file=stdout)
        else:
            _print(METHODS, reasons)


def _reasons(model: str, debug: bool) -> dict[str, str]:
    """Load a model, and say of every method why the model cannot be explained by it; '' where it can."""
    from tam_fast.cli.loading import load_explainer
    from tam_fast.methods import available

    found: dict[str, str] = available(load_explainer(model, "cpu", "auto", debug).model)
    return found


def _document(found: Mapping[str, Method], reasons: Mapping[str, str] | None) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    for name, method in found.items():
        entries[name] = {
            "kind": method.kind,
            "needs": sorted(method.needs),
            "cost": method.cost,
            "signed": method.signed,
            "options": dict(method.options),
            "source": method.source,
        }
        if reasons is not None:
            entries[name] |= {"supported": not reasons[name], "reason": reasons[name]}
    return {"methods": entries, **{f"{part}s": texts for part, texts in BEHIND.items()}}


def _print(found: Mapping[str, Method], reasons: Mapping[str, str] | None) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    head = ["method", "kind", "needs", "signed"]
    for title in [*head, "this model"] if reasons is not None else head:
        table.add_column(title, no_wrap=True)
    for title in ("cost", "options", "source"):
        table.add_column(title, overflow="fold")
    for name, method in found.items():
        row = [name, method.kind, ", ".join(sorted(method.needs)), "yes" if method.signed else ""]
        if reasons is not None:
            row.append("no" if reasons[name] else "yes")
        row += [method.cost, _options(method), method.source]
        table.add_row(*map(Text, row))
    with to_stdout() as stdout:
        console = rich_console(stdout, width=180)
        console.print(table)
        for part, texts in BEHIND.items():
            title = f"\n{'--scale' if part == 'scale' else f'+{part.upper()}'}"
            lines = [f"  {name:16} {text}" for name, text in texts.items()]
            console.print(Text("\n".join([title, *lines])))
        if reasons is not None:
            for reason, names in _by_reason(reasons).items():
                console.print(Text(printable(f"\nnot by this model: {', '.join(names)}\n  {reason}")))


def _options(method: Method) -> str:
    return ", ".join(f"{name}={_value(value)}" for name, value in method.options.items())


def _value(value: Any) -> str:
    """Write a default as ``--method-option`` takes it."""
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _by_reason(reasons: Mapping[str, str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        if reason:
            groups.setdefault(reason, []).append(name)
    return groups


def _markdown(found: Mapping[str, Method]) -> list[str]:
    lines = ["| method | kind | needs | cost | signed | options | source |", "|---|---|---|---|---|---|---|"]
    for name, method in found.items():
        signed = "yes" if method.signed else ""
        options = ", ".join(f"`{key}={_value(value)}`" for key, value in method.options.items())
        row = (f"`{name}`", method.kind, ", ".join(sorted(method.needs)), method.cost, signed, options, method.source)
        lines.append(f"| {' | '.join(part.replace('|', '&#124;') for part in row)} |")
    return lines
