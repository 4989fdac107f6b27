"""What rows every form of input gives, and what none of them does."""

import io
import json
import os
import tarfile

import pytest
from data_sets import FORMS, add, picture, rows, write

from tam_fast.dataset.sources import Columns, open_source
from tam_fast.dataset.sources.rows import RowError, read_regular

pytest.importorskip("pyarrow")

ALL = Columns("name", "picture", "question", "said")


def columns_of(form):
    if form == "images":
        return Columns()
    return Columns("name", "png", "question", "said") if form == "tar" else ALL


def every(source):
    return [row for file in source.files() for row in source.read(file, 0, file.rows)]


@pytest.mark.parametrize("form", FORMS)
def test_all_forms_give_the_same_rows(tmp_path, form):
    source = open_source(write(tmp_path, form, 7), columns_of(form))
    found, expected = every(source), rows(7)
    assert [row.images for row in found] == [(row["picture"],) for row in expected]
    assert not any(row.error for row in found)
    if form == "images":
        assert [row.id for row in found] == [f"{k:04d}.png" for k in range(7)]
        return
    assert [(row.id, row.prompt, row.answer) for row in found] == [
        (row["name"], row["question"], row["said"]) for row in expected
    ]
    assert list(source.ids(source.files()[0])) == [row["name"] for row in expected]


@pytest.mark.parametrize("form", FORMS[1:])  # of a folder each file is a row
def test_any_stretch_of_rows_is_read(tmp_path, form):
    source = open_source(write(tmp_path, form, 7), columns_of(form))
    whole = every(source)
    (file,) = source.files()
    for start in range(8):
        for stop in range(start, 8):
            assert list(source.read(file, start, stop)) == whole[start:stop]


def test_ids_are_places_where_no_column_has_them(tmp_path):
    for form in ("parquet", "jsonl", "tar"):
        given = write(tmp_path / form, form, 3)
        source = open_source(given, Columns(image="png" if form == "tar" else "picture"))
        assert [row.id for row in every(source)] == [f"{given.name}:{k}" for k in range(3)]
        assert source.ids(source.files()[0]) is None


def test_several_images_a_row(tmp_path):
    given = [{"a": picture(1), "b": [picture(2), {"bytes": picture(3), "path": None}]}]
    (row,) = every(open_source(given, Columns(image="a, b")))
    assert row.images == (picture(1), picture(2), picture(3))


# What is not taken -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["http://a.b/c.png", "https://a.b/c.png", "file:///etc/passwd", "S3://bucket/key"])
def test_nothing_is_fetched(tmp_path, name):
    (row,) = every(open_source([{"image": name}]))
    assert "never fetched" in row.error
    assert row.images == ()


def test_files_outside_the_folder_are_taken_only_when_asked_for(tmp_path):
    (tmp_path / "secret.png").write_bytes(picture(0))
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    names = ["../secret.png", str(tmp_path / "secret.png"), "link.png", "nested/../../secret.png"]
    (folder / "rows.jsonl").write_text("\n".join(json.dumps({"image": name}) for name in names))
    found = every(open_source(folder / "rows.jsonl"))
    assert all("inside the input's folder" in row.error and not row.images for row in found[:3])
    assert found[3].error
    found = every(open_source(folder / "rows.jsonl", allow_outside=True))
    assert [row.images for row in found[:3]] == [(picture(0),)] * 3
    (folder / "rows.jsonl").unlink()
    (row,) = every(open_source(folder))
    assert "inside the input's folder" in row.error
    (row,) = every(open_source(folder, allow_outside=True))
    assert row.images == (picture(0),)


def test_what_is_no_regular_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    for name in ("pipe.png", "folder.png", "missing.png", "nul\0.png"):
        with pytest.raises(RowError, match="image: "):
            read_regular(tmp_path, name)


def test_members_of_tars_are_never_paths(tmp_path):
    with tarfile.open(tmp_path / "rows.tar", "w") as archive:
        add(archive, "../../up.png", picture(1))
        add(archive, "/abs.png", picture(2))
        add(archive, "link.png", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add(archive, "evil.pkl", b"cos\nsystem\n")
        add(archive, "evil.png", picture(3))
    found = every(open_source(tmp_path / "rows.tar"))
    assert [row.images for row in found] == [(picture(1),), (picture(2),), (), (picture(3),)]
    assert "is a link" in found[2].error
    assert not (tmp_path.parent / "up.png").exists()


def test_extension_types_are_refused(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind = pa.uuid()
    table = pa.table({"image": pa.array([b"0" * 16], kind)})
    pq.write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(ValueError, match="input: expected a plain type in column 'image'"):
        open_source(tmp_path / "rows.parquet").files()


def test_broken_rows_are_rows_with_errors(tmp_path):
    lines = [b'{"image": 5}', b"no json", b"[1]", b'{"picture": "x"}', b'{"image": "\xff"}', b'{"image": null}']
    (tmp_path / "rows.jsonl").write_bytes(b"\n\n".join(lines))
    found = every(open_source(tmp_path / "rows.jsonl"))
    assert len(found) == len(lines)
    assert all(row.error and not row.images for row in found)
    assert [row.id for row in found] == [f"rows.jsonl:{k}" for k in range(len(lines))]


@pytest.mark.parametrize("form", ["parquet", "arrow", "tar"])
def test_files_that_were_cut_short_are_named(tmp_path, form):
    path = write(tmp_path, form, 7)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=f"input: expected.*{path.name}"):
        list(open_source(path, Columns(image="png" if form == "tar" else "picture")).files())


def test_a_compressed_tar_is_refused(tmp_path):
    with tarfile.open(tmp_path / "rows.tar", "w:gz") as archive:
        add(archive, "a.png", picture(1))
    with pytest.raises(ValueError, match="not compressed"):
        open_source(tmp_path / "rows.tar").files()


def test_inputs_of_no_kind(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    (tmp_path / "photo.jpg").write_bytes(picture(1))
    for given in (tmp_path / "nothing", tmp_path / "notes.txt", tmp_path / "photo.jpg"):
        with pytest.raises(ValueError, match="input: expected"):
            open_source(given)
    for given in (5, b"bytes", {"image": 1}, iter([])):
        with pytest.raises(TypeError, match="input: expected"):
            open_source(given)
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed" / "a.jsonl").write_text("")
    write(tmp_path / "mixed", "parquet", 1)
    with pytest.raises(ValueError, match="files of one kind"):
        open_source(tmp_path / "mixed")


def test_splits_and_indices_of_saved_data_sets(tmp_path):
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    with pytest.raises(ValueError, match=r"one split.*train.*test"):
        open_source(tmp_path)
    folder = write(tmp_path / "one", "saved", 2)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "../x.arrow"}]}))
    with pytest.raises(ValueError, match="files of the folder"):
        open_source(folder)
    (folder / "state.json").write_text(json.dumps({"_data_files": [], "_indices_files": [{"filename": "i"}]}))
    with pytest.raises(ValueError, match="flatten_indices"):
        open_source(folder)
    for text in ("{", "[]", '{"_data_files": [1]}'):
        (folder / "state.json").write_text(text)
        with pytest.raises(ValueError, match=r"input: expected .*state\.json"):
            open_source(folder)


def test_a_data_set_of_datasets(tmp_path):
    datasets = pytest.importorskip("datasets")
    from PIL import Image

    images = [Image.open(io.BytesIO(picture(k))) for k in range(3)]
    made = datasets.Dataset.from_dict({"image": images, "name": ["a", "b", "c"]})
    assert [row.id for row in every(open_source(made, Columns(id="name")))] == ["a", "b", "c"]
    made.save_to_disk(tmp_path / "saved")
    found = every(open_source(tmp_path / "saved", Columns(id="name")))
    assert [Image.open(io.BytesIO(row.images[0])).tobytes() for row in found] == [image.tobytes() for image in images]
