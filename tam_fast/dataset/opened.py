"""A data set of explanations, opened to be read: :func:`open_dataset`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from tam_fast.dataset.index import counted_parts, make_index
from tam_fast.dataset.manifest import Outline, digest
from tam_fast.dataset.needed import need
from tam_fast.dataset.parts import done, footer, part_path
from tam_fast.dataset.plan import Shard, cut
from tam_fast.dataset.records import explanation_of
from tam_fast.explanation import Explanation

__all__ = ["Dataset", "open_dataset"]


def open_dataset(output: str | os.PathLike[str]) -> Dataset:
    """Open what :func:`tam_fast.dataset.run` or ``tam-fast dataset`` wrote, also while it is still written to.

    Parameters
    ----------
    output : path
        Its folder.

    Returns
    -------
    Dataset

    Raises
    ------
    ValueError
        If there is no data set of ours.
    ModuleNotFoundError
        If pyarrow is missing (extra ``dataset``).
    """
    return Dataset(Path(output))


class Dataset:
    """Explanations of a data set, read a row at a time.

    ``ds["photos/1.jpg"]`` is an :class:`Explanation` (without its images), ``ds[3]`` that of the fourth row; a loop
    gives those that there are, errors left out. Rows that no part holds yet are not there.

    Parameters
    ----------
    folder : Path
    """

    def __init__(self, folder: Path) -> None:
        need("pyarrow", "dataset")
        self.folder = folder
        try:
            self._outline = Outline.read(folder)
        except FileNotFoundError as error:
            raise ValueError(
                f"output: expected a folder that `tam-fast dataset` wrote, got no {error.filename}"
            ) from None
        config = self._outline.config
        self._digest = digest(config)
        self._maps = str(config.get("maps", "tokens"))
        self._format = str(config.get("maps_format", "uint8"))
        self._model = str(config.get("model", {}).get("name", ""))

    def __repr__(self) -> str:
        return f"Dataset({str(self.folder)!r}, {len(self)} of {sum(self._outline.runs)} rows)"

    @cached_property
    def _parts(self) -> dict[str, str]:
        shards = cut(self._outline.size, self._outline.runs)
        return counted_parts(self.folder, shards, self._digest, self._is_done)

    @cached_property
    def _index(self) -> Any:
        return self._columns(["id", "part", "row"])

    def _columns(self, names: list[str]) -> Any:
        return make_index(self.folder, self._parts, self._digest, write=False, columns=names)

    def _is_done(self, shard: Shard) -> bool:
        known_by = footer(shard, self._digest, self._maps, self._format)
        return done(part_path(self.folder, shard), known_by, shard.rows)

    def __len__(self) -> int:
        """Return the number of rows that there are, error rows among them."""
        return int(self._index.num_rows)

    @property
    def ids(self) -> list[str]:
        """The ids of all rows, in order."""
        found: list[str] = self._index["id"].to_pylist()
        return found

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._find(name) >= 0

    def __getitem__(self, key: str | int) -> Explanation:
        """Return the explanation of a row, by its id or its number.

        Raises
        ------
        KeyError, IndexError
            If there is no such row.
        ValueError
            If the row is an error, or its maps were not kept.
        """
        record = self.record(key)
        return explanation_of(record, self._model, self._maps, self._format)

    def record(self, key: str | int) -> dict[str, Any]:
        """Return the columns of a row, by its id or its number; only its row group is read.

        Raises
        ------
        KeyError, IndexError
            If there is no such row.
        """
        import pyarrow.parquet as pq

        place = self._place(key)
        name, row = self._index["part"][place].as_py(), self._index["row"][place].as_py()
        with pq.ParquetFile(self.folder / name) as file:
            for group in range(file.metadata.num_row_groups):
                count = file.metadata.row_group(group).num_rows
                if row < count:
                    found: dict[str, Any] = file.read_row_group(group).slice(row, 1).to_pylist()[0]
                    return found
                row -= count
        raise ValueError(f"{self.folder / name}: expected the row {key!r} that the index names")

    def errors(self) -> Iterator[tuple[str, str]]:
        """Yield the id and the message of each error row."""
        import pyarrow.compute as pc

        table = self._columns(["id", "status", "error"])
        found = table.filter(pc.not_equal(table["status"], "ok"))
        yield from zip(found["id"].to_pylist(), found["error"].to_pylist(), strict=True)

    def __iter__(self) -> Iterator[Explanation]:
        """Yield the explanations in order, error rows left out; a row group is held at a time."""
        import pyarrow.parquet as pq

        for name in self._parts:
            with pq.ParquetFile(self.folder / name) as file:
                for group in range(file.metadata.num_row_groups):
                    for record in file.read_row_group(group).to_pylist():
                        if record["status"] == "ok":
                            yield explanation_of(record, self._model, self._maps, self._format)

    def to_arrow(self, filter: Any = None) -> Any:
        """Read the columns of all rows, or of those that a ``pyarrow.compute`` expression takes.

        Parameters
        ----------
        filter : pyarrow.compute.Expression, optional
            Such as ``pc.field("status") == "ok"``.

        Returns
        -------
        pyarrow.Table
        """
        import pyarrow.dataset as pds

        from tam_fast.dataset.records import schema

        parts = [str(self.folder / name) for name in self._parts]
        return pds.dataset(parts, schema=schema(), format="parquet").to_table(filter=filter)

    def _place(self, key: str | int) -> int:
        if isinstance(key, str):
            place = self._find(key)
            if place < 0:
                raise KeyError(f"{key!r} is none of the {len(self)} rows in {self.folder}")
            return place
        if isinstance(key, bool) or not hasattr(key, "__index__"):
            raise TypeError(f"key: expected an id or a number, got {type(key).__name__}")
        number = int(key.__index__())
        if not -len(self) <= number < len(self):
            raise IndexError(f"key: expected a row from 0 to {len(self) - 1}, got {number}")
        return number % len(self)

    def _find(self, name: str) -> int:
        import pyarrow.compute as pc

        return int(pc.index(self._index["id"], name).as_py())
