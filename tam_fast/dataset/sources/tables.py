"""Tables: Parquet and Arrow files, `datasets` saved to disk, and rows in memory."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from tam_fast.dataset.sources.rows import NOTHING, Columns, File, Known, Row, RowError, counted, id_of, row_of

__all__ = ["InMemory", "Tables", "data_files"]

_PARQUET = ".parquet"


class Tables:
    """Files of rows with named columns: Parquet, or Arrow's stream and file formats.

    Parameters
    ----------
    root : Path
        What paths of images are relative to.
    names : sequence of str
        The files, relative to `root`.
    columns : Columns
    allow_outside : bool

    Raises
    ------
    ValueError
        If a file is no table, has not the columns, or one of them is of an extension type (from :meth:`files`).
    """

    kind = "tables"

    def __init__(self, root: Path, names: Sequence[str], columns: Columns, allow_outside: bool = False) -> None:
        self._root, self._names = root, list(names)
        self._columns, self._allow_outside = columns, allow_outside
        self._wanted = [*columns.images, *(name for name in (columns.id, columns.prompt, columns.answer) if name)]
        self._group = lru_cache(maxsize=2)(self._read_group)
        self._bounds = lru_cache(maxsize=64)(self._read_bounds)

    def files(self, known: Known = NOTHING) -> Sequence[File]:
        """List the files with their numbers of rows, from footers (Parquet) or the messages' heads (Arrow)."""
        return [counted(self._root, name, known, lambda name: self._bounds(name)[-1]) for name in self._names]

    def read(self, file: File, start: int, stop: int) -> Sequence[Row]:
        """Read some rows; only the row groups that hold them are decoded."""
        rows: list[Row] = []
        bounds = self._bounds(file.path)
        for number, (begin, end) in enumerate(itertools.pairwise(bounds)):
            if begin < stop and end > start:
                table = self._group(file.path, number)
                first, last = max(start, begin), min(stop, end)
                cells = table.slice(first - begin, last - first).to_pylist()
                rows += [self._row(file, first + k, cell) for k, cell in enumerate(cells)]
        return rows

    def names(self) -> Sequence[str]:
        """Return the columns of the first file."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not self._names:
            return ()
        path = self._root / self._names[0]
        try:
            if path.suffix == _PARQUET:
                return list(pq.read_schema(path).names)
            with pa.memory_map(str(path)) as source:
                return list(_opened(source).schema.names)
        except (pa.ArrowException, OSError, EOFError) as error:
            raise ValueError(f"input: expected a table in {path}, got {type(error).__name__}: {error}") from error

    def ids(self, file: File) -> Sequence[str] | None:
        """Read the id column of a file; None if none was named."""
        if self._columns.id is None:
            return None
        import pyarrow.parquet as pq

        path = self._root / file.path
        if path.suffix == _PARQUET:
            values = pq.read_table(path, columns=[self._columns.id])[self._columns.id].to_pylist()
        else:
            groups = range(len(self._bounds(file.path)) - 1)
            values = [value for k in groups for value in self._group(file.path, k)[self._columns.id].to_pylist()]
        try:
            return [id_of(value) for value in values]
        except RowError as error:
            raise ValueError(f"{file.path}: {error}") from None

    def _row(self, file: File, number: int, cells: Mapping[str, Any]) -> Row:
        return row_of(cells, self._columns, f"{file.path}:{number}", self._root, self._allow_outside)

    def _read_bounds(self, name: str) -> list[int]:
        """Find where the row groups of a file begin, and where the last ends; checks its schema."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self._root / name
        try:
            if path.suffix == _PARQUET:
                with pq.ParquetFile(path) as file:
                    self._check(name, file.schema_arrow)
                    sizes = [file.metadata.row_group(k).num_rows for k in range(file.metadata.num_row_groups)]
            else:
                with pa.memory_map(str(path)) as source:
                    reader = _opened(source)
                    self._check(name, reader.schema)
                    sizes = [batch.num_rows for batch in _batches(reader)]
        except (pa.ArrowException, OSError, EOFError) as error:
            raise ValueError(f"input: expected a table in {path}, got {type(error).__name__}: {error}") from error
        bounds = [0]
        for size in sizes:
            bounds.append(bounds[-1] + size)
        return bounds

    def _read_group(self, name: str, number: int) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self._root / name
        if path.suffix == _PARQUET:
            with pq.ParquetFile(path) as file:
                return file.read_row_group(number, columns=self._wanted)
        with pa.memory_map(str(path)) as source:
            for k, batch in enumerate(_batches(_opened(source))):
                if k == number:
                    return pa.Table.from_batches([batch]).select(self._wanted)
        raise ValueError(f"input: expected batch {number} in {path}, which it had before")

    def _check(self, name: str, schema: Any) -> None:
        for column in self._wanted:
            if column not in schema.names:
                raise ValueError(f"input: expected a column {column!r} in {name}, got {', '.join(schema.names)}")
            if _is_extended(schema.field(column)):
                raise ValueError(f"input: expected a plain type in column {column!r} of {name}, got an extension type")


def _is_extended(field: Any) -> bool:
    """Whether a column, or one within it, is of an extension type: some bring code along."""
    import pyarrow as pa

    kind = field.type
    if isinstance(kind, pa.BaseExtensionType) or b"ARROW:extension:name" in (field.metadata or {}):
        return True
    return any(_is_extended(kind.field(k)) for k in range(kind.num_fields))


def _opened(source: Any) -> Any:
    import pyarrow as pa

    if source.read(6) == b"ARROW1":
        source.seek(0)
        return pa.ipc.open_file(source)
    source.seek(0)
    return pa.ipc.open_stream(source)


def _batches(reader: Any) -> Any:
    if hasattr(reader, "num_record_batches"):
        return (reader.get_batch(k) for k in range(reader.num_record_batches))
    return iter(reader)


def data_files(root: Path) -> list[str] | None:
    """Find the Arrow files of a data set that `datasets` saved to a folder; None if it is none.

    Raises
    ------
    ValueError
        If it holds several splits, or was filtered or shuffled without being written out.
    """
    if (root / "dataset_dict.json").is_file():
        splits = _document(root / "dataset_dict.json").get("splits", [])
        each = ", ".join(str(root / str(split)) for split in splits)
        raise ValueError(f"input: expected one split of the data set, got all; give one of {each}")
    if not (root / "state.json").is_file():
        return None
    state = _document(root / "state.json")
    if state.get("_indices_files"):
        raise ValueError(f"input: expected {root} written out, got one with indices; save flatten_indices() of it")
    try:
        names = [str(entry["filename"]) for entry in state.get("_data_files", [])]
    except (TypeError, KeyError) as error:
        raise ValueError(f"input: expected names of files in {root / 'state.json'}, got {error}") from error
    strange = [name for name in names if Path(name).name != name]
    if strange:
        raise ValueError(f"input: expected files of the folder in {root / 'state.json'}, got {strange[0]!r}")
    return names


def _document(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"input: expected JSON in {path}, got {type(error).__name__}: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"input: expected a JSON object in {path}, got {type(found).__name__}")
    return found


class InMemory:
    """Rows in memory: a list of dicts, or a ``datasets.Dataset``.

    Parameters
    ----------
    rows : sequence of mapping
    columns : Columns
    allow_outside : bool
        Whether images that are paths may lie outside the working folder.
    """

    kind = "memory"

    def __init__(self, rows: Any, columns: Columns, allow_outside: bool = False) -> None:
        self._rows, self._columns, self._allow_outside = rows, columns, allow_outside

    def files(self, known: Known = NOTHING) -> Sequence[File]:  # noqa: ARG002 (nothing is opened)
        """Return one entry for all rows."""
        return [File("", 0, 0, len(self._rows))]

    def read(self, file: File, start: int, stop: int) -> Sequence[Row]:
        """Read some rows."""
        made: list[Row] = []
        for number in range(start, min(stop, file.rows)):
            try:
                cells = self._rows[number]
            except Exception as error:  # such as an image that `datasets` cannot decode
                made.append(Row(str(number), error=f"{type(error).__name__}: {error}"))
                continue
            if not isinstance(cells, Mapping):
                made.append(Row(str(number), error=f"expected a mapping of columns, got {type(cells).__name__}"))
                continue
            made.append(row_of(cells, self._columns, str(number), Path.cwd(), self._allow_outside))
        return made

    def names(self) -> Sequence[str]:
        """Return the columns of the first row."""
        columns = getattr(self._rows, "column_names", None)  # of `datasets`, which would decode a row
        if isinstance(columns, list):
            return columns
        first = self._rows[0] if len(self._rows) else {}
        return list(first) if isinstance(first, Mapping) else ()

    def ids(self, file: File) -> Sequence[str] | None:
        """Read all ids; None if no column holds them."""
        name = self._columns.id
        if name is None:
            return None
        if isinstance(getattr(self._rows, "column_names", None), list):
            values = list(self._rows[name]) if name in self._rows.column_names else [None] * file.rows
        else:
            rows = (self._rows[number] for number in range(file.rows))
            values = [row.get(name) if isinstance(row, Mapping) else None for row in rows]
        made: list[str] = []
        try:
            made.extend(id_of(value) for value in values)
        except RowError as error:
            raise ValueError(f"id: expected one in row {len(made)} of the input; {error}") from None
        return made
