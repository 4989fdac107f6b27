"""Rows of an evaluation: parts an item, whole or not at all, read back, joined."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyarrow")

from tam_fast.evaluation import rows as room
from tam_fast.evaluation.rows import Row, Rows, merge, read_rows

ROW = Row(3, "a/b c.png", "tam", "plausibility", "obj_iou", 2, 5, "dög", 0.25)


def same(one: Row, two: Row) -> bool:
    return repr(one) == repr(two)  # NaN equals itself then


def test_what_is_written_is_read(tmp_path: Path) -> None:
    given = [
        ROW,
        replace(ROW, method="cam", value=1.0, n=3),
        replace(ROW, measure="insertion", figure="insertion", word=-1, points=(0.0, 0.5, 1.0)),
        replace(ROW, measure="lds", figure="", value=math.nan, status="error", error="ValueError: x"),
    ]
    store = Rows(tmp_path)
    part = store.write(given)
    assert part.parent == tmp_path / "rows"
    assert all(same(*pair) for pair in zip(store.of("a/b c.png"), given, strict=True))
    assert store.of("another") == []
    assert [path.name for path in part.parent.iterdir()] == [part.name]


def test_other_programs_read_a_part(tmp_path: Path) -> None:
    import pyarrow.parquet as parquet

    table = parquet.read_table(Rows(tmp_path).write([ROW]))
    assert table.column_names == [*Row.__dataclass_fields__]
    assert table.to_pylist()[0] | {"points": ()} == {**vars(ROW)}


def test_done_says_what_is_there(tmp_path: Path) -> None:
    store = Rows(tmp_path)
    assert store.done("a") == set()
    item = replace(ROW, item="a")
    store.write([item, replace(item, method="cam", status="error", error="no")])
    store.write([replace(item, method="", measure="captions", status="none")])
    assert store.done("a") == {("tam", "plausibility"), ("cam", "plausibility"), ("", "captions")}
    assert store.done("a", retry=True) == {("tam", "plausibility"), ("", "captions")}
    store.forget_errors("a")
    assert store.done("a") == {("tam", "plausibility"), ("", "captions")}
    assert len(store.of("a")) == 2
    store.forget_errors("a")
    assert len(store.of("a")) == 2


def test_of_a_unit_the_last_part_counts(tmp_path: Path) -> None:
    store = Rows(tmp_path)
    store.write([ROW, replace(ROW, word=3)])
    store.write([replace(ROW, value=0.75)])
    assert [row.value for row in store.of(ROW.item)] == [0.75]


def test_a_part_is_of_one_item(tmp_path: Path) -> None:
    for wrong in ([], [ROW, replace(ROW, item="b")]):
        with pytest.raises(ValueError, match="rows: expected those of one item"):
            Rows(tmp_path).write(wrong)


def test_nothing_is_left_of_a_part_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, table: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(room, "_write", fail)
    with pytest.raises(OSError, match="No space"):
        Rows(tmp_path).write([ROW])
    assert list((tmp_path / "rows").iterdir()) == []


def test_what_a_killed_process_left_is_removed_and_never_read(tmp_path: Path) -> None:
    store = Rows(tmp_path)
    part = store.write([ROW])
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    left = part.with_name(f"{part.stem}x.{gone.stdout.strip()}.tmp")
    running = part.with_name(f"{part.stem}y.{os.getppid()}.tmp")
    for path in (left, running):
        path.write_bytes(b"PAR1half")
    assert len(list(read_rows([tmp_path]))) == 1
    store.clean()
    assert not left.exists()
    assert running.exists()
    assert part.exists()


def test_folders_are_joined(tmp_path: Path) -> None:
    items = [replace(ROW, item=f"i{number}", index=number, value=number / 10) for number in range(7)]
    for number, row in enumerate(items):
        Rows(tmp_path / "one").write([row])
        Rows(tmp_path / f"shard{number % 2}").write([row])
    one = list(read_rows([tmp_path / "one"]))
    assert len(one) == 7
    assert list(read_rows([tmp_path / "shard1", tmp_path / "shard0"])) == one


def test_merged_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow.parquet as parquet

    monkeypatch.setattr(room, "_GROUP", 3)
    for number in range(5):
        Rows(tmp_path).write([replace(ROW, item=f"i{number}", method=method) for method in ("tam", "cam")])
    merged = parquet.read_table(merge([tmp_path], tmp_path))
    assert merged.num_rows == 10
    assert merged.schema.equals(room.schema())
    assert set(merged["item"].to_pylist()) == {f"i{number}" for number in range(5)}
    assert not list(tmp_path.glob("*.tmp"))


def test_broken_and_foreign_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"output: expected a folder with rows .*, got .*nothing"):
        list(read_rows([tmp_path / "nothing"]))
    part = Rows(tmp_path).write([ROW])
    part.write_bytes(part.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"rows: expected a Parquet part, got .*parquet"):
        list(read_rows([tmp_path]))
    import pyarrow as pa
    import pyarrow.parquet as parquet

    parquet.write_table(pa.table({"item": ["a"]}), part)
    with pytest.raises(ValueError, match=r"rows: expected columns index, item, .*, got none named index"):
        list(read_rows([tmp_path]))


def test_without_pyarrow_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'tam-fast\[evaluation\]'"):
        Rows(tmp_path).write([ROW])
