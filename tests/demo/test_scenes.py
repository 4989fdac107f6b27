"""Scenes: what they promise, their masks, their captions."""

from __future__ import annotations

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
