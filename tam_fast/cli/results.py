"""Results of explanations: the files they go to."""

from __future__ import annotations

import io
import os
import stat
import unicodedata
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tam_fast.cli.console import ExitCode, Failure, one_line, reason, shortened

if TYPE_CHECKING:
    from tam_fast.explanation import Explanation

__all__ = ["Targets", "make_folder", "write"]


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


def write(explanation: Explanation, targets: Mapping[str, Path], cmap: str) -> dict[str, Path]:
    """Write an explanation and its picture, together or not at all, to what :meth:`Targets.choose` chose.

    Returns
    -------
    dict of str to Path
        What was written: of a text without images no ``sheet``, there being nothing to draw on. One of an earlier run
        is taken away then, lest it be taken for this one's.
    """
    from PIL.PngImagePlugin import PngInfo

    from tam_fast.explanation.files import encode
    from tam_fast.explanation.replacing import PICTURE_MARK, is_ours, replace_files

    arrays, document = encode(explanation)
    files = {targets["arrays"]: arrays}
    can_be_drawn = bool(explanation.images or explanation.videos)
    if can_be_drawn:
        mark = PngInfo()
        mark.add_text(*PICTURE_MARK)
        picture = io.BytesIO()
        explanation.sheet(cmap=cmap).save(picture, format="PNG", pnginfo=mark)
        files[targets["sheet"]] = picture.getvalue()
    files[targets["json"]] = document
    try:
        replace_files(files)
        if not can_be_drawn and is_ours(targets["sheet"]):
            targets["sheet"].unlink()
    except OSError as error:
        raise Failure(ExitCode.FILE, f"the results cannot be written: {reason(error, file=True)}") from error
    return {kind: path for kind, path in targets.items() if path in files}
