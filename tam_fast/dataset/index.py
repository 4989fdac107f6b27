"""Where each row is, ``index.parquet``: made of the parts, and made again at will."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tam_fast.dataset.durable import write_whole
from tam_fast.dataset.parts import part_name
from tam_fast.dataset.plan import Shard

__all__ = ["INDEX", "counted_parts", "known_parts", "make_index", "parts_there", "stamp"]

INDEX = "index.parquet"
_STRONGEST = 5
_KEY = b"tam_fast.parts"


def stamp(state: os.stat_result) -> str:
    """What a part is known by without reading it: its size and the time of its last change."""
    return f"{state.st_size}:{state.st_mtime_ns}"


def known_parts(folder: Path, digest: str) -> dict[str, str]:
    """Return the stamps of the parts that the index was made of; none if there is no index, or of another run."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        kept = (pq.read_schema(folder / INDEX).metadata or {}).get(_KEY, b"{}")
        document = json.loads(kept)
    except (OSError, pa.ArrowException, ValueError):
        return {}
    if not isinstance(document, dict) or document.get("config") != digest:
        return {}
    return dict(document["parts"])


def parts_there(folder: Path, digest: str) -> dict[str, tuple[str, bool]]:
    """List the parts that are there: their stamps, and whether the index knows each so: it need not be opened then."""
    known = known_parts(folder, digest)
    with os.scandir(folder) as entries:
        stamps = {
            entry.name: stamp(entry.stat()) for entry in entries if entry.name.startswith("part-") and entry.is_file()
        }
    return {name: (mark, known.get(name) == mark) for name, mark in stamps.items()}


def counted_parts(
    folder: Path, shards: Iterable[Shard], digest: str, is_done: Callable[[Shard], bool]
) -> dict[str, str]:
    """Find the parts that count, in order: those that the index knows as they are, and those of the right footer.

    Returns
    -------
    dict of str to str
        Their names and stamps.
    """
    found = parts_there(folder, digest)
    counted: dict[str, str] = {}
    for shard in shards:
        mark, known = found.get(part_name(shard.number), ("", False))
        if known or (mark and is_done(shard)):
            counted[part_name(shard.number)] = mark
    return counted


def make_index(
    folder: Path, parts: Mapping[str, str], digest: str, write: bool = True, columns: Sequence[str] | None = None
) -> Any:
    """Make the index of some parts, which are in order; rows of parts that it held already are taken over.

    Parameters
    ----------
    folder : Path
    parts : mapping of str to str
        Names and stamps, of :func:`counted_parts`.
    digest : str
        Of the configuration.
    write : bool
        False for who only reads.
    columns : sequence of str, optional
        Which are returned; all if not given.

    Returns
    -------
    pyarrow.Table
        Columns ``id``, ``part``, ``row`` (within the part), ``status``, ``text``, ``error``, and ``words``, the five
        strongest.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    known = known_parts(folder, digest)
    if known and list(known.items()) == list(parts.items()):
        # Thousands of rows are of one part.
        return pq.read_table(folder / INDEX, columns=columns, read_dictionary=() if columns is None else ("part",))
    kept = {name for name, mark in known.items() if parts.get(name) == mark}
    old: dict[str, Any] = {}
    if kept:
        table = pq.read_table(folder / INDEX)
        # Rows of a part stand together.
        names = table["part"].combine_chunks().dictionary_encode()
        for code, name in enumerate(names.dictionary.to_pylist()):
            if name in kept:
                old[name] = table.filter(pc.equal(names.indices, code))
    tables = [old[name] if name in old else _rows(folder / name) for name in parts]
    made = pa.concat_tables(tables) if tables else _schema().empty_table()
    document = json.dumps({"config": digest, "parts": dict(parts)}, separators=(",", ":"))
    made = made.replace_schema_metadata({_KEY: document.encode()})
    if write:
        stream = io.BytesIO()
        pq.write_table(made, stream, compression="zstd", row_group_size=2**17)
        write_whole(folder / INDEX, stream.getvalue())
    return made if columns is None else made.select(columns)


def _schema() -> Any:
    import pyarrow as pa

    word = pa.struct([("text", pa.string()), ("strength", pa.float32())])
    return pa.schema(
        [
            ("id", pa.string()),
            ("part", pa.string()),
            ("row", pa.int32()),
            ("status", pa.string()),
            ("text", pa.string()),
            ("error", pa.string()),
            ("words", pa.list_(word)),
        ]
    )


def _rows(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(path, columns=["id", "status", "text", "error", "words"])
    strongest = [
        [
            {"text": word["text"], "strength": word["strength"]}
            for word in sorted(words or (), key=lambda word: -word["strength"])[:_STRONGEST]
        ]
        for words in table["words"].to_pylist()
    ]
    count = len(table)
    columns = {
        "id": table["id"],
        "part": pa.array([path.name] * count, pa.string()),
        "row": pa.array(range(count), pa.int32()),
        **{name: table[name] for name in ("status", "text", "error")},
        "words": pa.array(strongest, _schema().field("words").type),
    }
    return pa.table(columns, schema=_schema())
