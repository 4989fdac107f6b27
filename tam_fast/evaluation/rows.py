"""What was measured, kept as rows of Parquet parts: one part an item, written beside and renamed."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow

__all__ = ["STATUSES", "Row", "Rows", "merge", "read_rows", "schema", "stem_of"]

STATUSES = ("ok", "none", "error")
_FOLDER = "rows"
_MERGED = "rows.parquet"
_PART = re.compile(r"^[0-9a-f]{20}\.(\d+)\.parquet$")
_GROUP = 65_536  # rows that are written to the merged file at once


@dataclass(frozen=True)
class Row:
    """One figure of one word, token or answer by one method, or why there is none.

    Attributes
    ----------
    index : int
        The item's place in the data set.
    item : str
        Its id.
    method : str
        Whose maps; ``""`` for what is of the answer alone.
    measure : str
        What was asked for (``"plausibility"``); ``""`` with an error of the whole item.
    figure : str
        What it is (``"obj_iou"``); ``""`` where there is none.
    word, token : int
        Place of the word in the answer's words and of its token, -1 where the figure is not of one.
    text : str
        The word as it reads.
    value : float
        NaN where there is none.
    n : int
        For how many it stands: `value` is their mean, and weighs so much in a pooled mean.
    status : "ok", "none" or "error"
        ``"none"``: there was nothing to measure, such as an answer without a noun that has a mask.
    error : str
        What went wrong, or what there was nothing of.
    points : tuple of float
        A curve whose area the value is; mostly empty.
    """

    index: int
    item: str
    method: str = ""
    measure: str = ""
    figure: str = ""
    word: int = -1
    token: int = -1
    text: str = ""
    value: float = math.nan
    n: int = 1
    status: str = "ok"
    error: str = ""
    points: tuple[float, ...] = ()


def arrow() -> Any:
    """Import pyarrow and its Parquet module.

    Raises
    ------
    ModuleNotFoundError
        Says what to install.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ModuleNotFoundError(
            "evaluation: expected pyarrow, which keeps the rows, got none: pip install 'tam-fast[evaluation]'"
        ) from error
    return pyarrow


def schema() -> pyarrow.Schema:
    """Return the columns of a part, which are those of :class:`Row`."""
    pa = arrow()
    types = {int: pa.int32(), str: pa.string(), float: pa.float64()}
    kinds: dict[str, Any] = {"index": int, "word": int, "token": int, "n": int, "value": float}
    columns = [
        (part.name, pa.list_(pa.float32()) if part.name == "points" else types[kinds.get(part.name, str)])
        for part in fields(Row)
    ]
    return pa.schema([(name, pa.int64() if name == "index" else kind) for name, kind in columns])


def _table(rows: Sequence[Row]) -> Any:
    columns = {part.name: [getattr(row, part.name) for row in rows] for part in fields(Row)}
    return arrow().table(columns, schema=schema())


class Rows:
    """The rows in a folder, a part an item; several processes may write other items of the same folder.

    Parameters
    ----------
    folder : Path
        Parts go to ``rows/`` in it.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder) / _FOLDER

    def write(self, rows: Sequence[Row]) -> Path:
        """Write the rows of one item as one part: whole, or not at all.

        Raises
        ------
        ValueError
            If there are none, or they are of several items.
        OSError
            If the part cannot be written; nothing of it is left then.
        """
        items = {row.item for row in rows}
        if len(items) != 1:
            raise ValueError(f"rows: expected those of one item, got {len(items)}")
        self.folder.mkdir(parents=True, exist_ok=True)
        stem = stem_of(items.pop())
        number = max((_number(path) for path in self._parts(stem)), default=-1) + 1
        target = self.folder / f"{stem}.{number:03d}.parquet"
        beside = target.with_suffix(f".{os.getpid()}.tmp")
        try:
            _write(beside, _table(rows))
            beside.replace(target)
        except BaseException:
            with suppress(OSError):
                beside.unlink()
            raise
        return target

    def of(self, item: str) -> list[Row]:
        """Read the rows of one item; none if it was not measured yet."""
        return _latest(self._parts(stem_of(item)))

    def done(self, item: str, retry: bool = False) -> set[tuple[str, str]]:
        """Return which (method, measure) of an item are there; without errors if `retry`.

        ("", "") where the whole item failed.
        """
        return {(row.method, row.measure) for row in self.of(item) if not (retry and row.status == "error")}

    def forget_errors(self, item: str) -> None:
        """Take an item's error rows away, which are to be tried again: parts are written anew, then the old ones go."""
        rows = self.of(item)
        kept = [row for row in rows if row.status != "error"]
        if len(kept) == len(rows):
            return
        old = self._parts(stem_of(item))
        if kept:
            self.write(kept)
        for path in old:
            path.unlink()

    def clean(self) -> None:
        """Remove what a process that was killed left half written."""
        for path in self.folder.glob("*.tmp") if self.folder.is_dir() else ():
            if not _is_running(path):
                path.unlink(missing_ok=True)

    def _parts(self, stem: str) -> list[Path]:
        return sorted(path for path in self.folder.glob(f"{stem}.*.parquet"))


def _is_running(path: Path) -> bool:
    """Whether the process that writes a temporary file may still be there."""
    number = path.name.split(".")[-2]
    if not number.isdigit() or int(number) == os.getpid():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def stem_of(item: str) -> str:
    """Return the name of an item's files."""
    # An id may be a path, or longer than a file's name can be.
    return hashlib.sha256(item.encode("utf-8", "surrogatepass")).hexdigest()[:20]


def _number(path: Path) -> int:
    return int(path.name.split(".")[1])


def _write(path: Path, table: Any) -> None:
    with path.open("wb") as file:
        arrow().parquet.write_table(table, file, compression="zstd")
        file.flush()
        os.fsync(file.fileno())


def read_part(path: Path) -> list[Row]:
    """Read one part.

    Raises
    ------
    ValueError
        If it is no part of this kind; names the file.
    """
    pa = arrow()
    try:
        columns = pa.parquet.read_table(path, partitioning=None).to_pydict()
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"rows: expected a Parquet part, got {path}: {error}") from error
    names = [part.name for part in fields(Row)]
    missing = [name for name in names if name not in columns]
    if missing:
        raise ValueError(f"rows: expected columns {', '.join(names)} in {path}, got none named {', '.join(missing)}")
    columns["points"] = [tuple(points or ()) for points in columns["points"]]
    return [Row(*values) for values in zip(*(columns[name] for name in names), strict=True)]


def read_rows(folders: Iterable[str | os.PathLike[str]]) -> Iterator[list[Row]]:
    """Yield the rows of each item of one or several folders, all of an item at a time.

    The items are in an order that only depends on their ids.

    Where a unit (method and measure of an item) stands in several parts, the last part of the last folder counts.

    Raises
    ------
    ValueError
        If a folder has no rows, or a part is broken.
    """
    places: dict[str, list[Path]] = {}
    for folder in folders:
        root = Path(folder) / _FOLDER
        found = sorted(root.iterdir()) if root.is_dir() else []
        parts = [path for path in found if _PART.match(path.name)]
        if not parts:
            raise ValueError(f"output: expected a folder with rows that an evaluation wrote, got {folder}")
        for path in parts:
            places.setdefault(path.name.partition(".")[0], []).append(path)
    for stem in sorted(places):
        yield _latest(places[stem])


def _latest(paths: Iterable[Path]) -> list[Row]:
    """Read the parts of one item; of a unit that several have the last one's rows."""
    units: dict[tuple[str, str], list[Row]] = {}
    for path in paths:
        fresh: dict[tuple[str, str], list[Row]] = {}
        for row in read_part(path):
            fresh.setdefault((row.method, row.measure), []).append(row)
        units |= fresh
    return [row for rows in units.values() for row in rows]


def merge(folders: Sequence[str | os.PathLike[str]], output: str | os.PathLike[str]) -> Path:
    """Write all rows as one file ``rows.parquet`` in the folder `output`, which pandas, DuckDB and others open.

    Returns
    -------
    Path
    """
    pa = arrow()
    target = Path(output) / _MERGED
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_suffix(f".{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            with pa.parquet.ParquetWriter(file, schema(), compression="zstd") as writer:
                waiting: list[Row] = []
                for rows in read_rows(folders):
                    waiting += rows
                    if len(waiting) >= _GROUP:
                        writer.write_table(_table(waiting))
                        waiting = []
                if waiting:
                    writer.write_table(_table(waiting))
            file.flush()
            os.fsync(file.fileno())
        beside.replace(target)
    except BaseException:
        with suppress(OSError):
            beside.unlink()
        raise
    return target
