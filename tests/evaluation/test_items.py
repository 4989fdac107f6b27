"""Items: images and masks in every form, what is refused, what compat="official" does with masks, which are chosen."""

from __future__ import annotations

import hashlib
import io
import os
import pickle

import numpy as np
import pytest
from PIL import Image

from tam_fast.evaluation.data.files import check_labels, inside, read_bytes, read_categories, read_labels
from tam_fast.evaluation.data.item import Item, chosen, count_of

LABELS = np.array([[0, 1, 1], [0, 300, 2]], dtype=np.uint16)
SMALL = LABELS.clip(0, 250).astype(np.uint8)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def picture(width=6, height=4):
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_images_in_every_form_are_the_same_picture(tmp_path):
    data = encoded(picture())
    path = tmp_path / "a.png"
    path.write_bytes(data)
    forms = [path, str(path), data, bytearray(data), picture(), np.asarray(picture()), lambda: path, lambda: data]
    for form in forms:
        found = Item("a", form).load_image()
        assert found.mode == "RGB"
        assert np.array_equal(np.asarray(found), np.asarray(picture()))


def test_hashes_are_of_the_bytes_and_else_of_size_and_pixels(tmp_path):
    data = encoded(picture())
    path = tmp_path / "a.png"
    path.write_bytes(data)
    assert Item("a", path).read_image()[1] == Item("a", data).read_image()[1] == hashlib.sha256(data).hexdigest()
    drawn = Item("a", picture()).read_image()[1]
    assert drawn == Item("a", lambda: np.asarray(picture())).read_image()[1]
    turned = Image.fromarray(np.asarray(picture()).reshape(6, 4, 3))  # the same bytes, of another size
    assert Item("a", turned).read_image()[1] != drawn


def test_images_are_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(picture(6, 4), "JPEG", exif=exif)
    assert Item("a", data).load_image().size == (4, 6)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"no image", "image: expected an image file, got 8 bytes"),
        (None, "image: expected a PIL image"),
        (lambda: 3, "image: expected a PIL image"),
    ],
    ids=["bytes", "none", "a number"],
)
def test_what_is_no_image_is_told(image, message):
    with pytest.raises((ValueError, TypeError), match=message):
        Item("a", image).load_image()


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for name, message in (("pipe.png", "regular"), ("", "regular"), ("none.png", "no file at")):
        with pytest.raises((ValueError, FileNotFoundError), match=f"image: expected a .*{message}"):
            Item("a", tmp_path / name).load_image()
    with pytest.raises(ValueError, match="regular"):
        read_bytes(tmp_path / "pipe.png", "mask")


def test_an_items_error_is_raised_by_all_that_reads():
    item = Item("a", picture(), mask=SMALL, error="box: expected four numbers")
    for read in (item.load_image, item.read_image, item.load_mask):
        with pytest.raises(ValueError, match="box: expected four numbers"):
            read()


def test_boxes_outside_of_the_picture_are_told():
    def boxed(*box):
        return Item("a", picture(6, 4), boxes={1: (box,)}).load_image()

    assert boxed(0, 0, 6, 4).size == (6, 4)
    assert boxed(2.4, 1.0, 6.6, 4.4).size == (6, 4)
    for box in ((2, 1, 8, 3), (3, 1, 2, 3), (0, 0, 6, 9), (-3, 0, 4, 4)):
        with pytest.raises(ValueError, match="boxes: expected x0 < x1 <= 6 and y0 < y1 <= 4, got"):
            boxed(*box)


# Masks --------------------------------------------------------------------------------------------------------------


def palette():
    made = Image.fromarray(SMALL, "L").convert("P")
    made.putdata(SMALL.flatten().tolist())
    made.putpalette([value for k in range(256) for value in (255 - k, k, 7)])
    return made


def npy(values, **options):
    buffer = io.BytesIO()
    np.save(buffer, values, **options)
    return buffer.getvalue()


def test_masks_in_every_form_are_the_same_labels(tmp_path):
    path = tmp_path / "m.png"
    path.write_bytes(encoded(Image.fromarray(SMALL)))
    forms = [path, str(path), path.read_bytes(), encoded(palette()), palette(), SMALL, lambda: SMALL, npy(SMALL)]
    for form in [*forms, SMALL.astype(np.int64), Image.fromarray(SMALL), encoded(Image.fromarray(SMALL), "TIFF")]:
        assert np.array_equal(Item("a", mask=form).load_mask(), SMALL)
    assert Item("a").load_mask() is None


def test_masks_keep_labels_beyond_a_byte():
    wide = encoded(Image.fromarray(LABELS))
    assert np.array_equal(read_labels(wide), LABELS)
    assert read_labels(encoded(Image.fromarray(LABELS > 0))).tolist() == (LABELS > 0).astype(int).tolist()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (encoded(picture()), r"mask: expected one number a pixel .*got mode RGB"),
        (encoded(Image.fromarray(SMALL), "JPEG"), "mask: expected an image that loses nothing, such as PNG, got JPEG"),
        (encoded(picture(30, 20).convert("L"))[:300], "mask: expected an image of labels, got"),
        (b"", "mask: expected an image of labels, got 0 bytes"),
        (npy(np.array([[{}]]), allow_pickle=True), "mask: expected an array of numbers, got a .npy file"),
        (SMALL.astype(np.float32), r"mask: expected labels \(H, W\), whole numbers, got \(2, 3\) of float32"),
        (SMALL[0], r"mask: expected labels \(H, W\)"),
        (SMALL[:0], r"mask: expected labels \(H, W\)"),
        (SMALL.astype(np.int64) - 1, "mask: expected labels from 0, got -1"),
    ],
    ids=["colours", "lossy", "cut", "empty", "pickled", "floats", "a row", "no rows", "negative"],
)
def test_what_is_no_mask_is_told(mask, message):
    with pytest.raises(ValueError, match=message):
        Item("a", mask=mask).load_mask()


def test_nothing_is_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "went off"),))

    raw = pickle.dumps(Bomb())
    for data in (raw, npy(np.array([[Bomb()]], dtype=object), allow_pickle=True)):
        for item in (Item("a", data), Item("a", picture(), mask=data)):
            with pytest.raises(ValueError, match="expected"):
                (item.load_image(), item.load_mask())
    assert not (tmp_path / "went off").exists()


def test_a_missing_mask_is_an_error_and_zeros_if_official(tmp_path):
    image, gone = picture(6, 4), tmp_path / "none.png"
    with pytest.raises(FileNotFoundError, match=r"mask: expected a file, got no file at .*none\.png"):
        Item("a", image, mask=gone).load_mask((6, 4), (2, 3))
    official = Item("a", image, mask=gone, compat="official")
    assert official.load_mask((6, 4), (2, 3)).shape == (2, 3)  # as the published script: of the maps' shape
    assert official.load_mask().shape == (4, 6)
    assert not official.load_mask().any()


def test_official_masks_are_what_opencv_makes_of_them():
    cv2 = pytest.importorskip("cv2", reason="opencv is not installed")
    data = encoded(palette())
    expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    official = Item("a", mask=data, compat="official").load_mask()
    assert np.array_equal(official, expected)
    assert not np.array_equal(official, SMALL)
    wide = encoded(Image.fromarray((LABELS * 256).astype(np.uint16)))
    assert Item("a", mask=wide, compat="official").load_mask().max() <= 255


def test_masks_of_another_shape_than_the_image_are_told():
    def masked(height, width, **more):
        return Item("a", mask=np.zeros((height, width), np.uint8), **more).load_mask((640, 427)).shape

    assert masked(427, 640) == (427, 640)
    assert masked(214, 320) == (214, 320)  # half the size, rounded up
    assert masked(213, 320) == (213, 320)  # and down
    with pytest.raises(ValueError, match=r"mask: expected the shape of the image, 640 x 427 .*, got 427 x 640"):
        masked(640, 427)
    assert masked(640, 427, compat="official") == (640, 427)


# Names and files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value", [{"cat": 1, "hot dog": 58, "none": None}, [("cat", 1), ("hot dog", 58)], '{"cat": 1, "hot dog": 58}']
)
def test_categories_in_every_form(value):
    assert read_categories(value) == {"cat": 1, "hot dog": 58}


@pytest.mark.parametrize(
    "value", [{"cat": 0}, {"cat": -1}, {"cat": 1.5}, {"cat": True}, {"": 1}, {3: 1}, 7, "no json", ["ab", "c"], [1]]
)
def test_what_is_no_category_is_told(value):
    with pytest.raises(ValueError, match="categories: expected"):
        read_categories(value)


def test_the_official_reading_takes_label_0():
    assert read_categories({"cat": 0}, least=0) == {"cat": 0}


def test_names_stay_inside_their_folder(tmp_path):
    root = tmp_path / "data"
    (root / "image").mkdir(parents=True)
    outside = tmp_path / "secret.png"
    outside.write_bytes(b"")
    (root / "link.png").symlink_to(outside)
    (root / "linked").symlink_to(tmp_path)  # as folders of images often are
    assert inside(root, "linked/secret.png", "image").exists()
    assert inside(root, "image/a.png", "image") == root / "image/a.png"
    for name in ("../secret.png", str(outside), "image/../../secret.png", "link.png", "linked/../secret.png"):
        with pytest.raises(ValueError, match=r"image: expected a file inside .* allow_outside takes it"):
            inside(root, name, "image")
        assert inside(root, name, "image", allow_outside=True) == root / name
    for name in ("https://example.org/a.png", "data:image/png;base64,AAAA", "", "a\0b", 3, None):
        with pytest.raises(ValueError, match="image: expected the name of a file, got"):
            inside(root, name, "image", allow_outside=True)


def test_booleans_are_labels():
    assert check_labels(SMALL > 0).tolist() == [[0, 1, 1], [0, 1, 1]]


# Which items --------------------------------------------------------------------------------------------------------


class Numbers:
    name = "numbers"

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __iter__(self):
        return (Item(str(k)) for k in range(self.count))

    def fingerprint(self):
        return {"data": self.name}


@pytest.mark.parametrize("limit", [None, 1, 4, 99])
@pytest.mark.parametrize("parts", [1, 2, 3, 12])
def test_shards_are_all_of_the_limit_and_do_not_overlap(limit, parts):
    reader = Numbers(10)
    every = [index for index, _ in chosen(reader, limit)]
    assert every == list(range(min(10, limit or 10)))
    shards = [[index for index, _ in chosen(reader, limit, (part, parts))] for part in range(parts)]
    assert sorted(index for shard in shards for index in shard) == every
    assert [count_of(reader, limit, (part, parts)) for part in range(parts)] == [len(shard) for shard in shards]
    assert all(item.id == str(index) for index, item in chosen(reader, limit, (0, parts)))


def test_a_reader_without_a_length_is_gone_through_all_the_same():
    items = [Item("a"), Item("b"), Item("c")]
    assert count_of(iter(items)) is None
    assert [item.id for _, item in chosen(iter(items), 2)] == ["a", "b"]


@pytest.mark.parametrize("shard", [(2, 2), (-1, 2), (0, 0)])
def test_what_is_no_shard_is_told_at_once(shard):
    with pytest.raises(ValueError, match="shard: expected"):
        chosen(Numbers(3), None, shard)
    with pytest.raises(ValueError, match="limit: expected at least 1, got 0"):
        chosen(Numbers(3), 0)
