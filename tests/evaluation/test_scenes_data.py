"""The embedded model's scenes as a data set: what is said of them is so, and each item follows from seed and number."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from tam_fast.demo import scenes as sc
from tam_fast.evaluation.data import open_data
from tam_fast.evaluation.data.scenes import CATEGORIES, KINDS, Scenes, tags

NOUNS = {name: shape for shape in sc.SHAPES for name in (shape, sc.PLURALS[shape])}


def named(text):
    return {(colour, shape): count for count, colour, shape in sc.parse_caption(text)}


def words_of(text):
    return text.replace(",", " ,").replace(".", " .").replace("?", " ?").split()


@pytest.mark.parametrize("kind", KINDS)
def test_items_are_what_they_say(kind):
    items = list(open_data(f"demo://scenes?n=4&seed=5&kind={kind}"))
    assert len({item.id for item in items}) == 4
    for item in items:
        image, mask, regions = item.load_image(), item.load_mask((160, 160)), item.extra["regions"]()
        objects = item.extra["objects"]
        assert image.size == mask.shape == regions.shape == (160, 160)
        assert set(np.unique(mask)) == {0, *(one["label"] for one in objects)}
        assert np.array_equal(mask > 0, regions > 0)
        for number, one in enumerate(objects, start=1):
            inside = regions == number
            x0, y0, x1, y1 = one["box"]
            assert one["label"] == CATEGORIES[one["shape"]] == CATEGORIES[sc.PLURALS[one["shape"]]]
            assert (mask[inside] == one["label"]).all()
            assert inside.sum() == inside[y0:y1, x0:x1].sum() == one["pixels"] > 0
            assert inside[y0].any()
            assert inside[y1 - 1].any()
            assert inside[:, x0].any()
            assert inside[:, x1 - 1].any()
        kinds = [(one["colour"], one["shape"]) for one in objects]
        assert named(item.extra["caption"]) == {one: kinds.count(one) for one in kinds}


def test_colours_are_where_the_regions_are():
    for item in open_data("demo://scenes?n=5&seed=2&kind=flat"):
        pixels, regions = np.asarray(item.load_image()).astype(int), item.extra["regions"]()
        scene = open_data("demo://scenes?n=5&seed=2&kind=flat").scene(int(item.id.rpartition("-")[2]))
        for number, one in enumerate(scene.objects, start=1):
            found = np.median(pixels[regions == number], axis=0)
            assert np.abs(found - np.array(one.rgb)).max() <= 6


@pytest.mark.parametrize("kind", ["caption", "varied", "presence"])
def test_an_item_follows_from_seed_and_number(kind):
    few, many = (list(Scenes(n, 9, kind)) for n in (3, 6))
    for a, b in zip(few, many, strict=False):
        assert (a.id, a.prompt, a.references) == (b.id, b.prompt, b.references)
        assert a.extra["hallucinated"] == b.extra["hallucinated"]
        assert a.extra["counterfactual"].after == b.extra["counterfactual"].after
        assert a.read_image()[1] == b.read_image()[1]
    other = next(iter(Scenes(1, 10, kind)))
    assert other.read_image()[1] != few[0].read_image()[1]
    assert Scenes(3, 9, kind).fingerprint() == Scenes(6, 9, kind).fingerprint() != Scenes(3, 10, kind).fingerprint()


def test_a_scene_of_captions_is_that_of_its_seed():
    item = list(open_data("demo://scenes?n=3&seed=7"))[2]
    scene = sc.make_scene(np.random.default_rng([7, 2]))
    assert item.references == (sc.caption(scene),)
    assert np.array_equal(np.asarray(item.load_image()), sc.render(scene))
    assert item.prompt == sc.DESCRIBE


def test_one_word_of_a_hallucinated_answer_is_wrong():
    for item in open_data("demo://scenes?n=15&seed=3&kind=varied"):
        shapes = {one["shape"] for one in item.extra["objects"]}
        colours = {one["colour"] for one in item.extra["objects"]}
        truth = named(item.extra["caption"])
        for wrong in item.extra["hallucinated"]:
            said, true = words_of(wrong.text), words_of(wrong.true)
            apart = [(a, b) for a, b in zip(said, true, strict=True) if a != b and {a, b} != {"a", "an"}]
            assert apart == [(wrong.word, wrong.instead)]
            ((colour, shape), count) = next(iter(named(wrong.true).items()))
            assert truth[colour, shape] == count == len(wrong.objects)
            assert all(item.extra["objects"][k]["shape"] == shape for k in wrong.objects)
            there = {NOUNS.get(wrong.word)} & shapes if wrong.kind == "shape" else {wrong.word} & colours
            assert not there
        assert [wrong.kind for wrong in item.extra["hallucinated"]] == ["shape", "colour"]


def test_a_counterfactual_differs_in_one_object():
    for item in open_data("demo://scenes?n=8&seed=3"):
        other, objects = item.extra["counterfactual"], item.extra["objects"]
        assert other.before == (objects[other.index]["colour"], objects[other.index]["shape"])
        assert sum(a != b for a, b in zip(other.before, other.after, strict=True)) == 1
        kinds = [(one["colour"], one["shape"]) for one in objects]
        assert other.after not in kinds
        kinds[other.index] = other.after
        assert named(other.caption) == {one: kinds.count(one) for one in kinds}
        changed = np.abs(np.asarray(other.load_image()).astype(int) - np.asarray(item.load_image())).max(axis=2) > 60
        x0, y0, x1, y1 = objects[other.index]["box"]
        outside = changed.copy()
        outside[max(y0 - 8, 0) : y1 + 8, max(x0 - 8, 0) : x1 + 8] = False
        assert changed.any()
        assert not outside.any()
        assert set(np.unique(other.load_mask())) == {0, *(CATEGORIES[shape] for _, shape in kinds)}


def test_a_counterfactual_is_of_a_kind_that_the_scene_has_not():
    for item in open_data("demo://scenes?n=40&seed=11&kind=varied"):
        kinds = [(one["colour"], one["shape"]) for one in item.extra["objects"]]
        assert item.extra["counterfactual"].after not in kinds


@pytest.mark.parametrize("kind", ["presence", "relation"])
def test_questions_of_yes_or_no_have_their_label(kind):
    items = list(open_data(f"demo://scenes?n=24&seed=1&kind={kind}"))
    for item in items:
        assert item.extra["answer"].lower().startswith(item.extra["label"] + ",")
        assert item.prompt.endswith("?")
    assert 5 <= sum(item.extra["label"] == "yes" for item in items) <= 19


def test_questions_are_about_objects_of_the_scene():
    for item in open_data("demo://scenes?n=10&seed=1&kind=shape"):
        (about,) = {item.extra["objects"][k]["shape"] for k in item.extra["about"]}
        assert about in item.extra["answer"]


def test_every_word_of_the_scenes_has_its_tag():
    text = "The image shows two red circles, an orange star and a moon."
    found = tags(words_of(text))
    assert found == ["DT", "NN", "VBZ", "CD", "JJ", "NNS", ",", "DT", "JJ", "NN", "CC", "DT", "NN", "."]
    assert tags(["Circle,", " cross.", "Yes", "There"]) == ["NN", "NN", "UH", "EX"]
    of_chats = {"helpful", "assistant", "system", "user"}
    assert [word for word in sc.scene_words() if tags([word]) is None and word not in of_chats] == []
    assert tags(["a", "photograph"]) is None
    for kind in KINDS:
        reader = open_data(f"demo://scenes?n=3&kind={kind}")
        assert all(reader.tags(words_of(item.prompt + " " + item.references[0])) for item in reader)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("demo://scene", "data: expected demo://scenes, got demo://scene"),
        ("demo://scenes?m=3", "data: expected n, seed and kind behind demo://scenes, got 'm'"),
        ("demo://scenes?n=3&n=4", "data: expected n once behind demo://scenes, got it twice"),
        ("demo://scenes?n=three", "n: expected a whole number, got 'three'"),
        ("demo://scenes?seed=-1", "seed: expected a whole number, got '-1'"),
        ("demo://scenes?n=0", "n: expected at least 1, got 0"),
        ("demo://scenes?kind=film", "kind: expected one of caption, flat, .*got 'film'"),
    ],
)
def test_what_is_no_data_set_of_scenes_is_told(text, message):
    with pytest.raises(ValueError, match=message):
        open_data(text)


def test_prompts_of_scenes():
    assert next(iter(open_data("demo://scenes?n=1", prompt="one-sentence"))).prompt.startswith("Write a one-sentence")
    with pytest.raises(ValueError, match="prompt: expected none with kind=colour"):
        open_data("demo://scenes?kind=colour", prompt="What?")
    assert open_data("demo://scenes").fingerprint() == open_data("demo://scenes?n=300&seed=7").fingerprint()


def test_memory_is_flat_over_many_items():
    def peak(count):
        tracemalloc.start()
        for item in Scenes(count, 1):
            item.load_mask()
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(1)
    assert peak(20) < 1.3 * peak(2)
