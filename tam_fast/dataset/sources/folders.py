"""A folder of image files, each a row."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from tam_fast.dataset.sources.rows import IMAGES, NOTHING, File, Known, Row, RowError, is_text, read_regular

__all__ = ["ImageFolder", "list_files"]


def list_files(root: Path) -> Iterator[tuple[str, os.stat_result]]:
    """List the regular files below a folder with their states, by name; hidden ones and linked folders are left out.

    Yields
    ------
    (str, os.stat_result)
        The path relative to `root`, with ``/``.
    """
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        with os.scandir(root / folder) as found:
            entries = sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda entry: entry.name)
        below = [f"{folder}{entry.name}/" for entry in entries if entry.is_dir(follow_symlinks=False)]
        waiting += reversed(below)
        for entry in entries:
            if entry.is_file():
                yield f"{folder}{entry.name}", entry.stat()


class ImageFolder:
    """Images of a folder and the folders in it; a row's id is its path.

    Parameters
    ----------
    root : Path
    allow_outside : bool
        Whether links may lead out of the folder.
    """

    kind = "images"

    def __init__(self, root: Path, allow_outside: bool = False) -> None:
        self._root, self._allow_outside = root, allow_outside

    def files(self, known: Known = NOTHING) -> Sequence[File]:  # noqa: ARG002 (none is opened)
        """List the image files, by their endings."""
        found: list[File] = []
        for name, state in list_files(self._root):
            if os.path.splitext(name)[1].lower() in IMAGES:  # noqa: PTH122 (of a million names)
                if not is_text(name):
                    raise ValueError(f"input: expected names of files in UTF-8, got {os.fsencode(name)!r}")
                found.append(File(name, state.st_size, state.st_mtime_ns, 1))
        return found

    def read(self, file: File, start: int, stop: int) -> Sequence[Row]:
        """Read an image file."""
        if stop <= start:
            return []
        try:
            return [Row(file.path, (read_regular(self._root, file.path, self._allow_outside),))]
        except RowError as error:
            return [Row(file.path, error=str(error))]

    def names(self) -> Sequence[str]:
        """Return no names: there are no columns."""
        return ()

    def ids(self, file: File) -> Sequence[str] | None:  # noqa: ARG002 (paths are unique)
        """Return None: paths are unique."""
        return None
