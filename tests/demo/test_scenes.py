"""Scenes: what they promise, their masks, their captions."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tam_fast.demo import scenes as sc


@pytest.mark.parametrize("seed", [0, 1, 99])
def test_scene_follows_from_its_seed(seed):
    first, second = sc.make_scene(seed), sc.make_scene(seed)
    assert first == second
    np.testing.assert_array_equal(sc.render(first, 96), sc.render(second, 96))
    assert first != sc.make_scene(seed + 1)


def test_scenes_have_the_promised_objects():
    grid = 20
    for seed in range(60):
        scene = sc.make_scene(seed)
        assert 1 <= len(scene.objects) <= 4
        assert sum(group.count for group in scene.groups) == len(scene.objects)
        for item in scene.objects:
            assert item.colour in sc.COLOURS
            assert item.shape in sc.SHAPES
            assert 2 * item.radius * grid >= 5
        lefts = [scene.objects[group.indices[0]].x for group in scene.groups]
        assert lefts == sorted(lefts)


def test_masks_match_the_drawn_pixels():
    for seed in range(12):
        scene = sc.make_scene(seed)
        picture = sc.render(scene, 160).astype(np.float32)
        masks = sc.masks(scene, 160)
        assert masks.shape == (len(scene.objects), 160, 160)
        assert masks.sum(axis=0).max() <= 1
        for item, mask in zip(scene.objects, masks, strict=True):
            assert mask.sum() > 100
            # The light varies by about a tenth; the hue must be the object's own all over its mask.
            inside = picture[mask]
            distance = np.abs(inside - np.array(item.rgb)).mean(axis=1)
            assert np.median(distance) < 20
            assert (distance < 60).mean() > 0.97


def test_coverage_is_the_masks_share_of_each_cell():
    for seed in range(6):
        scene = sc.make_scene(seed)
        cells = sc.masks(scene, 160).reshape(-1, 20, 8, 20, 8).mean(axis=(2, 4))
        # Drawn with coarser pixels: cells at an outline may differ, most cells may not.
        difference = np.abs(sc.coverage(scene, 20) - cells)
        assert difference.mean() < 0.01
        assert (difference > 0.2).mean() < 0.02


def test_captions_are_parsed_back():
    for seed in range(50):
        scene = sc.make_scene(seed)
        named = sc.parse_caption(sc.caption(scene))
        assert named == [(group.count, group.colour, group.shape) for group in scene.groups]


@pytest.mark.parametrize("make", [sc.make_varied, sc.make_flat, sc.make_pair, sc.make_film])
def test_whatever_is_drawn_follows_from_its_seed(make):
    assert make(3) == make(3) == make(np.random.default_rng(3))
    assert make(3) != make(4)


def test_varied_scenes_have_the_promised_objects():
    totals, surfaces, widths = set(), set(), []
    for seed in range(150):
        scene = sc.make_varied(seed)
        totals.add(len(scene.objects))
        surfaces.add(scene.surface)
        widths += [2 * 20 * item.radius for item in scene.objects]
        for index, item in enumerate(scene.objects):
            alone = sc.masks(sc.Scene((item,), scene.background))[0]
            assert sc.masks(scene)[index].sum() >= 0.55 * alone.sum()
    assert totals == {1, 2, 3, 4, 5, 6}
    assert surfaces == set(sc.SURFACES)
    assert 4.0 <= min(widths) < 4.6
    assert 11.0 < max(widths) <= 12.0
    assert all(sc.make_flat(seed).surface != "textured" for seed in range(20))


@pytest.mark.parametrize("extent", [(1.0, 1.0), (0.8, 1.2), (0.6, 0.6)])
def test_flat_masks_are_the_drawn_pixels(extent):
    for seed in range(8):
        scene = sc.make_varied(seed, ("plain",), extent, most=2)
        picture, masks = sc.render(scene), sc.masks(scene)
        assert picture.shape[:2] == masks.shape[1:] == (round(160 * extent[0]), round(160 * extent[1]))
        ground = picture[~masks.any(axis=0)]
        for item, mask in zip(scene.objects, masks, strict=True):
            exact = (picture == np.array(item.rgb)).all(axis=2)
            # All but the outline has the object's colour, and nothing beside it has.
            assert exact[mask].mean() > 0.8
            assert not exact[~masks.any(axis=0)].any()
        colours, counts = np.unique(ground, axis=0, return_counts=True)
        assert counts.max() / counts.sum() > 0.9
        assert np.abs(colours[counts.argmax()].astype(int) - np.array(scene.objects[0].rgb)).max() >= 59


def test_an_unknown_surface_is_refused():
    with pytest.raises(ValueError, match=r"scene: expected a surface among .* got 'marble'"):
        sc.render(sc.Scene((), 0, "marble"))


def test_a_scene_of_another_extent_keeps_the_scale():
    item = sc.make_scene(3).objects[0]
    middle = dataclasses.replace(item, x=0.4, y=0.4)
    areas = [sc.masks(sc.Scene((middle,), 0, "plain", extent)).sum() for extent in ((1.0, 1.0), (0.8, 1.2))]
    assert areas[0] == areas[1]
