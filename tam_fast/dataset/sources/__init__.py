"""What a data set is read from: :func:`open_source`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tam_fast.dataset.sources.folders import ImageFolder, list_files
from tam_fast.dataset.sources.lines import JsonLines
from tam_fast.dataset.sources.rows import IMAGES, Columns, File, Row, Source
from tam_fast.dataset.sources.tables import InMemory, Tables, data_files
from tam_fast.dataset.sources.tars import Tars

__all__ = ["Columns", "File", "Row", "Source", "open_source"]

_TABLES = (".parquet", ".arrow", ".feather")
_LINES = (".jsonl", ".ndjson")
_TARS = (".tar",)


def open_source(given: Any, columns: Columns | None = None, *, allow_outside: bool = False) -> Source:
    """Open an input: a folder of images, tables, tar files or lines of JSON; one such file; or rows in memory.

    Parameters
    ----------
    given : path, sequence of mapping, or datasets.Dataset
        A folder may hold files of one kind alone: images (in folders below it too), Parquet or Arrow, tar, JSON lines;
        or be what ``Dataset.save_to_disk`` wrote.
    columns : Columns, optional
    allow_outside : bool
        Whether paths may lead out of the input's folder.

    Raises
    ------
    ValueError, TypeError
        If it is none of these; begins with ``input``.
    """
    columns = columns or Columns()
    if not isinstance(given, (str, os.PathLike)):
        if isinstance(given, (bytes, dict)) or not (hasattr(given, "__len__") and hasattr(given, "__getitem__")):
            raise TypeError(f"input: expected a path, or a sequence of mappings, got {type(given).__name__}")
        return InMemory(given, columns, allow_outside)
    path = Path(os.fsdecode(given))
    if path.is_dir():
        return _folder(path, columns, allow_outside)
    if not path.is_file():
        raise ValueError(f"input: expected a file or a folder, got {path}, which is not there or neither")
    return _files(path.parent, [path.name], columns, allow_outside)


def _folder(root: Path, columns: Columns, allow_outside: bool) -> Source:
    saved = data_files(root)
    if saved is not None:
        return Tables(root, saved, columns, allow_outside)
    found: dict[str, list[str]] = {}
    for name, _ in list_files(root):
        ending = Path(name).suffix.lower()
        for kind, endings in (("tables", _TABLES), ("tars", _TARS), ("lines", _LINES), ("images", tuple(IMAGES))):
            if ending in endings:
                found.setdefault(kind, []).append(name)
    # Rows in files may name images that lie beside them.
    kinds = [kind for kind in found if kind != "images"] or list(found)
    if not kinds:
        raise ValueError(f"input: expected images, Parquet, Arrow, JSON lines or tar files in {root}, got none of them")
    if len(kinds) > 1:
        names = ", ".join(found[kind][0] for kind in kinds)
        raise ValueError(f"input: expected files of one kind in {root}, got {names}; give one of the files")
    if kinds == ["images"]:
        given = columns.given()
        if given:
            raise ValueError(
                f"{next(iter(given))}: expected none with a folder of images, got {next(iter(given.values()))!r}"
            )
        return ImageFolder(root, allow_outside)
    return _files(root, found[kinds[0]], columns, allow_outside)


def _files(root: Path, names: Sequence[str], columns: Columns, allow_outside: bool) -> Source:
    ending = Path(names[0]).suffix.lower()
    if ending in _TABLES:
        return Tables(root, names, columns, allow_outside)
    if ending in _LINES:
        return JsonLines(root, names, columns, allow_outside)
    if ending in _TARS:
        return Tars(root, names, columns)
    if ending in IMAGES:
        raise ValueError(f"input: expected a data set, got the image {names[0]}; `tam-fast explain` explains one")
    raise ValueError(f"input: expected Parquet, Arrow, JSON lines (.jsonl) or a tar file, got {names[0]}")
