"""What a source gives: :class:`Row`, and how its cells become one."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, TypeAlias

__all__ = [
    "IMAGES",
    "NOTHING",
    "Columns",
    "File",
    "Known",
    "Row",
    "RowError",
    "Source",
    "counted",
    "id_of",
    "is_text",
    "read_regular",
    "row_of",
]

Picture: TypeAlias = "bytes | Any"
"""The bytes of an image file, or a PIL image of a data set in memory."""

IMAGES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"})
"""Endings of image files, in small letters."""

_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)


class RowError(ValueError):
    """A row that cannot be read; it becomes an error row."""


def is_text(value: str) -> bool:
    """Whether a string can be written as UTF-8; names of files and escapes in JSON may hold halves of characters."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


@dataclass(frozen=True)
class File:
    """One file of the input, in the plan.

    Attributes
    ----------
    path : str
        Relative to the input's folder, with ``/``; empty for rows in memory.
    size : int
        Bytes.
    mtime : int
        Nanoseconds.
    rows : int
    """

    path: str
    size: int
    mtime: int
    rows: int


@dataclass(frozen=True)
class Columns:
    """Names of the columns (Parquet, Arrow, JSON), or endings of the members (tar), that hold what.

    ``image`` may name several, separated by commas; a column may hold a list of images too.
    """

    id: str | None = None
    image: str | None = None
    prompt: str | None = None
    answer: str | None = None

    @property
    def images(self) -> tuple[str, ...]:
        """The image columns, ``("image",)`` if none was named."""
        return tuple(part.strip() for part in (self.image or "image").split(","))

    def given(self) -> dict[str, str]:
        """Those that were named."""
        named = {"id": self.id, "image": self.image, "prompt": self.prompt, "answer": self.answer}
        return {key: name for key, name in named.items() if name is not None}


@dataclass(frozen=True)
class Row:
    """One row of the input.

    Attributes
    ----------
    id : str
        Unique in the input.
    images : tuple of bytes or PIL images
    prompt, answer : str or None
    error : str
        Why it cannot be explained; the rest is empty then, but for `id`.
    """

    id: str
    images: tuple[Picture, ...] = ()
    prompt: str | None = None
    answer: str | None = None
    error: str = ""


Known: TypeAlias = Mapping[str, File]
"""Files by their paths, as an earlier run found them."""

NOTHING: Known = MappingProxyType({})


def counted(root: Path, name: str, known: Known, count: Callable[[str], int]) -> File:
    """Describe a file, and count its rows unless it is known.

    Raises
    ------
    ValueError
        If its name is no text: ids are.
    """
    if not is_text(name):
        raise ValueError(f"input: expected names of files in UTF-8, got {os.fsencode(name)!r}")
    state = (root / name).stat()
    before = known.get(name)
    if before is not None and (before.size, before.mtime) == (state.st_size, state.st_mtime_ns):
        return before
    return File(name, state.st_size, state.st_mtime_ns, count(name))


class Source(Protocol):
    """An input: files in order, each with rows."""

    kind: str

    def files(self, known: Known = NOTHING) -> Sequence[File]:
        """List the files, from listings and footers alone; those that are `known`, and as they were, are not opened.

        Raises
        ------
        ValueError
            If a file is none that can be read; begins with ``input``.
        """
        ...

    def read(self, file: File, start: int, stop: int) -> Sequence[Row]:
        """Read rows `start` to `stop` of a file; what cannot be read is a row with its error."""
        ...

    def names(self) -> Sequence[str]:
        """Return the names of the columns; none where rows have no columns."""
        ...

    def ids(self, file: File) -> Sequence[str] | None:
        """Return the ids of a file's rows; None where they follow from path and row, and so are unique."""
        ...


def read_regular(root: Path, name: str, allow_outside: bool = False) -> bytes:
    """Read a file that a row names.

    Raises
    ------
    RowError
        If it is a URL, lies outside `root` (links followed) unless that is allowed, or is no regular file.
    """
    if _URL.match(name):
        raise RowError(f"image: expected a file, got a URL, which is never fetched: {name[:200]!r}")
    if "\0" in name or not is_text(name):
        raise RowError(f"image: expected a file's name, got {name[:200]!r}")
    path = Path(os.path.realpath(root / name))
    if not allow_outside and not path.is_relative_to(os.path.realpath(root)):
        raise RowError(
            f"image: expected a file inside the input's folder, got {name[:200]!r}; --allow-outside takes it"
        )
    try:
        # A pipe would wait for its writer.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise RowError(f"image: {error.strerror or error}: {name[:200]!r}") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise RowError(f"image: expected a regular file, got {name[:200]!r}, which is none")
    with os.fdopen(handle, "rb") as file:
        return file.read()


def row_of(cells: Mapping[str, Any], columns: Columns, name: str, root: Path, allow_outside: bool = False) -> Row:
    """Make a row of named cells; what is wrong with it becomes its error.

    Parameters
    ----------
    cells : mapping
    columns : Columns
    name : str
        The id where no column has it.
    root : Path
        What the paths of images are relative to.
    allow_outside : bool
    """
    try:
        if columns.id is not None:
            name = id_of(cells.get(columns.id))
        pictures: list[Picture] = []
        for column in columns.images:
            if column not in cells:
                raise RowError(f"image: expected a column {column!r}, got {', '.join(map(str, cells)) or 'none'}")
            pictures += _pictures(cells[column], root, allow_outside)
        if not pictures:
            raise RowError(f"image: expected at least one in {', '.join(map(repr, columns.images))}, got none")
        return Row(
            name, tuple(pictures), _text(cells, columns.prompt, "prompt"), _text(cells, columns.answer, "answer")
        )
    except RowError as error:
        return Row(name, error=str(error))


def id_of(value: Any) -> str:
    """Read an id: a text that is not empty, or a whole number."""
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        raise RowError(f"id: expected a text or a whole number, got {type(value).__name__}")
    if not is_text(str(value)):
        raise RowError(f"id: expected a text, got halves of characters in {value!r}")
    return str(value)


def _text(cells: Mapping[str, Any], column: str | None, name: str) -> str | None:
    if column is None:
        return None
    value = cells.get(column)
    if value is not None and not isinstance(value, str):
        raise RowError(f"{name}: expected a text in column {column!r}, got {type(value).__name__}")
    if value is not None and not is_text(value):
        raise RowError(f"{name}: expected a text in column {column!r}, got halves of characters")
    return value


def _pictures(value: Any, root: Path, allow_outside: bool) -> list[Picture]:
    """Read an image cell: bytes, ``{"bytes", "path"}`` as `datasets` writes it, a path, a PIL image, or a list."""
    if isinstance(value, (list, tuple)):
        return [picture for one in value for picture in _pictures(one, root, allow_outside)]
    if isinstance(value, (bytes, bytearray, memoryview)):
        return [bytes(value)]
    if isinstance(value, Mapping) and set(value) <= {"bytes", "path"}:
        if value.get("bytes") is not None:
            return _pictures(value["bytes"], root, allow_outside)
        value = value.get("path")
    if isinstance(value, str) and value:
        return [read_regular(root, value, allow_outside)]
    if type(value).__module__.startswith("PIL."):
        return [value]
    raise RowError(f"image: expected bytes, a path or {{bytes, path}}, got {type(value).__name__}")
