"""Data sets of every layout: golden output of the published loader, its faults under compat, bad files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from places import data_folder

from tam_fast.evaluation import data as evaluation_data
from tam_fast.evaluation.data import LAYOUTS, PROMPTS, open_data, register
from tam_fast.evaluation.data.item import Item
from tam_fast.evaluation.data.tables import Table

COCO = data_folder() / "coco_free"
GOLDEN = data_folder() / "golden_methods" / "evaluation_official.json"
needs_data = pytest.mark.skipif(not GOLDEN.is_file() or not COCO.is_dir(), reason="needs ../shared/data")


def picture(seed=0, width=12, height=8):
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


MASK = np.arange(96, dtype=np.uint8).reshape(8, 12) % 3


def write_images(folder, *names):
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture(seed).save(folder / name)


# COCO, GranDf, OpenPSG ----------------------------------------------------------------------------------------------


def golden():
    return json.loads(GOLDEN.read_text())


def official_copy(folder):
    """The photographs in the layout that the published script reads."""
    (folder / "annotations").mkdir(parents=True)
    shutil.copyfile(COCO / "instances.json", folder / "annotations/instances_minival2014.json")
    shutil.copyfile(COCO / "captions.json", folder / "annotations/captions_val2014.json")
    for name in ("image", "seg_label"):
        (folder / name).symlink_to(COCO / name)
    (folder / "anno.json").write_text(json.dumps(golden()["anno_json"]))
    return folder


def as_loaded(item, folder):
    """An item as the published loader gives it, but for the categories of COCO."""
    image, mask = (os.path.relpath(path, folder) for path in (item.image, item.mask))
    return [image, item.prompt, list(item.references), mask]


@needs_data
def test_coco_is_what_the_published_loader_gives(tmp_path):
    folder = official_copy(tmp_path / "coco2014")
    items = list(open_data(folder, compat="official"))
    expected = golden()
    assert [as_loaded(item, folder) for item in items] == expected["prepare_input"]["coco"]
    for item in items:
        assert dict(item.categories) == expected["category_coco"]
        assert list(item.categories) == list(expected["category_coco"])  # of names that match, the last one wins


@needs_data
@pytest.mark.parametrize("name", ["GranDf", "OpenPSG"])
def test_annotated_rows_are_what_the_published_loader_gives(tmp_path, name):
    folder = official_copy(tmp_path / name)
    expected = golden()["prepare_input"][name]
    official = [[*as_loaded(item, folder), item.categories] for item in open_data(folder, compat="official")]
    assert official == expected
    # By default the layout is named, whatever the path.
    folder = folder.rename(tmp_path / "my coco copy")
    shutil.rmtree(folder / "annotations")
    mine = open_data(folder, layout=name.lower())
    assert [[*as_loaded(item, folder), item.categories] for item in mine] == expected


@needs_data
def test_default_names_are_those_of_the_file():
    named = dict(next(iter(open_data(COCO))).categories)
    assert (named["sports ball"], named["wine glass"], len(named)) == (37, 46, 80)
    assert not {"ball", "glass"} & set(named)
    official = dict(next(iter(open_data(COCO, compat="official"))).categories)
    assert (official["ball"], official["glass"], len(official)) == (37, 46, 80)
    assert not {"sports ball", "wine glass"} & set(official)


@needs_data
def test_photographs_and_masks_are_read():
    items = list(open_data(COCO))
    assert len(items) == len(open_data(COCO)) == len({item.id for item in items}) == 51
    ids = set(items[0].categories.values())
    for item in items[:5]:
        size = item.load_image().size
        mask = item.load_mask(size)
        assert mask.shape == size[::-1]
        assert set(np.unique(mask)) <= {0, *ids}


@needs_data
def test_the_official_layout_is_told_by_the_path_alone(tmp_path):
    folder = official_copy(tmp_path / "OpenPSG of coco")
    assert open_data(folder, compat="official").name == "coco"  # "coco" is looked for first
    shutil.rmtree(folder / "annotations")
    with pytest.raises(FileNotFoundError, match="data: expected annotations/instances_minival2014"):
        open_data(folder, compat="official")
    assert open_data(folder, layout="openpsg").name == "anno"
    plain = folder.rename(tmp_path / "photographs")
    with pytest.raises(ValueError, match="layout: expected a path with 'coco', 'GranDf', 'OpenPSG' in it"):
        open_data(plain, compat="official")
    assert open_data(plain, compat="official", layout="grandf").name == "anno"


@needs_data
def test_a_missing_mask_is_an_error_and_zeros_if_official(tmp_path):
    folder = tmp_path / "coco"
    folder.mkdir()
    for name in ("instances.json", "captions.json"):
        shutil.copyfile(COCO / name, folder / name)
    (folder / "image").symlink_to(COCO / "image")
    item, official = (next(iter(open_data(folder, compat=compat))) for compat in (None, "official"))
    with pytest.raises(FileNotFoundError, match="mask: expected a file, got no file at"):
        item.load_mask((427, 640), (5, 7))
    assert official.load_mask((427, 640), (5, 7)).tolist() == [[0] * 7] * 5


def annotated(folder, rows):
    folder.mkdir(parents=True, exist_ok=True)
    write_images(folder, "image/a.png", "image/b.png")
    (folder / "seg_label").mkdir(exist_ok=True)
    Image.fromarray(MASK).save(folder / "seg_label/a.png")
    (folder / "anno.json").write_text(json.dumps(rows))
    return folder


ROW = ["image/a.png", "A text.", "seg_label/a.png", {"cat": 1, "dog": 2}]


def test_how_annotated_rows_are_asked_must_be_said(tmp_path):
    folder = annotated(tmp_path / "OpenPSG", [ROW])
    with pytest.raises(ValueError, match="layout: expected grandf or openpsg, or a prompt"):
        open_data(folder)
    asked = {
        open_data(folder, layout="grandf"): PROMPTS["two-sentences"],
        open_data(folder, layout="openpsg"): PROMPTS["three-sentences"],
        open_data(folder, prompt="What is it?"): "What is it?",
        open_data(folder, layout="grandf", prompt="one-sentence"): PROMPTS["one-sentence"],
    }
    assert [next(iter(reader)).prompt for reader in asked] == list(asked.values())
    assert len({json.dumps(reader.fingerprint()) for reader in asked}) == 4


def test_broken_rows_are_items_with_an_error(tmp_path):
    rows = [
        ROW,
        ["image/a.png", "Again.", "seg_label/a.png", {}],
        ["../a.png", "Out.", "seg_label/a.png", {}],
        ["image/b.png", 3, "seg_label/b.png", {}],
        ["image/b.png", "b", "seg_label/a.png", {"cat": 0}],
        "no row",
        ["http://example.org/a.png", "c", "seg_label/a.png", {}],
    ]
    items = list(open_data(annotated(tmp_path, rows), prompt="?"))
    assert [item.id for item in items[:2]] == ["image/a.png", "image/a.png#2"]
    assert len({item.id for item in items}) == len(items) == 7
    assert [item.error.partition(":")[0] for item in items] == ["", "", "image", "data", "categories", "data", "image"]
    official = list(open_data(tmp_path, layout="grandf", compat="official"))
    assert dict(official[4].categories) == {"cat": 0}


# A folder of images -------------------------------------------------------------------------------------------------


def image_folder(folder):
    write_images(folder, "images/a.png", "images/park/b.jpg", "images/c.png", "images/.hidden.png")
    (folder / "masks/park").mkdir(parents=True)
    Image.fromarray(MASK).save(folder / "masks/a.png")
    np.save(folder / "masks/park/b.npy", MASK)
    (folder / "labels.json").write_text('{"cat": 1, "dogs": 2, "dog": 2}')
    (folder / "captions.json").write_text('{"a.png": "A cat.", "park/b.jpg": ["A dog.", "Dogs."]}')
    (folder / "answers.json").write_text('{"a.png": "There is a cat."}')
    (folder / "prompts.json").write_text('{"park/b.jpg": "Who is it?"}')
    return folder


def test_a_folder_of_images_with_all_that_may_lie_beside_them(tmp_path):
    reader = open_data(image_folder(tmp_path), prompt="What is it?")
    a, c, b = items = list(reader)
    assert [item.id for item in items] == ["a.png", "c.png", "park/b.jpg"]
    assert (a.references, b.references, c.references) == (("A cat.",), ("A dog.", "Dogs."), ())
    assert (a.answer, b.answer, a.prompt, b.prompt) == ("There is a cat.", None, "What is it?", "Who is it?")
    assert all(dict(item.categories) == {"cat": 1, "dogs": 2, "dog": 2} for item in items)
    for item in (a, b):
        assert np.array_equal(item.load_mask(item.load_image().size), MASK)
    assert c.load_image().size == (12, 8)
    with pytest.raises(FileNotFoundError, match=r"mask: expected a file, got no file at .*c\.png"):
        c.load_mask()


def test_a_plain_folder_of_images_has_no_masks(tmp_path):
    write_images(tmp_path, "b.png", "a.jpg", "deep/c.webp")
    (tmp_path / "notes.txt").write_text("")
    items = list(open_data(str(tmp_path)))
    assert [item.id for item in items] == ["a.jpg", "b.png", "deep/c.webp"]
    assert all(item.load_mask() is None and item.prompt is None for item in items)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("labels.json", None, "labels: expected .*labels.json"),
        ("labels.json", '{"cat": 0}', "labels: expected labels from 1, got 'cat': 0"),
        ("labels.json", "[", "labels: expected JSON"),
        ("captions.json", '{"none.png": "a"}', "captions.json: expected names of images in .*, got 'none.png'"),
        ("captions.json", '{"a.png": 3}', "captions.json: expected a text or a list of texts"),
        ("answers.json", '{"a.png": ["a", "b"]}', "answers.json: expected one text of 'a.png', got 2"),
        ("answers.json", "[]", "answers.json: expected texts by the image's name, got list"),
    ],
)
def test_what_is_wrong_beside_the_images_is_told(tmp_path, name, text, message):
    folder = image_folder(tmp_path)
    (folder / name).unlink()
    if text is not None:
        (folder / name).write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        open_data(folder)


def test_two_masks_of_one_image_are_an_error_of_the_item(tmp_path):
    folder = image_folder(tmp_path)
    np.save(folder / "masks/a.npy", MASK)
    (folder / "images/out.png").symlink_to(tmp_path.parent / "elsewhere.png")
    picture().save(tmp_path.parent / "elsewhere.png")
    errors = {item.id: item.error for item in open_data(folder)}
    assert errors["a.png"] == "mask: expected one file of a, got .png, .npy"
    assert errors["out.png"].startswith("image: expected a file inside")
    assert errors["c.png"] == errors["park/b.jpg"] == ""
    assert not next(item for item in open_data(folder, allow_outside=True) if item.id == "out.png").error


# Boxes --------------------------------------------------------------------------------------------------------------

EXPRESSION = {"image": "a.png", "expression": "the left cat", "bbox": [2, 1, 4, 3], "category": "cat", "id": 41}


def expressions(folder, rows, name="refs.jsonl"):
    write_images(folder, "a.png")
    path = folder / name
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n" if name.endswith("l") else json.dumps(rows))
    return path


@pytest.mark.parametrize("name", ["refs.jsonl", "refs.json"])
def test_an_expression_is_the_given_answer_and_names_its_box(tmp_path, name):
    (item,) = open_data(expressions(tmp_path, [EXPRESSION], name))
    assert (item.id, item.answer, dict(item.categories)) == ("41", "the left cat", {"the left cat": 1, "cat": 1})
    assert item.boxes == {1: ((2.0, 1.0, 6.0, 4.0),)}
    assert item.load_mask() is None
    assert item.load_image().size == (12, 8)
    (free,) = open_data(tmp_path / name, as_answer=False, prompt="one-sentence")
    assert (free.answer, free.prompt) == (None, PROMPTS["one-sentence"])


def test_what_a_box_is_may_be_said(tmp_path):
    rows = [EXPRESSION | {"bbox": [4, 2, 10, 7]}]
    path = expressions(tmp_path, rows)
    (corners,) = open_data(path, box_format="xyxy")
    assert corners.boxes[1] == ((4.0, 2.0, 10.0, 7.0),)
    assert corners.load_image()
    (sizes,) = open_data(path)  # taken for sizes, it leaves the picture
    with pytest.raises(ValueError, match=r"boxes: expected x0 < x1 <= 12 .*box_format says"):
        sizes.load_image()
    named = expressions(tmp_path, [{"file": "a.png", "sentence": "a cat", "box": [2, 1, 10, 7]}], "named.json")
    (item,) = open_data(named, image="file")
    assert (item.boxes[1], item.id, item.answer) == (((2.0, 1.0, 10.0, 7.0),), "0", "a cat")


def test_broken_expressions_are_items_with_an_error(tmp_path):
    def changed(**entries):
        return {key: value for key, value in (EXPRESSION | entries).items() if value is not None}

    rows = [
        changed(),
        changed(expression=None),
        changed(expression=" "),
        changed(bbox=None),
        changed(bbox=[1, 2, 3]),
        changed(bbox=[1, 2, 0, 3]),
        changed(bbox=[1, 2, "x", 3]),
        changed(image="../a.png"),
        changed(image=None),
        [1],
    ]
    path = expressions(tmp_path, rows)
    with path.open("a") as file:
        file.write('{"image": \n')
    items = list(open_data(path))
    assert [item.id for item in items] == [str(k) for k in range(11)]  # ids of the rows are not of their own
    kinds = [item.error.partition(":")[0] for item in items]
    assert kinds == ["", "expression", "expression", "box", "box", "box", "box", "image", "image", "data", "data"]


def test_rows_keep_their_ids_where_each_has_one_of_its_own(tmp_path):
    def ids(*own):
        return [item.id for item in open_data(expressions(tmp_path, [EXPRESSION | {"id": id} for id in own]))]

    assert ids("b", 7) == ["b", "7"]
    assert ids("b", "c", "b") == ids(1, True, 2) == ids("7", 7, 8) == ["0", "1", "2"]


def test_lines_end_where_json_says_so(tmp_path):
    path = expressions(tmp_path, [])
    path.write_text(json.dumps(EXPRESSION | {"expression": "a\u2028b\x85c"}, ensure_ascii=False) + "\n")
    (item,) = open_data(path)
    assert item.answer == "a\u2028b\x85c"


def test_wrong_arguments_of_boxes_are_told(tmp_path):
    path = expressions(tmp_path, [EXPRESSION])
    for options, message in (
        ({"box_format": "yxyx"}, "box_format: expected xywh or xyxy, got 'yxyx'"),
        ({"colour": "x"}, "columns: expected image, .*got colour"),
    ):
        with pytest.raises(ValueError, match=message):
            open_data(path, **options)
    (tmp_path / "refs.p").write_bytes(b"\x80\x04.")
    with pytest.raises(ValueError, match="layout: expected a data set of one of these layouts"):
        open_data(tmp_path / "refs.p")


# Which reader -------------------------------------------------------------------------------------------------------


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(evaluation_data, "_layouts", dict(LAYOUTS))
    return evaluation_data


class Sketches:
    name = "sketches"

    def __init__(self, place, prompt=None, page=1):
        self.place, self.prompt, self.page = place, prompt, page

    def __len__(self):
        return 1

    def __iter__(self):
        yield Item("only", picture(), prompt=self.prompt)

    def fingerprint(self):
        return {"data": self.name}


def test_a_reader_of_ones_own(tmp_path, registry):
    reader = Sketches(tmp_path)
    assert open_data(reader) is reader
    with pytest.raises(ValueError, match="data: expected a path with options, got a reader"):
        open_data(reader, prompt="?")
    register("sketches", fits=lambda path: (path / "sketches.csv").is_file())(Sketches)
    write_images(tmp_path, "a.png")
    assert open_data(tmp_path).name == "folder"
    (tmp_path / "sketches.csv").write_text("")
    assert open_data(tmp_path).name == "sketches"  # before those of the house
    assert open_data(tmp_path, layout="folder").name == "folder"
    named = open_data("sketches://somewhere/else", page=3, prompt="one-sentence")
    assert (named.place, named.page, named.prompt) == ("somewhere/else", 3, "one-sentence")
    with pytest.raises(ValueError, match="columns: expected options of the layout 'sketches', got 'colour'"):
        open_data(tmp_path, colour=3)
    for name in ("sketches", "demo", "coco", "A b"):
        with pytest.raises(ValueError, match="name: expected"):
            register(name)


@pytest.mark.parametrize(
    ("data", "options", "error", "message"),
    [
        ("https://example.org/data.zip", {}, ValueError, "data: .*nothing is fetched, download it first"),
        ("hf://datasets/x", {}, ValueError, "data: .*nothing is fetched"),
        ("no/such/folder", {}, FileNotFoundError, "data: expected a file, a folder or demo://scenes, got nothing at"),
        (".", {"layout": "cocoa"}, ValueError, "layout: expected one of coco, grandf, .*got 'cocoa'"),
        (".", {"compat": "paper"}, ValueError, "compat: expected None or \"official\", got 'paper'"),
        ([], {"layout": "coco"}, ValueError, "layout: expected a path with 'coco', got list"),
        ("demo://scenes", {"image": "jpg"}, ValueError, "columns: expected none with demo://, got image"),
    ],
)
def test_what_cannot_be_opened_is_told(data, options, error, message):
    with pytest.raises(error, match=message):
        open_data(data, **options)


def test_a_folder_of_nothing_is_told_with_all_that_there_is(tmp_path):
    with pytest.raises(ValueError, match=r"layout: expected a data set of one of these.*coco: .*folder: "):
        open_data(tmp_path)


def test_every_layout_is_documented_and_opens_its_class():
    assert all(layout.about and layout.opener.__doc__ for layout in LAYOUTS.values())
    assert LAYOUTS["table"].opener is Table


def test_opening_loads_nothing_heavy(tmp_path):
    write_images(tmp_path, "a.png")
    code = (
        "import sys\nfrom tam_fast.evaluation.data import open_data\n"
        f"assert len(list(open_data({str(tmp_path)!r}))) == 1\nassert len(open_data('demo://scenes?n=3')) == 3\n"
        "print([name for name in ('torch', 'transformers', 'cv2', 'pyarrow', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
