"""Where each row is, ``index.parquet``: made of the parts, and made again at will."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tam_fast.dataset.durable import write_whole

__all__ = ["INDEX", "known_parts", "make_index", "stamp"]

INDEX = "index.parquet"
_STRONGEST = 5
_KEY = b"tam_fast.parts"


def stamp(path: Path) -> str:
    """What a part is known by without reading it: its size and the time of its last change."""
    state = path.stat()
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


def make_index(folder: Path, parts: Sequence[Path], digest: str, write: bool = True) -> Any:
    """Make the index of some parts, which are in order; rows of parts that it held already are taken over.

    Parameters
    ----------
    folder : Path
    parts : sequence of Path
    digest : str
        Of the configuration.
    write : bool
        False for who only reads.

    Returns
    -------
    pyarrow.Table
        Columns ``id``, ``part``, ``row`` (within the part), ``status``, ``text``, ``error``, and ``words``, the five
        strongest.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    stamps = {path.name: stamp(path) for path in parts}
    known = known_parts(folder, digest)
    if known and list(known.items()) == list(stamps.items()):
        return pq.read_table(folder / INDEX)
    kept = {name for name, mark in known.items() if stamps.get(name) == mark}
    old: dict[str, Any] = {}
    if kept:
        table = pq.read_table(folder / INDEX)
        # Rows of a part stand together.
        names = table["part"].combine_chunks().dictionary_encode()
        for code, name in enumerate(names.dictionary.to_pylist()):
            if name in kept:
                old[name] = table.filter(pc.equal(names.indices, code))
    tables = [old[path.name] if path.name in old else _rows(path) for path in parts]
    made = pa.concat_tables(tables) if tables else _schema().empty_table()
    document = json.dumps({"config": digest, "parts": stamps}, separators=(",", ":"))
    made = made.replace_schema_metadata({_KEY: document.encode()})
    if write:
        stream = io.BytesIO()
        pq.write_table(made, stream, compression="zstd", row_group_size=2**17)
        write_whole(folder / INDEX, stream.getvalue())
    return made


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
