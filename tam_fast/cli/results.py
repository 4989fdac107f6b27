"""Results of explanations: the files they go to, the JSON about them, the sentence and the table on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from tam_fast.cli.console import ExitCode, Failure, one_line, printable, rich_console

if TYPE_CHECKING:
    from rich.text import Text

    from tam_fast.explanation import Explanation, Word

__all__ = ["Targets", "describe", "make_folder", "show", "write"]


class Targets:
    """Chooses the result files of each image: never an input, nor another program's file.

    Parameters
    ----------
    folder : Path
        Where the results go.
    inputs : sequence of Path
        Files that no result may replace.
    force : bool
        Replace files even if they are not of an earlier run.
    """

    def __init__(self, folder: Path, inputs: Sequence[Path], force: bool) -> None:
        self._folder = folder
        self._inputs = inputs
        self._force = force
        self._taken: set[str] = set()

    def choose(self, stem: str) -> dict[str, Path]:
        """Choose the paths of one explanation's ``sheet``, ``arrays`` and ``json``.

        Parameters
        ----------
        stem : str
            The files' name, to which a number is added if this run has used it before.

        Raises
        ------
        Failure
            If a file would be replaced that must not be.
        """
        first = stem
        number = 1
        # Lower case: some file systems do not tell a.png from A.png.
        while stem.lower() in self._taken:
            number += 1
            stem = f"{first}-{number}"
        self._taken.add(stem.lower())
        targets = {
            kind: self._folder / f"{stem}.{suffix}"
            for kind, suffix in (("sheet", "png"), ("arrays", "safetensors"), ("json", "json"))
        }
        existing = [path for path in targets.values() if path.exists()]
        for path in existing:
            if any(path.samefile(source) for source in self._inputs if source.exists()):
                raise Failure(ExitCode.FILE, f"the result {path} would replace an input; choose another folder with -o")
        if existing and not (self._force or _is_ours(targets["json"])):
            raise Failure(
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


def make_folder(folder: Path) -> None:
    """Make the folder of the results unless it is there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or one_line(error)
        raise Failure(ExitCode.FILE, f"--output: cannot make the folder {str(folder)!r}: {reason}") from error


def write(explanation: Explanation, targets: dict[str, Path], cmap: str) -> None:
    """Write an explanation and its picture to what :meth:`Targets.choose` chose."""
    try:
        explanation.save(targets["json"])
        explanation.sheet(cmap=cmap).save(targets["sheet"])
    except OSError as error:
        raise Failure(ExitCode.FILE, f"the results cannot be written: {one_line(error)}") from error


def describe(explanation: Explanation) -> dict[str, Any]:
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


def show(stdout: TextIO, name: str, explanation: Explanation, targets: dict[str, Path], cmap: str) -> None:
    """Print the sentence, each word on a ground of its strength, and a table of the words."""
    from rich.table import Table
    from rich.text import Text

    console = rich_console(stdout)
    grids = ", ".join(f"{height}x{width}" for height, width in explanation.layout.sizes)
    console.print(
        Text(printable(f"{name}  ({explanation.model}; {len(explanation)} tokens; cells {grids})"), style="dim"),
        soft_wrap=True,
    )
    # Words are kept whole on a terminal; in a file the sentence is one line.
    console.print(_painted(explanation, cmap), soft_wrap=not console.is_terminal)
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("word", overflow="fold")
    for title in ("strength", "peak cell", "pixel", "scale"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("first token's candidates", overflow="fold")
    for word in explanation.words:
        table.add_row(*(Text(printable(text)) for text in _row(explanation, word)))
    if explanation.words:
        console.print(table)
    console.print(Text(f"{targets['sheet']}  {targets['arrays']}  {targets['json']}", style="dim"), soft_wrap=True)
    console.print()


def _row(explanation: Explanation, word: Word) -> tuple[str, ...]:
    """Make the table's row of one word."""
    peak = _peak(explanation, word)
    cell = "-" if peak is None else f"{peak['row']},{peak['column']}"
    if len(explanation.layout.grids) > 1 and peak is not None:
        cell = f"{peak['grid']}:{cell}"
    pixel = "-" if peak is None or peak["pixel"] is None else "{},{}".format(*peak["pixel"])
    likely = "  ".join(
        f"{c.token.strip() or repr(c.token)} {c.probability:.2f}" for c in explanation.candidates[word.start]
    )
    scale = f"{float(explanation.maps.scale[word.start]):.2f}"
    return word.text, f"{word.strength:.2f}", cell, pixel, scale, likely


def _painted(explanation: Explanation, cmap: str) -> Text:
    """Make the answer's text, its words on grounds of their strengths (seen on a terminal only)."""
    from rich.text import Text

    from tam_fast.render import colormap

    table = colormap(cmap)
    text = Text(printable(explanation.text))
    for word in explanation.words:
        red, green, blue = (int(c) for c in table[round(255 * min(max(word.strength, 0.0), 1.0))])
        ink = "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white"
        text.stylize(f"{ink} on rgb({red},{green},{blue})", *word.characters)
    return text
