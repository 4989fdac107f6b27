"""Data sets to explain in every form, and an explainer that needs no model: for tests of `tam_fast.dataset`."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from explanations import make_explanation
from PIL import Image

from tam_fast.dataset.plan import Plan
from tam_fast.dataset.sources import Columns, Source, open_source
from tam_fast.dataset.worker import Job

FORMS = ("images", "parquet", "arrow", "jsonl", "tar", "saved", "memory")


def picture(number: int, size: tuple[int, int] = (8, 6)) -> bytes:
    """A PNG of one colour, another for every number."""
    stream = io.BytesIO()
    Image.new("RGB", size, (number * 37 % 256, number * 91 % 256, number % 256)).save(stream, "PNG")
    return stream.getvalue()


def rows(count: int) -> list[dict[str, Any]]:
    return [
        {"name": f"row {k}", "picture": picture(k), "question": f"What is {k}?", "said": f"It is {k}."}
        for k in range(count)
    ]


def write(folder: Path, form: str, count: int) -> Any:
    """Write `count` rows in some form below a folder; returns what to open."""
    folder.mkdir(parents=True, exist_ok=True)
    if form == "images":
        for k in range(count):
            (folder / f"{k:04d}.png").write_bytes(picture(k))
        return folder
    if form == "memory":
        return rows(count)
    if form == "jsonl":
        lines = []
        for k, row in enumerate(rows(count)):
            (folder / f"{k}.png").write_bytes(row["picture"])
            lines.append(json.dumps({**row, "picture": f"{k}.png"}))
        (folder / "rows.jsonl").write_text("\n".join([*lines, ""]))
        return folder / "rows.jsonl"
    if form == "tar":
        with tarfile.open(folder / "rows.tar", "w") as archive:
            for k, row in enumerate(rows(count)):
                texts = {"name": row["name"], "question": row["question"], "said": row["said"]}
                add(archive, f"{k:04d}.png", row["picture"])
                add(archive, f"{k:04d}.json", json.dumps(texts).encode())
        return folder / "rows.tar"
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist(rows(count))
    if form == "parquet":
        pq.write_table(table, folder / "rows.parquet", row_group_size=3)
        return folder / "rows.parquet"
    path = folder / ("data-00000-of-00001.arrow" if form == "saved" else "rows.arrow")
    with path.open("wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table, max_chunksize=3)
    if form == "saved":
        (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": path.name}]}))
        return folder
    return path


def add(archive: tarfile.TarFile, name: str, data: bytes, **fields: Any) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for field, value in fields.items():
        setattr(member, field, value)
    archive.addfile(member, io.BytesIO(data))


class Canned:
    """Explains any image with maps that follow from its bytes and prompt; may be made to fail."""

    def __init__(self, fault: Callable[[Sequence[dict[str, Any]]], None] = lambda _: None) -> None:
        self.fault = fault
        self.batches: list[list[str]] = []

    def explain_batch(self, requests: Sequence[dict[str, Any]], batch_size: int = 8) -> list[Any]:
        assert len(requests) <= batch_size
        self.batches.append([request["prompt"] for request in requests])
        self.fault(requests)
        return [self.explain(request) for request in requests]

    def explain(self, request: dict[str, Any]) -> Any:
        (image,) = request["images"]
        data = image if isinstance(image, bytes) else image.tobytes()
        seed = int(hashlib.sha256(data + request["prompt"].encode()).hexdigest()[:12], 16)
        return make_explanation(seed=seed % 2**31, prompt=3)


def job(given: Any, output: Path, *, size: int = 4, batch_size: int = 2, **columns: Any) -> Job:
    """A job over a source, planned in memory."""
    source: Source = given if hasattr(given, "files") else open_source(given, Columns(**columns))
    files = list(source.files())
    plan = Plan(files, size, [sum(file.rows for file in files)])
    output.mkdir(parents=True, exist_ok=True)
    return Job(output, plan, source, "digest", {"prompt": "What?"}, batch_size)
