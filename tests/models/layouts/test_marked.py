"""Layouts of the group `marked`, proven by painting; and explanations of its families against the oracle."""

from __future__ import annotations

import pytest
import torch
from conftest_models import PROMPT, picture
from layout_cases import build_or_skip, check_answers, check_geometry, families
from PIL import Image

import tam_fast
from tam_fast.models.inputs import prepare_inputs


@families("marked")
def test_every_cell_sees_its_own_pixels(name):
    check_geometry(name)


@families("marked")
def test_explanations_are_those_of_the_oracle(name):
    check_answers(name)


@pytest.mark.long
def test_unlimited_ocr_forgets_a_given_answer_as_its_own():
    # Its decoder attends to the whole prompt and to the answer's last tokens, here 4.
    built = build_or_skip("unlimited_ocr")
    explainer = tam_fast.Explainer(built.model, built.processor)
    e = explainer.explain([picture(40, 58)], PROMPT, max_new_tokens=12, min_new_tokens=12)
    given = explainer.explain([picture(40, 58)], PROMPT, answer=e.token_ids)
    assert (e.source, given.source) == ("generated", "given")
    torch.testing.assert_close(given.maps.maps, e.maps.maps, atol=1e-5, rtol=0)


def _prepared(name, sizes):
    built = build_or_skip(name)
    return built, prepare_inputs(built.model, built.processor, [picture(*size) for size in sizes], PROMPT)


def _boxes(name, sizes):
    """Boxes of the tiles' canvas and of the whole, from the grids of one white picture; and the processor's pixels."""
    built = build_or_skip(name)
    for size in sizes:
        prompt = prepare_inputs(built.model, built.processor, [Image.new("RGB", size, (255, 255, 255))], PROMPT)
        yield size, prompt.layout.grids, prompt.inputs


def _content(pixels):
    """Columns and rows (first, last + 1) of a picture (3, H, W) that are not background."""
    pixels = pixels[0]
    white = pixels >= (pixels.min() + pixels.max()) / 2
    spans = []
    for axis in (0, 1):
        lit = torch.nonzero(white.any(axis)).flatten()
        spans.append((int(lit[0]), int(lit[-1]) + 1))
    return spans


def _sweep(count=150):
    generator = torch.Generator().manual_seed(0)
    return [tuple(size) for size in torch.randint(8, 400, (count, 2), generator=generator).tolist()]


@pytest.mark.long
def test_llama4_pads_as_its_processor():
    sizes = [*_sweep(), (299, 300), (48, 48), (49, 48), (96, 96), (97, 96), (288, 48), (8, 399)]
    for size, grids, inputs in _boxes("llama4", sizes):
        tiles = [grid for grid in grids if grid.kind != "overview"]
        side = inputs["pixel_values"].shape[-1]
        columns = len({grid.box[0] for grid in tiles})
        rows = len({grid.box[1] for grid in tiles})
        pixels = inputs["pixel_values"][: rows * columns].float().reshape(rows, columns, 3, side, side)
        canvas = pixels.permute(2, 0, 3, 1, 4).reshape(3, rows * side, columns * side)
        (left, right), (top, bottom) = _content(canvas)
        assert (left, top) == (0, 0)
        # The processor divides in float32, where a whole pixel may become one less.
        for axis, (length, content) in enumerate(((columns * side, right), (rows * side, bottom))):
            said = length / max(grid.box[2 + axis] for grid in tiles)
            assert abs(said - content) < 1.01, (size, axis, said, content)


@pytest.mark.long
def test_unlimited_ocr_pads_as_its_processor():
    for size, grids, inputs in _boxes("unlimited_ocr", _sweep()):
        box, side = grids[-1].box, inputs["pixel_values"].shape[-1]
        for axis, (first, last) in enumerate(_content(inputs["pixel_values"][0])):
            scale = side / (box[2 + axis] - box[axis])
            assert (round(-box[axis] * scale), round((1 - box[axis]) * scale)) == (first, last), size


@pytest.mark.long
def test_step3_pads_strips_as_its_processor():
    sizes = [(width, long) for width in (12, 24, 25, 31, 32, 33) for long in (95, 97, 101, 125, 129, 140, 300)]
    for size, grids, inputs in _boxes("step3p7", sizes + [size[::-1] for size in sizes]):
        box = grids[-1].box
        side = inputs["pixel_values"].shape[-1]
        for axis, (first, last) in enumerate(_content(inputs["pixel_values"][0])):
            assert first == 0
            assert abs(side / box[2 + axis] - last) < 1.01, size


@pytest.mark.parametrize("name", ["llama4", "step3p7", "unlimited_ocr"])
@pytest.mark.long
def test_needed_sizes_that_are_missing_are_named(name):
    built, prompt = _prepared(name, [(100, 60)])
    with pytest.raises(ValueError, match="image_sizes: expected"):
        tam_fast.layout_of(built.model, built.processor, prompt.inputs)
    with pytest.raises(ValueError, match="image_sizes: expected"):
        tam_fast.layout_of(built.model, built.processor, prompt.inputs, [(100, 60)] * 2)


@pytest.mark.parametrize(
    "name",
    [
        "idefics3",
        *(pytest.param(name, marks=pytest.mark.long) for name in ("lfm2_vl", "llama4", "step3p7", "unlimited_ocr")),
    ],
)
def test_visual_tokens_too_few_or_in_the_wrong_place_are_refused(name):
    built, prompt = _prepared(name, [(170, 60)])
    ids = prompt.input_ids
    places = prompt.layout.visual_positions.sort().values
    other = built.processor.tokenizer.convert_tokens_to_ids("a")
    for place in (int(places[0]), int(places[len(places) // 2]), int(places[-1])):
        changed = ids.clone()
        changed[place] = other
        with pytest.raises(tam_fast.ModelNotSupportedError, match="expected"):
            tam_fast.layout_of(built.model, built.processor, {**prompt.inputs, "input_ids": changed[None]}, [(170, 60)])


def test_tiles_out_of_order_are_refused():
    built, prompt = _prepared("idefics3", [(170, 60)])
    first, second = (built.processor.tokenizer.convert_tokens_to_ids(f"<row_1_col_{column}>") for column in (1, 2))
    ids = prompt.input_ids.clone()
    ids[prompt.input_ids == first], ids[prompt.input_ids == second] = second, first
    with pytest.raises(tam_fast.ModelNotSupportedError, match="row by row"):
        tam_fast.layout_of(built.model, built.processor, {**prompt.inputs, "input_ids": ids[None]})


@pytest.mark.long
@pytest.mark.parametrize("name", ["lfm2_vl", "lfm2_vl.alone"])
def test_lfm2_without_names_goes_by_the_sizes(name):
    built = build_or_skip(name)

    def layout(sizes, **options):
        images = [picture(*size) for size in sizes]
        text = ["".join(["<image>"] * len(images)) + PROMPT]
        inputs = built.processor(images=images, text=text, return_tensors="pt", **options)
        return tam_fast.layout_of(built.model, built.processor, inputs, sizes).grids

    def known(grid):
        return grid.shape, grid.kind, grid.source, grid.box

    # The processor fails on strips.
    sizes = [(57, 41), (170, 90), (41, 57), *(size for size in _sweep(80) if max(size) < 3 * min(size))]
    for first, second in zip(sizes[::2], sizes[1::2], strict=False):
        named, unnamed = (layout([first, second], use_image_special_tokens=named) for named in (True, False))
        assert [known(grid) for grid in named] == [known(grid) for grid in unnamed], (first, second)
    inputs = built.processor(images=[picture()], text=["<image>"], return_tensors="pt", use_image_special_tokens=False)
    with pytest.raises(ValueError, match="image_sizes: expected"):
        tam_fast.layout_of(built.model, built.processor, inputs)


def test_names_that_the_vocabulary_lacks_are_read():
    built, prompt = _prepared("idefics3", [(29, 31)])
    assert "<row_4_col_4>" not in built.processor.tokenizer.get_vocab()
    assert [len(prompt.layout.grids), prompt.layout.grids[15].box] == [17, (0.75, 0.75, 1.0, 1.0)]
