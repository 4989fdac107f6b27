"""Rows of Parquet or Arrow files and of Hugging Face ``datasets``, on disk or in memory: :class:`Table`."""

from __future__ import annotations

import hashlib
import json
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from tam_fast.evaluation.data.boxes import read_box
from tam_fast.evaluation.data.files import inside, read_categories
from tam_fast.evaluation.data.item import Item, broken
from tam_fast.evaluation.data.prompts import prompt_of

__all__ = ["COLUMNS", "Table"]

COLUMNS = ("image", "id", "prompt", "answer", "references", "mask", "categories", "expression", "box")
"""What columns may be named for."""

_HEAVY = ("image", "mask")
_TABLES = (".parquet", ".arrow", ".feather")
_TARGET = 1


class _Source(Protocol):
    def __len__(self) -> int: ...

    def cells(self, number: int, columns: tuple[str, ...]) -> Mapping[str, Any]: ...

    def describe(self) -> dict[str, Any]: ...


class Table:
    """A table with a row an image; images and masks are read when they are asked for.

    ::

        open_data("val.parquet", references="caption", mask="segmentation", labels={"cat": 1, "dog": 2})
        open_data(datasets.load_from_disk("photographs"), image="jpg", id="key")

    Parameters
    ----------
    data : path, sequence of mapping, or ``datasets.Dataset``
        A Parquet, Arrow or Feather file; a folder of Parquet files, or one that ``Dataset.save_to_disk`` wrote; rows in
        memory.
    image : str
        Column of the image: bytes, ``{"bytes", "path"}``, the name of a file beside the table, or a PIL image.
    id : str, optional
        Column of a text or whole number; by default the row's number.
    prompt : str, optional
        What is asked; `prompt_column` may name a column of prompts.
    answer : str, optional
        Column of given answers.
    references : str, optional
        Column of captions: a text or a list of texts.
    mask : str, optional
        Column of label images, as `image`, or of nested lists of whole numbers.
    categories : str, optional
        Column of names and labels: a struct, a map, or JSON.
    labels : mapping of str to int, optional
        The same for all rows.
    expression, box : str, optional
        Columns of what a box shows, in words, and of its four numbers, as `box_format` says: ``"xywh"`` or ``"xyxy"``.
    allow_outside : bool
        Whether files may lie outside of the table's folder.

    Raises
    ------
    ValueError, TypeError, FileNotFoundError
        If it is none of these, or a column is not there.
    """

    name = "table"

    def __init__(
        self,
        data: Any,
        *,
        prompt: str | None = None,
        compat: str | None = None,
        prompt_column: str | None = None,
        labels: Mapping[str, int] | None = None,
        box_format: str = "xywh",
        allow_outside: bool = False,
        **columns: str,
    ) -> None:
        if prompt_column is not None:
            columns["prompt"] = prompt_column
        unknown = sorted(set(columns) - set(COLUMNS))
        if unknown:
            raise ValueError(f"columns: expected {', '.join(COLUMNS)}, got {', '.join(unknown)}")
        self._columns = {"image": "image", **columns}
        self._prompt, self._compat, self._form = prompt_of(prompt), compat, box_format
        self._labels = None if labels is None else read_categories(labels, "labels")
        self._allow_outside = allow_outside
        if "mask" in columns and labels is None and "categories" not in columns:
            raise ValueError("labels: expected names of the mask's labels, or a column of categories, got neither")
        if ("box" in columns) != ("expression" in columns):
            raise ValueError("box: expected columns of both box and expression, got one of them")
        light = dict.fromkeys(name for kind, name in self._columns.items() if kind not in _HEAVY)
        self._light = tuple(light)
        wanted = tuple(dict.fromkeys(self._columns.values()))
        if isinstance(data, (str, os.PathLike)):
            path = Path(data)
            self._root = path if path.is_dir() else path.parent
            self._source: _Source = _Files(path, wanted)
        else:
            self._root, self._source = Path.cwd(), _Memory(data, wanted)

    @staticmethod
    def fits(path: Path) -> bool:
        """Whether it is such a file, or a folder of them."""
        if path.is_file():
            return path.suffix.lower() in _TABLES
        return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file() or bool(_parquets(path))

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._source)

    def __iter__(self) -> Iterator[Item]:
        """Yield an item a row."""
        for number in range(len(self._source)):
            id = str(number)
            try:
                cells = self._source.cells(number, self._light) if self._light else {}
                id = self._id(cells, id)
                yield self._item(id, number, cells)
            except ValueError as error:
                yield broken(id, error)

    def _id(self, cells: Mapping[str, Any], number: str) -> str:
        if "id" not in self._columns:
            return number
        value = cells[self._columns["id"]]
        if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
            raise ValueError(f"id: expected a text or a whole number, got {value!r:.80}")
        return str(value)

    def _item(self, id: str, number: int, cells: Mapping[str, Any]) -> Item:
        def cell(kind: str) -> Any:
            return cells[self._columns[kind]] if kind in self._columns else None

        categories = dict(self._labels or {})
        if "categories" in self._columns:
            categories.update(read_categories(cell("categories") or {}))
        boxes: dict[int, tuple[tuple[float, float, float, float], ...]] = {}
        extra: dict[str, Any] = {}
        answer = _text(cell("answer"), "answer")
        if "box" in self._columns:
            expression = _text(cell("expression"), "expression")
            if expression is None:
                raise ValueError("expression: expected a text, got none")
            boxes, extra = {_TARGET: (read_box(cell("box"), self._form),)}, {"expression": expression}
            categories = {expression: _TARGET}
            answer = answer or expression
        return Item(
            id,
            self._reading(number, "image"),
            _texts(cell("references")),
            _text(cell("prompt"), "prompt") or self._prompt,
            answer,
            categories,
            self._reading(number, "mask") if "mask" in self._columns else None,
            boxes,
            extra,
            compat=self._compat,
        )

    def _reading(self, number: int, kind: str) -> Callable[[], Any]:
        """Make what reads an image or a mask of a row, when it is called."""
        column = self._columns[kind]

        def read() -> Any:
            value = self._source.cells(number, (column,))[column]
            if isinstance(value, Mapping) and set(value) <= {"bytes", "path"}:
                value = value.get("path") if value.get("bytes") is None else value["bytes"]
            if isinstance(value, str):
                return inside(self._root, value, kind, self._allow_outside)
            if kind == "mask" and isinstance(value, (list, tuple)):
                return _nested(value)
            if not isinstance(value, (bytes, bytearray, Image.Image, np.ndarray)):
                raise ValueError(
                    f"{kind}: expected bytes, {{bytes, path}}, a file's name or an image, got {_kind(value)}"
                )
            return value

        return read

    def fingerprint(self) -> dict[str, Any]:
        """Return what tells the table's files from others (names, sizes, rows), and how they are read."""
        return {
            "data": self.name,
            **self._source.describe(),
            "columns": dict(sorted(self._columns.items())),
            "labels": self._labels,
            "prompt": self._prompt,
            "compat": self._compat,
        }


def _text(value: Any, name: str) -> str | None:
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{name}: expected a text, got {_kind(value)}")
    return value or None


def _texts(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, (list, tuple)) or not all(isinstance(text, str) for text in found):
        raise ValueError(f"references: expected a text or a list of texts, got {_kind(value)}")
    return tuple(found)


def _nested(value: Any) -> Any:
    try:
        return np.array(value)
    except ValueError as error:
        raise ValueError("mask: expected rows of one length, got others") from error


def _kind(value: Any) -> str:
    return "none" if value is None else type(value).__name__


class _Memory:
    """A list of mappings, or a ``datasets.Dataset``."""

    def __init__(self, rows: Any, wanted: tuple[str, ...]) -> None:
        if isinstance(rows, Mapping):
            raise TypeError(
                f"data: expected one split of the data set, got {', '.join(map(str, rows))}: give one of them"
            )
        if isinstance(rows, (str, bytes)) or not (hasattr(rows, "__len__") and hasattr(rows, "__getitem__")):
            raise TypeError(
                f"data: expected rows that can be counted and asked for by number, got {type(rows).__name__}"
            )
        names = getattr(rows, "column_names", None)
        if names is None and len(rows):
            names = list(rows[0]) if isinstance(rows[0], Mapping) else None
        _check_columns(wanted, names, "the rows")
        self._rows = rows
        self._select = getattr(rows, "select_columns", None)
        self._views: dict[tuple[str, ...], Any] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def cells(self, number: int, columns: tuple[str, ...]) -> Mapping[str, Any]:
        # Of other columns nothing is decoded.
        if callable(self._select) and columns not in self._views:
            self._views[columns] = self._select(list(columns))
        row = self._views.get(columns, self._rows)[number]
        if not isinstance(row, Mapping):
            raise ValueError(f"data: expected a mapping of columns, got {type(row).__name__}")
        missing = [name for name in columns if name not in row]
        if missing:
            raise ValueError(f"data: expected a column {missing[0]!r}, got {', '.join(map(str, row))}")
        return row

    def describe(self) -> dict[str, Any]:
        found = getattr(self._rows, "_fingerprint", None)
        return {"rows": len(self._rows), "fingerprint": found if isinstance(found, str) else None}


class _Files:
    """Parquet and Arrow files; what was read last is kept, a group of rows of each choice of columns."""

    def __init__(self, path: Path, wanted: tuple[str, ...]) -> None:
        self._paths = _files_of(path)
        self._groups: list[tuple[Path, int]] = []
        self._starts: list[int] = []
        self._sizes: list[tuple[str, int, int]] = []
        count = 0
        for file in self._paths:
            before = count
            for group, rows in enumerate(_group_sizes(file, wanted)):
                self._groups.append((file, group))
                self._starts.append(count)
                count += rows
            self._sizes.append((file.name, file.stat().st_size, count - before))
        self._count = count
        # The light columns, images and masks: each with the group that is being gone through.
        self._kept: dict[tuple[str, ...], Callable[[int], Any]] = {}

    def __len__(self) -> int:
        return self._count

    def cells(self, number: int, columns: tuple[str, ...]) -> Mapping[str, Any]:
        if columns not in self._kept:
            self._kept[columns] = lru_cache(maxsize=1)(lambda group: _read_group(*self._groups[group], columns))
        group = bisect_right(self._starts, number) - 1
        table = self._kept[columns](group)
        found: Mapping[str, Any] = table.slice(number - self._starts[group], 1).to_pylist()[0]
        return found

    def describe(self) -> dict[str, Any]:
        text = json.dumps(self._sizes)
        return {"rows": self._count, "files": hashlib.sha256(text.encode()).hexdigest()}


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as error:
        raise ModuleNotFoundError(
            "data: expected pyarrow, which reads tables, got none: pip install 'tam-fast[evaluation]'"
        ) from error
    return pyarrow


def _parquets(folder: Path) -> list[Path]:
    found = [path for path in folder.glob("**/*.parquet") if path.is_file()]
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def _files_of(path: Path) -> list[Path]:
    if path.is_file():
        if path.suffix.lower() not in _TABLES:
            raise ValueError(f"data: expected a file {', '.join(_TABLES)}, got {path.name}")
        return [path]
    if (path / "dataset_dict.json").is_file():
        splits = json.loads((path / "dataset_dict.json").read_text(encoding="utf-8")).get("splits", [])
        raise ValueError(
            f"data: expected one split of the data set, got all: give {path} and one of {', '.join(splits)}"
        )
    if (path / "state.json").is_file():
        return _saved(path)
    found = _parquets(path)
    if not found:
        raise FileNotFoundError(f"data: expected Parquet files in {path}, got none")
    return found


def _saved(folder: Path) -> list[Path]:
    """Find the files of what ``Dataset.save_to_disk`` wrote."""
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    if state.get("_indices_files") or state.get("_indices_data_files"):
        raise ValueError(f"data: expected {folder} written out, got one with indices: save flatten_indices() of it")
    names = [str(entry["filename"]) for entry in state.get("_data_files", [])]
    strange = next((name for name in names if Path(name).name != name), None)
    if strange is not None:
        raise ValueError(f"data: expected files of the folder in {folder / 'state.json'}, got {strange!r}")
    return [folder / name for name in names]


def _check_columns(wanted: Sequence[str], names: Sequence[str] | None, where: str) -> None:
    missing = [name for name in wanted if names is not None and name not in names]
    if missing:
        raise ValueError(
            f"columns: expected {', '.join(map(repr, missing))} in {where}, got {', '.join(map(str, names or ()))}"
        )


def _group_sizes(path: Path, wanted: tuple[str, ...]) -> list[int]:
    """Count the rows of each group of a file, and check its columns."""
    pa = _pyarrow()
    try:
        if path.suffix.lower() == ".parquet":
            with pa.parquet.ParquetFile(path) as file:
                names, meta = file.schema_arrow.names, file.metadata
                sizes = [meta.row_group(group).num_rows for group in range(meta.num_row_groups)]
        else:
            with pa.memory_map(str(path)) as source:
                reader = _ipc(source)
                names = reader.schema.names
                sizes = [batch.num_rows for batch in _batches(reader)]
    except (pa.ArrowException, OSError, EOFError) as error:
        raise ValueError(f"data: expected a table in {path}, got {type(error).__name__}: {error}") from error
    _check_columns(wanted, names, path.name)
    return sizes


def _read_group(path: Path, group: int, columns: tuple[str, ...]) -> Any:
    pa = _pyarrow()
    try:
        if path.suffix.lower() == ".parquet":
            with pa.parquet.ParquetFile(path) as file:
                return file.read_row_group(group, columns=list(columns))
        with pa.memory_map(str(path)) as source:
            batch = next(batch for number, batch in enumerate(_batches(_ipc(source))) if number == group)
            return pa.Table.from_batches([batch]).select(list(columns))
    except (pa.ArrowException, OSError, EOFError) as error:
        raise ValueError(f"data: expected rows in {path}, got {type(error).__name__}: {error}") from error


def _ipc(source: Any) -> Any:
    pa = _pyarrow()
    is_file = source.read(6) == b"ARROW1"
    source.seek(0)
    return pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)


def _batches(reader: Any) -> Iterator[Any]:
    if hasattr(reader, "num_record_batches"):
        return (reader.get_batch(number) for number in range(reader.num_record_batches))
    return iter(reader)
