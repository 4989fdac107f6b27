"""One file a shard, ``part-00000.parquet``: written whole, and known by its footer."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tam_fast.dataset.attempts import journal_name
from tam_fast.dataset.durable import UNFINISHED, write_whole
from tam_fast.dataset.plan import Shard
from tam_fast.dataset.records import schema

__all__ = ["GROUP_BYTES", "clean", "done", "footer", "part_name", "part_path", "piece_path", "read_part", "write_part"]

GROUP_BYTES = 16 * 2**20
"""At most so many bytes of maps in a row group, which is what reading one row decodes."""


_PIECE = re.compile(r"\.part-(\d{5,})\.\d+-\d+\.parquet")


def part_name(number: int) -> str:
    """Name the file of a shard in its folder."""
    return f"part-{number:05d}.parquet"


def part_path(folder: Path, shard: Shard) -> Path:
    """Name the file of a shard."""
    return folder / part_name(shard.number)


def piece_path(folder: Path, shard: Shard, start: int, stop: int) -> Path:
    """Name the file of some rows of a shard that is explained in pieces, because it killed its worker."""
    return folder / f".part-{shard.number:05d}.{start}-{stop}.parquet"


def footer(shard: Shard, digest: str, maps: str, maps_format: str) -> dict[str, str]:
    """What the part of a shard is known by: the configuration's digest, the shard, and which maps it holds."""
    return {
        "tam_fast.config": digest,
        "tam_fast.shard": f"{shard.number}:{shard.first}:{shard.rows}",
        "tam_fast.maps": maps,
        "tam_fast.maps_format": maps_format,
    }


def write_part(path: Path, records: Sequence[Mapping[str, Any]], footer: Mapping[str, str]) -> None:
    """Write rows to a file that is whole or not there.

    Parameters
    ----------
    path : Path
    records : sequence of mapping
        Columns of :func:`tam_fast.dataset.records.schema`; what is not there is null.
    footer : mapping of str to str
        What the file is known by, see :func:`done`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind = schema().with_metadata({**footer, "rows": str(len(records))})
    stream = io.BytesIO()
    # Dictionaries cost more than they save for maps, and small ones little for the rest.
    with pq.ParquetWriter(stream, kind, compression="zstd", compression_level=3, use_dictionary=False) as writer:
        for group in _groups(records):
            writer.write_table(pa.Table.from_pylist(list(group), schema=kind))
    write_whole(path, stream.getvalue())


def _groups(records: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    groups: list[list[Mapping[str, Any]]] = [[]]
    size = 0
    for record in records:
        weight = sum(map(len, record.get("maps") or ())) + sum(map(len, record.get("relevance") or ()))
        if groups[-1] and size + weight > GROUP_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(record)
        size += weight
    return groups


def done(path: Path, footer: Mapping[str, str], rows: int) -> bool:
    """Whether a file is there, whole, and of this footer and number of rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        found = pq.read_metadata(path)
    except (OSError, pa.ArrowException):
        return False
    kept = {key.decode(): value.decode("utf-8", "replace") for key, value in (found.metadata or {}).items()}
    return found.num_rows == rows and all(kept.get(key) == value for key, value in footer.items())


def read_part(path: Path) -> list[dict[str, Any]]:
    """Read all rows of a file."""
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows


def clean(folder: Path, journals: Path) -> None:
    """Remove what an interrupted process left unfinished; only for who holds the folder's lock.

    Pieces without their shard's journal go too: without it nobody looks for them.
    """
    for entry in list(os.scandir(folder)):
        piece = _PIECE.fullmatch(entry.name)
        lost = piece is not None and not (journals / journal_name(int(piece[1]))).exists()
        if (lost or entry.name.endswith(UNFINISHED)) and entry.is_file():
            Path(entry.path).unlink()
