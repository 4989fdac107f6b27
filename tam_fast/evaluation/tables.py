"""Results as tables: Markdown, LaTeX, CSV."""

from __future__ import annotations

import csv as writer
import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tam_fast.evaluation.measures import FIGURES, Figure

if TYPE_CHECKING:
    from tam_fast.evaluation.results import Cell, Results

__all__ = ["best", "csv", "figure_of", "latex", "markdown", "shown"]

COLUMNS = (
    *("method", "figure", "value", "low", "high", "per_image", "n", "images"),
    *("difference", "difference_low", "difference_high", "p"),
)


def figure_of(name: str) -> Figure:
    """Look a figure up; one whose measure is not registered here is shown by its name."""
    return FIGURES.get(name) or Figure(name, name, better="", percent=False)


def shown(value: float, figure: Figure, signed: bool = False) -> str:
    """Write a value as tables do: in percent, with one decimal, or as it is with three significant digits."""
    if not math.isfinite(value):
        return "–"
    sign = "+" if signed else ""
    text = f"{100 * value:{sign}.1f}" if figure.percent else f"{value:{sign}.3f}"
    return text.lstrip("+-") if float(text) == 0 else text


def best(results: Results, name: str) -> set[str]:
    """Name the methods whose value of a figure is the best of all, as tables show it; none where no value is better."""
    figure = figure_of(name)
    cells = [cell for cell in results.cells if cell.figure == name and math.isfinite(cell.value)]
    if not figure.better or not cells:
        return set()
    top = (max if figure.better == "high" else min)(cell.value for cell in cells)
    return {cell.method for cell in cells if shown(cell.value, figure) == shown(top, figure)}


def _figures(results: Results, figures: Sequence[str] | None) -> list[str]:
    if figures is None:
        return results.figures
    unknown = [name for name in figures if name not in results.figures]
    if unknown:
        raise ValueError(f"figures: expected some of {', '.join(results.figures)}, got {', '.join(unknown)}")
    return list(figures)


def _arrow(figure: Figure) -> str:
    return {"high": " ↑", "low": " ↓"}.get(figure.better, "")


def _starred(cell: Cell) -> bool:
    """Whether the difference to the reference is not chance, after Holm's correction."""
    return math.isfinite(cell.p) and cell.p < 0.05


def markdown(results: Results, figures: Sequence[str] | None = None, intervals: bool = True) -> str:
    """Write the table in Markdown: a row a method, a column a figure; then what it was made of, and differences.

    Parameters
    ----------
    results : Results
    figures : sequence of str, optional
        Which columns.
    intervals : bool
        95 % intervals behind the values.

    Returns
    -------
    str
    """
    names = _figures(results, figures)
    lines: list[str] = []
    if names:
        heads = [f"{figure_of(name).title}{_arrow(figure_of(name))}" for name in names]
        lines += [_line(["method", *heads, "ms a token"]), "|---|" + "---:|" * (len(names) + 1)]
        tops = {name: best(results, name) for name in names}
        for method in results.methods:
            row = [f"`{method}`"]
            for name in names:
                cell = results.cell(method, name)
                text = "–" if cell is None else _value(cell, figure_of(name), intervals)
                row.append(f"**{text}**" if method in tops[name] else text)
            row.append(_milliseconds(results, method))
            lines.append(_line(row))
        lines += ["", *_notes(results, names)]
        lines += _differences(results, names)
        lines += _per_image(results, names)
    if results.answers:
        lines += ["", "Of the answers, whatever the method:", ""]
        for cell in results.answers:
            figure = figure_of(cell.figure)
            lines.append(f"- {figure.title}: {_value(cell, figure, intervals)} ({cell.images} answers)")
    lines += _trouble(results)
    return "\n".join(lines).strip() + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"


def _value(cell: Cell, figure: Figure, intervals: bool) -> str:
    text = shown(cell.value, figure)
    if intervals and math.isfinite(cell.low):
        text += f" [{shown(cell.low, figure)}, {shown(cell.high, figure)}]"
    return text


def _milliseconds(results: Results, method: str) -> str:
    found = results.milliseconds.get(method)
    return "–" if found is None else f"{found:.3g}" if found < 1000 else f"{found:,.0f}"


def _notes(results: Results, names: Sequence[str]) -> list[str]:
    percent = [figure_of(name).title for name in names if figure_of(name).percent]
    scale = results.settings.get("scale")
    parts = [
        f"{results.items} items; pooled means over words and answers"
        + (f", in % but for {', '.join(_others(names))}" if percent and _others(names) else ", in %" if percent else "")
        + "; in brackets 95 % intervals of a bootstrap over images "
        + f"({results.resamples} resamples, seed {results.seed}).",
        "Bold: the best value of the column as it is shown.",
    ]
    if scale is not None:
        by = "by its own extremes" if scale == "map" else "by the extremes of its answer's maps"
        parts.append(
            f"`tam` is on TAM's own scale; each other map is scaled {by}, unless its name says otherwise behind `@`."
        )
    if results.settings.get("options", {}).get("compat") == "official":
        parts.append('Figures as the published script\'s (`compat="official"`).')
    parts.append("Time: of the method alone, beyond the pass over prompt and answer that all have in common.")
    images = {name: {cell.images for cell in results.cells if cell.figure == name} for name in names}
    uneven = [name for name in names if len(images[name]) > 1]
    if uneven:
        told = ", ".join(f"{figure_of(name).title} {min(images[name])} to {max(images[name])}" for name in uneven)
        parts.append(f"Methods were measured on different numbers of images: {told}.")
    return [" ".join(parts)]


def _others(names: Sequence[str]) -> list[str]:
    return [figure_of(name).title for name in names if not figure_of(name).percent]


def _differences(results: Results, names: Sequence[str]) -> list[str]:
    methods = [method for method in results.methods if method != results.reference]
    rows = []
    for method in methods:
        row = [f"`{method}`"]
        for name in names:
            cell, figure = results.cell(method, name), figure_of(name)
            if cell is None or not math.isfinite(cell.difference):
                row.append("–")
                continue
            text = f"{shown(cell.difference, figure, True)} [{shown(cell.difference_low, figure, True)}, "
            row.append(f"{text}{shown(cell.difference_high, figure, True)}]{'*' if _starred(cell) else ''}")
        if set(row[1:]) != {"–"}:
            rows.append(_line(row))
    if not rows:
        return []
    heads = [f"{figure_of(name).title}{_arrow(figure_of(name))}" for name in names]
    return [
        "",
        f"Differences to `{results.reference}` on the same images, with 95 % intervals; \\*: p < 0.05 after Holm's "
        "correction for the methods of the column.",
        "",
        _line(["method", *heads]),
        "|---|" + "---:|" * len(names),
        *rows,
    ]


def _per_image(results: Results, names: Sequence[str]) -> list[str]:
    rows = []
    for method in results.methods:
        cells = [results.cell(method, name) for name in names]
        texts = [
            "–" if cell is None else f"{shown(cell.per_image, figure_of(cell.figure))} ({cell.n:,} in {cell.images:,})"
            for cell in cells
        ]
        rows.append(_line([f"`{method}`", *texts]))
    return [
        "",
        "Means over images of each image's mean; in brackets how many values of how many images there are.",
        "",
        _line(["method", *(figure_of(name).title for name in names)]),
        "|---|" + "---:|" * len(names),
        *rows,
    ]


def _trouble(results: Results) -> list[str]:
    lines = []
    if results.errors:
        total = sum(results.errors.values())
        lines += ["", f"Errors: {total}; items that failed as a whole: {results.failed} of {results.items}.", ""]
        lines += [f"- {count} x {error}" for error, count in list(results.errors.items())[:10]]
    if results.nothing:
        lines += ["", "Nothing to measure:", ""]
        lines += [f"- {count} x {what}" for what, count in list(results.nothing.items())[:10]]
    return lines


# LaTeX, CSV ----------------------------------------------------------------------------------------------------------

_ESCAPES = {
    **{char: f"\\{char}" for char in "&%$#_{}"},
    **{"~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "\\": "\\textbackslash{}"},
    **{"↑": "$\\uparrow$", "↓": "$\\downarrow$", "–": "--"},
}


def _tex(text: str) -> str:
    return "".join(_ESCAPES.get(char, char) for char in text)


def latex(results: Results, figures: Sequence[str] | None = None, intervals: bool = False) -> str:
    r"""Write the table in LaTeX, for the package booktabs; \\* as in :func:`markdown`'s differences."""
    names = _figures(results, figures)
    heads = [f"{figure_of(name).title}{_arrow(figure_of(name))}" for name in names]
    lines = [
        f"% {results.items} items; {results.resamples} resamples of images; needs \\usepackage{{booktabs}}",
        f"% *: differs from {results.reference}, p < 0.05 after Holm's correction",
        f"\\begin{{tabular}}{{l{'r' * len(names)}}}",
        "\\toprule",
        " & ".join(["method", *(_tex(head) for head in heads)]) + " \\\\",
        "\\midrule",
    ]
    tops = {name: best(results, name) for name in names}
    for method in results.methods:
        row = [_tex(method)]
        for name in names:
            cell = results.cell(method, name)
            text = "--" if cell is None else _tex(_value(cell, figure_of(name), intervals))
            text = f"\\textbf{{{text}}}" if method in tops[name] else text
            row.append(f"{text}$^{{*}}$" if cell is not None and _starred(cell) else text)
        lines.append(" & ".join(row) + " \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n"


def csv(results: Results) -> str:
    """Write every value with all digits, a line each; figures of the answers have no method."""
    out = io.StringIO()
    table = writer.writer(out, lineterminator="\n")
    table.writerow(COLUMNS)
    for cell in (*results.cells, *results.answers):
        values = [getattr(cell, name) for name in COLUMNS]
        table.writerow(["" if isinstance(value, float) and not math.isfinite(value) else value for value in values])
    return out.getvalue()
