"""An explanation as text: the sentence, its words that are not visual marked, and a table of the words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from tam_fast.cli.console import printable, rich_console
from tam_fast.cli.document import peak_of, thinking_tokens

if TYPE_CHECKING:
    from rich.text import Text

    from tam_fast.explanation import Explanation, Word

__all__ = ["show"]

_LEGEND = "[ ] not visual: grounding below 0.5"
_CONTEXT_SHOWN = 3


def show(stdout: TextIO, name: str, explanation: Explanation, files: Mapping[str, Path], cmap: str) -> None:
    """Print the sentence, each word on a ground of its strength, and a table of the words.

    Words that are not visual stand in brackets: on a terminal in the sentence itself, which elsewhere is kept as it is,
    on a line of its own, and comes once more below the table.
    """
    from rich.table import Table
    from rich.text import Text

    console = rich_console(stdout)
    head = f"{name}  ({explanation.model}; {len(explanation)} tokens; {_cells(explanation)}{_method(explanation)})"
    console.print(Text(printable(head), style="dim"), soft_wrap=True)
    # Explained itself, it is the sentence.
    if explanation.thinking is not None and explanation.thinking.strip() != explanation.text.strip():
        console.print(Text(f"[thinking: {thinking_tokens(explanation)} tokens]", style="dim"))
    # Words are kept whole on a terminal; in a file the sentence is one line.
    if console.is_terminal:
        console.print(_painted(explanation, cmap))
    else:
        console.print(Text(printable(explanation.text)), soft_wrap=True)
    columns = _columns(explanation)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in columns:
        is_text = title in ("word", "strongest context", "first token's candidates")
        table.add_column(title, justify="left" if is_text else "right", overflow="fold", no_wrap=not is_text)
    for i in range(len(explanation.words)):
        table.add_row(*(Text(printable(column[i])) for column in columns.values()))
    if explanation.words:
        console.print(table)
    if any(marked for _, _, marked in _pieces(explanation)):
        if not console.is_terminal:
            console.print(_painted(explanation, cmap), soft_wrap=True)
        console.print(Text(_LEGEND, style="dim"))
    paths = printable("  ".join(str(path) for path in files.values()))
    console.print(Text(paths, style="dim"), soft_wrap=True)
    console.print()


def _method(explanation: Explanation) -> str:
    """Say whose maps they are, and how they are scaled; nothing of TAM's."""
    if explanation.method == "tam":
        return ""
    name, _, scale = explanation.method.partition("@")
    return f"; maps of {name}, scaled by {'the answer' if scale == 'answer' else 'map'}"


def _cells(explanation: Explanation) -> str:
    """Say what cells the maps have: grids of images one by one, those of a video together."""
    if not explanation.layout.grids:
        return "no images"
    found: dict[tuple[str, int, str], int] = {}
    for number, grid in enumerate(explanation.layout.grids):
        size = f"{grid.height}x{grid.width}"
        key = ("video", grid.source, size) if grid.kind == "video" else ("image", number, size)
        found[key] = found.get(key, 0) + 1
    shown = [f"{count} x {size}" if kind == "video" else size for (kind, _, size), count in found.items()]
    return f"cells {', '.join(shown)}"


def _columns(explanation: Explanation) -> dict[str, list[str]]:
    """Make the table's columns, one entry a word."""
    words, grids = explanation.words, explanation.layout.grids
    is_tam = explanation.method == "tam"
    columns = {"word": [word.text for word in words]}
    if grids:
        peaks = [peak_of(explanation, word) for word in words]
        columns["strength"] = [f"{word.strength:.2f}" for word in words]
        numbered = len(grids) > 1
        columns["peak cell"] = [
            "-" if peak is None else (f"{peak['grid']}:" if numbered else "") + f"{peak['row']},{peak['column']}"
            for peak in peaks
        ]
        columns["pixel"] = [
            "-" if peak is None or peak["pixel"] is None else "{},{}".format(*peak["pixel"]) for peak in peaks
        ]
        if any(grid.kind == "video" for grid in grids):
            several = len(explanation.videos) > 1
            found = [None if peak is None or "frame" not in peak else peak for peak in peaks]
            columns["frame"] = [
                "-" if peak is None else (f"{peak['video']}:" if several else "") + str(peak["frame"]) for peak in found
            ]
            columns["time"] = [
                "-" if peak is None or peak["time"] is None else f"{peak['time']:.2f} s" for peak in found
            ]
    if is_tam:
        columns["scale"] = [f"{float(explanation.maps.scale[word.start]):.2f}" for word in words]
    if not grids:
        columns["strongest context"] = [_context(explanation, word) for word in words]
    if is_tam:
        grounding = explanation.grounding.words(words)
        if grids:
            columns["grounding"] = [f"{score:.2f}" for score in grounding.score.tolist()]
        if grounding.gain is not None:
            columns["gain"] = [f"{gain:+.2f}" for gain in grounding.gain.tolist()]
    columns["first token's candidates"] = [
        "  ".join(f"{c.token.strip() or repr(c.token)} {c.probability:.2f}" for c in explanation.candidates[word.start])
        for word in words
    ]
    return columns


def _context(explanation: Explanation, word: Word) -> str:
    """Name the context tokens that speak most for a word."""
    relevance = explanation.relevance[word.start : word.stop].nan_to_num(nan=0.0).amax(dim=0)
    count = min(_CONTEXT_SHOWN, int((relevance > 0).sum()))
    values, places = relevance.topk(count)
    return "  ".join(
        f"{explanation.context_tokens[place].strip() or repr(explanation.context_tokens[place])} {value:.2f}"
        for value, place in zip(values.tolist(), places.tolist(), strict=True)
    )


def _pieces(explanation: Explanation) -> list[tuple[int, int, bool]]:
    """Cut the text into words and runs of words that are not visual: start, end, and whether it is such a run."""
    words = explanation.words
    if not explanation.layout.grids or explanation.method != "tam":
        return [(*word.characters, False) for word in words]
    pieces: list[tuple[int, int, bool]] = []
    for word, is_visual in zip(words, explanation.grounding.words(words).visual.tolist(), strict=True):
        start, end = word.characters
        if not is_visual and pieces and pieces[-1][2]:
            between = explanation.text[pieces[-1][1] : start]
            # Words between that were not explained are not marked; lines are, each on its own.
            if not any(character.isalnum() or character == "\n" for character in between):
                pieces[-1] = (pieces[-1][0], end, True)
                continue
        pieces.append((start, end, not is_visual))
    return pieces


def _painted(explanation: Explanation, cmap: str) -> Text:
    """Make the answer's text: visual words on grounds of their strengths, the others dim, in brackets."""
    from rich.text import Text

    from tam_fast.render import colormap

    table = colormap(cmap)
    strengths = {word.characters: word.strength for word in explanation.words}
    shown = printable(explanation.text)
    text = Text()
    place = 0
    for start, end, marked in _pieces(explanation):
        text.append(shown[place:start])
        if marked:
            text.append(f"[{shown[start:end]}]", style="dim italic")
        else:
            red, green, blue = (int(c) for c in table[round(255 * min(max(strengths[start, end], 0.0), 1.0))])
            ink = "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white"
            text.append(shown[start:end], style=f"{ink} on rgb({red},{green},{blue})")
        place = end
    text.append(shown[place:])
    return text
