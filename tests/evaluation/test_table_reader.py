"""Tables as data sets: Parquet, Arrow, Hugging Face ``datasets`` on disk and in memory; bad ones."""

from __future__ import annotations

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from tam_fast.evaluation.data import open_data

arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")


def picture(seed=0, width=12, height=8):
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


MASK = np.arange(96, dtype=np.uint8).reshape(8, 12) % 3


def rows_of(count=5):
    return [
        {
            "jpg": {"bytes": png(picture(k)), "path": f"{k}.png"},
            "key": f"k{k}",
            "captions": [f"caption {k}", "another"],
            "label": png(Image.fromarray(np.roll(MASK, k))),
            "names": [("cat", 1), ("dog", 2)],
            "said": None if k else "A cat.",
            "asked": f"What is {k}?",
        }
        for k in range(count)
    ]


SCHEMA = arrow.schema(
    [
        ("jpg", arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])),
        ("key", arrow.string()),
        ("captions", arrow.list_(arrow.string())),
        ("label", arrow.binary()),
        ("names", arrow.map_(arrow.string(), arrow.int32())),
        ("said", arrow.string()),
        ("asked", arrow.string()),
    ]
)
NAMES = {
    "image": "jpg",
    "id": "key",
    "references": "captions",
    "mask": "label",
    "categories": "names",
    "answer": "said",
    "prompt_column": "asked",
}


def parquet(path, rows, group=2):
    import pyarrow.parquet as pq

    pq.write_table(arrow.Table.from_pylist(rows, schema=SCHEMA), path, row_group_size=group)
    return path


def saved(folder, rows):
    """What ``Dataset.save_to_disk`` writes: streams of record batches, named in ``state.json``."""
    folder.mkdir()
    table = arrow.Table.from_pylist(rows, schema=SCHEMA)
    for number, part in enumerate((table.slice(0, 3), table.slice(3))):
        with arrow.ipc.new_stream(folder / f"data-{number:05d}-of-00002.arrow", SCHEMA) as file:
            file.write_table(part, max_chunksize=2)
    files = [{"filename": f"data-{number:05d}-of-00002.arrow"} for number in range(2)]
    (folder / "state.json").write_text(json.dumps({"_data_files": files, "_fingerprint": "f"}))
    return folder


def check_rows(reader, prompt=True):
    items = list(reader)
    assert len(items) == len(reader) == 5
    for k, item in enumerate(items):
        assert (item.id, item.references) == (f"k{k}", (f"caption {k}", "another"))
        assert (item.answer, item.prompt) == (None if k else "A cat.", f"What is {k}?")
        assert dict(item.categories) == {"cat": 1, "dog": 2}
    for k in (0, 4, 1, 3, 2):  # in any order, and twice
        for _ in range(2):
            assert np.array_equal(np.asarray(items[k].load_image()), np.asarray(picture(k)))
            assert np.array_equal(items[k].load_mask((12, 8)), np.roll(MASK, k))


def test_parquet_files_and_folders(tmp_path):
    check_rows(open_data(parquet(tmp_path / "val.parquet", rows_of()), **NAMES))
    folder = tmp_path / "parts"
    (folder / "data").mkdir(parents=True)
    parquet(folder / "data/0.parquet", rows_of()[:3])
    parquet(folder / "data/1.parquet", rows_of()[3:])
    check_rows(open_data(folder, **NAMES))


def test_saved_data_sets_and_rows_in_memory(tmp_path):
    check_rows(open_data(saved(tmp_path / "saved", rows_of()), **NAMES))
    check_rows(open_data(rows_of(), **NAMES))


def test_only_what_is_asked_for_is_read(tmp_path, monkeypatch):
    from tam_fast.evaluation.data import tables

    path = parquet(tmp_path / "val.parquet", rows_of(8))
    read = []
    before = tables._read_group

    def watched(file, group, columns):
        read.append((group, columns))
        return before(file, group, columns)

    monkeypatch.setattr(tables, "_read_group", watched)
    items = list(open_data(path, image="jpg", id="key"))
    assert read == [(group, ("key",)) for group in range(4)]
    read.clear()
    for item in items:
        item.load_image()
    assert read == [(group, ("jpg",)) for group in range(4)]  # a group of rows once


def test_other_cells(tmp_path, monkeypatch):
    picture(1).save(tmp_path / "x.png")
    rows = [
        {"image": "x.png", "mask": MASK.tolist(), "text": "one"},
        {"image": picture(1), "mask": Image.fromarray(MASK), "text": None},
        {"image": png(picture(1)), "mask": MASK, "text": ["a", "b"]},
        {"image": None, "mask": None, "text": "d"},
        {"image": "../x.png", "mask": [[1], [1, 2]], "text": 3},
    ]
    monkeypatch.chdir(tmp_path)  # rows in memory name files of the working folder
    items = list(open_data(rows, mask="mask", references="text", labels={"cat": 1}))
    for item in items[:3]:
        assert np.array_equal(np.asarray(item.load_image()), np.asarray(picture(1)))
        assert np.array_equal(item.load_mask(), MASK)
    assert [item.references for item in items[:4]] == [("one",), (), ("a", "b"), ("d",)]
    with pytest.raises(ValueError, match=r"image: expected bytes, .*got none"):
        items[3].load_image()
    assert items[4].error.startswith("references: expected a text or a list of texts, got int")


def test_boxes_in_tables(tmp_path):
    rows = [{"image": png(picture()), "what": "a cat", "bbox": [2, 1, 4, 3]}]
    (item,) = open_data(rows, box="bbox", expression="what")
    assert (item.boxes, item.answer, dict(item.categories)) == ({1: ((2, 1, 6, 4),)}, "a cat", {"a cat": 1})
    (item,) = open_data(rows, box="bbox", expression="what", box_format="xyxy")
    assert item.boxes == {1: ((2, 1, 4, 3),)}


def test_wrong_tables_are_told(tmp_path):
    path = parquet(tmp_path / "val.parquet", rows_of())
    many = {"train": rows_of(), "val": rows_of()}
    for data, options, error, message in (
        (path, {}, ValueError, "columns: expected 'image' in val.parquet, got jpg, key"),
        (path, {"image": "jpg", "colour": "key"}, ValueError, "columns: expected image, .*got colour"),
        (path, {"image": "jpg", "mask": "label"}, ValueError, "labels: expected names of the mask's labels"),
        (path, {"image": "jpg", "box": "key"}, ValueError, "box: expected columns of both"),
        (many, {}, TypeError, "data: expected one split of the data set, got train, val: give one of them"),
        (iter([]), {}, TypeError, "data: expected rows that can be counted and asked for by number, got list_iterator"),
    ):
        with pytest.raises(error, match=message):
            open_data(data, **options)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(ValueError, match=r"data: expected a table in .*bad\.parquet"):
        open_data(tmp_path / "bad.parquet")
    splits = tmp_path / "splits"
    splits.mkdir()
    (splits / "dataset_dict.json").write_text('{"splits": ["train", "val"]}')
    with pytest.raises(ValueError, match=r"data: expected one split of the data set.*one of train, val"):
        open_data(splits)
    folder = saved(tmp_path / "saved", rows_of())
    (folder / "state.json").write_text('{"_data_files": [{"filename": "../val.parquet"}]}')
    with pytest.raises(ValueError, match="data: expected files of the folder"):
        open_data(folder, image="jpg")


def test_ids_that_are_none_are_errors_of_their_rows():
    rows = [{"image": png(picture()), "key": value} for value in ("a", 7, None, True, "")]
    items = list(open_data(rows, id="key"))
    assert [item.id for item in items] == ["a", "7", "2", "3", "4"]
    assert [item.error.partition(":")[0] for item in items] == ["", "", "id", "id", "id"]


def test_fingerprints_tell_tables_apart(tmp_path):
    first, second = (parquet(tmp_path / f"{k}.parquet", rows_of(k)) for k in (4, 5))
    prints = [open_data(path, image=column) for path, column in ((first, "jpg"), (second, "jpg"), (first, "label"))]
    assert len({json.dumps(reader.fingerprint(), sort_keys=True) for reader in prints}) == 3
    moved = shutil.copytree(tmp_path, tmp_path.parent / "moved") / "4.parquet"
    assert open_data(moved, image="jpg").fingerprint() == prints[0].fingerprint()


def test_hugging_face_data_sets(tmp_path):
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    rows = [{**row, "names": json.dumps(dict(row["names"]))} for row in rows_of()]
    made = datasets.Dataset.from_list(rows).cast_column("jpg", datasets.Image())
    check_rows(open_data(made, **NAMES))
    made.save_to_disk(tmp_path / "saved")
    check_rows(open_data(tmp_path / "saved", **NAMES))
    with pytest.raises(TypeError, match="one split"):
        open_data(datasets.DatasetDict({"val": made}))


class Columns:
    """As much of a ``datasets.Dataset`` as is used of one: columns are chosen before a row is decoded."""

    def __init__(self, rows, names=None):
        self.rows, self.column_names = rows, names or list(rows[0])
        self.read = []

    def select_columns(self, names):
        other = Columns(self.rows, names)
        other.read = self.read
        return other

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, number):
        self.read += self.column_names
        return {name: self.rows[number][name] for name in self.column_names}


def test_of_a_data_set_in_memory_only_the_columns_that_are_needed_are_decoded():
    rows = Columns(rows_of())
    check_rows(open_data(rows, **NAMES))
    rows.read.clear()
    items = list(open_data(rows, image="jpg", id="key"))
    assert set(rows.read) == {"key"}
    items[2].load_image()
    assert set(rows.read) == {"key", "jpg"}
