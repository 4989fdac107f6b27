"""Results of explanations: the files they go to."""

from __future__ import annotations

import importlib.util
import os
import stat
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tam_fast.cli.console import ExitCode, Failure, one_line, reason, shortened

if TYPE_CHECKING:
    from tam_fast.cli.questions import Question
    from tam_fast.cli.sources import Source
    from tam_fast.explanation import Explanation

__all__ = ["Targets", "check_output", "kind_of", "make_folder", "write"]


_SUFFIXES = (".png", ".safetensors", ".json", ".html", ".jpg", ".jpeg", ".mp4", ".gif")

# What the results of one explanation are, and the ends of their names in a folder.
_KINDS = {"sheet": "png", "arrays": "safetensors", "json": "json", "page": "html"}
# Outputs that are one file, by the ends of their names.
_FILES = {
    ".html": "page",
    ".htm": "page",
    ".png": "sheet",
    ".jpg": "sheet",
    ".jpeg": "sheet",
    ".mp4": "film",
    ".gif": "film",
}


class Targets:
    """Chooses the result files of each image: never an input, nor another program's file.

    Parameters
    ----------
    output : Path
        Where the results go: a folder, or the one file that is written (see :func:`kind_of`).
    inputs : iterable of str or Path
        What no result may replace, whether it could be used or not: images, and the folder of a model, of which the
        files are meant. What is open as a standard stream is no less an input.
    force : bool
        Replace files even if they are not of an earlier run; inputs are not replaced even so.
    kinds : sequence of str
        Of ``sheet``, ``arrays``, ``json`` and ``page`` those that are written; the one that `output` is where it is a
        file, which may be a ``film``.
    """

    def __init__(
        self, output: Path, inputs: Iterable[str | Path], force: bool, kinds: Sequence[str] = tuple(_KINDS)
    ) -> None:
        self._output = output
        self._kinds = kinds
        self._is_file = list(kinds) == [kind_of(output)]
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
        """Choose the paths of one explanation's ``sheet``, ``arrays``, ``json`` and ``page``, or of the one file.

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

        if self._is_file:
            targets = {self._kinds[0]: self._output}
            self.check(targets)
            return targets
        first = stem
        number = 1
        stem = fitting_stem(self._output, first)
        # Some file systems tell neither a.png from A.png nor one form of an accent from another.
        while _folded(stem) in self._taken:
            number += 1
            stem = fitting_stem(self._output, f"{first}-{number}")
        self._taken.add(_folded(stem))
        targets = {kind: self._output / f"{stem}.{suffix}" for kind, suffix in _KINDS.items() if kind in self._kinds}
        self.check(targets)
        return targets

    def check(self, targets: Mapping[str, Path]) -> None:
        """Refuse targets that are an input or another program's file, with a Failure; :meth:`choose` has done so."""
        from tam_fast.explanation.replacing import check_replaceable

        for path in targets.values():
            if self._is_input(path):
                advice = f"choose another {self._what} with -o"
                raise Failure(ExitCode.FILE, f"the result {path} would replace an input; {advice}")
        try:
            check_replaceable(targets.values(), self._force)
        except FileExistsError as error:
            advice = f"choose another {self._what} with -o" + ("" if self._force else ", or --force")
            raise Failure(ExitCode.FILE, f"{error}; {advice}") from error
        except OSError as error:
            raise Failure(ExitCode.FILE, f"the results cannot be written: {reason(error, file=True)}") from error

    @property
    def _what(self) -> str:
        return "name" if self._is_file else "folder"

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


def kind_of(output: Path) -> str | None:
    """Say what an output that is one file holds, by the end of its name; None of a folder."""
    return None if output.is_dir() else _FILES.get(output.suffix.lower())


def check_output(output: Path, questions: Sequence[Question]) -> None:
    """Refuse an output that is one file which cannot hold what is asked for.

    Raises
    ------
    Failure
        If there is more than one explanation, a picture is to be drawn of a text alone or a film of no video, or PyAV,
        which writes MP4, is not installed.
    """
    kind, shown = kind_of(output), repr(shortened(str(output)))
    if kind is None or not questions:
        return
    if len(questions) > 1:
        got = f"{shown} for {len(questions)} explanations"
        raise Failure(ExitCode.USAGE, f"--output: expected a folder, or one explanation, got {got}")
    if kind == "film" and not questions[0].all_videos():
        raise Failure(ExitCode.USAGE, f"--output: expected a question about a video for the film {shown}, got none")
    pictures = [source for source in questions[0].sources() if source is not _conversation(questions[0])]
    if kind == "sheet" and not pictures:
        raise Failure(ExitCode.USAGE, f"--output: expected an image or a video for the picture {shown}, got text alone")
    if output.suffix.lower() == ".mp4" and importlib.util.find_spec("av") is None:
        expected = "PyAV for MP4 (pip install 'tam-fast[video]'), or a name that ends in .gif"
        raise Failure(ExitCode.USAGE, f"--output: expected {expected}, got {shown}")


def _conversation(question: Question) -> Source | None:
    return None if question.conversation is None else question.conversation.source


def make_folder(output: Path) -> None:
    """Make the folder of the results unless it is there; refuse one that takes no files.

    The folder of an output that is one file must be there.
    """
    folder = output
    if kind_of(output) is not None:
        folder = output.parent
        if not folder.is_dir():
            shown = shortened(str(folder))
            raise Failure(ExitCode.FILE, f"--output: expected a file in a folder that exists, got one in {shown!r}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        text = reason(error) if isinstance(error, OSError) else one_line(error)
        raise Failure(ExitCode.FILE, f"--output: cannot make the folder {shortened(str(folder))!r}: {text}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise Failure(ExitCode.FILE, f"--output: cannot write into the folder {shortened(str(folder))!r}")


def write(
    explanation: Explanation, targets: Mapping[str, Path], cmap: str, title: str = "", word: str | None = None
) -> dict[str, Path]:
    """Write an explanation, its picture and its page, together or not at all, to what :meth:`Targets.choose` chose.

    Parameters
    ----------
    explanation : Explanation
    targets : dict of str to Path
    cmap : str
    title : str
        Of the page.
    word : str, optional
        Of the film; the one that is strongest in the video if not given.

    Returns
    -------
    dict of str to Path
        What was written: of a text without images no ``sheet``, there being nothing to draw on. One of an earlier run
        is taken away then, lest it be taken for this one's.
    """
    from tam_fast.explanation.files import encode
    from tam_fast.explanation.page import page_text
    from tam_fast.explanation.replacing import encode_picture, is_ours, replace_files

    files: dict[Path, bytes] = {}
    document = b""
    if "arrays" in targets:
        files[targets["arrays"]], document = encode(explanation)
    can_be_drawn = bool(explanation.images or explanation.videos)
    if "sheet" in targets and can_be_drawn:
        picture = explanation.sheet(cmap=cmap)
        files[targets["sheet"]] = encode_picture(picture, targets["sheet"].suffix)
    if "film" in targets:
        files[targets["film"]] = explanation.film(targets["film"].suffix, word, cmap=cmap)
    if "page" in targets:
        files[targets["page"]] = page_text(explanation, title=title, cmap=cmap).encode()
    if "json" in targets:
        files[targets["json"]] = document
    try:
        replace_files(files)
        if "sheet" in targets and not can_be_drawn and is_ours(targets["sheet"]):
            targets["sheet"].unlink()
    except OSError as error:
        raise Failure(ExitCode.FILE, f"the results cannot be written: {reason(error, file=True)}") from error
    return {kind: path for kind, path in targets.items() if path in files}
