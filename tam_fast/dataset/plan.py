"""Which rows are in which shard: :class:`Plan`, fixed once, from listings and footers."""

from __future__ import annotations

import bisect
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from tam_fast.dataset.sources import File, Row, Source

__all__ = ["Plan", "Shard", "changed", "cut", "grown", "read_rows"]


@dataclass(frozen=True)
class Shard:
    """Rows `first` to ``first + rows`` of the input, which become one part.

    Attributes
    ----------
    number : int
    first, rows : int
    """

    number: int
    first: int
    rows: int


def cut(size: int, runs: Sequence[int]) -> Iterator[Shard]:
    """Cut runs of rows into shards; see :class:`Plan`."""
    number = first = 0
    for rows in runs:
        end = first + rows
        while first < end:
            some = min(size, end - first)
            yield Shard(number, first, some)
            number, first = number + 1, first + some


@dataclass(frozen=True)
class Plan:
    """The input's files in order, and how their rows are cut into shards.

    Attributes
    ----------
    files : sequence of File
    size : int
        Rows of a shard; the last of a run may have fewer.
    runs : sequence of int
        Rows by the time that they came: what was there first, and what was added later.
    """

    files: Sequence[File]
    size: int
    runs: Sequence[int]
    _starts: list[int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        starts = [0, *accumulate(file.rows for file in self.files)]
        if starts[-1] != sum(self.runs):
            raise ValueError(f"plan: expected {sum(self.runs)} rows, got {starts[-1]} in its files")
        object.__setattr__(self, "_starts", starts)

    @property
    def rows(self) -> int:
        """Rows of the whole input."""
        return self._starts[-1]

    def __len__(self) -> int:
        """Return the number of shards."""
        return sum(-(-rows // self.size) for rows in self.runs)

    def shards(self) -> Iterator[Shard]:
        """All shards, in order."""
        return cut(self.size, self.runs)

    def pieces(self, first: int, rows: int) -> Iterator[tuple[File, int, int]]:
        """Find what rows `first` to ``first + rows`` are in their files: (file, start, stop)."""
        at = bisect.bisect_right(self._starts, first) - 1
        end = first + rows
        while first < end:
            begin, file = self._starts[at], self.files[at]
            stop = min(end, begin + file.rows)
            if stop > first:
                yield file, first - begin, stop - begin
                first = stop
            at += 1

    def encode(self) -> bytes:
        """Write the files as Parquet."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = {name: [getattr(file, name) for file in self.files] for name in ("path", "size", "mtime", "rows")}
        kinds = {"path": pa.string(), "size": pa.int64(), "mtime": pa.int64(), "rows": pa.int64()}
        table = pa.table({name: pa.array(values, kinds[name]) for name, values in columns.items()})
        stream = io.BytesIO()
        pq.write_table(table, stream, compression="zstd")
        return stream.getvalue()

    @classmethod
    def decode(cls, data: bytes, size: int, runs: Sequence[int]) -> Plan:
        """Read what :meth:`encode` wrote."""
        import pyarrow.parquet as pq

        table = pq.read_table(io.BytesIO(data))
        files = [
            File(*values) for values in zip(*(table[name].to_pylist() for name in table.column_names), strict=True)
        ]
        return cls(files, size, list(runs))


def changed(old: Sequence[File], new: Sequence[File]) -> str:
    """Say how files that were planned are not what they were; '' if all are as they were.

    Files that are gone are left to their rows, which become error rows; what is done already stays.
    """
    by_path = {file.path: file for file in new}
    for file in old:
        now = by_path.get(file.path)
        if now is not None and now != file:
            names = [name for name in ("size", "mtime", "rows") if getattr(now, name) != getattr(file, name)]
            return f"{file.path or 'the rows'} changed ({', '.join(names)})"
    return ""


def grown(plan: Plan, new: Sequence[File]) -> Plan:
    """Return the plan with the files that were not there before behind the others, in shards of their own."""
    known = {file.path for file in plan.files}
    added = [file for file in new if file.path not in known]
    rows = sum(file.rows for file in added)
    return Plan([*plan.files, *added], plan.size, [*plan.runs, rows]) if rows else plan


def read_rows(plan: Plan, source: Source, first: int, rows: int) -> Iterator[Row]:
    """Read some rows of the input, in order; where a file is gone or broken, each of its rows says so."""
    for file, start, stop in plan.pieces(first, rows):
        try:
            found = source.read(file, start, stop)
        except Exception:  # as many kinds as there are file formats
            # Of a table one group of rows may be broken, and the others whole.
            for number in range(start, stop):
                yield from _read_row(source, file, number)
            continue
        yield from found
        for number in range(start + len(found), stop):
            yield _lost(file, number, f"a file that ends before row {number}")


def _read_row(source: Source, file: File, number: int) -> Sequence[Row]:
    try:
        return source.read(file, number, number + 1)
    except Exception as error:
        return [_lost(file, number, f"{type(error).__name__}: {error}")]


def _lost(file: File, number: int, why: str) -> Row:
    return Row(f"{file.path}:{number}", error=f"input: expected row {number} of {file.path!r}, got {why}")
