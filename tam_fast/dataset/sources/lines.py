"""Lines of JSON, each a row."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from tam_fast.dataset.sources.rows import NOTHING, Columns, File, Known, Row, RowError, counted, id_of, row_of

__all__ = ["JsonLines"]

_LONGEST = 64 * 2**20
"""Bytes of a line; a longer one is no row."""


class JsonLines:
    """Files of JSON objects, one a line; empty lines are no rows.

    Parameters
    ----------
    root : Path
    names : sequence of str
        The files, relative to `root`.
    columns : Columns
        Names of the objects' entries.
    allow_outside : bool
        Whether images may lie outside `root`.
    """

    kind = "lines"

    def __init__(self, root: Path, names: Sequence[str], columns: Columns, allow_outside: bool = False) -> None:
        self._root, self._names = root, list(names)
        self._columns, self._allow_outside = columns, allow_outside
        self._begins = lru_cache(maxsize=8)(self._find)

    def files(self, known: Known = NOTHING) -> Sequence[File]:
        """List the files; their lines are counted, not read as JSON."""
        return [counted(self._root, name, known, lambda name: len(self._begins(name)[0])) for name in self._names]

    def read(self, file: File, start: int, stop: int) -> Sequence[Row]:
        """Read some lines."""
        return [self._row(file, start + k, line) for k, line in enumerate(self._lines(file.path, start, stop))]

    def names(self) -> Sequence[str]:
        """Return the entries of the first line."""
        first = next((line for name in self._names for line in self._lines(name, 0, 1)), b"{}")
        try:
            return list(_parsed(first))
        except RowError:
            return ()

    def ids(self, file: File) -> Sequence[str] | None:
        """Read the ids of all lines; None if no entry holds them."""
        if self._columns.id is None:
            return None
        made: list[str] = []
        try:
            made.extend(id_of(_parsed(line).get(self._columns.id)) for line in self._lines(file.path, 0, file.rows))
        except RowError as error:
            raise ValueError(f"{file.path}:{len(made)}: {error}") from None
        return made

    def _find(self, name: str) -> tuple[list[int], list[int]]:
        """Find where the lines that are rows begin and end."""
        begins: list[int] = []
        ends: list[int] = []
        with (self._root / name).open("rb") as file:
            at = 0
            for line in file:
                if line.strip():
                    begins.append(at)
                    ends.append(at + len(line))
                at += len(line)
        return begins, ends

    def _lines(self, name: str, start: int, stop: int) -> Iterator[bytes]:
        begins, ends = self._begins(name)
        with (self._root / name).open("rb") as file:
            for begin, end in zip(begins[start:stop], ends[start:stop], strict=True):
                file.seek(begin)
                yield file.read(min(end - begin, _LONGEST + 1))

    def _row(self, file: File, number: int, line: bytes) -> Row:
        name = f"{file.path}:{number}"
        try:
            cells = _parsed(line)
        except RowError as error:
            return Row(name, error=str(error))
        return row_of(cells, self._columns, name, self._root, self._allow_outside)


def _parsed(line: bytes) -> Mapping[str, Any]:
    if len(line) > _LONGEST:
        raise RowError(f"expected a line of at most {_LONGEST} bytes, got a longer one")
    try:
        cells = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise RowError(f"expected a JSON object, got {type(error).__name__}: {error}") from None
    if not isinstance(cells, dict):
        raise RowError(f"expected a JSON object, got {type(cells).__name__}")
    return cells
