"""Results of explanations: the files they go to, the JSON about them, the sentence and the table on the terminal."""

from __future__ import annotations

import io
import os
import stat
import unicodedata
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from tam_fast.cli.console import ExitCode, Failure, one_line, printable, reason, rich_console, shortened

if TYPE_CHECKING:
    from rich.text import Text

    from tam_fast.explanation import Explanation, Word

__all__ = ["Targets", "describe", "make_folder", "show", "write"]


_SUFFIXES = (".png", ".safetensors", ".json")


class Targets:
    """Chooses the result files of each image: never an input, nor another program's file.

    Parameters
    ----------
    folder : Path
        Where the results go.
    inputs : iterable of str or Path
        What no result may replace, whether it could be used or not: images, and the folder of a model, of which the
        files are meant. What is open as a standard stream is no less an input.
    force : bool
        Replace files even if they are not of an earlier run; inputs are not replaced even so.
    """

    def __init__(self, folder: Path, inputs: Iterable[str | Path], force: bool) -> None:
        self._folder = folder
        self._force = force
        self._taken: set[str] = set()
        self._places: set[Path] = set()
        self._files: set[tuple[int, int]] = set()
        for name in inputs:
            self._protect(name)
        for handle in range(3):
            with suppress(OSError):
                self._note(os.fstat(handle))

    def _protect(self, name: str | Path) -> None:
        """Remember an input by its place and by its file, whatever links lead there."""
        from tam_fast.explanation.replacing import is_ours

        path = Path(name)
        if not path.name:
            return
        with suppress(OSError, ValueError, RuntimeError):
            self._places.add(_place(path))
            found = path.stat()
            self._note(found)
            if stat.S_ISDIR(found.st_mode):
                for entry in path.iterdir():
                    # Results that lie among a model's files are not its own.
                    if entry.suffix.lower() in _SUFFIXES and entry.is_file() and not is_ours(entry):
                        self._protect(entry)

    def _note(self, found: os.stat_result) -> None:
        if stat.S_ISREG(found.st_mode):
            self._files.add((found.st_dev, found.st_ino))

    def choose(self, stem: str) -> dict[str, Path]:
        """Choose the paths of one explanation's ``sheet``, ``arrays`` and ``json``.

        Parameters
        ----------
        stem : str
            The files' name, to which a number is added if this run has used it before. One that is too long for the
            folder is shortened.

        Raises
        ------
        Failure
            If a file would be replaced that must not be.
        """
        from tam_fast.explanation.replacing import fitting_stem

        first = stem
        number = 1
        stem = fitting_stem(self._folder, first)
        # Some file systems tell neither a.png from A.png nor one form of an accent from another.
        while _folded(stem) in self._taken:
            number += 1
            stem = fitting_stem(self._folder, f"{first}-{number}")
        self._taken.add(_folded(stem))
        targets = {
            kind: self._folder / f"{stem}.{suffix}"
            for kind, suffix in (("sheet", "png"), ("arrays", "safetensors"), ("json", "json"))
        }
        self.check(targets)
        return targets

    def check(self, targets: Mapping[str, Path]) -> None:
        """Refuse targets that are an input or another program's file, with a Failure; :meth:`choose` has done so."""
        from tam_fast.explanation.replacing import check_replaceable

        for path in targets.values():
            if self._is_input(path):
                raise Failure(ExitCode.FILE, f"the result {path} would replace an input; choose another folder with -o")
        try:
            check_replaceable(targets.values(), self._force)
        except FileExistsError as error:
            advice = "choose another folder with -o" + ("" if self._force else ", or --force")
            raise Failure(ExitCode.FILE, f"{error}; {advice}") from error
        except OSError as error:
            raise Failure(ExitCode.FILE, f"the results cannot be written: {reason(error, file=True)}") from error

    def _is_input(self, path: Path) -> bool:
        if _place(path) in self._places:
            return True
        try:
            found = path.stat()
        except OSError:
            return False
        return (found.st_dev, found.st_ino) in self._files


def _place(path: Path) -> Path:
    """Name the place where something lies or would lie: its folder without links."""
    return path.parent.resolve() / path.name


def _folded(stem: str) -> str:
    return unicodedata.normalize("NFC", stem).casefold()


def make_folder(folder: Path) -> None:
    """Make the folder of the results unless it is there; refuse one that takes no files."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        text = reason(error) if isinstance(error, OSError) else one_line(error)
        raise Failure(ExitCode.FILE, f"--output: cannot make the folder {shortened(str(folder))!r}: {text}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise Failure(ExitCode.FILE, f"--output: cannot write into the folder {shortened(str(folder))!r}")


def write(explanation: Explanation, targets: Mapping[str, Path], cmap: str) -> None:
    """Write an explanation and its picture, together or not at all, to what :meth:`Targets.choose` chose."""
    from PIL.PngImagePlugin import PngInfo

    from tam_fast.explanation.files import encode
    from tam_fast.explanation.replacing import PICTURE_MARK, replace_files

    mark = PngInfo()
    mark.add_text(*PICTURE_MARK)
    picture = io.BytesIO()
    explanation.sheet(cmap=cmap).save(picture, format="PNG", pnginfo=mark)
    arrays, document = encode(explanation)
    try:
        replace_files({targets["arrays"]: arrays, targets["sheet"]: picture.getvalue(), targets["json"]: document})
    except OSError as error:
        raise Failure(ExitCode.FILE, f"the results cannot be written: {reason(error, file=True)}") from error


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
    paths = printable("  ".join(str(targets[kind]) for kind in ("sheet", "arrays", "json")))
    console.print(Text(paths, style="dim"), soft_wrap=True)
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
